"""Checkpoints: tensors and JSON only, written whole or not at all, open without the dataset.

Each is a folder, ``epoch-0007`` after the seventh epoch or ``epoch-0007-step-000120`` within it, of
``model.safetensors``, ``optimizer.pt`` and ``checkpoint.json``. The last is written last and
removed first: a folder without it is no checkpoint. What no epoch changes is one file with many
links: ``trained-on.safetensors``, what tells the images that the run was trained on from others;
and, where the encoder is frozen, ``encoder.safetensors``, ``model.safetensors`` holding the rest.

A run keeps the last few, and the one of its best epoch by validation score, which has no
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
from raymed.model.encoder import Encoder, encoder_from
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
from raymed.training.observer import Row, goodness
from raymed.training.worker import dtype_of

SCHEMA_VERSION = 4
INFO_FILE = "checkpoint.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
ENCODER_FILE = "encoder.safetensors"
TRAINED_ON_FILE = "trained-on.safetensors"
ENCODER = "encoder."
"""What the names of the encoder's weights begin with, among a system's."""

NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


@dataclass(frozen=True)
class Partial:
    """An epoch that is not at its end.

    Attributes:
        step: how many of its optimiser steps are done.
        sums: of the loss and of its terms, over the images that all workers have seen in it.
        seconds: that these steps took.
    """

    step: int
    sums: list[float]
    seconds: float


@dataclass(frozen=True)
class Snapshot:
    """Weights and optimiser's state at one moment, on the CPU; training goes on meanwhile."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def take(cls, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Self:
        return cls(_copied(model.state_dict()), _copied(optimizer.state_dict()))


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, and where it lies.

    Attributes:
        config: of the run that wrote it, with the stop threshold and the M that were best on the
            validation split where these were free.
        vocabulary: the words and tags behind the model's ids.
        image_size: side of the images it was trained on, in pixels.
        content_hash: of the prepared dataset it was trained on.
        history: a row of metrics for each epoch so far.
        partial: the epoch after these, where it is not at its end.
        curve: CIDEr on the validation split after this epoch at other stop thresholds and values of
            M: rows of ``stop_threshold`` and ``top_tags``, each where the system has it, and
            ``cider``; empty where it has neither.
        path: its folder.
    """

    config: Config
    vocabulary: Vocabulary
    image_size: int
    content_hash: str
    history: list[Row]
    curve: list[Row]
    path: AnyPath
    partial: Partial | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    @classmethod
    def open(cls, path: str | AnyPath) -> "Checkpoint":
        """Open a checkpoint's folder, or a run's folder, which stands for its best checkpoint.

        Raises:
            UsageError: there is none, it is damaged, or of another schema version.
        """
        folder = as_path(path)
        if not (folder / INFO_FILE).is_file():
            best = _best(folder)
            if best is None:
                raise UsageError(
                    f"{path}: not a checkpoint: it has no {INFO_FILE}, nor checkpoints/epoch-*. "
                    "Give the folder of a run that `raymed train` made, or one of its checkpoints"
                )
            folder = best
        try:
            content = _info(folder)
            version = content.get("schema")
            if version != SCHEMA_VERSION:
                raise UsageError(
                    f"{folder}: checkpoint of schema version {version}, and this raymed reads "
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
                partial=Partial(**content["partial"]) if content["partial"] else None,
            )
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / INFO_FILE, error) from error

    def build_model(self, device: torch.device = torch.device("cpu")) -> System:  # noqa: B008
        """The model with this checkpoint's weights, in eval mode, computing as the run did.

        Raises:
            UsageError: the weights are damaged.
        """
        sizes = len(self.vocabulary.tags), len(self.vocabulary)
        model = build_system(self.config.model, *sizes, encoder=None)
        self.put_into(model)
        model.encoder = self.encoder(dropout=0.0)
        return model.place(device, self.precision).eval()

    @property
    def precision(self) -> torch.dtype:
        """What the run computes in; its configuration says so, and no longer `auto`."""
        return dtype_of(self.config)

    def put_into(self, model: System) -> None:
        """Give a system of the same kind and vocabulary these weights; the encoder's if it has one.

        Raises:
            UsageError: the weights are damaged.
        """
        weights = _loaded(self.path / MODEL_FILE)
        if model.encoder is None:
            weights = {name: w for name, w in weights.items() if not name.startswith(ENCODER)}
        elif not self.config.model.train_encoder:
            weights |= _loaded(self.encoder_file)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise _damaged(self.path / MODEL_FILE, error) from error

    def encoder(self, dropout: float) -> Encoder:
        """Its encoder on the CPU, whether it was trained or frozen.

        Raises:
            UsageError: the weights are damaged.
        """
        state = {
            name.removeprefix(ENCODER): tensor
            for name, tensor in _loaded(self.encoder_file).items()
            if name.startswith(ENCODER)
        }
        try:
            return encoder_from(self.config.model.encoder, state, dropout)
        except RuntimeError as error:
            raise _damaged(self.encoder_file, error) from error

    @property
    def encoder_file(self) -> AnyPath:
        """The file with the encoder's weights, among others if it was trained."""
        trained = self.config.model.train_encoder
        return self.path / (MODEL_FILE if trained else ENCODER_FILE)

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights and the optimiser's state of a run's last checkpoint back.

        Raises:
            UsageError: a file is damaged.
        """
        try:
            with local_copy(self.path / OPTIMIZER_FILE) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
            model.load_state_dict(_loaded(self.path / MODEL_FILE))
            optimizer.load_state_dict(state)
            # The fused AdamW takes its state to lie in memory as the weights do, unseen.
            for parameter, of_it in optimizer.state.items():
                for name, value in of_it.items():
                    if value.shape == parameter.shape:
                        of_it[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        except UsageError:
            raise
        # torch raises a dozen kinds for a file that is not an optimiser's state.
        except Exception as error:
            raise _damaged(self.path, error) from error

    def save(
        self, snapshot: Snapshot, keep: int, constant: Mapping[str, Path] | None = None
    ) -> None:
        """Write it, then drop those before it that are neither among the last nor the best.

        Args:
            snapshot: without the encoder where that is frozen.
            keep: how many of the last ones stay.
            constant: files that no epoch changes, by the names under which to link to them.

        Raises:
            UsageError: it cannot be written (no space left, say); the earlier ones stay good.
        """
        content: dict[str, Any] = {
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
        try:
            before = whole_checkpoints(self.path.parent.parent)
            if self.path in before:
                return
            # Of a process that was killed while it wrote this one.
            remove_tree(self.path)
            with atomic_path(self.path / MODEL_FILE) as file:
                safetensors.torch.save_file(snapshot.model, file)
            # To a file of Python's, which knows why it could not be written, as torch's does not.
            with atomic_path(self.path / OPTIMIZER_FILE) as file, file.open("wb") as stream:
                torch.save(snapshot.optimizer, stream)
            for name, source in (constant or {}).items():
                # The run's own, so that a file on another disk is copied once only.
                own = before[-1] / name if before else source
                link_or_copy(own if own.exists() else source, self.path / name)
            atomic_write_text(self.path / INFO_FILE, json.dumps(content, indent=1))
            self._forget_others(keep)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            with suppress(OSError):
                remove_tree(self.path)
            why = "no space left" if _is_full(error) else reason(error)
            raise UsageError(
                f"{self.path}: the checkpoint could not be written ({why}); the one before it "
                "stays good. Make room; a run that has ended goes on from there by the same command"
            ) from error

    def _forget_others(self, keep: int) -> None:
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


def checkpoints_of(run_folder: AnyPath) -> AnyPath:
    """Where a run's checkpoints lie."""
    return run_folder / "checkpoints"


