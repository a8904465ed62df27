"""Paths in an object store, or in any other file system that pyarrow opens by a URI."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache, total_ordering
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from raymed.errors import UsageError

# The command line handles paths too, and must start where pyarrow cannot be loaded.
if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs

OBJECT_STORES = ("s3", "gcs", "abfs")
"""pyarrow's names of the file systems that have no real folders."""


class Unreachable(UsageError, OSError):
    """A file system does not answer, or denies access."""


@total_ordering
class RemotePath:
    """A path such as ``s3://bucket/runs``, with the methods of `pathlib.Path` that raymed uses.

    A URI's options, behind ``?``, are carried over to every path derived from it. It pickles as
    its URI: the process that unpickles it opens the file system for itself.

    Args:
        uri: A URI with a scheme that pyarrow knows.
    """

    def __init__(self, uri: str) -> None:
        location, _, self._options = uri.partition("?")
        self._scheme, _, path = location.partition("://")
        self._path = PurePosixPath(path)

    def __str__(self) -> str:
        # An empty authority, as in hdfs:///runs, leaves an absolute path.
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
        """The file system.

        Raises:
            UsageError: pyarrow cannot open it.
        """
        return self._opened()[0]

    @property
    def path(self) -> str:
        """The path within the file system."""
        return self._opened()[1]

    def _opened(self) -> tuple["pafs.FileSystem", str]:
        import pyarrow as pa

        first = PurePosixPath(*self._path.parts[:1])
        try:
            filesystem, root = _filesystem(str(self._at(first)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UsageError(
                f"{self}: is not a path or URI that pyarrow supports ({reason(error)}); give a "
                "folder, or a URI such as s3://bucket/folder or gs://bucket/folder"
            ) from error
        return filesystem, "/".join([root.rstrip("/"), *self._path.parts[1:]])

    def info(self) -> "pafs.FileInfo":
        """pyarrow's description of what is there: its type, size and modification time."""
        return self._info(self.path)

    def _info(self, of: "str | pafs.FileSelector") -> Any:
        with self._reaching():
            return self.filesystem.get_file_info(of)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unreachable(
                f"{self}: cannot be reached ({reason(error)}); check that its server is up and "
                "that you may read and write there, then run the same command again"
            ) from error

    def _is(self, kind: str) -> bool:
        return str(self.info().type.name) == kind

    def exists(self) -> bool:
        return not self._is("NotFound")

    def is_file(self) -> bool:
        return self._is("File")

    def is_dir(self) -> bool:
        return self._is("Directory")

    def iterdir(self) -> Iterator["RemotePath"]:
        """The folder's entries; none if it does not exist."""
        import pyarrow.fs as pafs

        # For GCS, pyarrow lists files, and no folders except those that it created itself.
        deep = self.filesystem.type_name == "gcs"
        found = self._info(pafs.FileSelector(self.path, allow_not_found=True, recursive=deep))
        below = (PurePosixPath(info.path).relative_to(self.path) for info in found)
        yield from (self / name for name in dict.fromkeys(path.parts[0] for path in below))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """The folder's entries whose names match."""
        return (child for child in self.iterdir() if fnmatchcase(child.name, pattern))

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:  # noqa: ARG002
        """Make a folder, if the file system has folders."""
        if self.filesystem.type_name not in OBJECT_STORES:
            self.filesystem.create_dir(self.path, recursive=True)

    def blocks(self) -> Iterator[bytes]:
        """A file's content, a few megabytes at a time."""
        with self._reaching():
            stream = self.filesystem.open_input_stream(self.path)
        with stream:
            block = b"-"
            while block:
                with self._reaching():
                    block = stream.read(2**22)
                yield block

    def read_bytes(self) -> bytes:
        return b"".join(self.blocks())

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str) -> "pa.NativeFile":
        """Open a file for reading at any position (``rb``), or to write it anew (``wb``)."""
        opening = {"rb": "open_input_file", "wb": "open_output_stream"}[mode]
        return getattr(self.filesystem, opening)(self.path)

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Write a file; an object store shows it only once it is complete."""
        with self.open("wb") as stream:
            stream.write(content)

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


def reason(error: BaseException) -> str:
    """A file system's error in a few words, on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())
