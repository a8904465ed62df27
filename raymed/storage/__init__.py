"""Local paths and URIs of any file system that pyarrow supports, through one set of functions.

A path is a `pathlib.Path`, or a `RemotePath` with the methods of it that are used here. Files are
written atomically in both: beside their destination and renamed, or uploaded once they are
complete, since an object store shows no object before that.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import cache, total_ordering
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from raymed.errors import UsageError

# The command line knows places too, and is to be there where pyarrow cannot be loaded.
if TYPE_CHECKING:
    import pyarrow.fs as pafs

OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of the file systems that have no folders to be made."""


class Unreachable(UsageError, OSError):
    """A file system that does not answer, or refuses what is asked of it."""


@total_ordering
class RemotePath:
    """A place of a URI such as ``s3://bucket/runs``; options behind ``?`` go with every part of it.

    Args:
        uri: with a scheme that pyarrow knows.
    """

    def __init__(self, uri: str) -> None:
        location, _, self._options = uri.partition("?")
        self._scheme, _, path = location.partition("://")
        self._path = PurePosixPath(path)

    def __str__(self) -> str:
        # An authority that is empty, as in hdfs:///runs, makes an absolute path.
        options = f"?{self._options}" if self._options else ""
        return f"{self._scheme}://{self._path}{options}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: "RemotePath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, part: str) -> "RemotePath":
        return self._at(self._path / part)

    def _at(self, path: PurePosixPath) -> "RemotePath":
        options = f"?{self._options}" if self._options else ""
        return RemotePath(f"{self._scheme}://{path}{options}")

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def parent(self) -> "RemotePath":
        return self._at(self._path.parent)

    def absolute(self) -> "RemotePath":
        return self

    @property
    def filesystem(self) -> "pafs.FileSystem":
        return self._opened()[0]

    @property
    def path(self) -> str:
        """As its file system calls it."""
        return self._opened()[1]

    def _opened(self) -> tuple["pafs.FileSystem", str]:
        import pyarrow as pa

        first = PurePosixPath(*self._path.parts[:1])
        try:
            filesystem, root = _filesystem(str(self._at(first)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UsageError(
                f"{self}: is no place that pyarrow can open ({reason(error)}); give a folder, or a "
                "URI such as s3://bucket/folder or gs://bucket/folder"
            ) from error
        return filesystem, "/".join([root.rstrip("/"), *self._path.parts[1:]])

    def _info(self, of: "str | pafs.FileSelector") -> Any:
        with self._reached():
            return self.filesystem.get_file_info(of)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unreachable(
                f"{self}: cannot be reached ({reason(error)}); see that its server answers and "
                "lets you read and write there, and give the same command again"
            ) from error

    def _is(self, kind: str) -> bool:
        return str(self._info(self.path).type.name) == kind

    def exists(self) -> bool:
        return not self._is("NotFound")

    def is_file(self) -> bool:
        return self._is("File")

    def is_dir(self) -> bool:
        return self._is("Directory")

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies in it; nothing where it is not there."""
        import pyarrow.fs as pafs

        # Of GCS pyarrow lists files, and no folder but those that it marked itself.
        deep = self.filesystem.type_name == "gcs"
        found = self._info(pafs.FileSelector(self.path, allow_not_found=True, recursive=deep))
        below = (PurePosixPath(info.path).relative_to(self.path) for info in found)
        yield from (self / name for name in dict.fromkeys(path.parts[0] for path in below))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """What lies in it and has a name of this pattern."""
        return (child for child in self.iterdir() if fnmatchcase(child.name, pattern))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:  # noqa: ARG002
        """Make a folder, where the file system has any."""
        if self.filesystem.type_name not in OBJECT_STORES:
            self.filesystem.create_dir(self.path, recursive=True)

    def blocks(self) -> Iterator[bytes]:
        """A file's content, some megabytes at a time."""
        with self._reached():
            stream = self.filesystem.open_input_stream(self.path)
        with stream:
            block = b"-"
            while block:
                with self._reached():
                    block = stream.read(2**22)
                yield block

    def read_bytes(self) -> bytes:
        return b"".join(self.blocks())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


@cache
def _filesystem(root: str) -> tuple["pafs.FileSystem", str]:
    import pyarrow.fs as pafs

    filesystem, path = pafs.FileSystem.from_uri(root)
    return filesystem, path


AnyPath = Path | RemotePath


def as_path(where: str | AnyPath) -> AnyPath:
    """The place that a text names: a local path, or a URI."""
    if isinstance(where, Path | RemotePath):
        return where
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    return RemotePath(where) if is_uri(where) else Path(where)


def is_uri(text: str) -> bool:
    return "://" in text


@contextmanager
def atomic_path(target: AnyPath) -> Iterator[Path]:
    """A local path, to be written in the block; what was written then takes its place.

    Missing folders are made. Many processes may do so at once, and no reader ever finds a part,
    even after a power cut. Where the block fails nothing is left, and the place is as it was.

    Raises:
        OSError: it cannot be written.
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
    """`atomic_path` of what a user asked for.

    Raises:
        UsageError: the file cannot be written (no space left, say).
    """
    try:
        with atomic_path(target) as partial:
            yield partial
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({reason(error)})") from error


def atomic_write_text(target: AnyPath, content: str) -> None:
    """Write a small file so that a reader sees the old text or the new one, never a part.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(target, RemotePath):
        target.parent.mkdir()
        with target.filesystem.open_output_stream(target.path) as stream:
            stream.write(content.encode())
        return
    with atomic_path(target) as partial:
        partial.write_text(content, encoding="utf-8")


@contextmanager
def local_copy(source: AnyPath) -> Iterator[Path]:
    """A file as a local one, for the time of the block.

    Raises:
        OSError: it cannot be read.
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
        OSError: it cannot be read, or not be written.
    """
    with target.open("wb") as file:
        for block in source.blocks():
            file.write(block)


def link_or_copy(source: AnyPath, target: AnyPath) -> None:
    """One more name for a file; a copy of it where the file system cannot do that.

    Raises:
        OSError: it cannot be read, or not be written.
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
    """Delete a folder with all that is in it, if it is there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        # pyarrow deletes what lies in a GCS folder, and then misses the mark of an empty one.
        with suppress(FileNotFoundError):
            folder.filesystem.delete_dir(folder.path)


def file_stamp(file: AnyPath) -> tuple[str, int, int]:
    """A file's name, size and time of change: equal for equal content in the life of a process.

    Raises:
        OSError: there is none.
    """
    if isinstance(file, Path):
        stat = file.stat()
        return f"{stat.st_dev} {stat.st_ino}", stat.st_size, stat.st_mtime_ns
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not there")
    info = file._info(file.path)
    return str(file), info.size, info.mtime_ns


def reason(error: BaseException) -> str:
    """An error of a file system's in a few words."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())
