"""What is frozen of an encoder, and its features: computed once per dataset, cached, and mapped.

With ``model.train_encoder=none`` these are the feature maps and the last hidden layer, with
``hidden`` the feature maps alone, which are independent of the hidden layers.

They are kept in a folder of the local cache whose name is a hash of all that they depend on: the
encoder's weights, the dataset's content, how pixels become the encoder's input, and the precision
the encoder computes in. The files are small (`raymed.data.features`), and each is computed by
whoever locks it first: the workers of one run share the work, and so do runs that need the same
features at the same time. Workers on other nodes see other caches, find nothing there and compute
everything. The locks are the operating system's and end with their process, so that another
process computes the file of a worker that was killed.

Where `data.features` names a folder that all nodes see, files computed on one node are copied
there, and local_copy from there by the others.
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
from raymed.image_tensors import Features
from raymed.locks import byte_lock
from raymed.model.encoder import CONVOLUTIONS, Encoder
from raymed.model.encoder_shapes import grid, widths
from raymed.model.precision import precision_context
from raymed.storage import AnyPath, as_path, atomic_path, file_stamp, local_copy, reason
from raymed.training.checkpoint import ENCODER, ENCODER_FILE, Checkpoint
from raymed.training.errors import Interrupted
from raymed.training.interrupt_vote import InterruptVote
from raymed.training.observer import FEATURES, Observer, Status
from raymed.training.precision import dtype_of
from raymed.training.start import build_starting_encoder, encoder_run
from raymed.training.worker import Worker

LOCK_FILE = "lock"
STEP = 8
"""Images per forward pass: VGG-19's widest layer then takes 100 MB."""

_digests: dict[tuple[object, ...], str] = {}
"""Hashes of encoders by origin. Without them a worker that trains one trial after the other would
read half a gigabyte of weights for each, only to find them unchanged."""


@dataclass(frozen=True)
class FrozenEncoder:
    """What is frozen of an encoder and its features, in the cache.

    Attributes:
        encoder_file: The weights of the encoder, or of its convolutions.
        features: The features of each split, by its name.
    """

    encoder_file: Path
    features: dict[str, SplitFeatures]

    def is_complete(self) -> bool:
        """Whether nothing is left to compute."""
        return _is_encoder(self.encoder_file) and all(
            each.is_whole(n) for each in self.features.values() for n in range(len(each.files))
        )


def freeze_encoder(
    config: Config,
    dataset: PreparedDataset,
    splits: dict[str, Split],
    start: Checkpoint | None,
    worker: Worker,
    observer: Observer,
) -> FrozenEncoder:
    """What is frozen of a run's encoder and its features, computed where the cache lacks them.

    All workers of a run return together, whichever of them computed.

    Args:
        config: The run's configuration, its precision decided.
        dataset: The dataset the run is trained on.
        splits: The splits to compute features of, by name.
        start: The checkpoint the run resumes or starts from, if any.
        worker: Its device computes; its rank decides which files it begins with.
        observer: Receives the number of images done; asked every few images whether to stop.

    Raises:
        Interrupted: On all workers. Finished files are kept.
        UsageError: The weights cannot be read, a feature does not fit float16, or the cache cannot
            be written.
    """
    encoder: Encoder | None = None
    origin = _origin(config, start)
    if origin not in _digests:
        encoder = build_starting_encoder(config, start)
        _warn(encoder, worker, observer)
        _digests[origin] = digest(encoder, _is_whole(config))
    frozen = _in_cache(config, dataset, splits, _digests[origin])
    builder = _FeatureBuilder(frozen, splits, worker, observer)
    if not frozen.is_complete():
        encoder = encoder or build_starting_encoder(config, start)
        precision = dtype_of(config)
        try:
            with precision_context(precision, worker.device):
                encoder = encoder.move_to(worker.device, precision).eval()
                builder.build(encoder, config.data.features)
        except OSError as error:
            raise _cannot_write(frozen, config.data.features, error) from error
    builder.finish()
    return frozen


