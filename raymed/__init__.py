"""Train models that look at a medical image and write its report, on Ray."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("raymed")
except PackageNotFoundError:
    # A job on a cluster runs from its working directory, where raymed is not installed.
    import tomllib

    _project = Path(__file__).parents[1] / "pyproject.toml"
    __version__ = tomllib.loads(_project.read_text())["project"]["version"]