def checkpoint_name(epoch: int, step: int | None = None) -> str:
    """The folder of a checkpoint after an epoch, or after a step of it, both from 1."""
    return f"epoch-{epoch:04d}" + ("" if step is None else f"-step-{step:06d}")


def whole_checkpoints(run_folder: AnyPath) -> list[AnyPath]:
    """The checkpoints of a run, the last one last."""
    folders = [
        child
        for child in checkpoints_of(run_folder).glob("epoch-*")
        if NAME.fullmatch(child.name) and (child / INFO_FILE).is_file()
    ]
    return sorted(folders, key=lambda folder: _position(folder.name))


def latest(run_folder: AnyPath) -> AnyPath | None:
    """The last whole checkpoint of a run, if it has one."""
    return next(reversed(whole_checkpoints(run_folder)), None)


def best_epoch(history: Sequence[Row]) -> int:
    """The epoch, from 1, of the highest validation score, as `goodness` breaks ties."""
    return max(range(len(history)), key=lambda i: (*goodness(history[i]), -i)) + 1


def _best(run_folder: AnyPath, history: Sequence[Row] | None = None) -> AnyPath | None:
    """The checkpoint of the best epoch, of those that are there; the last one before any epoch."""
    whole = {_position(folder.name): folder for folder in whole_checkpoints(run_folder)}
    if not whole:
        return None
    last = whole[max(whole)]
    if history is None:
        try:
            history = _info(last)["history"]
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
    """Where in its run a checkpoint lies: epochs begun, and the step of the last of them."""
    match = NAME.fullmatch(name)
    assert match is not None
    return _position_of(int(match[1]), int(match[2]) if match[2] else None)


def _position_of(epoch: int, step: int | None = None) -> tuple[int, float]:
    return epoch, float("inf") if step is None else step


def _info(folder: AnyPath) -> Any:
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
    """Whether an error came of a full disk; torch raises one of its own instead."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__context__
    return False


def _damaged(path: AnyPath, error: Exception) -> UsageError:
    # What follows torch's first line is advice for programmers.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{path}: damaged or not a checkpoint's ({reason}); copy it again, or delete it: "
        "the run then goes on from the checkpoint before it, or afresh"
    )
