"""The example files that come with raymed: configurations and cluster files."""

import shlex
import shutil
from pathlib import Path, PurePath

from raymed.errors import UsageError
from raymed.storage import user_output

FOLDERS = ("tune_configs", "cluster")


def example(name: str) -> Path:
    """The path of an example file, such as ``tune_configs/demo.yaml``."""
    return _root() / name


def is_example(name: str) -> bool:
    """Whether this is the relative path of an example file, as `copy_examples` lays them out."""
    return PurePath(name).parts[:1] in [(folder,) for folder in FOLDERS] and example(name).is_file()


def copy_examples(folder: Path) -> list[Path]:
    """Copy all example files into ``folder/tune_configs`` and ``folder/cluster``.

    Returns:
        The files written.

    Raises:
        UsageError: A file of one of the names exists, or cannot be written; none is replaced.
    """
    names = [
        path.relative_to(_root())
        for each in FOLDERS
        for path in sorted(example(each).rglob("*"))
        if path.is_file()
    ]
    existing = [folder / name for name in names if (folder / name).exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"{existing[0]}{more}: already exist{'' if more else 's'}; nothing was copied: give "
            "another folder, or move what is there"
        )
    for name in names:
        with user_output(folder / name) as partial:
            shutil.copyfile(_root() / name, partial)
    return [folder / name for name in names]


def what_next(folder: Path) -> str:
    """What to do with the examples in a folder."""
    enter = "" if folder.resolve() == Path.cwd() else f"  cd {shlex.quote(str(folder))}\n"
    return (
        "tune_configs says what to train and search, cluster on which machines. Next:\n"
        f"{enter}  raymed prepare phantom out=data/phantom-smoke image_size=32 studies=200\n"
        "  raymed tune tune_configs/smoke.yaml     # a small sweep, to see that it works\n"
        "or, with images and reports of your own:\n"
        "  raymed prepare table reports.csv        # proposes the settings\n"
        "  raymed train tune_configs/own.yaml"
    )


def _root() -> Path:
    """The folder of the two: in a wheel the package, and in a checkout the one around it."""
    package = Path(__file__).parent
    return package if (package / FOLDERS[0]).is_dir() else package.parent
