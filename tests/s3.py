"""A server on loopback that speaks S3's protocol."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
from moto.server import ThreadedMotoServer

from raymed.storage import Remote

BUCKET = "hospital"


class Server:
    """An S3 server that can go away and come back at the same address, with all it holds."""

    def __init__(self) -> None:
        self.port = 0
        self.start()
        root = f"s3://{BUCKET}?scheme=http&region=us-east-1&allow_bucket_creation=true"
        self.root = Remote(f"{root}&endpoint_override=127.0.0.1:{self.port}")
        self.root.filesystem.create_dir(BUCKET)

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    def upload(self, folder: Path, name: str) -> Remote:
        """Put a local folder there."""
        target = self.root / name
        pafs.copy_files(str(folder), target.path, destination_filesystem=target.filesystem)
        return target


@contextmanager
def serving() -> Iterator[Server]:
    """The server, for the time of the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    try:
        yield server
    finally:
        server.stop()
