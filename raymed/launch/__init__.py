"""Ray Train and Ray Data around raymed's own parts; must be imported before Ray is."""

import os

# Under `uv run`, Ray would upload the working directory with all its contents, and fail above
# 500 MB. The workers share the driver's environment. Ray reads this variable when it is imported.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
