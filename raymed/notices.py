"""What every page, figure and prediction says about its use."""

NOT_FOR_CLINICAL_USE = "Research software. Not a medical device; not for clinical use."
