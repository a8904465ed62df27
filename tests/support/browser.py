"""Pages as a headless Chromium has them."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Loaded(NamedTuple):
    """A page that was loaded: an expression's value, and what was said on the console."""

    value: Any
    console: list[str]


def load(page: Path, expression: str, folder: Path, *options: str) -> Loaded:
    """Open a page and evaluate an expression once it is loaded; skip where there is no Chromium.

    Args:
        page: the HTML file; its policy must let scripts of its own run.
        expression: JavaScript; a promise is waited for.
        folder: takes a copy of the page with the expression in it, and the browser's profile.
        options: of the browser.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium-headless-shell)")
    # The browser's clock is a virtual one, that jumps to its end while other threads still decode
    # pictures; so each second of it is made to cost a moment of real work.
    script = (
        "<script>addEventListener('load', async () => { let over = false; const wait = () => {"
        " for (let i = 0, x = 0; i < 2e7; i++) x += i; if (!over) setTimeout(wait, 1000) }; wait();"
        " const found = document.createElement('pre'); found.id = 'found';"
        f" found.textContent = JSON.stringify(await ({expression})); over = true;"
        " document.body.append(found) })</script>"
    )
    copy = folder / "copy.html"
    # The page's own scripts may hold the end of a body as text.
    before, end, after = page.read_text(encoding="utf-8").rpartition("</body>")
    copy.write_text(f"{before}{script}{end}{after}", encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=1000000", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, "--enable-logging=stderr", *options, copy.as_uri()],
        check=True,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Loaded(json.loads(unescape(found[1])), said)


def without_policy(page: Path, copy: Path) -> Path:
    """A copy of a page without its policy: what it then doesn't ask for, it doesn't of itself."""
    html, policies = re.subn(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    assert policies == 1
    copy.write_text(html, encoding="utf-8")
    return copy
