"""What is loaded at the start of a command and of a worker."""

import subprocess
import sys

import pytest

DRAWING = ("matplotlib", "jinja2", "plotly", "scipy")


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        # What the workers of a run, and those of a sweep or a table, unpickle their function from.
        ("raymed.launch.trainer", DRAWING),
        ("raymed.launch.groups", DRAWING),
        ("raymed", ("torch", "ray", "numpy", "pydantic", "rich", *DRAWING)),
        ("raymed.cli, raymed.config", ("torch", "ray", "numpy", *DRAWING)),
    ],
)
def test_what_takes_time_is_loaded_when_it_is_used(modules: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(absent) & set(done.stdout.split())
