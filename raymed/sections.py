"""The sections of the configuration: every setting with its type, meaning and limits.

The defaults are the settings of Jing, Xie and Xing (2018), section 4.2, wherever the paper gives
one.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from raymed.keys import ARE_RUNS, IS_DATABASE, IS_PATH, IS_WEIGHTS, Decides
from raymed.setting_types import (
    Count,
    Distinct,
    EncoderName,
    Fraction,
    Objective,
    Rate,
    ReportSections,
    RunName,
    Seed,
    Seeds,
    SystemName,
    SystemSettings,
    TrainEncoder,
    Weight,
    Workers,
)
from raymed.yaml12 import literal_text


def _is_text_only(kind: Any) -> bool:
    """Whether values of this type are strings, or lists or mappings of only strings."""
    if get_origin(kind) is Literal:
        return True
    kinds = [one for one in get_args(kind) if isinstance(one, type) or get_args(one)]
    return kind in (str, type(None)) or (bool(kinds) and all(map(_is_text_only, kinds)))


class Section(BaseModel):
    """One section of the configuration: frozen, complete, and closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _keep_texts_literal(cls, value: Any, info: ValidationInfo) -> Any:
        """Where a key takes text, 007 and 1e3 are text: a run may have such a name."""
        field = cls.model_fields[str(info.field_name)]
        return literal_text(value) if _is_text_only(field.annotation) else value


class RunConfig(Section):
    name: Annotated[RunName, Decides.SEARCH] = "run"
    """Name of the run or sweep, and of its folder in `run.folder`; the same name resumes it."""
    folder: Annotated[str, Decides.NOTHING, IS_PATH] = "runs"
    """Where runs and sweeps are kept: a folder (on a cluster, one that every node sees) or a URI of
    any file system that pyarrow supports, such as s3://bucket/runs or gs://bucket/runs."""


class DataConfig(Section):
    path: Annotated[str, Decides.NOTHING, IS_PATH] = "data/phantom"
    """The prepared dataset (from `raymed prepare`): a folder, or a URI as for `run.folder`."""
    vocabulary: Annotated[Count, Decides.RUN] = 1000
    """How many of the most frequent words of the training split the model can write."""
    features: Annotated[str | None, Decides.NOTHING, IS_PATH] = None
    """A folder or URI that all nodes see, through which they share a frozen encoder's features;
    empty: each node computes them into its own cache."""
    images_per_study: Annotated[Count, Decides.SCORE] = 1
    """Above 1, an example is a study, of which up to N images are read together; 1: an image."""
    validation_images: Annotated[Count | None, Decides.SCORE] = None
    """Score only the first N validation images (or studies) after each epoch (empty: all)."""


class ModelConfig(Section):
    system: Annotated[SystemName, Decides.RUN] = "co_attention"
    """The system to train: a row of the paper's tables."""
    encoder: Annotated[EncoderName, Decides.RUN] = "vgg19"
    """A VGG, ResNet, DenseNet, EfficientNet or ConvNeXt by its torchvision name, or `small`: three
    narrow stages for images of about 64 pixels."""
    encoder_weights: Annotated[str, Decides.RUN, IS_WEIGHTS] = "imagenet"
    """`imagenet` (downloaded by torchvision), `none`, a file of the network's torchvision weights
    (or of its convolutions alone, or of TorchXRayVision's DenseNet-121), or the folder of a run or
    checkpoint of any system with the same encoder."""
    train_encoder: Annotated[TrainEncoder, Decides.RUN] = "all"
    """What of the encoder is trained: `all`; `hidden`, its hidden layers only, for weights without
    them; `none`. The features of what is not trained are computed once per dataset."""
    hidden_size: Annotated[Count, Decides.RUN] = 512
    """Width of hidden states and of the context vector (H in the paper)."""
    embedding_size: Annotated[Count, Decides.RUN] = 512
    """Width of word and tag embeddings and of the topic vector (E in the paper)."""
    top_tags: Annotated[Count, Decides.RUN] = 10
    """How many of the most probable tags become semantic features (M in the paper)."""
    dropout: Annotated[float, Field(ge=0, lt=1), Decides.RUN] = 0.5
    """Dropout between the tag classifier's fully connected layers, as in VGG."""
    embedding_dropout: Annotated[float, Field(ge=0, lt=1), Decides.RUN] = 0.0
    """Dropout on the embeddings of the words that the decoder reads in training."""
    decoder_dropout: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, Decides.RUN] = None
    """Dropout on the word LSTM's output before its output layer, or in all layers of `transformer`;
    empty: the rate of Vaswani et al. (2017), 0.1, in `transformer`, and 0 in the others."""
    tie_embeddings: Annotated[bool, Decides.RUN] = False
    """The decoder's output layer uses the matrix of its word embeddings (Press and Wolf 2017), so
    `hidden_size` and `embedding_size` must be equal; `soft_att` and `transformer` take any, and
    `att_rk` always does so."""


