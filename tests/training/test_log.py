"""A run's event files, read back with TensorBoard's own reader."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from raymed.config import Config
from raymed.data.dataset import PreparedDataset
from raymed.generation import Report
from raymed.training.checkpoint import best_epoch
from raymed.training.log import HPARAMS, Sample, report_and_truth
from raymed.training.loop import train
from raymed.training.observer import Row
from raymed.training.worker import Worker
from tests.support.recording import Recorder

EPOCHS = 3


def run(config: Config, folder: Path, epochs: int = EPOCHS) -> list[Row]:
    """Train for so many epochs; with fewer than `EPOCHS`, as a trial that is stopped early."""
    rows: list[Row] = []

    def report(row: Row) -> None:
        rows.append(row)
        if len(rows) == epochs < EPOCHS:
            raise KeyboardInterrupt

    try:
        train(config, folder, Worker(torch.device("cpu")), Recorder(report))
    except KeyboardInterrupt:
        assert epochs < EPOCHS
    return rows


def board(folder: Path) -> EventAccumulator:
    # 0: keep all there is.
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(folder / "tensorboard"), sizes).Reload()


def hparams(found: EventAccumulator) -> dict[str, HParamsPluginData]:
    content = found.PluginTagToContent("hparams")
    return {tag.split("/")[-1]: HParamsPluginData.FromString(data) for tag, data in content.items()}


@pytest.fixture(scope="module")
def whole(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(tiny, folder)


def best_so_far(rows: list[Row]) -> list[int]:
    return [epoch for epoch in range(1, len(rows) + 1) if best_epoch(rows[:epoch]) == epoch]


def test_scalars_are_the_rows(whole: tuple[Path, list[Row]]) -> None:
    folder, rows = whole
    found = board(folder)
    assert set(found.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for name in found.Tags()["scalars"]:
        events = found.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3]
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows])


def test_samples_of_the_best_epochs(tiny: Config, whole: tuple[Path, list[Row]]) -> None:
    folder, rows = whole
    found = board(folder)
    split = PreparedDataset.open(tiny.data.path).split("val")
    names = split.image_ids[:3]
    assert found.Tags()["images"] == [f"attention/{name}" for name in names]
    for place, name in enumerate(names):
        texts = found.Tensors(f"report/{name}/text_summary")
        pictures = found.Images(f"attention/{name}")
        assert [event.step for event in texts] == best_so_far(rows)
        assert [event.step for event in pictures] == best_so_far(rows)
        cells = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in make_ndarray(texts[-1].tensor_proto).item().decode().splitlines()
        ]
        assert cells[0] == ["generated", "ground truth"]
        assert cells[2][1] == ", ".join(split.tags[place])
        assert [truth for _, truth in cells[3:] if truth] == split.sentences[place]
        sentences = [generated for generated, _ in cells[3:]]
        picture = Image.open(io.BytesIO(pictures[-1].encoded_image_string))
        panels, rest = divmod(picture.width, 32)
        assert (picture.height, rest) == (32, 0)
        assert 1 < panels <= 1 + len(sentences)
        film = np.asarray(picture)[:, :32]
        assert (film == split.pixels(np.array([place]))[0][:, :, None]).all()


@pytest.mark.parametrize("system", ["no_attention", "vgg19_tags"])
def test_systems_without_attention_have_no_pictures(
    system: str, tiny: Config, tmp_path: Path
) -> None:
    run(tiny.override({"model.system": system}), tmp_path, epochs=1)
    found = board(tmp_path)
    assert found.Tags()["images"] == []
    assert len([tag for tag in found.Tags()["tensors"] if tag.startswith("report/")]) == 3


def test_hparams_list_a_run_once_with_its_best_score(whole: tuple[Path, list[Row]]) -> None:
    folder, rows = whole
    assert [path.is_file() for path in (folder / "tensorboard").iterdir()] == [True]
    found = board(folder)
    data = hparams(found)
    assert set(data) == {"experiment", "session_start_info", "session_end_info"}
    values = {
        key: getattr(value, value.WhichOneof("kind"))
        for key, value in data["session_start_info"].session_start_info.hparams.items()
    }
    assert set(values) == set(HPARAMS)
    assert (values["loss.tag"], values["model.top_tags"]) == (1.0, 3.0)
    assert values["model.system"] == "co_attention"
    experiment = data["experiment"].experiment
    assert {info.name for info in experiment.hparam_infos} == set(HPARAMS)
    (metric,) = (info.name.tag for info in experiment.metric_infos)
    assert found.Scalars(metric)[-1].value == pytest.approx(max(row["cider"] for row in rows))


def test_a_run_in_two_parts_is_one_run(tiny: Config, tmp_path: Path) -> None:
    first = run(tiny, tmp_path, epochs=2)
    assert set(hparams(board(tmp_path))) == {"experiment", "session_start_info"}
    rows = first + run(tiny, tmp_path)
    found = board(tmp_path)
    assert [event.step for event in found.Scalars("score")] == [1, 2, 3]
    assert found.Scalars("best_score")[-1].value == pytest.approx(max(r["score"] for r in rows))
    assert set(hparams(found)) == {"experiment", "session_start_info", "session_end_info"}
    name = found.Tags()["images"][0]
    assert [event.step for event in found.Images(name)] == best_so_far(rows)


def test_a_run_leaves_no_thread_behind(tiny: Config, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run(tiny, tmp_path, epochs=1)
    run(tiny, tmp_path)
    assert set(threading.enumerate()) <= before


def test_a_report_beside_its_truth() -> None:
    tags = [("a|b", 0.5), ("c", 0.2), ("d", 0.1), ("e", 0.1), ("f", 0.1), ("g", 0.0)]
    report = Report(["no effusion", "", "heart normal"], tags)
    sample = Sample("x", np.zeros((1, 2, 2), np.uint8), report, None, ["clear lungs"], ["c", "h"])
    assert report_and_truth(sample).splitlines() == [
        "| generated | ground truth |",
        "| --- | --- |",
        "| a\\|b, c, d, e, f | c, h |",
        "| no effusion | clear lungs |",
        "|  |  |",
        "| heart normal |  |",
    ]
