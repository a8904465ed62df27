"""Typed, frozen configuration: YAML plus ``key=value`` in, one `Config` out.

The defaults are the settings of Jing, Xie and Xing (2018), section 4.2, wherever the paper gives
one. Every fault of a file is reported at once, each with its key, the rule, the value found and
the nearest valid name.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from raymed.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Column = Literal["image", "report", "tags", "study", "split", "view"]

SYSTEMS = tuple(
    sorted(
        file.stem
        for file in (Path(__file__).parent / "model" / "systems").glob("*.py")
        if file.stem != "__init__"
    )
)
"""The systems there are: each is a file of `raymed.model.systems`."""


def _known_system(name: str) -> str:
    if name not in SYSTEMS:
        close = difflib.get_close_matches(name, SYSTEMS, n=1, cutoff=0.4)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be one of {', '.join(SYSTEMS)}{meant}")
    return name


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


NOT_SEARCHED = ("tune.", "table.", "run.", "launch.", "data.path", "training.epochs")
"""Keys that a sweep's trials share: who trains them, on what, and how long at most."""
SHARED = ("tune.", "table.", "run.", "launch.", "data.path", "model.system", "training.seed")
"""Keys that the settings of a table's single systems cannot have: the table itself sets them."""


class Section(BaseModel):
    """A part of the configuration: frozen, complete, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )


class RunConfig(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run or sweep: its folder below `run.folder`, and what resumes it."""
    folder: str = "runs"
    """Where runs and sweeps are kept. On a cluster: a folder that every node sees."""


class DataConfig(Section):
    path: str = "data/phantom"
    """The prepared data set (made by `raymed prepare`)."""
    vocabulary: Count = 1000
    """How many of the most frequent words of the training split the model can write."""
    validation_images: Count | None = None
    """Score only the first so many validation images after each epoch (empty: all of them)."""


class ModelConfig(Section):
    system: SystemName = "co_attention"
    """The system to train: a row of the paper's tables."""
    encoder: Literal["vgg11", "vgg13", "vgg16", "vgg19", "small"] = "vgg19"
    """A torchvision VGG, or `small`: four narrow stages for images of about 64 pixels."""
    encoder_weights: str = "imagenet"
    """`imagenet` (downloaded by torchvision), `none`, or a file of torchvision VGG weights."""
    train_encoder: bool = True
    """Whether the encoder's convolutions are trained or stay as loaded."""
    hidden_size: Count = 512
    """Width of hidden states and of the context vector (H in the paper)."""
    embedding_size: Count = 512
    """Width of word and tag embeddings and of the topic vector (E in the paper)."""
    top_tags: Count = 10
    """How many tags of highest probability become semantic features (M in the paper)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout between the tag classifier's fully connected layers, as in VGG."""


class LossConfig(Section):
    tag: Weight = 1.0
    """Weight of the tag cross-entropy (lambda_tag, eq. 8)."""
    sent: Weight = 1.0
    """Weight of the stop-control cross-entropy (lambda_sent, eq. 8)."""
    word: Weight = 1.0
    """Weight of the word cross-entropy (lambda_word, eq. 8)."""
    attention: Weight = 1.0
    """Weight of the attention regularisation (lambda_re, eq. 9; or the system's own paper's)."""


class GenerationConfig(Section):
    stop_threshold: Fraction = 0.5
    """A sentence whose p(STOP) is above this is the report's last (eq. 6)."""
    max_sentences: Count = 12
    """The longest report, in sentences, that is learned from and written."""
    max_words: Count = 30
    """The longest sentence, in words, that is learned from and written."""
    beam_width: Count = 1
    """Hypotheses that beam search keeps for each sentence (or report); 1 is greedy."""
    length_penalty: Weight = 0.0
    """Hypotheses are ranked by log-probability / words^this; 0: by log-probability alone."""
    block_ngrams: Annotated[int, Field(ge=0)] = 0
    """No sequence of so many words is written twice in a sentence (or report); 0: any may be."""


