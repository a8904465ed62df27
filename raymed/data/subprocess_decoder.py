"""Decoding in a process apart, as GDCM, which alone reads lossless JPEG, dies of damaged files."""

import atexit
import functools
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.pixels import pixel_array

from raymed.data.limits import ImageError

TIMEOUT_S = 120.0
"""How long one image may take."""


class _Child:
    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            # Not by multiprocessing, whose processes begin with the caller's own program.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def end(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


@functools.cache
def _child() -> _Child:
    child = _Child()
    atexit.register(child.end)
    return child


def decode_in_subprocess(path: Path, frame: int, options: dict[str, Any]) -> np.ndarray:
    """Decode one frame of a DICOM file with GDCM; the process stays for the next one.

    Args:
        options: of pydicom, for what the file's header does not say.

    Raises:
        ImageError: it cannot be decoded, or the process died of it.
    """
    child = _child()
    try:
        child.connection.send((path, frame, options))
        in_time = child.connection.poll(TIMEOUT_S)
        answer = child.connection.recv() if in_time else "it takes too long"
    except (EOFError, OSError):
        in_time, answer = False, "the decoder crashed"
    if not in_time:
        child.end()
        atexit.unregister(child.end)
        _child.cache_clear()
    if isinstance(answer, str):
        raise ImageError(f"DICOM image cannot be decoded: JPEG lossless: {answer}")
    pixels: np.ndarray = answer
    return pixels


def _serve(connection: Connection) -> None:
    while True:
        try:
            path, frame, options = connection.recv()
        except EOFError:
            return
        answer: np.ndarray | str
        try:
            answer = pixel_array(path, index=frame, decoding_plugin="gdcm", **options)
        # As in `raymed.data.dicom`: one bad file, listed with this reason, must not end them all.
        except Exception:
            answer = "its header or its pixels are damaged"
        connection.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
