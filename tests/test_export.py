"""Exported programs write the reports of `raymed predict`, at any batch size, without raymed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from raymed.cli import main
from raymed.data.dataset import PreparedDataset
from raymed.data.images import read_image
from raymed.errors import UsageError
from raymed.export import export, read_program, step_program
from raymed.launch.run import run_training
from raymed.model.system import System
from raymed.prediction import ReportGenerator, predict
from raymed.tokens import START
from raymed.training.checkpoint import MODEL_FILE, Checkpoint
from tests.support.tiny_systems import IMAGES, build_tiny

SCRIPT = Path(__file__).parents[1] / "docs" / "read_exported.py"
WITHOUT_RAYMED = """
import runpy, sys
sys.modules["raymed"] = None
try:
    import raymed.tokens
except ImportError:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    sys.exit("raymed can be imported")
"""


def read_without_raymed(folder: Path, files: list[str]) -> list[dict]:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_RAYMED, str(SCRIPT), str(folder)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def films(phantom, tmp_path_factory) -> list[str]:
    """Every image of the training and test splits as a file; every third one in another form."""
    folder, dataset, files = tmp_path_factory.mktemp("films"), PreparedDataset.open(phantom), []
    for name in ("test", "train"):
        split = dataset.split(name)
        for row, pixels in enumerate(split.pixels(np.arange(len(split)))):
            image = Image.fromarray(pixels)
            if row % 3 == 1:
                image = image.convert("RGB").resize((70, 41))
            if row % 3 == 2:
                image.putalpha(image.point(lambda value: min(255, 2 * value)))
            files.append(str(folder / f"{name}-{row}.png"))
            image.save(files[-1])
    return files


def set_wide_weights(checkpoint: Checkpoint, scale: float, start: float) -> None:
    """Replace all weights but the encoder's by such that reports of different images differ.

    Args:
        checkpoint: The checkpoint, which is changed.
        scale: Weights have a standard deviation of scale / sqrt(inputs).
        start: Added to the logit of START, so that reports of a single passage have sentences.
    """
    file, generator = checkpoint.path / MODEL_FILE, torch.Generator().manual_seed(3)
    weights = safetensors.torch.load_file(file)
    for name, weight in weights.items():
        if not name.startswith("encoder.") and "norm" not in name and weight.ndim:
            drawn = torch.randn(weight.shape, generator=generator)
            weights[name] = drawn * scale / weight.shape[-1] ** 0.5
        if name in ("writer.l_o.bias", "writer.w_out.bias"):
            weights[name][START] += start
    safetensors.torch.save_file(weights, file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "settings", "scale", "start"),
    [
        ("co_attention", {}, 1.5, 0),
        ("soft_att", {"model.hidden_size": 64, "model.embedding_size": 64}, 3, 4),
        ("transformer", {"model.hidden_size": 64}, 3, 0),
    ],
)
def test_a_process_without_raymed_writes_the_reports_of_predict(
    system, settings, scale, start, tiny, films, tmp_path
):
    run = {
        "run.folder": str(tmp_path),
        "model.system": system,
        "training.epochs": 1,
        "generation.max_sentences": 4,
        "generation.max_words": 6,
    }
    checkpoint = run_training(tiny.override(run | settings), Console(quiet=True))
    set_wide_weights(checkpoint, scale, start)
    assert main(["export", str(tmp_path / "run"), f"out={tmp_path / 'exported'}"]) == 0
    found = read_without_raymed(tmp_path / "exported", films)
    # As `predict` does, which also draws a figure of each.
    generate = ReportGenerator(checkpoint, checkpoint.config.generation)
    pixels = [read_image(Path(film), checkpoint.image_size)[None] for film in films]
    reports = [each.report for each in generate(pixels)]
    assert [line["image"] for line in found] == films
    assert [line["sentences"] for line in found] == [report.sentences for report in reports]
    assert [line["tags"] for line in found] == [
        [tag for tag, _ in report.tags[:5]] for report in reports
    ]
    test = [film for film in films if Path(film).name.startswith("test")]
    predicted = predict(checkpoint, checkpoint.config, test, tmp_path / "predicted")
    assert [each.report.sentences for each in predicted] == [
        line["sentences"] for line in found if line["image"] in test
    ]
    # Reports that are all the same, or empty, would show little.
    assert len({report.text for report in reports}) > 5
    assert max(len(report.sentences) for report in reports) > 1


@pytest.mark.slow
@pytest.mark.parametrize("system", ["att_rk", "lrcn", "no_attention"])
def test_programs_compute_what_the_system_does_at_every_batch_size(system):
    model = build_tiny(system, 12).float().eval()
    read = read_program(model, IMAGES.shape[1], 4).module()
    step = step_program(model, IMAGES.shape[1]).module()
    for size in (1, 2, 3):
        check_programs(model, read, step, IMAGES[:size])


@torch.no_grad()
def check_programs(model: System, read, step, images: torch.Tensor) -> None:
    reading, found = model.read(images, 4), read(images)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(
        found["tag_probabilities"], reading.tag_logits.softmax(dim=1), **close
    )
    if reading.stop_logits is not None:
        stops = reading.stop_logits.softmax(dim=2)[..., 1]
        torch.testing.assert_close(found["stop_probabilities"], stops, **close)
    context = [each.flatten(0, 1) for each in found["context"]]
    state = [each.flatten(0, 1) for each in found["state"]]
    own_context = tuple(each.flatten(0, 1) for each in reading.context)
    own_state = model.writer.initial_state(own_context)
    for word in (1, 7, 5):
        words = torch.full((len(context[0]),), word)
        logits, state = step(words, state, context)
        own_logits, own_state = model.writer.step(words, own_state, own_context)
        torch.testing.assert_close(logits, own_logits, **close)
        torch.testing.assert_close(state, list(own_state), **close)


@pytest.mark.slow
def test_a_classifier_exports_its_tags_alone(tiny, films, tmp_path):
    config = tiny.override(
        {"model.system": "vgg19_tags", "training.epochs": 1, "run.folder": str(tmp_path)}
    )
    checkpoint = run_training(config, Console(quiet=True))
    export(checkpoint, checkpoint.config, tmp_path / "exported")
    assert not (tmp_path / "exported" / "step.pt2").exists()
    found = read_without_raymed(tmp_path / "exported", films[:3])
    expected = predict(checkpoint, checkpoint.config, films[:3], tmp_path / "predicted")
    assert [line["tags"] for line in found] == [
        [tag for tag, _ in each.report.tags[:5]] for each in expected
    ]
    assert [line["sentences"] for line in found] == [[]] * 3


def test_a_run_of_studies_is_refused(trained, tmp_path):
    checkpoint = Checkpoint.open(trained)
    studies = checkpoint.config.override({"data.images_per_study": 2})
    object.__setattr__(checkpoint, "config", studies)
    with pytest.raises(UsageError, match=r"data\.images_per_study=2.*only runs that read single"):
        export(checkpoint, studies, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_out_is_needed_and_other_keys_are_not_accepted(trained, capsys):
    assert main(["export", str(trained)]) == 2
    assert "out=FOLDER is missing" in capsys.readouterr().err
    assert main(["export", str(trained), "out=x", "model.top_tags=2"]) == 2
    assert "model.top_tags" in capsys.readouterr().err


@pytest.mark.slow
def test_another_export_is_not_overwritten(trained, tmp_path, capsys):
    exported = f"out={tmp_path / 'exported'}"
    assert main(["export", str(trained), exported]) == 0
    assert main(["export", str(trained), exported, "generation.max_sentences=2"]) == 2
    assert "generation.max_sentences" in capsys.readouterr().err
