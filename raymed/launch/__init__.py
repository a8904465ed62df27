"""Ray Train and Ray Data around raymed's own parts. To be imported before Ray is."""

import os

# Started by `uv run`, Ray would upload the working directory, whatever lies in it, and refuse more
# than 500 MB. The workers have the driver's own environment; Ray reads this when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
