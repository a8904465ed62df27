"""A run as `torch.export` programs, which generate its reports without raymed.

An exported folder holds ``read.pt2``; ``step.pt2``, if the system writes reports;
``vocabulary.json``; ``MODEL_CARD.md``; and ``export.json``, which is written last and describes the
rest. Both programs compute in float32 on the CPU and accept any batch size.

* ``read(images)``: uint8 [B, H, W] -> a dictionary of ``tag_probabilities`` [B, L]; of a system
  that plans sentences ``stop_probabilities`` [B, S]; and of one that writes reports the lists
  ``context`` and ``state`` of tensors [B, P, ...], from which each of P passages is decoded.
* ``step(words, state, context)``: the ids of the last word of K passages [K], and the tensors
  [K, ...] of these -> (logits of the next word [K, V], the next state).
"""

import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from raymed.config import Config
from raymed.errors import UsageError
from raymed.generation import passage_limit
from raymed.model.system import Decoder, System
from raymed.notices import NOT_FOR_CLINICAL_USE
from raymed.progress import track
from raymed.provenance import KEY, made_from, refuse_to_overwrite
from raymed.reports.model_card import CARD_FILE, model_card
from raymed.storage import AnyPath, user_output
from raymed.tokens import END, PAD, SPECIAL, START, UNKNOWN
from raymed.training.checkpoint import Checkpoint

EXPORT_FILE = "export.json"
VOCABULARY_FILE = "vocabulary.json"
READ, STEP = "read.pt2", "step.pt2"
EXAMPLES = 2
"""Images that the programs are traced with: tracing takes a size of 1 for a constant."""


class ReadProgram(nn.Module):
    """What a system computes once for each image.

    Args:
        model: The system, in eval mode.
        sentences: S, how many sentences to plan, if the system plans sentences.
    """

    def __init__(self, model: System, sentences: int) -> None:
        super().__init__()
        self.model = model
        self.sentences = sentences

    def forward(self, images: Tensor) -> dict[str, Any]:
        """uint8 [B, H, W] -> the dictionary that this module's docstring describes."""
        reading = self.model.read(images, self.sentences)
        found: dict[str, Any] = {"tag_probabilities": reading.tag_logits.softmax(dim=1)}
        if reading.stop_logits is not None:
            found["stop_probabilities"] = reading.stop_logits.softmax(dim=2)[:, :, 1]
        if self.model.writer is not None:
            batch, passages = images.shape[0], reading.context[0].shape[1]
            flat = tuple(each.flatten(0, 1) for each in reading.context)
            state = self.model.writer.initial_state(flat)
            found["context"] = list(reading.context)
            found["state"] = [each.unflatten(0, (batch, passages)) for each in state]
        return found


