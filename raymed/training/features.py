"""Freezing an encoder: its features of a dataset, computed once and mapped by every run.

They lie in a folder of the local cache whose name is a hash of all that they depend on: the
encoder's weights, the dataset's content, how pixels become the encoder's input, and the precision
that it computes in. Files are small (`raymed.data.features`), and each is computed by whoever first
locks it: the workers of one run share the work, and so do runs that want the same features at the
same time. Workers that see other caches, on other nodes, find nothing there and compute it all. A
lock is the operating system's and ends with its process, so a killed worker's file is computed by
another.

Where `data.features` names a place that all nodes see, what one node has computed is put there and
fetched from there by the others.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from raymed.cache import cache_folder
from raymed.config import Config
from raymed.data.dataset import PreparedDataset, Split
from raymed.data.features import SplitFeatures
from raymed.errors import UsageError
from raymed.locks import byte_lock
from raymed.model.encoder import Encoder, grid, widths
from raymed.model.precision import computing_in
from raymed.storage import AnyPath, as_path, atomic_path, file_stamp, local_copy, reason
from raymed.training.agreement import Agreement
from raymed.training.checkpoint import ENCODER, ENCODER_FILE, Checkpoint
from raymed.training.saving import TrainingEnded
from raymed.training.start import build_starting_encoder, encoder_run
from raymed.training.worker import Worker, dtype_of

LOCK_FILE = "lock"
STEP = 8
"""Images that the encoder sees at a time: VGG-19's widest layer then takes 100 MB."""
_digests: dict[tuple[object, ...], str] = {}
"""Hashes of encoders by where they come from. A worker that trains one trial after the other would
else read half a gigabyte of weights for each, only to learn that nothing has changed."""


@dataclass(frozen=True)
class Frozen:
    """A frozen encoder in the cache.

    Attributes:
        encoder_file: its weights.
        features: by split, of ``train`` and ``val``.
    """

    encoder_file: Path
    features: dict[str, SplitFeatures]


def freeze(
    config: Config,
    dataset: PreparedDataset,
    splits: dict[str, Split],
    start: Checkpoint | None,
    worker: Worker,
    progress: Callable[[int, int], None] | None,
    ending: Callable[[], bool],
) -> Frozen:
    """The features of the encoder that a run starts from, computed where they are not there yet.

    All workers of a run leave together, whoever computed.

    Args:
        config: of the run.
        dataset: that it is trained on.
        splits: of the dataset, to compute the features of.
        start: the checkpoint that the run goes on or starts from, if any.
        worker: its device computes; its rank decides which share it begins with.
        progress: called with how many images are done, and of how many.
        ending: whether the run is to end; asked every few images.

    Raises:
        TrainingEnded: on all workers; the files that are whole stay.
        UsageError: the weights cannot be read, a feature does not fit float16, or the cache cannot
            be written.
    """
    encoder: Encoder | None = None
    origin = _origin(config, start)
    if origin not in _digests:
        encoder = build_starting_encoder(config, start)
        _digests[origin] = digest(encoder)
    name, size = config.model.encoder, dataset.info.image_size
    precision = dtype_of(config)
    depends_on = (name, _digests[origin], dataset.info.content_hash, size, str(precision))
    key = hashlib.sha256(repr(depends_on).encode()).hexdigest()
    folder = cache_folder("features", key)
    side, (depth, width) = grid(name, size), widths(name)
    features = {
        split: SplitFeatures(folder, split, len(splits[split]), (depth, side, side), width)
        for split in splits
    }
    frozen = Frozen(folder / ENCODER_FILE, features)
    whole = all(each.is_whole(n) for each in features.values() for n in range(len(each.files)))
    agreement = Agreement(worker)
    if not (whole and _is_encoder(frozen.encoder_file)):
        encoder = encoder or build_starting_encoder(config, start)
        encoder = encoder.place(worker.device, precision)
        try:
            shared = as_path(config.data.features) / key if config.data.features else None
            report = progress or (lambda *_: None)
            asked = lambda: agreement.ended(ending())  # noqa: E731
            with computing_in(precision, worker.device):
                _compute(frozen, splits, encoder, shared, worker, report, asked)
        except OSError as error:
            total = sum(each.count * each.row_bytes for each in features.values())
            there = f" or {config.data.features}" if config.data.features else ""
            raise UsageError(
                f"{folder}{there}: cannot write the encoder's features ({reason(error)}); they "
                f"need {total / 2**20:,.0f} MiB. Make room, or set XDG_CACHE_HOME to a folder with "
                "room, on a disk that has file locks"
            ) from error
    if agreement.over(ending()):
        raise _ended()
    return frozen


