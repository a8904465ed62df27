"""An output layer that shares the word embeddings' matrix, against one with a copy of it."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

from raymed.config import Config
from raymed.errors import UsageError
from raymed.launch.run import run_training
from raymed.model.encoder import build_encoder
from raymed.model.system import System
from raymed.model.systems import SYSTEMS, build_system, system_class
from raymed.sections import ModelConfig
from raymed.tokens import END, PAD, START
from raymed.training.checkpoint import MODEL_FILE, Checkpoint
from raymed.training.setup import check
from tests.support.tiny_systems import IMAGES, TAGS

WORDS = 9
WRITING = [name for name in SYSTEMS if name != "vgg19_tags"]
OUTPUT = dict.fromkeys(WRITING, "w_out") | {"soft_att": "l_o"}
REPORTS = torch.tensor(
    [
        [[START, 4, 5, END], [START, 6, END, PAD]],
        [[START, 7, 4, END], [PAD] * 4],
        [[START, END, PAD, PAD], [START, 8, 5, END]],
    ]
)


def config_of(system: str, **others: object) -> ModelConfig:
    settings = {"encoder": "small", "hidden_size": 8, "embedding_size": 8, "top_tags": 3}
    return ModelConfig.model_validate({"system": system} | settings | others)


def build(system: str, tied: bool) -> System:
    torch.manual_seed(0)
    config = config_of(system, tie_embeddings=tied)
    return build_system(config, TAGS, WORDS, build_encoder("small")).double().eval()


def logits(model: System) -> torch.Tensor:
    words = model(IMAGES, model.passages(REPORTS)).words
    assert words is not None
    return words.logits


def first_words(model: System) -> torch.Tensor:
    """The logits of each passage's first word, as in generation."""
    assert model.writer is not None
    context = tuple(each.flatten(0, 1) for each in model.read(IMAGES, 2).context)
    starts = torch.full((len(context[0]),), START)
    found, _ = model.writer.step(starts, model.writer.initial_state(context), context)
    return found


@pytest.mark.parametrize("system", [name for name in WRITING if name != "att_rk"])
def test_it_is_a_layer_with_a_copy_whose_gradients_are_added(system: str) -> None:
    tied, untied = build(system, tied=True), build(system, tied=False)
    weight = f"writer.{OUTPUT[system]}.weight"
    state = tied.state_dict()
    assert state.keys() == untied.state_dict().keys() - {weight}
    untied.load_state_dict(state | {weight: state["writer.embedding.weight"].clone()})
    found, expected = logits(tied), logits(untied)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(found)
    for each in (found, expected):
        (each * weights).sum().backward()
    theirs = dict(untied.named_parameters())
    for name, parameter in tied.named_parameters():
        grad = theirs[name].grad
        if name == "writer.embedding.weight":
            grad = grad + theirs[weight].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(first_words(tied), first_words(untied), rtol=0, atol=1e-12)


def test_where_it_is_always_tied_the_setting_changes_nothing() -> None:
    tied, untied = (build("att_rk", tied=tied).state_dict() for tied in (True, False))
    assert tied.keys() == untied.keys()
    assert all(torch.equal(tied[name], untied[name]) for name in tied)


@pytest.mark.parametrize("system", WRITING)
def test_logits_begin_with_a_variance_near_that_of_their_input(system: str) -> None:
    model = build(system, tied=True)
    variance = model.writer.embedding.weight.var(correction=0).item()
    assert variance == pytest.approx(1 / 8, rel=0.5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_widths_that_differ_are_refused_where_they_meet(system: str) -> None:
    config = config_of(system, tie_embeddings=True, hidden_size=16)
    check = system_class(system).check
    if system in ("soft_att", "att_rk", "transformer"):
        check(config)
        build_system(config, TAGS, WORDS, build_encoder("small"))
        return
    message = (
        "vgg19_tags writes no reports"
        if system == "vgg19_tags"
        else r"hidden_size \(16\) and model\.embedding_size \(8\) must be equal"
    )
    with pytest.raises(UsageError, match=f"model.tie_embeddings: .*{message}"):
        check(config)
    check(config_of(system, tie_embeddings=False, hidden_size=16))


def test_a_run_saves_the_matrix_once_and_opens_again(tiny: Config, tmp_path: Path) -> None:
    config = tiny.override(
        {
            "model.embedding_size": tiny.model.hidden_size,
            "model.tie_embeddings": True,
            "training.epochs": 1,
            "run.folder": str(tmp_path),
        }
    )
    run_training(config, Console(quiet=True))
    checkpoint = Checkpoint.open(tmp_path / "run")
    saved = safetensors.torch.load_file(checkpoint.path / MODEL_FILE)
    assert "writer.embedding.weight" in saved
    assert "writer.w_out.weight" not in saved
    model = checkpoint.build_model()
    assert model.writer is not None
    assert model.writer.w_out.weight is model.writer.embedding.weight
    assert torch.equal(model.writer.w_out.weight, saved["writer.embedding.weight"])
    other = config.override(
        {"model.tie_embeddings": False, "training.start_from": str(tmp_path / "run")}
    )
    with pytest.raises(UsageError, match=r"set model\.tie_embeddings=True, or start"):
        check(other)
