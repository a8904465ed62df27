"""Ray Tune and Optuna around sweeps of runs."""

import raymed.launch  # noqa: F401 - what is to be so before Ray is imported
