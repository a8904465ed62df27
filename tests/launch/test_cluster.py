import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import pytest
import ray as ray_
from ray._private.utils import validate_socket_filepath

from raymed.errors import UsageError
from raymed.launch.cluster import check_socket_paths, connected


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before the tests' own Ray was started; nothing may start another."""

    def start(**_: object) -> None:
        raise AssertionError("Ray was asked to start or to connect")

    monkeypatch.setattr(ray_, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_, "init", start)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:port"])
@pytest.mark.parametrize("key", ["launch.address", "RAY_ADDRESS"])
@pytest.mark.usefixtures("no_ray")
def test_where_nothing_answers_is_said_without_ray(
    address: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(closed_port())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if key == "RAY_ADDRESS":
        monkeypatch.setenv(key, address)
    # Ray itself would ask for minutes; it is not asked.
    with (
        pytest.raises(UsageError, match=f"address: no Ray cluster answers at {address}"),
        connected(address if key == "launch.address" else None),
    ):
        pytest.fail("connected to nothing")


def let_ray_fail(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Replace Ray's start by one that fails."""

    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray_, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_, "init", init)


@pytest.mark.parametrize("error", [ConnectionError("no cluster"), ValueError("bad address")])
def test_what_ray_refuses_is_said_in_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_ray_fail(monkeypatch, error)
    with (
        pytest.raises(UsageError, match=f"answers at nonsense .{error}.; give host:port"),
        connected("nonsense"),
    ):
        pytest.fail("connected to nothing")


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.usefixtures("no_ray", "no_cluster")
def test_a_temporary_folder_without_room_for_sockets_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray takes its own variable, where both are set.
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv(variable, "/tmp/" + "é" * 30)
    words = f"^{variable}: Ray's sockets lie below it, and /tmp/é+ is longer than the [0-9]+ bytes"
    with pytest.raises(UsageError, match=words), connected(None):
        pytest.fail("started where it cannot")


def test_the_longest_folder_that_is_taken_is_the_longest_that_ray_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = 0
    for length in range(10, 90):
        folder = "/" + "a" * (length - 1)
        monkeypatch.setenv("TMPDIR", folder)
        try:
            check_socket_paths()
        except UsageError:
            break
        longest = length
    name = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    for more in (0, 1):
        sockets = tmp_path / "ray" / name / "sockets"
        path = f"/{'a' * (longest + more - 1)}{str(sockets / 'plasma_store')[len(str(tmp_path)) :]}"
        with nullcontext() if not more else pytest.raises(OSError, match="cannot exceed 107"):
            validate_socket_filepath(path)


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    "error", [Exception("The current node timed out\nduring startup"), OSError(28, "No space")]
)
def test_a_ray_that_cannot_be_started_is_said_in_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_ray_fail(monkeypatch, error)
    first = str(error).splitlines()[0].replace("[", ".")
    words = f"Ray cannot be started on this machine .{first}.: see `raymed doctor`.* in /tmp/ray/"
    with pytest.raises(UsageError, match=words), connected(None):
        pytest.fail("started")


START = """
import os, sys
from raymed.launch.cluster import connected
import logging
with connected(None):
    import ray
    print(ray.get(ray.remote(lambda: "a task ran").remote()))
    print("uploaded:", ray.get_runtime_context().runtime_env.get("working_dir"))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_with_a_late_dashboard_and_under_uv_run_tasks_run(tmp_path: Path) -> None:
    # Ray takes it for `uv run` by the parent's command line.
    (tmp_path / "run").write_text(
        f"import subprocess, sys\nsys.exit(subprocess.call([{sys.executable!r}, 'start.py']))\n"
    )
    (tmp_path / "start.py").write_text(START)
    (tmp_path / "pyproject.toml").write_text("")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(700 * 2**20)
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "TMPDIR")}
    env |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    env.pop("RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)
    done = subprocess.run(
        ["uv", "run", "raymed"],
        executable=sys.executable,
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "a task ran\nuploaded: None\n"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left_running(ray: None) -> None:  # noqa: ARG001
    before = os.environ["RAY_ADDRESS"], ray_.get_runtime_context().get_node_id()
    with connected("127.0.0.1:1"):
        assert ray_.get_runtime_context().get_node_id() == before[1]
    assert (os.environ["RAY_ADDRESS"], ray_.get_runtime_context().get_node_id()) == before
