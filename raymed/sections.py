"""The sections of the configuration: every setting, typed, with its meaning and its limits.

The defaults are the settings of Jing, Xie and Xing (2018), section 4.2, wherever the paper gives
one.
"""

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raymed.keys import ARE_RUNS, IS_DATABASE, IS_PATH, IS_WEIGHTS, Decides
from raymed.yaml12 import as_written

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Objective = Literal["score", "cider", "recall_5", "seconds_per_report"]

SYSTEMS = tuple(
    sorted(
        file.stem
        for file in (Path(__file__).parent / "model" / "systems").glob("*.py")
        if file.stem != "__init__"
    )
)
"""The systems there are: each is a file of `raymed.model.systems`."""
TAGS_ONLY = ("vgg19_tags",)
"""Those that write no report: they have no CIDEr, and their score is the tag recall@5."""


def _known_system(name: str) -> str:
    if name not in SYSTEMS:
        close = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.4)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be one of {', '.join(SYSTEMS)}{meant}")
    return name


def _workers(given: Any) -> Any:
    counts = list(given) if isinstance(given, list | tuple) else [given]
    whole = all(isinstance(count, int) and not isinstance(count, bool) for count in counts)
    if not whole or not (
        (counts == [given] and given >= 0) or (len(counts) == 2 and 1 <= counts[0] < counts[1])
    ):
        raise ValueError(
            "must be a whole number from 0 up, or the fewest and the most, such as [1, 4]"
        )
    return given


Workers = Annotated[int | tuple[int, int], BeforeValidator(_workers)]
SystemName = Annotated[str, AfterValidator(_known_system)]


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(
            f"must differ from each other, and {', '.join(map(str, twice))} comes again"
        )
    return values


def _seeds(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values:
        raise ValueError("must be one at least")
    return _different(values)


def _run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            "must be letters (a to z), digits, dots, hyphens and underscores, of which the first "
            "is a letter or a digit; it is the name of a folder in run.folder"
        )
    return name


def _holds_texts_alone(kind: Any) -> bool:
    """Whether values of this type are texts, or lists or mappings of nothing else."""
    if get_origin(kind) is Literal:
        return True
    kinds = [one for one in get_args(kind) if isinstance(one, type) or get_args(one)]
    return kind in (str, type(None)) or (bool(kinds) and all(map(_holds_texts_alone, kinds)))


class Section(BaseModel):
    """A part of the configuration: frozen, complete, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _texts_as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A run may be called 007 or 1e3: where a key takes text, that is no number."""
        field = cls.model_fields[str(info.field_name)]
        return as_written(value) if _holds_texts_alone(field.annotation) else value


class RunConfig(Section):
    name: Annotated[str, AfterValidator(_run_name), Decides.SEARCH] = "run"
    """Name of the run or sweep: its folder below `run.folder`, and what resumes it."""
    folder: Annotated[str, Decides.NOTHING, IS_PATH] = "runs"
    """Where runs and sweeps are kept: a folder, on a cluster one that every node sees, or a URI of
    any file system that pyarrow knows, such as s3://bucket/runs or gs://bucket/runs."""


class DataConfig(Section):
    path: Annotated[str, Decides.NOTHING, IS_PATH] = "data/phantom"
    """The prepared dataset (made by `raymed prepare`): a folder, or a URI as for `run.folder`."""
    vocabulary: Annotated[Count, Decides.RUN] = 1000
    """How many of the most frequent words of the training split the model can write."""
    features: Annotated[str | None, Decides.NOTHING, IS_PATH] = None
    """A folder or URI that all nodes see, to share a frozen encoder's features through; empty: each
    node computes them, into its cache."""
    validation_images: Annotated[Count | None, Decides.SCORE] = None
    """Score only the first so many validation images after each epoch (empty: all of them)."""


