"""Train models that look at a medical image and write its report, on Ray."""
