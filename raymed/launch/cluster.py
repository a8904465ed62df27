"""Connecting to a Ray cluster, or starting Ray on this machine."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from raymed.errors import UsageError
from raymed.launch.signals import Terminated, in_main_thread, restored_handlers

PATIENCE_S = 10.0
"""How long to wait for a cluster's answer, in seconds."""
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Greatest length of a Unix socket's path, in bytes."""
SOCKET = "ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest path of a Ray socket, relative to Ray's temporary folder."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray inside the block; a Ray that was started for it is shut down after it.

    A process that is connected to a Ray of its own uses that one, which stays as it is.

    Args:
        address: Address of a running cluster; None means RAY_ADDRESS or, without that, a Ray
            started on this machine.

    Raises:
        UsageError: Nothing answers at the address, it is a Ray Client address, or Ray cannot be
            started on this machine.
        Terminated: SIGTERM was received while Ray was starting.
    """
    # Train V2 polls its workers at this interval; its default costs seconds per epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Train's view of free resources may be 20 s old: after the loss of a node, an elastic group
    # first requests too much, and by default waits a minute for it.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    # Most of our processes wait and reserve no CPU, and Ray warns if there are many more processes
    # than CPUs.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    with quiet_ray():
        if ray.is_initialized():
            with _ray_address(ray.get_runtime_context().gcs_address):
                yield
            return
        target = address or os.environ.get("RAY_ADDRESS") or "local"
        check_address(target)
        if target == "local":
            check_socket_paths()
        with restored_handlers(signal.SIGTERM), _ray_address(_start(target)):
            try:
                yield
            finally:
                ray.shutdown()


def _start(target: str) -> str:
    """Connect to a cluster, or start Ray on this machine; returns its address."""
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Without an explicit request for the dashboard, Ray tolerates one that is late or broken.
        context = ray.init(address=target, log_to_driver=False, logging_level=logging.WARNING)
    except SystemExit:
        raise Terminated from None
    except Exception as error:
        # Ray's processes fail to start in many ways, as on a full disk or an overloaded machine.
        if target == "local":
            raise UsageError(
                f"Ray cannot be started on this machine ({_first_line(error)}): see `raymed "
                f"doctor`, and Ray's logs in {temporary_folder()[1]}/ray/session_latest/logs"
            ) from error
        if isinstance(error, ConnectionError | ValueError):
            raise _unreachable(target, error) from None
        raise
    # Ray has installed a handler of its own, which raises SystemExit.
    if in_main_thread() and callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)
    found: str = context.address_info["gcs_address"]
    return found


@contextmanager
def _ray_address(address: str) -> Iterator[None]:
    """Set RAY_ADDRESS inside the block.

    With several Ray instances on a machine, code without an explicit address picks a wrong one.
    """
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Silence Ray's notices inside the block: they would mix with our own lines.

    Its warnings stay, but for these.
    """
    levels = {
        **dict.fromkeys(("ray", "ray.train", "ray.tune"), logging.WARNING),
        # It warns that a Ray started locally requires a token, which is as it should be.
        "ray._private.authentication": logging.ERROR,
        # It complains at length about a late dashboard, which is not needed.
        "ray._private.services": logging.CRITICAL,
    }
    if not in_main_thread():
        # It warns that it cannot install a signal handler in a thread.
        levels["ray._private.worker"] = logging.ERROR
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def check_address(address: str) -> None:
    """Check that something listens at an address with a port; `local` and `auto` have none.

    Ray itself would silently retry for many minutes.

    Raises:
        UsageError: Nothing does, or it is a Ray Client address.
    """
    if "://" in address:
        # Ray Train and Tune do not run through Ray Client.
        raise _unreachable(address, ValueError("an address with :// cannot be used"))
    if ":" not in address:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from None


def temporary_folder() -> tuple[str, str]:
    """The environment variable that sets the folder of a local Ray's files, and that folder."""
    # On macOS Ray ignores TMPDIR, whose paths are too long there.
    for variable in ("RAY_TMPDIR", "TMPDIR")[: 1 if sys.platform == "darwin" else 2]:
        if variable in os.environ:
            return variable, os.environ[variable]
    return "", "/tmp"


def check_socket_paths() -> None:
    """Check that the paths of a local Ray's Unix sockets are not too long.

    Raises:
        UsageError: The path of its temporary folder is too long.
    """
    variable, folder = temporary_folder()
    most = LONGEST_SOCKET - len("/" + SOCKET.format(pid=os.getpid()))
    if len(os.fsencode(os.path.abspath(folder))) > most:
        raise UsageError(
            f"{variable}: Ray's sockets lie below it, and {folder} is longer than the {most} bytes "
            "that leave room for them: set RAY_TMPDIR to a short folder, such as /tmp"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"launch.address: no Ray cluster answers at {address} ({error}); give host:port of one "
        "that `ray up` or `ray start --head` started, or leave launch.address and RAY_ADDRESS empty"
    )
