"""The types of settings that several sections share, with their checks."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
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


Distinct = AfterValidator(_distinct)
RunName = Annotated[str, AfterValidator(_run_name)]
Seeds = Annotated[tuple[Seed, ...], AfterValidator(_seeds)]
