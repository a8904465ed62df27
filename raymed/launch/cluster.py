"""Joining a Ray cluster, or starting a Ray of one's own, with an address everyone can use."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from raymed.errors import UsageError
from raymed.launch.signals import Terminated

PATIENCE_S = 10.0
"""How long a cluster may take to answer."""
LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path, at most, on Linux."""
SOCKET = "ray/session_2000-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest name of a socket of Ray's, below its temporary folder."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray inside the block; what was started here is shut down after it.

    Args:
        address: of a running cluster; None: RAY_ADDRESS, or else a Ray started on this machine.

    Raises:
        UsageError: nothing answers at the address, or it is one of Ray Client's; or no Ray can be
            started here.
        Terminated: SIGTERM came while Ray was being started.
    """
    # Train V2 polls its workers for reports at this interval; its default costs seconds an epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # What it takes for free may be 20 s old: where a node is gone, a group of elastic size asks for
    # too much at first, and its default is to wait a minute for it.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    # Most of our processes wait without a processor of their own, and Ray warns when there are
    # many more of them than processors.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    quiet()
    if ray.is_initialized():
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    check_address(target)
    if target == "local":
        check_socket_paths()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Not told to include its dashboard, Ray tries to, and goes on where that is late or broken.
        context = ray.init(address=target, log_to_driver=False, logging_level=logging.WARNING)
    except SystemExit:
        raise Terminated from None
    except Exception as error:
        # Its processes fail to start in many ways: on a full disk, or on a machine too busy.
        if target == "local":
            raise UsageError(
                f"Ray cannot be started on this machine ({_first_line(error)}): see `raymed "
                f"doctor`, and Ray's logs in {temporary_folder()[1]}/ray/session_latest/logs"
            ) from error
        if isinstance(error, ConnectionError | ValueError):
            raise _unreachable(target, error) from None
        raise
    # Ray has set a handler of its own, which leaves by SystemExit.
    if callable(on_sigterm):
        signal.signal(signal.SIGTERM, on_sigterm)
    before = os.environ.get("RAY_ADDRESS")
    # With several Ray instances on one machine, whoever has no explicit address asks the wrong one.
    os.environ["RAY_ADDRESS"] = context.address_info["gcs_address"]
    try:
        yield
    finally:
        ray.shutdown()
        if before is None:
            del os.environ["RAY_ADDRESS"]
        else:
            os.environ["RAY_ADDRESS"] = before


def quiet() -> None:
    """Ray's notices would stand between our own lines; its warnings stay."""
    for name in ("ray", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that a Ray of one's own asks for a token, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # It tells at length of a dashboard that is late, which is not needed.
    logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)


def check_address(address: str) -> None:
    """Of an address with a port, see that something listens there; `local` and `auto` are Ray's.

    Ray itself asks again and again for many minutes, without a word.

    Raises:
        UsageError: nothing does, or it is one of Ray Client's.
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
    """The variable that names the folder below which a Ray of one's own keeps its files, if one
    does, and the folder."""
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if variable in os.environ:
            return variable, os.environ[variable]
    return "", "/tmp"


def check_socket_paths() -> None:
    """See that a Ray of one's own can make its Unix sockets, whose paths may not be long.

    Raises:
        UsageError: its temporary folder's name is too long.
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