class TrainingConfig(Section):
    epochs: Count = 30
    """Passes over the training split."""
    batch_size: Count = 16
    """Images per optimiser step, over all workers together."""
    learning_rate: Rate = 5e-4
    """AdamW's rate for everything but the encoder."""
    encoder_learning_rate: Rate = 1e-5
    """AdamW's rate for the encoder's network: convolutions and its fully connected layers."""
    warmup: Fraction = 0.05
    """Both rates rise from zero over this fraction of all steps."""
    final_rate: Fraction = 0.1
    """After that both fall along a half cosine to this fraction of themselves; 1 keeps them."""
    weight_decay: Weight = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    clip_norm: Rate = 5.0
    """Gradients are scaled down to this Euclidean norm where theirs is larger."""
    precision: Literal["auto", "float32"] = "auto"
    """`auto`: bfloat16 autocast on a GPU that has it; `float32`: full precision everywhere."""
    seed: Seed = 0
    """Decides the initial weights, the order of the images and the dropout."""


class LaunchConfig(Section):
    workers: Annotated[int, Field(ge=0)] = 1
    """Ray Train workers (data-parallel); 0 trains in the calling process, without Ray actors."""
    cpus_per_worker: Count = 1
    """Processors reserved for a worker, and the threads torch may use in it."""
    gpus_per_worker: Annotated[int, Field(ge=0)] | None = None
    """GPUs reserved for a worker; empty: one wherever Ray sees enough of them, else none."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often Ray Train restarts the workers from the last checkpoint when one dies."""
    address: str | None = None
    """Address of a running Ray cluster; empty: RAY_ADDRESS, or else a Ray of its own here."""


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

    def between(self) -> tuple[float, ...]:
        """A fraction of a continuous range: what a key that takes whole numbers only refuses."""
        bounds = self.uniform or self.log_uniform
        return (bounds[0] + (bounds[1] - bounds[0]) / math.pi,) if bounds else ()


class TuneConfig(Section):
    trials: Count = 20
    """How many trials the sweep runs."""
    space: dict[str, Dimension] = {}
    """Searched keys: a dotted key of this file each, with its range."""
    seed: Seed = 0
    """Decides what Optuna's sampler proposes."""
    startup_trials: Count = 5
    """Trials proposed at random before the TPE sampler's model takes over."""
    grace_epochs: Count = 2
    """ASHA stops no trial before so many epochs."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """ASHA lets one trial in so many go on at each of its rungs."""
    groups: Count | None = None
    """Worker groups, each training one trial at a time; empty: as many as there is room for."""


class TableConfig(Section):
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_seeds)] = (0, 1, 2)
    """Each system is trained once with each of these seeds."""
    paper: Literal["iu_xray", "peir_gross"] = "iu_xray"
    """The half of the paper's tables that stands beside: paragraphs, or single sentences."""
    systems: dict[SystemName, dict[str, Any]] = {}
    """Settings of single systems: dotted keys and values that the others do not share."""
    runs: dict[SystemName, Annotated[tuple[str, ...], AfterValidator(_different)]] = {}
    """Folders of finished runs that are taken for a system, instead of training it."""


class PrepareConfig(Section):
    """What `raymed prepare` is told beside the source and its path."""

    out: str
    """Folder of the prepared data set to write."""
    image_size: Annotated[int, Field(ge=8)] = 224
    """Side of the square images, in pixels: the longer side is scaled to it, the rest padded."""
    split: Literal["study", "paper", "given", "r2gen"] = "study"
    """Split protocol; `given` takes the source's own split column."""
    seed: Seed = 0
    """Decides the random split, and the phantom's studies."""
    views: Literal["all", "frontal", "lateral"] = "all"
    """Views to keep, of iu-xray and of a table with a view column; PA and AP count as frontal."""
    overwrite: bool = False
    """Replace a prepared data set that is already there."""
    images: str | None = None
    """Folder of the images; empty: where the reports or the table lie."""
    split_file: str | None = None
    """Study ids per split, for the protocol `r2gen`."""
    studies: Count = 1200
    """How many phantom studies to draw."""
    columns: dict[Column, str] = {}
    """A table's columns, where they bear other names; several tag columns are joined by commas."""


