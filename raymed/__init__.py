"""Train models that look at a medical image and write its report, on Ray.

    import raymed

    raymed.prepare("phantom", out="data/phantom", studies=200, image_size=64)
    run = raymed.train("tune_configs/demo.yaml", {"data.path": "data/phantom"})
    raymed.evaluate(run).dataframe()
    raymed.load(run).predict("film.png").draw()

``docs/library.md`` has an example of each function. What takes long to load, such as torch and Ray,
is loaded when a name is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymed.config import Config
    from raymed.errors import UsageError
    from raymed.library.commands import evaluate, prepare, train, tune
    from raymed.library.model import Model, load
    from raymed.library.trained_run import TrainedRun
    from raymed.prediction import Prediction
    from raymed.scores import Evaluation
    from raymed.tuning.sweep import Sweep

__all__ = [
    "Config",
    "Evaluation",
    "Model",
    "Prediction",
    "Sweep",
    "TrainedRun",
    "UsageError",
    "__version__",
    "evaluate",
    "load",
    "prepare",
    "train",
    "tune",
]

_MODULES = {
    "Config": "raymed.config",
    "Evaluation": "raymed.scores",
    "Model": "raymed.library.model",
    "Prediction": "raymed.prediction",
    "Sweep": "raymed.tuning.sweep",
    "TrainedRun": "raymed.library.trained_run",
    "UsageError": "raymed.errors",
    "evaluate": "raymed.library.commands",
    "load": "raymed.library.model",
    "prepare": "raymed.library.commands",
    "train": "raymed.library.commands",
    "tune": "raymed.library.commands",
}
"""The module that defines each public name."""

try:
    __version__ = version("raymed")
except PackageNotFoundError:
    # A job on a cluster runs from its working directory, where raymed is not installed.
    import tomllib

    _project = Path(__file__).parents[1] / "pyproject.toml"
    __version__ = tomllib.loads(_project.read_text())["project"]["version"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