class ModelConfig(Section):
    system: Annotated[SystemName, Decides.RUN] = "co_attention"
    """The system to train: a row of the paper's tables."""
    encoder: Annotated[Literal["vgg11", "vgg13", "vgg16", "vgg19", "small"], Decides.RUN] = "vgg19"
    """A torchvision VGG, or `small`: three narrow stages for images of about 64 pixels."""
    encoder_weights: Annotated[str, Decides.RUN, IS_WEIGHTS] = "imagenet"
    """`imagenet` (downloaded by torchvision), `none`, a file of torchvision VGG weights, or the
    folder of a run or checkpoint, whatever its system, with the same encoder."""
    train_encoder: Annotated[bool, Decides.RUN] = True
    """Whether the encoder, its own fully connected layers included, is trained or stays as loaded;
    its features are then computed once for each dataset, and a run costs what the rest costs."""
    hidden_size: Annotated[Count, Decides.RUN] = 512
    """Width of hidden states and of the context vector (H in the paper)."""
    embedding_size: Annotated[Count, Decides.RUN] = 512
    """Width of word and tag embeddings and of the topic vector (E in the paper)."""
    top_tags: Annotated[Count, Decides.RUN] = 10
    """How many tags of highest probability become semantic features (M in the paper)."""
    dropout: Annotated[float, Field(ge=0, lt=1), Decides.RUN] = 0.5
    """Dropout between the tag classifier's fully connected layers, as in VGG."""


class LossConfig(Section):
    tag: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the tag cross-entropy (lambda_tag, eq. 8)."""
    sent: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the stop-control cross-entropy (lambda_sent, eq. 8)."""
    word: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the word cross-entropy (lambda_word, eq. 8)."""
    attention: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the attention regularisation (lambda_re, eq. 9; or the system's own paper's)."""


class GenerationConfig(Section):
    stop_threshold: Annotated[Fraction, Decides.RUN] = 0.5
    """A sentence whose p(STOP) is above this is the report's last (eq. 6)."""
    max_sentences: Annotated[Count, Decides.RUN] = 12
    """The longest report, in sentences, that is learned from and written."""
    max_words: Annotated[Count, Decides.RUN] = 30
    """The longest sentence, in words, that is learned from and written."""
    beam_width: Annotated[Count, Decides.RUN] = 1
    """Hypotheses that beam search keeps for each sentence (or report); 1 is greedy."""
    length_penalty: Annotated[Weight, Decides.RUN] = 0.0
    """Hypotheses are ranked by log-probability / words^this; 0: by log-probability alone."""
    block_ngrams: Annotated[int, Field(ge=0), Decides.RUN] = 0
    """No sequence of so many words is written twice in a sentence (or report, where
    the start of a sentence counts as a word); 0: any may be."""


