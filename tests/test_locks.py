"""One command at a time holds a folder, and none once its process has died."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raymed.errors import UsageError
from raymed.locks import folder_lock

HOLD = (
    "import sys, time; from pathlib import Path; from raymed.locks import folder_lock\n"
    "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        words = f"{folder}: is in use by another raymed .process {holder.pid} on "
        with pytest.raises(UsageError, match=words), folder_lock(folder):
            pass
        holder.send_signal(signal.SIGKILL)
    with folder_lock(folder):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UsageError, match=r"file/run: cannot be written"),
        folder_lock(tmp_path / "file" / "run"),
    ):
        pass
