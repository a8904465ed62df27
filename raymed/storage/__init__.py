"""Local paths and URIs of any file system that pyarrow supports, through one set of functions.

A path is a `pathlib.Path`, or a `RemotePath` with the methods of it that are used here. Files are
written atomically in both: beside their destination and renamed, or uploaded once they are
complete, since an object store shows no object before that.
"""

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from raymed.errors import UsageError
from raymed.storage.remote import RemotePath, Unreachable, reason

__all__ = [
    "AnyPath",
    "GivenPath",
    "RemotePath",
    "Unreachable",
    "as_path",
    "atomic_path",
    "atomic_write_text",
    "download",
    "file_stamp",
    "is_same_folder",
    "is_uri",
    "link_or_copy",
    "local_copy",
    "read_range",
    "reason",
    "remove_tree",
    "user_output",
]

AnyPath = Path | RemotePath
GivenPath = str | os.PathLike[str] | RemotePath
"""A path as a caller may give it."""


def as_path(where: GivenPath) -> AnyPath:
    """The path that a text or a path-like object names: a local one, or a URI."""
    if isinstance(where, Path | RemotePath):
        return where
    where = os.fspath(where)
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    return RemotePath(where) if is_uri(where) else Path(where)


def is_uri(text: str) -> bool:
    return "://" in text


def is_same_folder(one: AnyPath, other: AnyPath) -> bool:
    """Whether both paths lead to the same folder, symbolic links resolved."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one.absolute() == other.absolute()


@contextmanager
def atomic_path(target: AnyPath) -> Iterator[Path]:
    """A local path to write to inside the block; the file then replaces the target atomically.

    Missing folders are made. Any number of processes may do so at once, and no reader ever sees a
    partial file, even after a power cut. If the block fails, nothing is left behind and the target
    is unchanged.

    Raises:
        OSError: The target cannot be written.
    """
    if isinstance(target, RemotePath):
        import pyarrow.fs as pafs

        with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
            written = Path(folder, target.name)
            yield written
            target.parent.mkdir()
            pafs.copy_files(str(written), target.path, destination_filesystem=target.filesystem)
        return
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def user_output(target: AnyPath) -> Iterator[Path]:
    """`atomic_path` for a file that the user asked for.

    Raises:
        UsageError: The file cannot be written (no space left, say).
    """
    try:
        with atomic_path(target) as partial:
            yield partial
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({reason(error)})") from error


def atomic_write_text(target: AnyPath, content: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part.

    Raises:
        OSError: The target cannot be written.
    """
    if isinstance(target, RemotePath):
        target.parent.mkdir()
        target.write_bytes(content.encode())
        return
    with atomic_path(target) as partial:
        partial.write_text(content, encoding="utf-8")


@contextmanager
def local_copy(source: AnyPath) -> Iterator[Path]:
    """A file as a local one inside the block: itself, or a temporary download.

    Raises:
        OSError: The file cannot be read.
    """
    if isinstance(source, Path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="raymed-") as folder:
        local = Path(folder, source.name)
        download(source, local)
        yield local


def download(source: RemotePath, target: Path) -> None:
    """Copy a file to a local path.

    Raises:
        OSError: The source cannot be read, or the target cannot be written.
    """
    with target.open("wb") as file:
        for block in source.blocks():
            file.write(block)


def read_range(file: AnyPath, start: int, length: int) -> bytes:
    """Read ``length`` bytes of a file from byte ``start``.

    Raises:
        OSError: The file cannot be read, or is too short.
    """
    with file.open("rb") as stream:
        stream.seek(start)
        content: bytes = stream.read(length)
    if len(content) < length:
        raise OSError(errno.EIO, f"{file} is shorter than it was written")
    return content


def link_or_copy(source: AnyPath, target: AnyPath) -> None:
    """Give a file a second name, or copy it if the file system has no hard links.

    Raises:
        OSError: The source cannot be read, or the target cannot be written.
    """
    if isinstance(source, RemotePath) and isinstance(target, RemotePath):
        target.filesystem.copy_file(source.path, target.path)
        return
    if isinstance(source, Path) and isinstance(target, Path):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    with local_copy(source) as local, atomic_path(target) as copy:
        shutil.copyfile(local, copy)


def remove_tree(folder: AnyPath) -> None:
    """Delete a folder and everything in it, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        # pyarrow deletes a GCS folder's content, and then misses the marker of an empty folder.
        with suppress(FileNotFoundError):
            folder.filesystem.delete_dir(folder.path)


def file_stamp(file: AnyPath) -> tuple[str, int, int]:
    """A file's identity, size and modification time: equal stamps within a process, equal content.

    Raises:
        OSError: The file does not exist.
    """
    if isinstance(file, Path):
        stat = file.stat()
        return f"{stat.st_dev} {stat.st_ino}", stat.st_size, stat.st_mtime_ns
    if not file.is_file():
        raise FileNotFoundError(f"{file}: does not exist")
    info = file.info()
    return str(file), info.size, info.mtime_ns