def _in_cache(
    config: Config, dataset: PreparedDataset, splits: dict[str, Split], encoder_digest: str
) -> FrozenEncoder:
    """Where the cache keeps an encoder and its features, whether or not they are there yet."""
    name, size = config.model.encoder, dataset.info.image_size
    content, precision = dataset.info.content_hash, str(dtype_of(config))
    depends_on = (name, encoder_digest, content, size, precision, _is_whole(config))
    folder = cache_folder("features", hashlib.sha256(repr(depends_on).encode()).hexdigest())
    side, (depth, width) = grid(name, size), widths(name)
    features = {
        split: SplitFeatures(
            folder,
            split,
            len(splits[split]),
            (depth, side, side),
            width if _is_whole(config) else None,
        )
        for split in splits
    }
    return FrozenEncoder(folder / ENCODER_FILE, features)


def _cannot_write(frozen: FrozenEncoder, shared: str | None, error: OSError) -> UsageError:
    total = sum(each.count * each.row_bytes for each in frozen.features.values())
    or_shared = f" or {shared}" if shared else ""
    return UsageError(
        f"{frozen.encoder_file.parent}{or_shared}: cannot write the encoder's features "
        f"({reason(error)}); they need {total / 2**20:,.0f} MiB. Free some space, or set "
        "XDG_CACHE_HOME to a folder with enough space on a disk that supports file locks"
    )


def _is_whole(config: Config) -> bool:
    """Whether the hidden layers are frozen too."""
    return config.model.train_encoder == "none"


def digest(encoder: Encoder, whole: bool = True) -> str:
    """A hash of an encoder's weights, or of its convolutions', and of how it scales pixels."""
    content = hashlib.sha256()
    for name, tensor in sorted(_frozen_state(encoder, whole).items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().data)
    return content.hexdigest()


def _frozen_state(encoder: Encoder, whole: bool) -> dict[str, torch.Tensor]:
    state = encoder.state_dict()
    return {key: state[key] for key in state if whole or key.startswith(CONVOLUTIONS)}


def _warn(encoder: Encoder, worker: Worker, observer: Observer) -> None:
    if worker.rank == 0:
        for notice in encoder.notices:
            observer.warn(notice)


def _origin(config: Config, start: Checkpoint | None) -> tuple[object, ...]:
    """Where a run's encoder comes from: equal for equal weights within a process's lifetime."""
    model = config.model
    source = start or encoder_run(model)
    # What the weights lack is drawn from the seed.
    drawn = None if source else config.training.seed
    common = model.encoder, model.train_encoder, torch.get_default_dtype(), drawn
    if source is None and model.encoder_weights in ("imagenet", "none"):
        return *common, model.encoder_weights
    files = source.encoder_files if source else [as_path(model.encoder_weights)]
    try:
        return *common, *(file_stamp(file) for file in files)
    except OSError as error:
        raise UsageError(f"{files[-1]}: cannot be read ({reason(error)})") from error


