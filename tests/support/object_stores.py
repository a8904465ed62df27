"""Servers on loopback that speak the protocols of S3 and of Google Cloud Storage."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from raymed.storage import RemotePath

BUCKET = "hospital"


class Server:
    """A server and the place that stands for its bucket."""

    root: RemotePath

    def upload(self, folder: Path, name: str) -> RemotePath:
        """Put a local folder there."""
        target = self.root / name
        pafs.copy_files(str(folder), target.path, destination_filesystem=target.filesystem)
        return target


class S3(Server):
    """A server that can go away and come back at the same address, with all it holds."""

    def __init__(self) -> None:
        self.port = 0
        self.start()
        root = f"s3://{BUCKET}?scheme=http&region=us-east-1&allow_bucket_creation=true"
        self.root = RemotePath(f"{root}&endpoint_override=127.0.0.1:{self.port}")
        self.root.filesystem.create_dir(BUCKET)

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()


class GCS(Server):
    """A server of Google's protocol."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
        self._server.start()
        options = f"scheme=http&endpoint_override=127.0.0.1:{port}"
        self.root = RemotePath(f"gs://anonymous@{BUCKET}?{options}")

    def stop(self) -> None:
        self._server.stop()


@contextmanager
def serving_s3() -> Iterator[S3]:
    """The server, for the time of the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving_gcs() -> Iterator[GCS]:
    """The server, for the time of the block."""
    server = GCS()
    try:
        yield server
    finally:
        server.stop()
