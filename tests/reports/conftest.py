"""Fixtures of figures and pages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.support.browser import load, without_policy


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    real = Figure.savefig

    def save(self: Figure, *arguments: Any, **others: Any) -> None:
        figures.append(self)
        real(self, *arguments, **others)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Any]:
    """Opens a page in a headless Chromium and gives an expression's value once it is loaded.

    The page's policy, which forbids scripts and all addresses, is left out.
    """

    def run(page: Path, expression: str, *options: str) -> Any:
        free = without_policy(page, tmp_path / "free.html")
        return load(free, expression, tmp_path, *options).value

    return run
