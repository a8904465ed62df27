"""What a run's, a sweep's and a table's folder accepts, without training anything."""

from pathlib import Path

import pytest

from raymed.config import Config
from raymed.errors import UsageError
from raymed.locks import LOCK_FILE
from raymed.run_folder import ConfiguredFolder, OutputFolder, RunFolder, SweepFolder, TableFolder

KINDS = [RunFolder, SweepFolder, TableFolder]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config().override({"run.folder": str(tmp_path), "run.name": "one"})


@pytest.mark.parametrize("kind", KINDS)
def test_other_content_is_refused_and_a_lock_file_is_not(
    config: Config, kind: type[OutputFolder]
) -> None:
    folder = kind.of(config)
    folder.refuse_foreign()
    with folder.lock():
        folder.refuse_foreign()
    assert (folder.path / LOCK_FILE).exists()
    (folder.path / "thesis.txt").touch()
    with pytest.raises(UsageError, match=f"one: exists but is not a {folder.kind} folder"):
        folder.refuse_foreign()
    (folder.path / folder.marker).mkdir()
    folder.refuse_foreign()


@pytest.mark.parametrize("kind", [RunFolder, SweepFolder])
def test_a_folder_is_held_while_it_is_open_and_keeps_its_configuration(
    config: Config, kind: type[ConfiguredFolder]
) -> None:
    folder = kind.of(config)
    with folder.open(config), pytest.raises(UsageError, match="in use by another raymed"):
        folder.lock().__enter__()
    assert folder.config() == config
    # Where it is trained does not matter.
    with folder.open(config.override({"launch.workers": 2})):
        assert folder.config().launch.workers == 2


def test_only_a_run_without_a_checkpoint_may_be_changed(config: Config) -> None:
    changed = config.override({"loss.tag": 2.0})
    for kind in (RunFolder, SweepFolder):
        with kind.of(config.override({"run.name": kind.kind})).open(config):
            pass
    run, sweep = RunFolder(Path(config.run.folder, "run")), Path(config.run.folder, "sweep")
    run.initialise(changed)
    assert run.config() == changed
    words = r"sweep: holds a sweep with a different configuration \(loss.tag: 1.0 -> 2.0\)"
    with pytest.raises(UsageError, match=words):
        SweepFolder(sweep).initialise(changed)
    assert SweepFolder(sweep).config() == config