class AugmentationConfig(Section):
    shift: Annotated[float, Field(ge=0, le=0.5), Decides.RUN] = 0.0
    """Each training image is shifted by up to this share of its side, in both directions."""
    rotation: Annotated[float, Field(ge=0, le=45), Decides.RUN] = 0.0
    """Each training image is rotated by up to this many degrees, either way."""
    scale: Annotated[float, Field(ge=0, le=0.5), Decides.RUN] = 0.0
    """Each training image is scaled by a factor of 1 plus or minus up to this."""
    contrast: Annotated[float, Field(ge=0, lt=1), Decides.RUN] = 0.0
    """Grey values are multiplied by 1 plus or minus up to this, and cut off at white."""


class LossConfig(Section):
    tag: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the tag cross-entropy (lambda_tag, eq. 8)."""
    sent: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the stop-control cross-entropy (lambda_sent, eq. 8)."""
    word: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the word cross-entropy (lambda_word, eq. 8)."""
    attention: Annotated[Weight, Decides.RUN] = 1.0
    """Weight of the attention regularisation (lambda_re, eq. 9; or that of the system's paper)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Decides.RUN] = 0.0
    """Share of each word's target that is spread evenly over the whole vocabulary, special words
    included (Szegedy et al. 2016, section 7); 0: all of it is the report's word."""


class GenerationConfig(Section):
    stop_threshold: Annotated[Fraction, Decides.RUN] = 0.5
    """The first sentence with p(STOP) above this is the report's last (eq. 6)."""
    max_sentences: Annotated[Count, Decides.RUN] = 12
    """Longest report, in sentences, in training and generation."""
    max_words: Annotated[Count, Decides.RUN] = 30
    """Longest sentence, in words, in training and generation."""
    beam_width: Annotated[Count, Decides.RUN] = 1
    """Hypotheses that beam search keeps per sentence (or per report); 1 is greedy search."""
    length_penalty: Annotated[Weight, Decides.RUN] = 0.0
    """Hypotheses are ranked by log-probability / words^penalty; 0: by log-probability alone."""
    block_ngrams: Annotated[int, Field(ge=0), Decides.RUN] = 0
    """Never repeat a sequence of N words within a sentence (or within a report, where the start of
    a sentence counts as a word); 0: repetition is allowed."""


class TrainingConfig(Section):
    objective: Annotated[Literal["likelihood", "cider"], Decides.RUN] = "likelihood"
    """`likelihood`: the joint loss over the training reports (eqs. 8 and 9); `cider`: a second
    stage, from `start_from`, that maximises the CIDEr of the model's own reports by self-critical
    training (Rennie et al. 2017). `raymed finetune RUN objective=cider` sets it up."""
    epochs: Annotated[Count, Decides.SCORE] = 30
    """Passes over the training split."""
    patience: Annotated[Count | None, Decides.SCORE] = None
    """End training once N epochs in a row were no better than the best one before them, by score
    or, where scores are equal, training loss; empty: train all epochs. Learning rates always follow
    `epochs`."""
    batch_size: Annotated[Count, Decides.RUN] = 16
    """Images (or studies) per optimiser step, summed over all workers."""
    learning_rate: Annotated[Rate, Decides.RUN] = 5e-4
    """AdamW's learning rate for everything but the encoder."""
    encoder_learning_rate: Annotated[Rate, Decides.RUN] = 1e-5
    """AdamW's learning rate for what is trained of the encoder; hidden layers that begin with
    random weights need a higher one, such as 1e-4."""
    warmup: Annotated[Fraction, Decides.RUN] = 0.05
    """Both learning rates rise linearly from zero over this fraction of all steps."""
    final_rate: Annotated[Fraction, Decides.RUN] = 0.1
    """After warm-up both follow a half cosine down to this fraction of their peak; 1: constant."""
    weight_decay: Annotated[Weight, Decides.RUN] = 0.01
    """AdamW's decoupled weight decay, applied to matrices only."""
    clip_norm: Annotated[Rate, Decides.RUN] = 5.0
    """Gradients are clipped to this Euclidean norm."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Decides.RUN] = "auto"
    """`bfloat16`: autocast, with weights, LSTMs and all decisions in float32; `float32`: full
    precision everywhere; `auto`: bfloat16 where the hardware supports it natively, on a GPU, or on
    a CPU with a large encoder. A run keeps its precision wherever it is resumed or evaluated."""
    seed: Annotated[Seed, Decides.RUN] = 0
    """Determines the initial weights, the order of the images and the dropout masks."""
    start_from: Annotated[str | None, Decides.RUN, IS_PATH] = None
    """Run or checkpoint of the same system and vocabulary to initialise all weights from;
    `encoder_weights` is then ignored. For fine-tuning a run whose encoder was frozen."""


class LaunchConfig(Section):
    workers: Annotated[Workers, Decides.NOTHING] = 1
    """Ray Train workers (data-parallel); 0 trains in the calling process, without Ray actors. A
    minimum and a maximum, such as [1, 4], make the run elastic: it continues with fewer workers
    when nodes leave and with more when they join, on the same batches in the same order."""
    cpus_per_worker: Annotated[Count, Decides.NOTHING] = 1
    """CPUs reserved for each worker, and the number of threads torch uses in it."""
    gpus_per_worker: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Decides.NOTHING
    ] = None
    """GPUs reserved for each worker; empty: one if the cluster has any, else none. A fraction such
    as 0.25 lets several single-worker trials share a GPU."""
    max_failures: Annotated[int, Field(ge=0), Decides.NOTHING] = 2
    """How many times Ray Train restarts the workers from the last checkpoint after one dies."""
    wait_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False), Decides.NOTHING] = 0
    """How long to wait for the autoscaler to add nodes if the workers do not fit on those that are
    up; 0: refuse such a run at once."""
    checkpoint_steps: Annotated[Count, Decides.NOTHING] = 500
    """Write a checkpoint every N steps within an epoch, in addition to the one after each epoch."""
    keep_checkpoints: Annotated[Count, Decides.NOTHING] = 2
    """How many of the latest checkpoints to keep; the best epoch's is always kept."""
    address: Annotated[str | None, Decides.NOTHING] = None
    """Address of a running Ray cluster; empty: RAY_ADDRESS, or else start a local Ray."""

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        gpus = self.gpus_per_worker or 0
        if gpus != int(gpus) and gpus > 1:
            raise ValueError(f"gpus_per_worker must be a whole number above 1, not {gpus:g}")
        if gpus != int(gpus) and self.workers not in (0, 1):
            raise ValueError(
                f"gpus_per_worker: a fraction of a GPU ({gpus:g}) is only for runs of one worker, "
                "since workers of one run cannot share a GPU (NCCL refuses); set workers to 1, or "
                "gpus_per_worker to a whole number"
            )
        return self


class Dimension(Section):
    """The range of one searched key; exactly one of the four kinds must be given."""

    uniform: tuple[float, float] | None = None
    """Bounds, both included."""
    log_uniform: tuple[float, float] | None = None
    """Bounds, both included and above 0; sampled on a logarithmic scale."""
    integer: tuple[int, int] | None = None
    """Bounds, both included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Values to choose from."""
    or_value: Annotated[float | None, Field(alias="or")] = None
    """One more value, outside the range: such as 0 beside `log_uniform`."""
    when: dict[str, tuple[Any, ...]] = {}
    """Search this key only when these other searched keys have one of these values."""

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
        """The values at the ends of the range (all values of a choice)."""
        values = self.choice or self.uniform or self.log_uniform or self.integer
        assert values is not None
        return (*values, self.or_value) if self.or_value is not None else tuple(values)

    def holds(self, value: Any) -> bool:
        """Whether the sampler may propose this value."""
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
        """A non-integer inside a continuous range, which keys for whole numbers must refuse."""
        bounds = self.uniform or self.log_uniform
        return (bounds[0] + (bounds[1] - bounds[0]) / math.pi,) if bounds else ()


class ConfirmConfig(Section):
    """How a sweep's best trials are confirmed."""

    top: Count = 3
    """How many trials, from the top of the leaderboard."""
    seeds: Annotated[int, Field(ge=2)] = 3
    """How many seeds, the first of which follows `training.seed`."""


class TuneConfig(Section):
    trials: Annotated[Count, Decides.NOTHING] = 20
    """How many trials the sweep runs. No two have the same values: a repeated proposal is not
    trained again, and a space with fewer points ends the sweep early."""
    space: Annotated[dict[str, Dimension], Decides.SEARCH] = {}
    """The searched keys: dotted keys of this file, each with its range."""
    points_to_evaluate: Annotated[tuple[dict[str, Any], ...], Decides.SEARCH] = ()
    """Proposals to try first; the sampler fills in any searched key that one omits."""
    sampler: Annotated[Literal["tpe", "cma_es", "gp", "qmc", "random"], Decides.SEARCH] = "tpe"
    """Optuna's sampler: tree-structured Parzen estimator (multivariate, grouped), CMA-ES, Gaussian
    process, quasi-Monte Carlo (Sobol) or random."""
    seed: Annotated[Seed, Decides.SEARCH] = 0
    """Seed of the sampler."""
    startup_trials: Annotated[Count, Decides.SEARCH] = 5
    """Random trials before the sampler's model (TPE, CMA-ES, GP) takes over."""
    stopping: Annotated[Literal["asha", "median", "none"], Decides.SEARCH] = "asha"
    """Early stopping of bad trials: ASHA, the median rule, or none."""
    grace_epochs: Annotated[Count, Decides.SEARCH] = 2
    """No trial is stopped before it has trained for N epochs."""
    reduction_factor: Annotated[int, Field(ge=2), Decides.SEARCH] = 3
    """At each of its rungs ASHA lets 1 in N trials continue."""
    objectives: Annotated[dict[Objective, Literal["max", "min"]], Decides.SEARCH] = {}
    """What to optimise; the first objective decides early stopping. Empty: the score alone, i.e.
    the CIDEr, or the tag recall@5 of a system that writes no report."""
    free_threshold: Annotated[bool, Decides.SCORE] = False
    """Use the stop threshold that scores best on the validation split; needs no training."""
    free_top_tags: Annotated[bool, Decides.SCORE] = False
    """Use the number of top tags M that scores best on the validation split; needs no training."""
    confirm: Annotated[ConfirmConfig | None, Decides.NOTHING] = None
    """`{top: 3, seeds: 3}`: after the search, train the settings of its best trials and the file's
    own with several new seeds, score them on the test split, and rank them by their means; empty:
    end with the search."""
    storage: Annotated[str | None, Decides.SEARCH, IS_DATABASE] = None
    """SQLAlchemy URL of a database for Optuna's study; empty: a journal file."""
    groups: Annotated[Count | None, Decides.NOTHING] = None
    """Worker groups, each training one trial at a time; empty: as many as fit the cluster."""


class TableConfig(Section):
    seeds: Annotated[Seeds, Decides.NOTHING] = (0, 1, 2)
    """Train each system once with each of these seeds."""
    paper: Annotated[Literal["iu_xray", "peir_gross"], Decides.NOTHING] = "iu_xray"
    """Which half of the paper's tables to compare with: paragraphs, or single sentences."""
    systems: Annotated[SystemSettings, Decides.NOTHING] = {}
    """Systems besides the paper's, as a list; or settings for single systems only, the paper's or
    others: dotted keys and values, by system."""
    runs: Annotated[
        dict[SystemName, Annotated[tuple[str, ...], Distinct]],
        Decides.NOTHING,
        ARE_RUNS,
    ] = {}
    """Folders of finished runs to use for a system instead of training it."""


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
    sections: ReportSections = "both"
    """The text to generate: one section of the reports, or the impression followed by the findings.
    A report without the one section is left out."""
    text: Literal["paper", "r2gen"] = "paper"
    """How reports become words. `paper`: lower-case words only, at any length; `r2gen`: the text
    that R2Gen and later papers score on IU X-Ray and MIMIC-CXR, with full stops, <unk> for rare
    words, and their maximum length."""
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
