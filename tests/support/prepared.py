"""Preparing small datasets without printing."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare
from raymed.data.r2gen_text import R2GenRules
from raymed.data.schema import DatasetInfo
from raymed.data.sources.phantom import draw
from raymed.data.work import Executor, in_process
from raymed.sections import PrepareConfig


def prepare_examples(
    examples: Iterable[Example | Rejected],
    out: str | Path,
    *,
    source: str = "x",
    console: Console | None = None,
    executor: Executor = in_process,
    rules: R2GenRules | None = None,
    **settings: Any,
) -> DatasetInfo:
    """Prepare examples with settings of `PrepareConfig`, without printing unless to ``console``."""
    config = PrepareConfig.model_validate({"out": str(out), **settings})
    console = console or Console(quiet=True)
    return prepare(examples, source, config, console, executor=executor, rules=rules)


def prepare_phantom(
    out: str | Path, studies: int, seed: int = 0, image_size: int = 32, **settings: Any
) -> DatasetInfo:
    """Prepare phantom studies drawn with a seed; the split always has seed 0."""
    films = draw(studies, seed, image_size)
    return prepare_examples(films, out, source="phantom", image_size=image_size, **settings)