def digest(encoder: Encoder) -> str:
    """A hash of an encoder's weights and of how it scales pixels."""
    content = hashlib.sha256()
    tensors = {**encoder.state_dict(), "mean": encoder.mean, "std": encoder.std}
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().data)
    return content.hexdigest()


def _origin(config: Config, start: Checkpoint | None) -> tuple[object, ...]:
    """Where a run's encoder comes from: equal for equal weights in the life of a process."""
    model = config.model
    source = start or encoder_run(model)
    dtype = torch.get_default_dtype()
    if source is None and model.encoder_weights == "none":
        return model.encoder, config.training.seed, dtype
    if source is None and model.encoder_weights == "imagenet":
        return model.encoder, "imagenet", dtype
    file = source.encoder_file if source else as_path(model.encoder_weights)
    try:
        return model.encoder, *file_stamp(file), dtype
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({reason(error)})") from error


def _compute(
    frozen: Frozen,
    splits: dict[str, Split],
    encoder: Encoder,
    shared: AnyPath | None,
    worker: Worker,
    progress: Callable[[int, int], None],
    ended: Callable[[], bool],
) -> None:
    """Write what is missing, together with whoever else does, and return when all is there."""
    folder = frozen.encoder_file.parent
    folder.mkdir(parents=True, exist_ok=True)
    files = [(name, n) for name, each in frozen.features.items() for n in range(len(each.files))]
    sizes = [len(frozen.features[name].rows_of_file(n)) for name, n in files]
    # Each begins with a share of its own, and goes on with those of the others.
    first = worker.rank * len(files) // worker.world
    order = [*range(first, len(files)), *range(first)]
    done: set[int] = set()

    def pause(images: int = 0) -> None:
        """Called every few images, of which so many belong to a file that is not whole yet."""
        progress(sum(sizes[each] for each in done) + images, sum(sizes))
        if ended():
            raise _ended()

    pause()
    with (folder / LOCK_FILE).open("a+b") as lock:
        with byte_lock(lock, len(files), pause):
            if not _is_encoder(frozen.encoder_file):
                _write_encoder(frozen.encoder_file, encoder)
        # At first what another is writing is passed over; then there is only that to wait for.
        for wait in (None, pause):
            for place in order:
                name, n = files[place]
                features = frozen.features[name]
                with byte_lock(lock, place, wait) as ours:
                    if ours and not features.is_whole(n):
                        _fetch(features, n, shared)
                    if ours and not features.is_whole(n):
                        rows = features.rows_of_file(n)
                        chunks = _chunks(encoder, splits[name], rows, worker.device, pause)
                        features.write(n, chunks)
                        _share(features, n, shared)
                if ours:
                    done.add(place)
                    progress(sum(sizes[each] for each in done), sum(sizes))


def _ended() -> TrainingEnded:
    return TrainingEnded("asked to end; the features so far stay, and the same command goes on")


def _fetch(features: SplitFeatures, number: int, shared: AnyPath | None) -> None:
    """Copy a file from the place that all nodes see, if it is there."""
    file = features.files[number]
    if shared is not None and (shared / file.name).is_file():
        with local_copy(shared / file.name) as found, atomic_path(file) as copy:
            shutil.copyfile(found, copy)


def _share(features: SplitFeatures, number: int, shared: AnyPath | None) -> None:
    """Copy a file to the place that all nodes see."""
    file = features.files[number]
    if shared is not None:
        with atomic_path(shared / file.name) as copy:
            shutil.copyfile(file, copy)


@torch.inference_mode()
def _chunks(
    encoder: Encoder,
    split: Split,
    rows: np.ndarray,
    device: torch.device,
    before: Callable[[int], None],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The features of some rows, float16, a few images at a time.

    ``before`` is called with how many are done, and may raise.
    """
    for start in range(0, len(rows), STEP):
        before(start)
        images = torch.from_numpy(split.pixels(rows[start : start + STEP])).to(device)
        feature_map, hidden = (each.half().cpu() for each in encoder(images))
        if not (feature_map.isfinite().all() and hidden.isfinite().all()):
            raise UsageError(
                "model.encoder_weights: a feature of the frozen encoder is not finite in float16: "
                "give other weights, or set model.train_encoder=true"
            )
        yield feature_map.numpy(), hidden.numpy()


def _write_encoder(file: Path, encoder: Encoder) -> None:
    state = {
        f"{ENCODER}{name}": tensor.cpu().contiguous()
        for name, tensor in encoder.state_dict().items()
    }
    with atomic_path(file) as partial:
        safetensors.torch.save_file(state, partial)


def _is_encoder(file: Path) -> bool:
    """Whether the file is there and has the length that its header says."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return any(name.startswith(ENCODER) for name in opened.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return False
