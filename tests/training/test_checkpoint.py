import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from raymed.config import Config
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.generation import add_attention, generate
from raymed.model.encoder import build_encoder
from raymed.model.system import Reading
from raymed.model.systems import SYSTEMS, build_system
from raymed.training import checkpoint as module
from raymed.training.checkpoint import (
    INFO_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Checkpoint,
    EpochProgress,
    Snapshot,
    best_epoch,
    latest,
    whole_checkpoints,
)
from raymed.training.checkpoint_paths import checkpoint_name, checkpoints_of
from raymed.training.optimizer import build_optimizer

VOCABULARY = Vocabulary(tuple("abcde"), ("heart", "lung", "rib"))


class Run:
    """A run's folder that epochs with given scores are saved to."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        torch.manual_seed(0)
        self.model = build_system(
            config.model, len(VOCABULARY.tags), len(VOCABULARY), build_encoder(config.model.encoder)
        )
        self.optimizer = build_optimizer(self.model, config.training)
        self.scores: list[float] = []
        self.losses = [2.5] * 9

    def step(self) -> None:
        images = torch.randint(0, 256, (2, 16, 16)).to(torch.uint8)
        reading = self.model.read(images, sentences=2)
        (reading.context[0].sum() + reading.tag_logits.sum()).backward()
        self.optimizer.step()

    def save(
        self,
        score: float | None,
        step: int | None = None,
        keep: int = 1,
        constant: dict[str, Path] | None = None,
    ) -> Checkpoint:
        """After an epoch of that score; without one, after a step of the epoch that follows."""
        if score is not None:
            self.scores.append(score)
        checkpoint = Checkpoint(
            config=self.config,
            vocabulary=VOCABULARY,
            image_size=16,
            content_hash="a" * 64,
            history=[
                {"epoch": float(i), "score": score, "loss": loss}
                for i, (score, loss) in enumerate(
                    zip(self.scores, self.losses, strict=False), start=1
                )
            ],
            curve=[{"stop_threshold": 0.05, "cider": 0.5}, {"stop_threshold": 0.1, "cider": 0.0}],
            partial=EpochProgress(step, [1.5, 2.5], 3.0) if step else None,
            path=checkpoints_of(self.folder)
            / checkpoint_name(len(self.scores) + (score is None), step),
        )
        checkpoint.save(Snapshot.take(self.model, self.optimizer), keep, constant)
        return checkpoint

    def kept(self) -> dict[str, set[str]]:
        return {
            folder.name: {file.name for file in folder.iterdir()}
            for folder in checkpoints_of(self.folder).iterdir()
        }


@pytest.fixture
def run(tmp_path: Path, tiny: Config) -> Run:
    return Run(tmp_path / "run", tiny)


WHOLE = {INFO_FILE, MODEL_FILE, OPTIMIZER_FILE}


def test_best_and_last_are_kept_and_nothing_else(run: Run) -> None:
    for score, expected in (
        (0.2, {"epoch-0001": WHOLE}),
        (0.5, {"epoch-0002": WHOLE}),
        (0.4, {"epoch-0002": WHOLE - {OPTIMIZER_FILE}, "epoch-0003": WHOLE}),
        (0.5, {"epoch-0002": WHOLE - {OPTIMIZER_FILE}, "epoch-0004": WHOLE}),
        (0.6, {"epoch-0005": WHOLE}),
    ):
        run.save(score)
        assert run.kept() == expected
        last = latest(run.folder)
        assert last is not None
        assert last.name == max(expected)
        assert Checkpoint.open(run.folder).path.name == min(expected)


def test_the_last_few_are_kept_and_the_best_epoch(run: Run) -> None:
    names = []
    for score, step in ((0.5, None), (None, 3), (None, 6), (0.2, None), (None, 3), (0.1, None)):
        names.append(run.save(score, step, keep=3).path.name)
        kept = [folder.name for folder in whole_checkpoints(run.folder)]
        assert kept == sorted({"epoch-0001", *names[-3:]}, key=names.index)
        assert latest(run.folder) == checkpoints_of(run.folder) / names[-1]
        assert Checkpoint.open(run.folder).path.name == "epoch-0001"
    assert names[1:3] == ["epoch-0002-step-000003", "epoch-0002-step-000006"]
    without = {name for name, files in run.kept().items() if OPTIMIZER_FILE not in files}
    assert without == {"epoch-0001"}


def test_if_the_best_epoch_could_not_be_saved_the_next_best_is_opened(run: Run) -> None:
    assert Checkpoint.open(run.save(None, 2, keep=9).path).partial == EpochProgress(
        2, [1.5, 2.5], 3.0
    )
    assert Checkpoint.open(run.folder).path.name == "epoch-0001-step-000002"
    for score in (0.3, 0.5, 0.4):
        run.save(score, keep=9)
    shutil.rmtree(checkpoints_of(run.folder) / "epoch-0002")
    assert Checkpoint.open(run.folder).path.name == "epoch-0003"


def test_a_snapshot_is_of_its_moment(run: Run) -> None:
    run.step()
    before = [p.detach().clone() for p in run.model.parameters()]
    moments = [dict(state) for state in run.optimizer.state_dict()["state"].values()]
    moments = [{k: v.clone() for k, v in state.items()} for state in moments]
    snapshot = Snapshot.take(run.model, run.optimizer)
    run.step()
    names = [name for name, _ in run.model.named_parameters()]
    moved = False
    for name, expected, now in zip(names, before, run.model.parameters(), strict=True):
        assert torch.equal(snapshot.model[name], expected)
        moved = moved or not torch.equal(now, expected)
    assert moved
    for taken, expected in zip(snapshot.optimizer["state"].values(), moments, strict=True):
        assert all(torch.equal(taken[key], expected[key]) for key in expected)


def test_best_epoch_is_that_of_the_lower_loss_of_equals_and_then_the_earliest() -> None:
    def rows(*scores: float, losses: tuple[float, ...] = (9.0,) * 4) -> list[dict[str, float]]:
        return [{"score": s, "loss": loss} for s, loss in zip(scores, losses, strict=False)]

    assert best_epoch(rows(0.0)) == 1
    assert best_epoch(rows(0.1, 0.3, 0.3, 0.2)) == 2
    assert best_epoch(rows(0.3, 0.1, 0.4)) == 3
    assert best_epoch(rows(0.0, 0.0, 0.0, 0.0, losses=(9, 5, 3, 4))) == 3
    assert best_epoch(rows(0.2, 0.1, 0.2, 0.2, losses=(9, 1, 7, 7))) == 3


def test_the_best_checkpoint_is_that_of_the_lower_loss_of_equals(run: Run) -> None:
    run.losses = [9.0, 4.0, 6.0]
    for _ in range(3):
        run.save(0.0)
    assert set(run.kept()) == {"epoch-0002", "epoch-0003"}
    assert Checkpoint.open(run.folder).path.name == "epoch-0002"


def test_files_that_no_epoch_changes_are_shared(run: Run, tmp_path: Path) -> None:
    constant = {"kept.bin": tmp_path / "kept.bin"}
    constant["kept.bin"].write_bytes(b"the same")
    # A run of an earlier version, whose first checkpoint lacks the file.
    run.save(0.1, keep=9)
    for score in (0.2, 0.3):
        run.save(score, keep=9, constant=constant)
    first, *others = whole_checkpoints(run.folder)
    assert not (first / "kept.bin").exists()
    files = [other / "kept.bin" for other in others]
    assert [file.read_bytes() for file in files] == [b"the same"] * 2
    assert len({file.stat().st_ino for file in files}) == 1


def test_a_saved_checkpoint_can_be_opened(run: Run) -> None:
    run.step()
    saved = run.save(0.25)
    opened = Checkpoint.open(saved.path)
    assert opened == saved
    assert opened.epoch == 1
    model = opened.build_model()
    assert not model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_reloaded_system_writes_the_same_report(
    system: str, tmp_path: Path, tiny: Config
) -> None:
    beam = {"generation.beam_width": 2, "generation.length_penalty": 2}
    # One of three tags: attention to all of them would be the same for every image.
    config = tiny.override({"model.system": system, "model.top_tags": 1, **beam})
    run = Run(tmp_path / "run", config)
    torch.manual_seed(3)
    with torch.no_grad():
        # Such that images get reports that differ.
        for name, p in run.model.named_parameters():
            if not name.startswith("encoder.convolutions."):
                p.normal_(std=3 / p.shape[-1] ** 0.5)
    images = torch.randint(0, 256, (60, 2, 2)).byte()
    images = images.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    before = add_attention(run.model, generate(run.model.eval(), images, config.generation))
    run.save(0.25)
    model = Checkpoint.open(run.folder).build_model()
    after = add_attention(model, generate(model, images, config.generation))
    assert after.sentences == before.sentences
    assert len(set(map(str, after.sentences))) > 1 or model.writer is None
    for field in fields(Reading):
        ours, expected = (getattr(each.reading, field.name) for each in (after, before))
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_restored_state_trains_on_identically(run: Run, tmp_path: Path) -> None:
    run.step()
    run.save(0.1)
    other = Run(tmp_path / "other", run.config)
    other.step()
    last = latest(run.folder)
    assert last is not None
    Checkpoint.open(last).restore(other.model, other.optimizer)
    for each in (run, other):
        torch.manual_seed(5)
        each.optimizer.zero_grad()
        each.step()
    for ours, expected in zip(other.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_an_incomplete_folder_is_never_taken_for_a_checkpoint(run: Run) -> None:
    run.save(0.3)
    whole = checkpoints_of(run.folder) / checkpoint_name(1)
    # What a run leaves that is killed while it writes its second epoch, a step of it, or while it
    # deletes one.
    killed = checkpoints_of(run.folder) / checkpoint_name(2)
    for left in (killed, checkpoints_of(run.folder) / checkpoint_name(1, 2)):
        shutil.copytree(whole, left)
        (left / INFO_FILE).unlink()
        (left / ".optimizer.pt.0123.partial").touch()
    assert latest(run.folder) == whole
    assert Checkpoint.open(run.folder).path == whole
    run.save(0.4)
    assert run.kept() == {"epoch-0002": WHOLE}


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place", ["safetensors.torch.save_file", "torch.save", "pathlib.Path.write_text", "os.fsync"]
)
def test_disk_full_while_saving_keeps_the_earlier_checkpoint(
    run: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    first = run.save(0.3)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.step()
    with monkeypatch.context() as patch:
        patch.setattr(place, no_space)
        with pytest.raises(
            UsageError, match=r"epoch-0002: .*no space left.*previous one is intact"
        ):
            run.save(0.5)
    assert run.kept() == {"epoch-0001": WHOLE}
    model = Checkpoint.open(first.path).build_model()
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def damage_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def _damage(folder: Path) -> None:
        content = json.loads((folder / INFO_FILE).read_text())
        change(content)
        (folder / INFO_FILE).write_text(json.dumps(content))

    return _damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "not a checkpoint: it has no checkpoint.json"),
        (lambda folder: (folder / INFO_FILE).unlink(), "not a checkpoint"),
        (lambda folder: (folder / INFO_FILE).write_text(""), "checkpoint.json: damaged"),
        (lambda folder: (folder / INFO_FILE).write_text("[1]"), "checkpoint.json: damaged"),
        (lambda folder: (folder / INFO_FILE).write_bytes(b"\xff\x00"), "checkpoint.json: damaged"),
        (
            damage_json(lambda c: c.update(schema=99)),
            "has schema version 99, but this raymed reads",
        ),
        (damage_json(lambda c: c.pop("schema")), "has schema version None"),
        (damage_json(lambda c: c.pop("words")), "checkpoint.json: damaged"),
        (damage_json(lambda c: c["config"].update(modle={})), "checkpoint.json: damaged"),
        (damage_json(lambda c: c.update(tags=7)), "checkpoint.json: damaged"),
        (damage_json(lambda c: c.pop("curve")), "checkpoint.json: damaged"),
        (damage_json(lambda c: c["tags"].append("spine")), "model.safetensors: damaged"),
        (lambda folder: (folder / MODEL_FILE).unlink(), "model.safetensors: damaged"),
        (lambda folder: (folder / MODEL_FILE).write_bytes(b""), "model.safetensors: damaged"),
        (lambda folder: cut(folder / MODEL_FILE), "model.safetensors: damaged"),
    ],
)
def test_damage_is_named(run: Run, damage: Callable[[Path], object], message: str) -> None:
    saved = run.save(0.3)
    damage(saved.path)
    with pytest.raises(UsageError, match=message) as raised:
        Checkpoint.open(saved.path).build_model()
    assert str(saved.path) in str(raised.value)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("no optimiser"),
        lambda file: cut(file),
        lambda file: torch.save([1, 2], file),
        lambda file: torch.save({"state": {}}, file),
        lambda file: torch.save({"state": {}, "param_groups": []}, file),
        lambda file: torch.save(Vocabulary((), ()), file),
    ],
)
def test_damaged_optimiser_state_is_named(run: Run, damage: Callable[[Path], object]) -> None:
    saved = run.save(0.3)
    damage(saved.path / OPTIMIZER_FILE)
    with pytest.raises(UsageError, match="damaged") as raised:
        Checkpoint.open(saved.path).restore(run.model, run.optimizer)
    assert str(saved.path) in str(raised.value)


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"Give the folder of a run"):
            Checkpoint.open(path)


def test_files_hold_tensors_and_json_only(run: Run) -> None:
    run.step()
    saved = run.save(0.3)
    content = json.loads((saved.path / INFO_FILE).read_text())
    assert content["schema"] == module.SCHEMA_VERSION
    # weights_only refuses anything but tensors and plain containers.
    state = torch.load(saved.path / OPTIMIZER_FILE, weights_only=True)
    assert set(state) == {"state", "param_groups"}
