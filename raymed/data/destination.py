"""Where a prepared dataset is written: a local folder, or any file system that pyarrow supports.

The dataset appears all at once, or not at all.
"""

import errno
import glob
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raymed.data.schema import INFO_FILE
from raymed.errors import UsageError
from raymed.locks import try_lock
from raymed.storage import AnyPath, RemotePath, as_path, remove_tree

SCRATCH = "_preparing"
"""Name of the folder, inside the destination, of what is needed only while a dataset is made."""


@dataclass(frozen=True)
class Destination:
    """A dataset in the making.

    Attributes:
        final: The folder of the dataset's files, `INFO_FILE` to be written last.
        scratch: A folder for what is not part of the dataset; it is deleted in the end.
        clear: To be called before the first file is written.
    """

    final: AnyPath
    scratch: AnyPath
    clear: Callable[[], None]


def new_dataset(out: str | Path, overwrite: bool) -> AbstractContextManager[Destination]:
    """A destination for a dataset to be written in the block; if that fails, nothing is left.

    A local folder is written under another name and renamed; what an interrupted process left
    behind there is removed. In a store, where nothing can be renamed, files are written to their
    final paths and form a dataset once `INFO_FILE` is there; a dataset that is replaced is removed
    only after all images are decoded.

    Args:
        out: A folder, or a URI such as ``s3://bucket/folder``.
        overwrite: Replace a prepared dataset, or what an interrupted process left in a store.

    Raises:
        UsageError: Something else is there, or it cannot be written.
    """
    folder = as_path(out)
    return _local(folder, overwrite) if isinstance(folder, Path) else _remote(folder, overwrite)


@contextmanager
def _local(out: Path, overwrite: bool) -> Iterator[Destination]:
    whole = out.absolute()
    partial = whole.with_name(f".{whole.name}.{uuid.uuid4().hex}.partial")
    try:
        if (out / INFO_FILE).is_file():
            if not overwrite:
                raise _already_there(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise _not_a_dataset(out)
        _remove_leftovers(whole)
        (partial / SCRATCH).mkdir(parents=True)
        # As long as this process lives, others leave the folder alone.
        with try_lock(partial):
            yield Destination(partial, partial / SCRATCH, lambda: None)
            shutil.rmtree(partial / SCRATCH)
            _replace(partial, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UsageError(
                f"{whole.parent}: no space left on the disk while preparing; nothing was "
                "kept. Free some space, or choose another folder"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise UsageError(f"{out}: cannot be written ({error.strerror})") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(whole: Path) -> None:
    """Delete what processes that have died left of their datasets."""
    for left in whole.parent.glob(f".{glob.escape(whole.name)}.*.partial"):
        with try_lock(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)


def _replace(partial: Path, out: Path) -> None:
    """Move the complete dataset into place; an earlier one is deleted only afterwards."""
    if not (out / INFO_FILE).is_file():
        partial.rename(out)
        return
    old = partial.with_suffix(".old")
    out.rename(old)
    partial.rename(out)
    shutil.rmtree(old)


@contextmanager
def _remote(out: RemotePath, overwrite: bool) -> Iterator[Destination]:
    scratch = out / SCRATCH
    started = cleared = False

    def clear() -> None:
        nonlocal cleared
        cleared = True
        _delete(child for child in _entries(out) if child != scratch)

    try:
        found = _entries(out)
        _refuse(out, {child.name for child in found}, overwrite)
        # Files of a dataset that was never finished go too; a finished one stays until `clear`.
        finished = out / INFO_FILE in found
        _delete(child for child in found if child == scratch or not finished)
        started = True
        scratch.mkdir()
        # Object stores have no empty folders; this file makes it visible to others.
        (scratch / "began").write_bytes(b"")
        yield Destination(out, scratch, clear)
        remove_tree(scratch)
    except BaseException as error:
        if started:
            _delete(child for child in _entries(out) if cleared or child == scratch)
        if isinstance(error, OSError) and not isinstance(error, UsageError):
            raise UsageError(f"{out}: cannot be written: {error}") from error
        raise


def _refuse(out: RemotePath, names: set[str], overwrite: bool) -> None:
    if INFO_FILE in names and not overwrite:
        raise _already_there(out)
    if SCRATCH in names and not overwrite:
        raise UsageError(
            f"{out}: a dataset is being prepared there, or preparing it was interrupted. If no "
            "other raymed is at work there, overwrite it (overwrite=true)"
        )
    if names and not names & {INFO_FILE, SCRATCH}:
        raise _not_a_dataset(out)


def _entries(folder: RemotePath) -> list[RemotePath]:
    """A folder's entries, `INFO_FILE` first: without it, the others are no longer a dataset."""
    return sorted(folder.iterdir(), key=lambda child: child.name != INFO_FILE)


def _delete(entries: Iterator[RemotePath]) -> None:
    for entry in entries:
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)


def _already_there(out: AnyPath) -> UsageError:
    return UsageError(
        f"{out}: a prepared dataset is already there: choose another folder, or overwrite it "
        "(overwrite=true)"
    )


def _not_a_dataset(out: AnyPath) -> UsageError:
    return UsageError(
        f"{out}: exists, is not empty and is not a prepared dataset: choose another folder"
    )