class TrainingConfig(Section):
    epochs: Annotated[Count, Decides.SCORE] = 30
    """Passes over the training split."""
    batch_size: Annotated[Count, Decides.RUN] = 16
    """Images per optimiser step, over all workers together."""
    learning_rate: Annotated[Rate, Decides.RUN] = 5e-4
    """AdamW's rate for everything but the encoder."""
    encoder_learning_rate: Annotated[Rate, Decides.RUN] = 1e-5
    """AdamW's rate for the encoder: convolutions and its own fully connected layers."""
    warmup: Annotated[Fraction, Decides.RUN] = 0.05
    """Both rates rise from zero over this fraction of all steps."""
    final_rate: Annotated[Fraction, Decides.RUN] = 0.1
    """After that both fall along a half cosine to this fraction of themselves; 1 keeps them."""
    weight_decay: Annotated[Weight, Decides.RUN] = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    clip_norm: Annotated[Rate, Decides.RUN] = 5.0
    """Gradients are scaled down to this Euclidean norm where theirs is larger."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Decides.RUN] = "auto"
    """`bfloat16`: autocast, with weights, LSTMs and all decisions in float32; `float32`: full
    precision everywhere; `auto`: bfloat16 on a GPU, or for a large encoder on a CPU, that computes
    in it rather than emulating it. A run keeps its precision, whoever resumes or evaluates it."""
    seed: Annotated[Seed, Decides.RUN] = 0
    """Decides the initial weights, the order of the images and the dropout."""
    start_from: Annotated[str | None, Decides.RUN, IS_PATH] = None
    """A run or checkpoint of the same system and vocabulary whose weights are started from, all of
    them: `encoder_weights` is then not read. To fine-tune a run whose encoder was frozen."""


class LaunchConfig(Section):
    workers: Annotated[Workers, Decides.NOTHING] = 1
    """Ray Train workers (data-parallel); 0 trains in the calling process, without Ray actors. Two
    numbers, the fewest and the most, let a run go on with fewer when nodes leave, and with more
    when they come; batches and their order stay the same."""
    cpus_per_worker: Annotated[Count, Decides.NOTHING] = 1
    """Processors reserved for a worker, and the threads torch may use in it."""
    gpus_per_worker: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Decides.NOTHING
    ] = None
    """GPUs reserved for a worker; empty: one where the cluster has any, else none. A fraction, such
    as 0.25, lets several trials of one worker each share a GPU."""
    max_failures: Annotated[int, Field(ge=0), Decides.NOTHING] = 2
    """How often Ray Train restarts the workers from the last checkpoint when one dies."""
    wait_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False), Decides.NOTHING] = 0
    """How long to wait for nodes that the cluster's autoscaler adds, where the workers do not fit
    those that are up; 0: such a run is refused at once."""
    checkpoint_steps: Annotated[Count, Decides.NOTHING] = 500
    """A checkpoint is written after each epoch, and after every so many steps of it."""
    keep_checkpoints: Annotated[Count, Decides.NOTHING] = 2
    """How many of the last checkpoints stay; the best epoch's does in any case."""
    address: Annotated[str | None, Decides.NOTHING] = None
    """Address of a running Ray cluster; empty: RAY_ADDRESS, or else a Ray of its own here."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker or 0
        if gpus != int(gpus) and gpus > 1:
            raise ValueError(f"gpus_per_worker must be a whole number above 1, not {gpus:g}")
        if gpus != int(gpus) and self.workers not in (0, 1):
            raise ValueError(
                f"gpus_per_worker: a part of a GPU ({gpus:g}) is for runs of one worker, since the "
                "workers of a run cannot share a GPU (NCCL refuses it); set workers to 1, or "
                "gpus_per_worker to a whole number"
            )
        return self


class Dimension(Section):
    """One searched key. Exactly one of the four kinds is given."""

    uniform: tuple[float, float] | None = None
    """Bounds, both included."""
    log_uniform: tuple[float, float] | None = None
    """Bounds, both included and above 0, searched on a logarithmic scale."""
    integer: tuple[int, int] | None = None
    """Bounds, both included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Any values."""
    or_value: Annotated[float | None, Field(alias="or")] = None
    """A value outside the range that is offered as well, such as 0 beside `log_uniform`."""
    when: dict[str, tuple[Any, ...]] = {}
    """Searched keys and the values of theirs with which this one is searched; else it stays."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [k for k in ("uniform", "log_uniform", "integer", "choice") if getattr(self, k)]
        if len(kinds) != 1:
            raise ValueError(
                "exactly one of uniform, log_uniform, integer, choice must be given, "
                f"not {' and '.join(kinds) or 'none'}"
            )
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"the lower bound must be below the upper, not {list(bounds)}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(
                f"log_uniform needs bounds above 0, not {list(self.log_uniform)}; "
                "write `or: 0` beside it to offer 0 as well"
            )
        return self

    def extremes(self) -> tuple[Any, ...]:
        """The values at the dimension's ends (all of them for a choice)."""
        values = self.choice or self.uniform or self.log_uniform or self.integer
        assert values is not None
        return (*values, self.or_value) if self.or_value is not None else tuple(values)

    def holds(self, value: Any) -> bool:
        """Whether the value may be proposed."""
        if self.or_value is not None and value == self.or_value:
            return True
        if self.choice:
            return value in self.choice
        bounds = self.uniform or self.log_uniform or self.integer
        assert bounds is not None
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        whole = self.integer is None or value == int(value)
        return bounds[0] <= value <= bounds[1] and whole

    def between(self) -> tuple[float, ...]:
        """A fraction of a continuous range: what a key that takes whole numbers only refuses."""
        bounds = self.uniform or self.log_uniform
        return (bounds[0] + (bounds[1] - bounds[0]) / math.pi,) if bounds else ()


