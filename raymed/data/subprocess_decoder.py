"""Decoding lossless JPEG and JPEG-LS in a subprocess, because GDCM crashes on damaged files."""

import atexit
import functools
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGLSTransferSyntaxes

from raymed.data.limits import ImageError

TIMEOUT_S = 120.0
"""Time limit for one image."""


class _Decoder:
    """A process that decodes one image after another."""

    def __init__(self) -> None:
        self.connection, child_end = Pipe()
        with child_end:
            # Not multiprocessing, whose processes run the main module of the caller again.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(child_end.fileno())],
                pass_fds=[child_end.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()
        self._process.wait()


@functools.cache
def _decoder() -> _Decoder:
    decoder = _Decoder()
    atexit.register(decoder.kill)
    return decoder


def decode_in_subprocess(path: Path, frame: int, options: dict[str, Any]) -> np.ndarray:
    """Decode one frame of a DICOM file with GDCM. The subprocess is reused for the next one.

    Args:
        path: The DICOM file.
        frame: Frame number, from 0.
        options: Options of pydicom for what the header lacks.

    Returns:
        The stored values, [height, width] or [height, width, samples].

    Raises:
        ImageError: The frame cannot be decoded, or the subprocess crashed or hung.
    """
    decoder = _decoder()
    try:
        decoder.connection.send((path, frame, options))
        alive = decoder.connection.poll(TIMEOUT_S)
        result = decoder.connection.recv() if alive else "decoding timed out"
    except (EOFError, OSError):
        alive, result = False, "the decoder crashed"
    if not alive:
        decoder.kill()
        atexit.unregister(decoder.kill)
        _decoder.cache_clear()
    if isinstance(result, str):
        raise ImageError(f"DICOM image cannot be decoded by GDCM: {result}")
    pixels: np.ndarray = result
    return pixels


def _serve(connection: Connection) -> None:
    while True:
        try:
            path, frame, options = connection.recv()
        except EOFError:
            return
        result: np.ndarray | str
        try:
            # Of a JPEG-LS frame that is cut off, GDCM sometimes makes an image anyway; pydicom
            # does not find the pixels of such a file.
            if options["transfer_syntax_uid"] in JPEGLSTransferSyntaxes:
                _ = dcmread(path, force=True, specific_tags=["PixelData"]).PixelData
            result = pixel_array(path, index=frame, decoding_plugin="gdcm", **options)
        # As in `raymed.data.dicom`, a bad file is listed with this reason and stops nothing else.
        except Exception:
            result = "its header or its pixels are damaged"
        connection.send(result)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
