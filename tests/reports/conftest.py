"""Fixtures of figures and pages."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


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

    The page's policy, which forbids scripts and all addresses, is left out: what the page then
    does not ask for, it does not ask for of itself.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium-headless-shell)")

    def run(page: Path, expression: str, *options: str) -> Any:
        html, policies = re.subn(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
        assert policies == 1
        script = (
            "<script>addEventListener('load', async () => { const found = document.createElement("
            f"'pre'); found.id = 'found'; found.textContent = JSON.stringify(await ({expression}));"
            " document.body.append(found) })</script>"
        )
        copy = tmp_path / "copy.html"
        copy.write_text(html.replace("</body>", f"{script}</body>"), encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--virtual-time-budget=10000", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*command, *options, copy.as_uri()],
            check=True,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )
        found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr
        return json.loads(unescape(found[1]))

    return run