class Config(Section):
    """Everything that decides a run or a sweep."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    generation: GenerationConfig = GenerationConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    tune: TuneConfig = TuneConfig()
    table: TableConfig = TableConfig()

    def override(self, values: Mapping[str, Any], origin: str = "override") -> "Config":
        """This configuration with dotted keys replaced, e.g. ``{"loss.tag": 2.0}``.

        Raises:
            UsageError: naming every key or value that is not valid.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        for key, value in values.items():
            _put(tree, key, value, origin)
        return _validated(tree, origin)

    def to_yaml(self, comments: bool = False) -> str:
        """The complete configuration as YAML that `load` takes back, equal to this one."""
        tree = self.model_dump(mode="json", by_alias=True)
        # A dimension has one kind; the kinds it has not are no settings.
        tree["tune"]["space"] = {
            key: {kind: value for kind, value in dimension.items() if value is not None}
            for key, dimension in tree["tune"]["space"].items()
        }
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        return _commented(text) if comments else text


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (or none: the defaults) and apply ``key=value`` texts to it.

    A file may name another by ``base:``, relative to itself; its own keys win.

    Raises:
        UsageError: naming the file and every key or value that is not valid.
    """
    origin = str(path) if path is not None else "defaults"
    tree = _read(Path(path)) if path is not None else {}
    for text in overrides:
        key, value = _key_value(text, origin)
        _put(tree, key, value, origin)
    return _validated(tree, origin)


def altered(config: Config, overrides: Sequence[str], allowed: tuple[str, ...]) -> Config:
    """A checkpoint's configuration with ``key=value`` texts applied, of keys that may change.

    Raises:
        UsageError: a key is none of the allowed (a key, or a section's name and a dot), or its
            value is not valid.
    """
    values = dict(_key_value(text, "settings") for text in overrides)
    for key in values:
        if not key.startswith(allowed):
            names = " and ".join(f"{name}*" if name.endswith(".") else name for name in allowed)
            raise UsageError(f"{key}: cannot be set here, only {names}")
    return config.override(values, "settings")


def load_prepare(overrides: Sequence[str]) -> PrepareConfig:
    """The settings of `raymed prepare` from ``key=value`` texts.

    Raises:
        UsageError: naming every key or value that is not valid.
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        key, value = _key_value(text, "prepare")
        _put(tree, key, value, "prepare")
    try:
        return PrepareConfig.model_validate(tree)
    except ValidationError as error:
        known = [k for k in PrepareConfig.model_fields if k != "columns"]
        known += [f"columns.{field}" for field in get_args(Column)]
        faults = [_fault(dict(item), known) for item in error.errors()]
        raise UsageError(_listed("prepare", faults)) from None


def dotted_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """All dotted keys, such as ``loss.tag``, in the order of the file."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in seen:
        raise UsageError(f"{path}: `base:` leads back to a file that is being read; break the ring")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path}: must hold sections such as `model:`, not a {type(tree).__name__}"
        )
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UsageError(f"{path}: base: must be the path of a YAML file, not {base!r}")
    return _merged(_read(path.parent / base, (*seen, path.resolve())), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        # A searched dimension is replaced whole: two kinds of range in one would be a fault.
        nested = isinstance(value, dict) and isinstance(both.get(key), dict) and "." not in key
        both[key] = _merged(both[key], value) if nested else value
    return both


def _key_value(text: str, origin: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{origin}: '{text}' is not of the form key=value")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"{key}: '{value}' cannot be read as a YAML value: {error}") from None


def _put(tree: dict[str, Any], dotted: str, value: Any, origin: str) -> None:
    # Below tune.space, and below a system of table.systems, the rest is one key: a dotted name.
    whole = {"tune.space.": 2, "table.systems.": 3}
    cuts = next((count for prefix, count in whole.items() if dotted.startswith(prefix)), -1)
    parts = dotted.split(".", cuts)
    node = tree
    for part in parts[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UsageError(f"{origin}: {_unknown(dotted)}")
    node[parts[-1]] = value


def _validated(tree: dict[str, Any], origin: str) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults = [_fault(dict(item)) for item in error.errors()]
        raise UsageError(_listed(origin, faults)) from None
    faults = [*_space_faults(config), *_table_faults(config)]
    if faults:
        raise UsageError(_listed(origin, faults))
    return config


def _space_faults(config: Config) -> Iterator[str]:
    """Every end of every searched range, and a value between, must be valid for its key."""
    tree = config.model_dump(mode="json", by_alias=True)
    known = [key for key in dotted_keys() if not key.startswith(NOT_SEARCHED)]
    for key, dimension in config.tune.space.items():
        if key not in known:
            yield f"tune.space: {_unknown(key, known)}"
            continue
        for value in (*dimension.extremes(), *dimension.between()):
            fault = _value_fault(tree, key, value)
            if fault:
                yield f"tune.space: {fault}"
                break


def _table_faults(config: Config) -> Iterator[str]:
    """Every setting of a single system must be a key's, valid, and not one that all share."""
    tree = config.model_dump(mode="json", by_alias=True)
    keys = list(dotted_keys())
    for system, settings in config.table.systems.items():
        for key, value in settings.items():
            if key in Config.model_fields and isinstance(value, dict):
                names = ", ".join(f"{key}.{name}" for name in value)
                fault: str | None = f"{key}: is a section; write its keys as {names}"
            elif key not in keys:
                fault = _unknown(key, [k for k in keys if not k.startswith(SHARED)])
            elif key.startswith(SHARED):
                fault = f"{key}: cannot differ between the systems of a table"
            else:
                fault = _value_fault(tree, key, value)
            if fault:
                yield f"table.systems.{system}: {fault}"


def _value_fault(tree: Mapping[str, Any], key: str, value: Any) -> str | None:
    section, _, name = key.partition(".")
    try:
        Config.model_validate({**tree, section: {**tree[section], name: value}})
    except ValidationError as error:
        return _fault(dict(error.errors()[0]))
    return None


def _fault(item: dict[str, Any], known: Sequence[str] | None = None) -> str:
    # pydantic's mark for a mapping's key, which stands before it by its own name.
    location = [str(part) for part in item["loc"] if part != "[key]"]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        if location[:2] == ["tune", "space"]:
            names = ("uniform", "log_uniform", "integer", "choice", "or")
            known = [".".join([*location[:-1], name]) for name in names]
        elif len(location) == 1 and isinstance(item["input"], dict):
            # Of a section that there is not, the key in it says more than the section's name.
            key = ".".join([key, *map(str, list(item["input"])[:1])])
        return _unknown(key, known)
    if item["type"] == "missing":
        return f"{key}: must be given, as {key}=..."
    # YAML has lists only.
    message = item["msg"].removeprefix("Value error, ").replace("tuple", "list")
    return f"{key}: {message[0].lower()}{message[1:]} (found {item['input']!r})"


def _unknown(key: str, known: Sequence[str] | None = None) -> str:
    known = [*dotted_keys(), *Config.model_fields] if known is None else known
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # A right name in the wrong section is a more likely slip than a near spelling.
    same_name = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = same_name[:1] or close
    return f"{key}: no such key" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _listed(origin: str, faults: list[str]) -> str:
    if len(faults) == 1:
        return f"{origin}: {faults[0]}"
    return f"{origin}: {len(faults)} faults\n" + "\n".join(f"  {fault}" for fault in faults)


def _commented(text: str) -> str:
    lines, section = [], ""
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        if line and not line.startswith((" ", "-")):
            section = name
        elif line.startswith("  ") and line[2:3] not in (" ", "-") and section:
            owner = Config.model_fields[section].annotation
            assert isinstance(owner, type)
            assert issubclass(owner, Section)
            note = owner.model_fields[name].description or ""
            lines.append("  # " + " ".join(note.split()))
        lines.append(line)
    return "\n".join(lines) + "\n"
