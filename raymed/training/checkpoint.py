"""Checkpoints: tensors and JSON only, complete or absent, readable without the dataset.

Each is a folder, ``epoch-0007`` after the seventh epoch or ``epoch-0007-step-000120`` within it,
with ``model.safetensors``, ``optimizer.pt`` and ``checkpoint.json``. The last is written last and
removed first: a folder without it is not a checkpoint. Files that no epoch changes are hard links:
``trained-on.safetensors``, the fingerprints of the images the run was trained on; and
``encoder.safetensors``, what is frozen of the encoder, so that ``model.safetensors`` holds only the
rest.

A run keeps its last few checkpoints and that of its best epoch by validation score, without the
optimiser's state once it is not among the last.
"""

import errno
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raymed.config import Config
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from raymed.model.encoder import CONVOLUTIONS, Encoder, encoder_from
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.storage import (
    AnyPath,
    as_path,
    atomic_path,
    atomic_write_text,
    link_or_copy,
    local_copy,
    reason,
    remove_tree,
)
from raymed.training.checkpoint_paths import checkpoints_of
from raymed.training.observer import Row, best_epoch
from raymed.training.precision import dtype_of

SCHEMA_VERSION = 5
INFO_FILE = "checkpoint.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
ENCODER_FILE = "encoder.safetensors"
TRAINED_ON_FILE = "trained-on.safetensors"
ENCODER = "encoder."
"""The prefix of the encoder's weights among a system's."""

NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


