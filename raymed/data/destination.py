"""Where a prepared dataset is written: a local folder, or any file system that pyarrow knows."""

import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from raymed.data.schema import INFO_FILE
from raymed.errors import UsageError

SCRATCH = "_preparing"
"""Folder of what is needed only while a dataset is being made; nobody else makes one."""


@dataclass(frozen=True)
class Folder:
    """A folder; it can be sent to other processes, and other machines if they see it too."""

    filesystem: pafs.FileSystem
    root: str

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file; OSError if it cannot be written."""
        with self.create(name) as stream:
            stream.write(content)

    def create(self, name: str) -> pa.NativeFile:
        """Open a file to be written from its beginning; OSError if that cannot be done."""
        return self.filesystem.open_output_stream(f"{self.root}/{name}")

    def read(self, name: str, start: int, length: int) -> bytes:
        """Read ``length`` bytes of a file from byte ``start`` on; OSError if it has fewer."""
        with self.filesystem.open_input_file(f"{self.root}/{name}") as file:
            content: bytes = file.read_at(length, start)
        if len(content) < length:
            raise OSError(errno.EIO, f"{self.root}/{name} is shorter than it was written")
        return content

    def below(self, name: str) -> "Folder":
        """A folder in this one, made if it is not there."""
        self.filesystem.create_dir(f"{self.root}/{name}")
        return Folder(self.filesystem, f"{self.root}/{name}")


@dataclass(frozen=True)
class Target:
    """A dataset in the making."""

    final: Folder
    """Its files are written here, `INFO_FILE` last."""
    scratch: Folder
    """For what is not part of it."""
    local: Path | None
    """`scratch` as a path, if it is a local folder."""
    clear: Callable[[], None]
    """To be called before the first file is written."""


def new_dataset(out: str | Path, overwrite: bool) -> AbstractContextManager[Target]:
    """A place for a dataset, to be written in the block; then it is whole, or nothing is left.

    A local folder is written under another name and renamed; what an interrupted process left
    there is removed. Below a URI, where nothing can be renamed, files are written in their place,
    and it is a dataset once its `INFO_FILE` is there; the one that it replaces is removed only when
    all images are decoded.

    Args:
        out: a folder, or a URI such as ``s3://bucket/folder``.
        overwrite: replace a prepared dataset, or what an interrupted process left below a URI.

    Raises:
        UsageError: something is in the way, or it cannot be written.
    """
    if "://" not in str(out):
        return _local(Path(out), overwrite)
    try:
        filesystem, root = pafs.FileSystem.from_uri(str(out))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{out}: is no place that pyarrow can write to: {error}") from error
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _local(Path(root), overwrite)
    return _remote(str(out), filesystem, root, overwrite)


@contextmanager
def _local(out: Path, overwrite: bool) -> Iterator[Target]:
    whole = out.absolute()
    partial = whole.with_name(f".{whole.name}.{uuid.uuid4().hex}.partial")
    lock = None
    try:
        if (out / INFO_FILE).is_file():
            if not overwrite:
                raise _already_there(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise _in_the_way(out)
        for left in whole.parent.glob(f".{glob.escape(whole.name)}.*.partial"):
            held = _hold(left)
            if held is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)
        partial.mkdir(parents=True)
        lock = _hold(partial)
        final = Folder(pafs.LocalFileSystem(), str(partial))
        yield Target(final, final.below(SCRATCH), partial / SCRATCH, lambda: None)
        shutil.rmtree(partial / SCRATCH)
        _replace(partial, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UsageError(
                f"{whole.parent}: no space left on the disk while preparing; nothing was "
                "kept. Free some space, or choose another folder"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise UsageError(f"{out}: cannot write there: {error.strerror}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _hold(folder: Path) -> int | None:
    """Lock a folder until the returned file is closed or its process ends; None if it is locked."""
    try:
        folder_file = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(folder_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder_file)
        return None
    return folder_file


def _replace(partial: Path, out: Path) -> None:
    """Move the whole dataset to its place; what was there is gone only afterwards."""
    if not (out / INFO_FILE).is_file():
        partial.rename(out)
        return
    old = partial.with_suffix(".old")
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old)


@contextmanager
def _remote(uri: str, filesystem: pafs.FileSystem, root: str, overwrite: bool) -> Iterator[Target]:
    final = Folder(filesystem, root)
    began = cleared = False

    def clear() -> None:
        nonlocal cleared
        cleared = True
        for info in _entries(filesystem, root):
            if info.base_name != SCRATCH:
                _delete(filesystem, info)

    try:
        there = _entries(filesystem, root)
        names = {info.base_name for info in there}
        if INFO_FILE in names and not overwrite:
            raise _already_there(uri)
        if SCRATCH in names and not overwrite:
            raise UsageError(
                f"{uri}: a dataset is being prepared there, or that was interrupted. If no other "
                "raymed works on it, ask for it to be overwritten (overwrite=true)"
            )
        if names and not names & {INFO_FILE, SCRATCH}:
            raise _in_the_way(uri)
        for info in there:
            if info.base_name == SCRATCH or INFO_FILE not in names:
                _delete(filesystem, info)
        began = True
        scratch = final.below(SCRATCH)
        # Object stores have no empty folders; with this file the folder is there.
        scratch.write("began", b"")
        yield Target(final, scratch, None, clear)
        filesystem.delete_dir(scratch.root)
    except BaseException as error:
        if began:
            for info in _entries(filesystem, root):
                if cleared or info.base_name == SCRATCH:
                    _delete(filesystem, info)
        if isinstance(error, OSError):
            raise UsageError(f"{uri}: cannot be written: {error}") from error
        raise


def _entries(filesystem: pafs.FileSystem, root: str) -> list[pafs.FileInfo]:
    """What is in a folder, `INFO_FILE` first: without it, the rest is no dataset any more."""
    found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted(found, key=lambda info: info.base_name != INFO_FILE)


def _delete(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> None:
    if info.type == pafs.FileType.Directory:
        filesystem.delete_dir(info.path)
    else:
        filesystem.delete_file(info.path)


def _already_there(out: str | Path) -> UsageError:
    return UsageError(
        f"{out}: a prepared dataset is already there: choose another folder, or ask for it to be "
        "overwritten (overwrite=true)"
    )


def _in_the_way(out: str | Path) -> UsageError:
    return UsageError(
        f"{out}: exists, is not empty and is no prepared dataset: choose another folder"
    )