class _FeatureBuilder:
    """Computes the missing files of a frozen encoder, together with whoever else computes them.

    Args:
        frozen: What is to be computed.
        splits: The splits whose features they are, by name.
        worker: This worker.
        observer: Receives the number of images done, and is asked whether to stop.
    """

    def __init__(
        self, frozen: FrozenEncoder, splits: dict[str, Split], worker: Worker, observer: Observer
    ) -> None:
        self.frozen = frozen
        self.splits = splits
        self.worker = worker
        self.observer = observer
        self.vote = InterruptVote(worker)
        self.files = [
            (name, n) for name, of in frozen.features.items() for n in range(len(of.files))
        ]
        self.sizes = [len(frozen.features[name].rows_of_file(n)) for name, n in self.files]
        self.done: set[int] = set()
        self.whole = all(each.width is not None for each in frozen.features.values())

    def build(self, encoder: Encoder, shared: str | None) -> None:
        """Write what is missing, and return once everything is there.

        Args:
            encoder: The encoder, on the worker's device.
            shared: The folder that all nodes see, of which the cache's has a subfolder; if any.
        """
        folder = self.frozen.encoder_file.parent
        folder.mkdir(parents=True, exist_ok=True)
        shared_folder = as_path(shared) / folder.name if shared else None
        # Each worker begins with a share of its own, and continues with those of the others.
        first = self.worker.rank * len(self.files) // self.worker.world
        order = [*range(first, len(self.files)), *range(first)]
        self._pause()
        with (folder / LOCK_FILE).open("a+b") as lock:
            with byte_lock(lock, len(self.files), self._pause):
                if not _is_encoder(self.frozen.encoder_file):
                    _write_encoder(self.frozen.encoder_file, encoder, self.whole)
            # The first pass skips files that others are writing; the second waits for them.
            for wait in (None, self._pause):
                for number in order:
                    with byte_lock(lock, number, wait) as ours:
                        if ours:
                            self._complete(number, encoder, shared_folder)

    def finish(self) -> None:
        """Wait for the run's other workers.

        Raises:
            Interrupted: One of them is to stop. Raised on all workers.
        """
        if self.vote.finish(self.observer.ending()):
            raise _interrupted()

    def _complete(self, number: int, encoder: Encoder, shared: AnyPath | None) -> None:
        """Fetch or compute a file that this process has locked, unless it is there."""
        name, n = self.files[number]
        features = self.frozen.features[name]
        if not features.is_whole(n):
            _fetch(features, n, shared)
        if not features.is_whole(n):
            rows = features.rows_of_file(n)
            device = self.worker.device
            compute = encoder if self.whole else lambda images: (encoder.feature_map(images),)
            features.write(n, _chunks(compute, self.splits[name], rows, device, self._pause))
            _share(features, n, shared)
        self.done.add(number)
        self._report()

    def _report(self, images: int = 0) -> None:
        """Report the images of finished files, and ``images`` of an unfinished one."""
        done = sum(self.sizes[number] for number in self.done) + images
        world = self.worker.world
        self.observer.progress(Status(0, done, sum(self.sizes), workers=world, doing=FEATURES))

    def _pause(self, images: int = 0) -> None:
        """Called every few images: report them, and stop if the run is to."""
        self._report(images)
        if self.vote.poll(self.observer.ending()):
            raise _interrupted()


def _interrupted() -> Interrupted:
    return Interrupted(
        "asked to stop; the features computed so far are kept, and the same command resumes"
    )


def _fetch(features: SplitFeatures, number: int, shared: AnyPath | None) -> None:
    """Copy a file from the shared folder, if it is there."""
    file = features.files[number]
    if shared is not None and (shared / file.name).is_file():
        with local_copy(shared / file.name) as found, atomic_path(file) as copy:
            shutil.copyfile(found, copy)


def _share(features: SplitFeatures, number: int, shared: AnyPath | None) -> None:
    """Copy a file to the shared folder, if there is one."""
    file = features.files[number]
    if shared is not None:
        with atomic_path(shared / file.name) as copy:
            shutil.copyfile(file, copy)


@torch.inference_mode()
def _chunks(
    compute: Callable[[torch.Tensor], Features],
    split: Split,
    rows: np.ndarray,
    device: torch.device,
    before: Callable[[int], None],
) -> Iterator[tuple[np.ndarray, ...]]:
    """The features that ``compute`` has for ``rows``, float16, a few images at a time.

    ``before`` is called before each forward pass with the number of images done, and may raise.
    """
    for start in range(0, len(rows), STEP):
        before(start)
        images = torch.from_numpy(split.pixels(rows[start : start + STEP])).to(device)
        features = [each.half().cpu() for each in compute(images)]
        if not all(each.isfinite().all() for each in features):
            raise UsageError(
                "model.encoder_weights: a feature of the frozen encoder is not finite in float16: "
                "use other weights, or set model.train_encoder=all"
            )
        yield tuple(each.numpy() for each in features)


def _write_encoder(file: Path, encoder: Encoder, whole: bool) -> None:
    state = {
        f"{ENCODER}{name}": tensor.cpu().contiguous()
        for name, tensor in _frozen_state(encoder, whole).items()
    }
    with atomic_path(file) as partial:
        safetensors.torch.save_file(state, partial)


def _is_encoder(file: Path) -> bool:
    """Whether the file exists and has the length that its header states."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return any(name.startswith(ENCODER) for name in opened.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return False
