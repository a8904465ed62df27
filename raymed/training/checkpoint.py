"""Checkpoints: tensors and JSON only, written whole or not at all, open without the data set.

A run keeps two: the one of its last epoch, with the optimiser's state, and the one of its best
epoch by validation score. Each is a folder ``epoch-0007`` of ``model.safetensors``,
``checkpoint.json`` and, for the last, ``optimizer.pt``. Of a run with a frozen encoder,
``model.safetensors`` holds the rest, and ``encoder.safetensors`` is one file with many links.
"""

import errno
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

SCHEMA_VERSION = 3
INFO_FILE = "checkpoint.json"
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
ENCODER_FILE = "encoder.safetensors"
ENCODER = "encoder."
"""What the names of the encoder's weights begin with, among a system's."""

Row = dict[str, float]
"""The metrics of one epoch."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself, and where it lies.

    Attributes:
        config: of the run that wrote it, with the stop threshold and the M that were best on the
            validation split where these were free.
        vocabulary: the words and tags behind the model's ids.
        image_size: side of the images it was trained on, in pixels.
        content_hash: of the prepared data set it was trained on.
        history: a row of metrics for each epoch so far.
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
    path: Path

    @property
    def epoch(self) -> int:
        return len(self.history)

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Open a checkpoint's folder, or a run's folder, which stands for its best checkpoint.

        Raises:
            UsageError: there is none, it is damaged, or of another schema version.
        """
        folder = Path(path)
        if not (folder / INFO_FILE).is_file():
            last = latest(folder)
            if last is None:
                raise UsageError(
                    f"{path}: not a checkpoint: it has no {INFO_FILE}, nor checkpoints/epoch-*. "
                    "Give the folder of a run that `raymed train` made, or one of its checkpoints"
                )
            folder = checkpoints_of(folder) / epoch_name(best_epoch(cls.open(last).history))
        try:
            content = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
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
            )
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(folder / INFO_FILE, error) from error

    def build_model(self) -> System:
        """The model with this checkpoint's weights, in eval mode, on the CPU.

        Raises:
            UsageError: the weights are damaged.
        """
        sizes = len(self.vocabulary.tags), len(self.vocabulary)
        model = build_system(self.config.model, *sizes, encoder=None)
        self.put_into(model)
        model.encoder = self.encoder(dropout=0.0)
        return model.eval()

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
    def encoder_file(self) -> Path:
        """The file with the encoder's weights, among others if it was trained."""
        trained = self.config.model.train_encoder
        return self.path / (MODEL_FILE if trained else ENCODER_FILE)

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights and the optimiser's state of a run's last checkpoint back.

        Raises:
            UsageError: a file is damaged.
        """
        try:
            safetensors.torch.load_model(model, self.path / MODEL_FILE)
            state = torch.load(self.path / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            optimizer.load_state_dict(state)
        # torch raises a dozen kinds for a file that is not an optimiser's state.
        except Exception as error:
            raise _damaged(self.path, error) from error

    def save(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        frozen_encoder: Path | None = None,
    ) -> None:
        """Write it to a temporary folder and rename that; then drop what is neither last nor best.

        Args:
            model: without its encoder where that is frozen.
            optimizer: of the model.
            frozen_encoder: file of the frozen encoder's weights, to be linked to.

        Raises:
            UsageError: it cannot be written (no space left, say); the earlier ones stay good.
        """
        content: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "epoch": self.epoch,
            "image_size": self.image_size,
            "content_hash": self.content_hash,
            "history": self.history,
            "curve": self.curve,
            "config": self.config.model_dump(mode="json", by_alias=True),
            **asdict(self.vocabulary),
        }
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.mkdir(parents=True)
            safetensors.torch.save_model(model, str(partial / MODEL_FILE))
            if frozen_encoder is not None:
                # The run's own, so that a file on another disk is copied once only.
                last = latest(self.path.parent.parent)
                source = last / ENCODER_FILE if last else frozen_encoder
                _link(source, partial / ENCODER_FILE)
            torch.save(optimizer.state_dict(), partial / OPTIMIZER_FILE)
            (partial / INFO_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
            for file in partial.iterdir():
                _flush(file)
            partial.rename(self.path)
            self._forget_others()
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            reason = "no space left" if full else str(error)
            raise UsageError(
                f"{self.path}: the checkpoint could not be written ({reason}). Make room and give "
                "the same command again: the run goes on from its last whole checkpoint"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _forget_others(self) -> None:
        best = epoch_name(best_epoch(self.history))
        # Of a run that was killed while it wrote one.
        for partial in self.path.parent.glob(".epoch-*.partial"):
            shutil.rmtree(partial)
        for folder in self.path.parent.glob("epoch-*"):
            if folder.name == best and folder != self.path:
                (folder / OPTIMIZER_FILE).unlink(missing_ok=True)
            elif folder != self.path:
                shutil.rmtree(folder)


def checkpoints_of(run_folder: Path) -> Path:
    """Where a run's checkpoints lie."""
    return run_folder / "checkpoints"


def epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def latest(run_folder: Path) -> Path | None:
    """The last whole checkpoint of a run, if it has one."""
    return max(checkpoints_of(run_folder).glob("epoch-[0-9]*"), default=None)


def best_epoch(history: list[Row]) -> int:
    """The epoch, from 1, of the highest validation score; the earliest of equals."""
    return max(range(len(history)), key=lambda i: (history[i]["score"], -i)) + 1


def _loaded(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(file, error) from error
    return weights


def _link(source: Path, target: Path) -> None:
    """One more name for a file; a copy of it where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _damaged(path: Path, error: Exception) -> UsageError:
    # What follows torch's first line is advice for programmers.
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(
        f"{path}: damaged or not a checkpoint's ({reason}); copy it again, or delete the run's "
        "checkpoints to train it afresh"
    )
