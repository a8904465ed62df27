"""Completion in a real bash: what the script of `raymed --print-completion bash` proposes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from raymed.arguments import COMMANDS
from raymed.cli import main
from raymed.config import dotted_keys
from raymed.data.sources import SOURCES
from raymed.model.systems import SYSTEMS

# Bash itself sets these variables: words are split at blanks and at "=", which is a word too.
ASK = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2}
COMP_WORDS=($(sed 's/=/ = /g' <<<"$2"))
[[ $2 == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_raymed
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with a few files, and the script beside it."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "work" / "tune_configs").mkdir(parents=True)
    for name in ("tune_configs/own.yaml", "other.yaml", "film.png"):
        (tmp_path / "work" / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def proposed(folder: Path, line: str) -> list[str]:
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", folder.parent / "script", line],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


def test_commands_are_proposed(folder: Path) -> None:
    assert set(COMMANDS) < set(proposed(folder, "raymed "))
    assert proposed(folder, "raymed pre") == ["prepare", "predict"]


def test_files_and_the_keys_of_a_command_are_proposed(folder: Path) -> None:
    keys = [f"{key}=" for key in dotted_keys()]
    files = ["other.yaml", "tune_configs/"]
    assert sorted(proposed(folder, "raymed train ")) == sorted(keys + files)
    assert proposed(folder, "raymed train tune_configs/") == ["tune_configs/own.yaml"]
    assert proposed(folder, "raymed train other.yaml training.batch") == ["training.batch_size="]
    assert proposed(folder, "raymed predict run fil") == ["film.png"]
    assert set(SOURCES) < set(proposed(folder, "raymed prepare "))
    assert proposed(folder, "raymed evaluate run spl") == ["split="]
    assert proposed(folder, "raymed evaluate run loss.") == []


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("raymed train model.system=", sorted(SYSTEMS)),
        ("raymed train model.tie_embeddings=", ["true", "false"]),
        ("raymed train x.yaml tune.stopping=m", ["median"]),
        ("raymed prepare table split=st", ["study"]),
        ("raymed evaluate run split=", ["train", "val", "test"]),
        ("raymed train data.path=tu", ["tune_configs"]),
        ("raymed train training.epochs=", []),
    ],
)
def test_the_values_of_a_key_are_proposed(folder: Path, line: str, values: list[str]) -> None:
    # Bash has split the word, so it replaces what follows the "=" alone.
    assert sorted(proposed(folder, line)) == sorted(values)


def test_the_script_for_zsh_differs_only_in_what_loads_bash_completion(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--print-completion", "zsh"])
    first, how, loading, *rest = capsys.readouterr().out.splitlines()
    assert loading.startswith("autoload -Uz compinit bashcompinit")
    bash = (folder.parent / "script").read_text().splitlines()
    assert [first.replace("zsh", "bash"), how.replace("zsh", "bash"), *rest] == bash
