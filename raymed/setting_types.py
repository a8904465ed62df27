"""The types of settings that several sections share, with their checks."""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from raymed.metrics.table import objective_metrics
from raymed.model.encoder_shapes import DEPTHS
from raymed.model.systems import SYSTEMS

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
ReportSections = Literal["findings", "impression", "both"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _workers(given: Any) -> Any:
    counts = list(given) if isinstance(given, list | tuple) else [given]
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    if not whole or not (
        (counts == [given] and given >= 0) or (len(counts) == 2 and 1 <= counts[0] < counts[1])
    ):
        raise ValueError(
            "must be a whole number, 0 or more, or a minimum and a maximum such as [1, 4]"
        )
    return given


Workers = Annotated[int | tuple[int, int], BeforeValidator(_workers)]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"must be distinct, but {', '.join(map(str, twice))} is repeated")
    return values


def _seeds(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values:
        raise ValueError("must have at least one")
    return _distinct(values)


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            "must consist of letters (a to z), digits, dots, hyphens and underscores, and begin "
            "with a letter or digit; it names a folder in run.folder"
        )
    return name


def _one_of(name: str, choices: Sequence[str]) -> str:
    if name not in choices:
        close = difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be one of {', '.join(choices)}{meant}")
    return name


def _known_system(name: str) -> str:
    return _one_of(name, list(SYSTEMS))


def _known_encoder(name: str) -> str:
    return _one_of(name, list(DEPTHS))


def _known_objective(name: str) -> str:
    return _one_of(name, [metric.key for metric in objective_metrics()])


def _no_switch(given: Any) -> Any:
    if isinstance(given, bool):
        word = "all" if given else "none"
        raise ValueError(
            f"must be all, hidden or none: write {word} for {str(given).lower()}, or hidden to "
            "train the hidden layers alone"
        )
    return given


def _without_settings(systems: Any) -> Any:
    """A list of systems as a mapping of each to no settings."""
    if isinstance(systems, list | tuple) and all(isinstance(name, str) for name in systems):
        return {name: {} for name in systems}
    return systems


Distinct = AfterValidator(_distinct)
RunName = Annotated[str, AfterValidator(_run_name)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(_seeds)]
SystemName = Annotated[str, AfterValidator(_known_system)]
SystemSettings = Annotated[dict[SystemName, dict[str, Any]], BeforeValidator(_without_settings)]
EncoderName = Annotated[str, AfterValidator(_known_encoder)]
TrainEncoder = Annotated[Literal["all", "hidden", "none"], BeforeValidator(_no_switch)]
Objective = Annotated[str, AfterValidator(_known_objective)]
