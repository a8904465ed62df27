import os
import socket

import pytest
import ray as ray_

from raymed.errors import UsageError
from raymed.launch.cluster import connected


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


@pytest.mark.parametrize("error", [ConnectionError("no cluster"), ValueError("bad address")])
def test_what_ray_refuses_is_said_in_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray_, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_, "init", init)
    with (
        pytest.raises(UsageError, match=f"answers at nonsense .{error}.; give host:port"),
        connected("nonsense"),
    ):
        pytest.fail("connected to nothing")


@pytest.mark.ray
def test_a_ray_that_is_there_is_used_and_left_running(ray: None) -> None:  # noqa: ARG001
    before = os.environ["RAY_ADDRESS"], ray_.get_runtime_context().get_node_id()
    with connected("127.0.0.1:1"):
        assert ray_.get_runtime_context().get_node_id() == before[1]
    assert (os.environ["RAY_ADDRESS"], ray_.get_runtime_context().get_node_id()) == before