@dataclass(frozen=True)
class EpochProgress:
    """The progress within an epoch.

    Attributes:
        step: How many of its optimiser steps are done.
        sums: Sums of the loss and its terms, over the images of these steps on all workers.
        seconds: How long these steps took.
    """

    step: int
    sums: list[float]
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """A copy of the weights and optimiser state, on the CPU, saved while training continues."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def take(cls, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Self:
        return cls(_copied(model.state_dict()), _copied(optimizer.state_dict()))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's metadata and where it is stored.

    Attributes:
        config: The configuration of the run that wrote it, with the stop threshold and the M that
            were best on the validation split, where these were free.
        vocabulary: The words and tags behind the model's ids.
        image_size: Side of the images it was trained on, in pixels.
        content_hash: The content hash of the prepared dataset it was trained on.
        history: A row of metrics for each finished epoch.
        curve: CIDEr on the validation split after this epoch at other stop thresholds and values of
            M: rows of ``stop_threshold`` and ``top_tags``, each where the system has it, and
            ``cider``; empty where it has neither.
        path: The checkpoint's folder.
        partial: The progress of the epoch after these, if that is begun.
    """

    config: Config
    vocabulary: Vocabulary
    image_size: int
    content_hash: str
    history: list[Row]
    curve: list[Row]
    path: AnyPath
    partial: EpochProgress | None = None

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)

    @classmethod
    def open(cls, path: str | AnyPath) -> "Checkpoint":
        """Open a checkpoint's folder, or the best checkpoint of a run's folder.

        Raises:
            UsageError: There is none, it is damaged, or it has another schema version.
        """
        folder = as_path(path)
        if not (folder / INFO_FILE).is_file():
            best = _best(folder)
            if best is None:
                raise UsageError(
                    f"{path}: not a checkpoint: it has no {INFO_FILE}, nor checkpoints/epoch-*. "
                    "Give the folder of a run of `raymed train`, or one of its checkpoints"
                )
            folder = best
        try:
            content = _read_info(folder)
            version = content.get("schema")
            if version != SCHEMA_VERSION:
                raise UsageError(
                    f"{folder}: the checkpoint has schema version {version}, but this raymed reads "
                    f"version {SCHEMA_VERSION}: train again, or use the raymed that wrote it"
                )
            return cls(
                config=Config.model_validate(content["config"]),
                vocabulary=Vocabulary(tuple(content["words"]), tuple(content["tags"])),
                image_size=content["image_size"],
                content_hash=content["content_hash"],
                history=content["history"],
                curve=content["curve"],
                path=folder,
                partial=EpochProgress(**content["partial"]) if content["partial"] else None,
            )
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / INFO_FILE, error) from error

    def build_model(self, device: torch.device = torch.device("cpu")) -> System:  # noqa: B008
        """The model with this checkpoint's weights, in eval mode and in the run's precision.

        Raises:
            UsageError: The weights are damaged.
        """
        sizes = len(self.vocabulary.tags), len(self.vocabulary)
        images = self.config.data.images_per_study
        model = build_system(self.config.model, *sizes, encoder=None, images_per_study=images)
        self.load_into(model)
        model.encoder = self.encoder(dropout=0.0)
        return model.move_to(device, self.precision).eval()

    @property
    def precision(self) -> torch.dtype:
        """The precision the run computes in; its configuration no longer says ``auto``."""
        return dtype_of(self.config)

    def load_into(self, model: System) -> None:
        """Load the weights into a model of the same system and vocabulary.

        Those of the encoder, or of its convolutions, are loaded only if the model has these.

        Raises:
            UsageError: The weights are damaged.
        """
        weights = _loaded(self.path / MODEL_FILE)
        weights = {name: w for name, w in weights.items() if not name.startswith(ENCODER)}
        if encoder := model.encoder:
            for name, weight in self._encoder_state().items():
                if encoder.convolutions is not None or not name.startswith(CONVOLUTIONS):
                    weights[ENCODER + name] = weight
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _damaged(self.path / MODEL_FILE, error) from error

    def encoder(self, dropout: float) -> Encoder:
        """The encoder, trained or frozen, on the CPU.

        Raises:
            UsageError: The weights are damaged.
        """
        try:
            return encoder_from(self.config.model.encoder, self._encoder_state(), dropout)
        except RuntimeError as error:
            raise _damaged(self.encoder_files[-1], error) from error

    def _encoder_state(self) -> dict[str, Tensor]:
        """The weights of the whole encoder, by their names in it."""
        return {
            name.removeprefix(ENCODER): tensor
            for file in self.encoder_files
            for name, tensor in _loaded(file).items()
            if name.startswith(ENCODER)
        }

    @property
    def encoder_files(self) -> list[AnyPath]:
        """The files that contain the encoder's weights: what was trained, then what was frozen."""
        names = {"all": [MODEL_FILE], "hidden": [MODEL_FILE, ENCODER_FILE], "none": [ENCODER_FILE]}
        return [self.path / name for name in names[self.config.model.train_encoder]]

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Load the weights and the optimiser's state, to resume the run that wrote them.

        Raises:
            UsageError: A file is damaged.
        """
        try:
            with local_copy(self.path / OPTIMIZER_FILE) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(_loaded(self.path / MODEL_FILE))
            optimizer.load_state_dict(state)
            # The fused AdamW assumes, unchecked, that its state has the weights' memory layout.
            for parameter, tensors in optimizer.state.items():
                for name, value in tensors.items():
                    if value.shape == parameter.shape:
                        tensors[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        except UsageError:
            raise
        # torch raises a dozen kinds of errors for a file that is not an optimiser's state.
        except Exception as error:
            raise _damaged(self.path, error) from error

    def save(
        self, snapshot: Snapshot, keep: int, shared_files: Mapping[str, Path] | None = None
    ) -> None:
        """Write the checkpoint, then remove those that are neither the best nor among the last.

        Args:
            snapshot: The state to save, without what is frozen of the encoder.
            keep: How many of the last checkpoints to keep.
            shared_files: Files that no epoch changes, by the names under which to link to them.

        Raises:
            UsageError: It cannot be written (no space left, for example). Earlier ones are intact.
        """
        try:
            before = whole_checkpoints(self.path.parent.parent)
            if self.path in before:
                return
            # Left by a process that was killed while writing it.
            remove_tree(self.path)
            with atomic_path(self.path / MODEL_FILE) as file:
                safetensors.torch.save_file(snapshot.model, file)
            # Through a Python file, whose errors name the reason, unlike those of torch's own.
            with atomic_path(self.path / OPTIMIZER_FILE) as file, file.open("wb") as stream:
                torch.save(snapshot.optimizer, stream)
            for name, source in (shared_files or {}).items():
                # Link to the run's previous one: a file on another disk is then copied only once.
                own = before[-1] / name if before else source
                link_or_copy(own if own.exists() else source, self.path / name)
            atomic_write_text(self.path / INFO_FILE, json.dumps(self._info(), indent=1))
            self._remove_others(keep)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            with suppress(OSError):
                remove_tree(self.path)
            why = "no space left" if _is_full(error) else reason(error)
            raise UsageError(
                f"{self.path}: the checkpoint could not be written ({why}); the previous one is "
                "intact. Free some space; if the run has ended, the same command resumes it"
            ) from error

    def _info(self) -> dict[str, Any]:
        """The content of ``checkpoint.json``."""
        return {
            "schema": SCHEMA_VERSION,
            "epoch": self.epoch,
            "image_size": self.image_size,
            "content_hash": self.content_hash,
            "history": self.history,
            "partial": asdict(self.partial) if self.partial else None,
            "curve": self.curve,
            "config": self.config.model_dump(mode="json", by_alias=True),
            **asdict(self.vocabulary),
        }

    def _remove_others(self, keep: int) -> None:
        folder = self.path.parent
        last = whole_checkpoints(folder.parent)[-keep:]
        best = _best(folder.parent, self.history)
        for other in [child for child in folder.glob("epoch-*") if NAME.fullmatch(child.name)]:
            if other not in last:
                if other == best:
                    (other / OPTIMIZER_FILE).unlink(missing_ok=True)
                else:
                    (other / INFO_FILE).unlink(missing_ok=True)
                    remove_tree(other)


def whole_checkpoints(run_folder: AnyPath) -> list[AnyPath]:
    """The complete checkpoints of a run, in order."""
    folders = [
        child
        for child in checkpoints_of(run_folder).glob("epoch-*")
        if NAME.fullmatch(child.name) and (child / INFO_FILE).is_file()
    ]
    return sorted(folders, key=lambda folder: _position(folder.name))


def latest(run_folder: AnyPath) -> AnyPath | None:
    """The last complete checkpoint of a run, if it has one."""
    return next(reversed(whole_checkpoints(run_folder)), None)


def _best(run_folder: AnyPath, history: Sequence[Row] | None = None) -> AnyPath | None:
    """The checkpoint of the best epoch that still has one; the last one if no epoch is finished."""
    whole = {_position(folder.name): folder for folder in whole_checkpoints(run_folder)}
    if not whole:
        return None
    last = whole[max(whole)]
    if history is None:
        try:
            history = _read_info(last)["history"]
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(last / INFO_FILE, error) from error
    ended = [epoch for epoch in range(1, len(history) + 1) if _position_of(epoch) in whole]
    if not ended:
        return last
    chosen = best_epoch([history[epoch - 1] for epoch in ended])
    return whole[_position_of(ended[chosen - 1])]


def _position(name: str) -> tuple[int, float]:
    """A checkpoint's position in its run: the epoch, and the step within it."""
    match = NAME.fullmatch(name)
    assert match is not None
    return _position_of(int(match[1]), int(match[2]) if match[2] else None)


def _position_of(epoch: int, step: int | None = None) -> tuple[int, float]:
    return epoch, float("inf") if step is None else step


def _read_info(folder: AnyPath) -> Any:
    return json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _loaded(file: AnyPath) -> dict[str, Tensor]:
    try:
        with local_copy(file) as local:
            weights: dict[str, Tensor] = safetensors.torch.load_file(local)
    except UsageError:
        raise
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(file, error) from error
    return weights


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; torch replaces the operating system's by its own."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__context__
    return False


def _damaged(path: AnyPath, error: Exception) -> UsageError:
    # After its first line, torch's message has advice for programmers.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{path}: damaged, or not part of a checkpoint ({reason}). Copy it again, or delete it: "
        "the run then resumes from the previous checkpoint, or starts over"
    )