class TuneConfig(Section):
    trials: Annotated[Count, Decides.NOTHING] = 20
    """How many trials the sweep runs. No two have the same values: a repeated proposal is not
    trained again, and a space with fewer points ends the sweep sooner."""
    space: Annotated[dict[str, Dimension], Decides.SEARCH] = {}
    """Searched keys: a dotted key of this file each, with its range."""
    points_to_evaluate: Annotated[tuple[dict[str, Any], ...], Decides.SEARCH] = ()
    """Proposals that come first; a searched key that one leaves out is the sampler's to propose."""
    sampler: Annotated[Literal["tpe", "cma_es", "gp", "qmc", "random"], Decides.SEARCH] = "tpe"
    """Optuna's sampler: tree-structured Parzen estimators (multivariate, grouped), CMA-ES, Gaussian
    process, quasi-Monte Carlo (Sobol), or random."""
    seed: Annotated[Seed, Decides.SEARCH] = 0
    """Decides what the sampler proposes."""
    startup_trials: Annotated[Count, Decides.SEARCH] = 5
    """Trials proposed at random before the sampler's model (TPE, CMA-ES, GP) takes over."""
    stopping: Annotated[Literal["asha", "median", "none"], Decides.SEARCH] = "asha"
    """Who stops bad trials early: ASHA, the median rule, or nobody."""
    grace_epochs: Annotated[Count, Decides.SEARCH] = 2
    """No trial is stopped before so many epochs."""
    reduction_factor: Annotated[int, Field(ge=2), Decides.SEARCH] = 3
    """ASHA lets one trial in so many go on at each of its rungs."""
    objectives: Annotated[dict[Objective, Literal["max", "min"]], Decides.SEARCH] = {}
    """What is searched for, the first deciding who is stopped early; empty: the score alone, which
    is the CIDEr, or the tag recall@5 of a system that writes no report."""
    free_threshold: Annotated[bool, Decides.SCORE] = False
    """Take the stop threshold that is best on the validation split, found without training."""
    free_top_tags: Annotated[bool, Decides.SCORE] = False
    """Take M as well that is best on the validation split, found without training."""
    storage: Annotated[str | None, Decides.SEARCH, IS_DATABASE] = None
    """URL of a database for Optuna's study, as SQLAlchemy takes it; empty: a journal file."""
    groups: Annotated[Count | None, Decides.NOTHING] = None
    """Worker groups, each training one trial at a time; empty: as many as there is room for."""


class TableConfig(Section):
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_seeds), Decides.NOTHING] = (0, 1, 2)
    """Each system is trained once with each of these seeds."""
    paper: Annotated[Literal["iu_xray", "peir_gross"], Decides.NOTHING] = "iu_xray"
    """The half of the paper's tables that stands beside: paragraphs, or single sentences."""
    systems: Annotated[dict[SystemName, dict[str, Any]], Decides.NOTHING] = {}
    """Settings of single systems: dotted keys and values that the others do not share."""
    runs: Annotated[
        dict[SystemName, Annotated[tuple[str, ...], AfterValidator(_different)]],
        Decides.NOTHING,
        ARE_RUNS,
    ] = {}
    """Folders of finished runs that are taken for a system, instead of training it."""


class PrepareConfig(Section):
    """Settings of `raymed prepare`: those that all sources share, and those that several accept.

    A source with settings of its own extends this class; see `raymed.data.sources.source`.
    """

    out: str
    """Folder to write the prepared dataset to, or a URI such as s3://bucket/folder."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Side of the square images in pixels. The longer side is scaled to it, the shorter padded."""
    split: Literal["auto", "study", "paper", "given", "r2gen"] = "auto"
    """Split protocol. `given` uses the splits that the source names (a table's split column, the
    lists of r2gen), `study` samples studies, `paper` samples images, `r2gen` reads `split_file`.
    `auto` is r2gen if there is a `split_file`, else given if the source names splits, else study.
    Split names, in any case: train or training; val, valid, validate, validation or dev; test or
    testing."""
    seed: Seed = 0
    """Seed of the random splits and of the phantom studies."""
    views: Literal["all", "frontal", "lateral"] = "all"
    """Views to keep. For a table, this needs a view column. PA and AP are frontal."""
    overwrite: bool = False
    """Replace an existing prepared dataset."""
    images: str | None = None
    """Folder of the images; by default, the folder of the reports, table or captions, or `images`
    beside the file of r2gen. Image names in a table are paths relative to this folder or absolute
    paths below it; the file extension may be omitted."""
    split_file: str | None = None
    """File with the study or image ids of each split, for split=r2gen."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Number of parallel workers; by default, one for each CPU of the Ray cluster; 0: prepare in
    this process, without Ray."""
    address: str | None = None
    """Address of a running Ray cluster; by default RAY_ADDRESS, or else Ray starts locally."""

    @property
    def images_folder(self) -> Path | None:
        """`images` as a path."""
        return Path(self.images) if self.images else None
