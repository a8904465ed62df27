"""Processes that start with all of raymed loaded, as forks of one that has loaded it.

A new process needs seconds to load torch and Ray; a test that starts one to interrupt or kill it is
not about those seconds.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import IO

COMMAND = "import sys; from raymed.cli import main; sys.exit(main(sys.argv[1:]))"
"""Raymed's own command."""

SERVER = """
import importlib, json, os, pkgutil, signal, socket, sys
import raymed

for module in pkgutil.walk_packages(raymed.__path__, "raymed."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
requests = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 3)
    if not message:
        os._exit(0)
    if os.fork() == 0:
        break
    for descriptor in descriptors:
        os.close(descriptor)
requests.close()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
out, error, status = descriptors
child = os.fork()
if child:
    os.close(out)
    os.close(error)
    os.write(status, f"{child}\\n".encode())
    _, ended = os.waitpid(child, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\\n".encode())
    os._exit(0)
os.close(status)
os.dup2(out, 1)
os.dup2(error, 2)
os.close(out)
os.close(error)
request = json.loads(message)
os.environ.clear()
os.environ.update(request["env"])
# What a shell starts in the background ignores Ctrl-C, and so would all below it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["-c", *request["arguments"]]
exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
"""
"""Forks two processes for each request: one runs the code and ends as any Python process does, and
its parent waits for it and reports its exit code."""


class Forked:
    """A process that was started, with what tests need of `subprocess.Popen`.

    Attributes:
        pid: Its process id.
        stdout: What it prints.
        stderr: What it prints on the standard error.
        returncode: Its exit code, or the negative number of the signal that ended it; None while it
            runs or before anyone looked.
    """

    def __init__(self, out: int, error: int, status: int) -> None:
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(error)
        self._status: IO[str] = os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._poll(0)

    def _poll(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their end, and wait for the process.

        Raises:
            subprocess.TimeoutExpired: It is still running after ``timeout`` seconds.
        """
        texts = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            texts[number] = stream.read()

        readers = [
            Thread(target=read, args=each, daemon=True)
            for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
        if self._poll(timeout) is None or any(reader.is_alive() for reader in readers):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return texts[0], texts[1]

    def close(self) -> None:
        """Kill the process if it still runs."""
        self.kill()
        self._poll(None)
        for stream in (self.stdout, self.stderr, self._status):
            stream.close()


class Preloaded:
    """The process that has everything loaded."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    @contextmanager
    def start(
        self, code: str, arguments: Sequence[object], env: Mapping[str, str] | None = None
    ) -> Iterator[Forked]:
        """A process that runs ``python -c code arguments``; it is killed when the block ends.

        Args:
            code: Python code.
            arguments: What follows in ``sys.argv``.
            env: Environment variables; None: this process's own.
        """
        request = {
            "code": code,
            "arguments": list(map(str, arguments)),
            "env": dict(os.environ if env is None else env),
        }
        ours, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
        socket.send_fds(self._requests, [json.dumps(request).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        process = Forked(*ours)
        try:
            yield process
        finally:
            process.close()


@contextmanager
def preloaded() -> Iterator[Preloaded]:
    """Keep a process with everything loaded inside the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        yield Preloaded(ours)
    server.wait()