class StepProgram(nn.Module):
    """What a system computes for each word.

    Args:
        writer: The system's decoder, in eval mode.
    """

    def __init__(self, writer: Decoder) -> None:
        super().__init__()
        self.writer = writer

    def forward(
        self, words: Tensor, state: list[Tensor], context: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Word ids [K], state and context [K, ...] -> (logits [K, V], the next state)."""
        logits, state_after = self.writer.step(words, tuple(state), tuple(context))
        return logits, list(state_after)


def export(checkpoint: Checkpoint, config: Config, out: AnyPath) -> None:
    """Write a checkpoint's programs, vocabulary and settings to a folder.

    Args:
        checkpoint: The model.
        config: The checkpoint's configuration, with any changes to ``generation``.
        out: The folder.

    Raises:
        UsageError: The run reads several images of a study; or ``out`` contains the export of
            something else, or cannot be written.
    """
    most = checkpoint.config.data.images_per_study
    if most > 1:
        raise UsageError(
            f"{checkpoint.path}: reads up to {most} images of a study "
            f"(data.images_per_study={most}), but only runs that read single images can be "
            "exported; use `raymed predict`, or train a run with data.images_per_study=1"
        )
    record = made_from(checkpoint, config, None, None)
    refuse_to_overwrite(out, (EXPORT_FILE,), record)
    model = checkpoint.build_model().move_to(torch.device("cpu"), torch.float32)
    names = [READ] if model.writer is None else [READ, STEP]
    for name in track(names, "exporting programs", len(names)):
        program = (
            read_program(model, checkpoint.image_size, config.generation.max_sentences)
            if name == READ
            else step_program(model, checkpoint.image_size)
        )
        # Through a Python file, whose errors name the reason.
        with user_output(out / name) as partial, partial.open("wb") as file:
            torch.export.save(program, file)
    _write_json(out / VOCABULARY_FILE, _vocabulary(checkpoint))
    _write_text(out / CARD_FILE, model_card(checkpoint))
    _write_json(out / EXPORT_FILE, {**_description(checkpoint, config, model), KEY: record})


@torch.no_grad()
def read_program(model: System, image_size: int, sentences: int) -> ExportedProgram:
    """`ReadProgram` for images of any number B.

    Args:
        model: The system, in eval mode.
        image_size: Side of its images in pixels.
        sentences: S.
    """
    images = _example_images(image_size)
    return _traced(ReadProgram(model, sentences), (images,), ({0: Dim("batch")},))


@torch.no_grad()
def step_program(model: System, image_size: int) -> ExportedProgram:
    """`StepProgram` for passages of any number K, after any number of words.

    Args:
        model: A system that writes reports, in eval mode.
        image_size: Side of its images in pixels.
    """
    assert model.writer is not None
    reading = model.read(_example_images(image_size), 1)
    context = tuple(each.flatten(0, 1) for each in reading.context)
    words = torch.full((len(context[0]),), START)
    _, first = model.writer.step(words, model.writer.initial_state(context), context)
    _, state = model.writer.step(words, first, context)
    passages, so_far = Dim("passages"), Dim("words_so_far")
    # A state that grows with the words, as that of a transformer, has another size after each.
    sizes = [
        {0: passages, **{d: so_far for d in range(1, now.ndim) if now.shape[d] != before.shape[d]}}
        for before, now in zip(first, state, strict=True)
    ]
    shapes = ({0: passages}, sizes, [{0: passages} for _ in context])
    return _traced(StepProgram(model.writer), (words, list(state), list(context)), shapes)


def _traced(
    program: nn.Module, inputs: tuple[Any, ...], shapes: tuple[Any, ...]
) -> ExportedProgram:
    with warnings.catch_warnings():
        # torch's own: an LSTM lists its weights a second time, and tracing replaces them in both.
        warnings.filterwarnings("ignore", r"The tensor attributes .*_flat_weights")
        return torch.export.export(program.eval(), inputs, dynamic_shapes=shapes)


def _example_images(size: int) -> Tensor:
    return torch.zeros(EXAMPLES, size, size, dtype=torch.uint8)


def _vocabulary(checkpoint: Checkpoint) -> dict[str, Any]:
    """The content of ``vocabulary.json``: lists in the order of ids."""
    return {
        "special": {"pad": PAD, "start": START, "end": END, "unknown": UNKNOWN},
        "words": [*SPECIAL, *checkpoint.vocabulary.words],
        "tags": list(checkpoint.vocabulary.tags),
    }


@torch.no_grad()
def _description(checkpoint: Checkpoint, config: Config, model: System) -> dict[str, Any]:
    """The content of ``export.json`` but for the record: what callers must know."""
    size, settings = checkpoint.image_size, config.generation
    generation = None
    if model.writer is not None:
        reading = model.read(_example_images(size), 1)
        generation = {
            "max_passage_words": passage_limit(reading, settings),
            "forbidden_ids": list(model.writer.forbidden_ids),
            **settings.model_dump(mode="json"),
        }
    return {
        "use": NOT_FOR_CLINICAL_USE,
        "system": config.model.system,
        "precision": "float32",
        "torch": torch.__version__,
        "image": {
            "size": size,
            "type": "uint8 [B, size, size], greyscale, black 0 and white 255",
            "scaling": "the longer side to size, bicubic with antialiasing; the shorter side is "
            "padded with black on both sides",
            "normalisation": "none: the program has it",
        },
        "generation": generation,
    }


def _write_json(file: AnyPath, content: dict[str, Any]) -> None:
    _write_text(file, json.dumps(content, indent=1, ensure_ascii=False))


def _write_text(file: AnyPath, text: str) -> None:
    with user_output(file) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
