"""Files are written atomically."""

from pathlib import Path

import pytest

from raymed.errors import UsageError
from raymed.storage import atomic_path, user_output


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as partial:
        partial.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.parent == path.parent, "replacing is atomic within one folder only"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "figure.png"
    with pytest.raises(UsageError) as raised, user_output(inside):
        pass
    assert str(raised.value).startswith(f"{inside}: cannot be written (")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UsageError, match="folder: cannot be written"), user_output(folder) as new:
        new.write_text("text")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file", folder]
