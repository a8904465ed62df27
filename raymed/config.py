"""Typed, frozen configuration: YAML plus ``key=value`` in, one `Config` out.

All faults of a file are reported at once, each with its key, the rule, the offending value and the
nearest valid name.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import ValidationError

from raymed import yaml12
from raymed.errors import UsageError
from raymed.examples import is_example
from raymed.keys import Decides
from raymed.sections import (
    AugmentationConfig,
    DataConfig,
    GenerationConfig,
    LaunchConfig,
    LossConfig,
    ModelConfig,
    PrepareConfig,
    RunConfig,
    Section,
    TableConfig,
    TrainingConfig,
    TuneConfig,
)
from raymed.setting_values import GivenSettings, read_value, setting_values
from raymed.storage import AnyPath, as_path, reason

Settings = TypeVar("Settings", bound=PrepareConfig)

SET_BY_THE_TABLE = ("model.system", "training.seed")
"""Keys that a table sets itself for each of its runs."""


class Config(Section):
    """The complete configuration of a run, sweep or table."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    generation: GenerationConfig = GenerationConfig()
    training: TrainingConfig = TrainingConfig()
    launch: LaunchConfig = LaunchConfig()
    tune: TuneConfig = TuneConfig()
    table: TableConfig = TableConfig()

    def override(self, values: Mapping[str, Any], origin: str = "override") -> "Config":
        """Return a copy with dotted keys replaced, e.g. ``{"loss.tag": 2.0}``.

        Raises:
            UsageError: A key or value is not valid; the message names all that are not.
        """
        tree = self.model_dump(mode="json", by_alias=True)
        for key, value in values.items():
            _put(tree, key, value, origin)
        return _validated(tree, origin)

    def to_yaml(self, comments: bool = False) -> str:
        """The complete configuration as YAML, from which `load` restores an equal one."""
        tree = self.model_dump(mode="json", by_alias=True)
        # A dimension has exactly one kind; leave out the others.
        tree["tune"]["space"] = {
            key: {kind: value for kind, value in dimension.items() if value not in (None, {})}
            for key, dimension in tree["tune"]["space"].items()
        }
        text = yaml12.write(tree)
        return _commented(text) if comments else text


def dotted_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """All dotted keys, such as ``loss.tag``, in file order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def keys_that_decide(*kinds: Decides) -> list[str]:
    """The dotted keys that affect any of these, in file order."""
    return [key for key in dotted_keys() if not {*kinds}.isdisjoint(key_metadata(key))]


def key_metadata(key: str) -> list[Any]:
    """What `raymed.keys` says about a dotted key."""
    section, _, name = key.partition(".")
    owner = Config.model_fields[section].annotation
    assert isinstance(owner, type)
    assert issubclass(owner, Section)
    return owner.model_fields[name].metadata


SEARCH_DEFAULTS: dict[str, Any] = {
    key: getattr(TuneConfig(), key.removeprefix("tune."))
    for key in keys_that_decide(Decides.SEARCH)
    if key.startswith("tune.")
}
"""Resets what to search and how, in the configuration of a single trial's run."""


def load(source: str | AnyPath | Mapping[str, Any] | None, overrides: GivenSettings = ()) -> Config:
    """Read a configuration, and apply overrides to it.

    A file may include others with ``base:``, one path or a list, relative to itself. Later files
    take precedence over earlier ones, and the file's own keys over all of them.

    Args:
        source: A YAML file, what one could contain as a mapping, or None: the defaults.
        overrides: ``key=value`` texts, or a mapping.

    Raises:
        UsageError: The file cannot be read, or a key or value is not valid.
    """
    origin, tree = "defaults", dict[str, Any]()
    if isinstance(source, Mapping):
        origin = "config"
        for key, value in setting_values(source, origin).items():
            _put(tree, key, value, origin)
    elif source is not None:
        origin, tree = str(source), _read(as_path(source))
    for key, value in setting_values(overrides, origin).items():
        _put(tree, key, value, origin)
    return _validated(tree, origin)


def apply_settings(config: Config, overrides: GivenSettings, allowed: tuple[str, ...]) -> Config:
    """Apply settings to a checkpoint's configuration, for keys that may change.

    Raises:
        UsageError: A key matches none of ``allowed`` (full keys, or section names ending in a dot),
            or its value is not valid.
    """
    values = setting_values(overrides, "settings")
    for key in values:
        if not key.startswith(allowed):
            names = " and ".join(f"{name}*" if name.endswith(".") else name for name in allowed)
            raise UsageError(f"{key}: cannot be set here; only {names} can")
    return config.override(values, "settings")


def load_prepare(overrides: GivenSettings, settings: type[Settings]) -> Settings:
    """Parse the settings of `raymed prepare` from ``key=value`` arguments, or from a mapping.

    Args:
        overrides: The settings.
        settings: The settings class of the source.

    Raises:
        UsageError: One or more keys or values are not valid; the message lists them all.
    """
    fields = settings.model_fields
    mappings = {
        name: get_args(get_args(field.annotation)[0])
        for name, field in fields.items()
        if get_origin(field.annotation) is dict
    }
    if not isinstance(overrides, Mapping):
        texts = [name for name, field in fields.items() if field.annotation in (str, str | None)]
        overrides = dict(_prepare_value(text, texts, mappings) for text in overrides)
    tree: dict[str, Any] = {}
    for key, value in setting_values(overrides, "prepare").items():
        _put(tree, key, value, "prepare")
    try:
        return settings.model_validate(tree)
    except ValidationError as error:
        known = [name for name in fields if name not in mappings]
        known += [f"{name}.{key}" for name, keys in mappings.items() for key in keys]
        faults = [_fault(dict(item), known) for item in error.errors()]
        raise UsageError(_listed("prepare", faults)) from None


def _prepare_value(text: str, texts: Sequence[str], mappings: Collection[str]) -> tuple[str, Any]:
    """A setting's key and value; the value of a key of ``texts`` or of a mapping stays text."""
    key, _, value = text.partition("=")
    in_mapping = key.partition(".")[0] in mappings and not value.startswith("[")
    # Parsed as YAML, a comma or a folder called 2024 would not stay text.
    is_text = key in texts or in_mapping
    return key, (value or None) if is_text else read_value(key, value)


def _read(path: AnyPath, seen: tuple[AnyPath, ...] = ()) -> dict[str, Any]:
    if path.absolute() in seen:
        raise UsageError(f"{path}: `base:` is circular; it leads back to a file that is being read")
    try:
        tree = yaml12.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        copies = isinstance(error, FileNotFoundError) and is_example(str(path))
        remedy = "`raymed init .` copies the example files" if copies else "give a YAML file"
        raise UsageError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path}: must hold sections such as `model:`, not a {type(tree).__name__}"
        )
    base = tree.pop("base", None)
    bases = base if isinstance(base, list) else [] if base is None else [base]
    merged: dict[str, Any] = {}
    for one in bases:
        if not isinstance(one, str):
            raise UsageError(f"{path}: base: must be the path of a YAML file, not {one!r}")
        merged = _merged(merged, _read(path.parent / one, (*seen, path.absolute())))
    return _merged(merged, tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        # A searched key is replaced as a whole: merging would mix two kinds of range.
        nested = isinstance(value, dict) and isinstance(both.get(key), dict) and "." not in key
        both[key] = _merged(both[key], value) if nested else value
    return both


def _put(tree: dict[str, Any], dotted: str, value: Any, origin: str) -> None:
    # Below tune.space and a system of table.systems, the rest is a single, dotted key.
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
        config = _with_typed_values(Config.model_validate(tree))
    except ValidationError as error:
        faults = [_fault(dict(item)) for item in error.errors()]
        raise UsageError(_listed(origin, faults)) from None
    faults = [*_space_faults(config), *_tune_faults(config.tune), *_table_faults(config)]
    if faults:
        raise UsageError(_listed(origin, faults))
    return config


def _with_typed_values(config: Config) -> Config:
    """Convert the values of searched keys and of `table.systems` to the types of their keys.

    A value that cannot be converted is kept; later checks report it.
    """
    tree = config.model_dump(mode="json", by_alias=True)

    def typed(key: str, value: Any) -> Any:
        section, _, name = key.partition(".")
        try:
            given = Config.model_validate({section: {**tree.get(section, {}), name: value}})
        except ValidationError:
            return value
        return given.model_dump(mode="json")[section][name]

    def all_typed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: typed(key, value) for key, value in values.items()}

    # Not from the dumped tree, which has lost how numbers were written.
    for key, dimension in config.tune.space.items():
        node = tree["tune"]["space"][key]
        node["choice"] = dimension.choice and [typed(key, value) for value in dimension.choice]
        node["when"] = {k: [typed(k, value) for value in v] for k, v in dimension.when.items()}
    tree["tune"]["points_to_evaluate"] = [*map(all_typed, config.tune.points_to_evaluate)]
    systems = config.table.systems.items()
    tree["table"]["systems"] = {system: all_typed(values) for system, values in systems}
    return Config.model_validate(tree)


def _space_faults(config: Config) -> Iterator[str]:
    """The ends of each searched range, and a value in between, must be valid for its key."""
    tree = config.model_dump(mode="json", by_alias=True)
    known = keys_that_decide(Decides.RUN)
    for key, dimension in config.tune.space.items():
        if key not in known:
            yield f"tune.space: {_unknown(key, known)}"
            continue
        for value in (*dimension.extremes(), *dimension.between()):
            fault = _value_fault(tree, key, value)
            if fault:
                yield f"tune.space: {fault}"
                break


def _tune_faults(tune: TuneConfig) -> Iterator[str]:
    """Conditions and points must use searched keys; keys optimised for free are not searched."""
    above: set[str] = set()
    for key, dimension in tune.space.items():
        for other, values in dimension.when.items():
            if other not in above:
                yield f"tune.space.{key}: when: {other} must be searched, and listed above it"
                continue
            odd = [value for value in values if not tune.space[other].holds(value)]
            if odd or not values:
                found = f"never takes the value {odd[0]}" if odd else "needs at least one value"
                yield f"tune.space.{key}: when: {other} {found}"
        above.add(key)
    for number, point in enumerate(tune.points_to_evaluate, start=1):
        for key, value in point.items():
            if key not in tune.space:
                yield f"tune.points_to_evaluate: point {number}: {_unknown(key, [*tune.space])}"
            elif not tune.space[key].holds(value):
                found = repr(value).removesuffix(".0")
                yield f"tune.points_to_evaluate: point {number}: {key}: {found} is out of range"
    free = {"generation.stop_threshold": "free_threshold", "model.top_tags": "free_top_tags"}
    for key, name in free.items():
        if getattr(tune, name) and key in tune.space:
            yield f"tune.{name}: {key} is also searched; remove it from tune.space, or set false"
    if len(tune.objectives) > 1 and tune.sampler == "cma_es":
        yield "tune.sampler: cma_es supports one objective only; use tpe, gp, qmc or random"


def _table_faults(config: Config) -> Iterator[str]:
    """Settings of single systems must be known, valid, and free to differ between systems."""
    tree = config.model_dump(mode="json", by_alias=True)
    keys = [*dotted_keys()]
    own = [k for k in keys_that_decide(Decides.RUN, Decides.SCORE) if k not in SET_BY_THE_TABLE]
    for system, settings in config.table.systems.items():
        for key, value in settings.items():
            if key in Config.model_fields and isinstance(value, dict):
                names = ", ".join(f"{key}.{name}" for name in value)
                fault: str | None = f"{key}: is a section; write its keys as {names}"
            elif key not in keys:
                fault = _unknown(key, own)
            elif key not in own:
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
    # pydantic marks an error in a mapping's key by "[key]" after the key itself.
    location = [str(part) for part in item["loc"] if part != "[key]"]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        if location[:2] == ["tune", "space"]:
            names = ("uniform", "log_uniform", "integer", "choice", "or")
            known = [".".join([*location[:-1], name]) for name in names]
        elif len(location) == 1 and isinstance(item["input"], dict):
            # For an unknown section, a key in it is a better clue than the section's name.
            key = ".".join([key, *map(str, list(item["input"])[:1])])
        return _unknown(key, known)
    if item["type"] == "missing":
        return f"{key}: must be given, as in {key}=..."
    if item["type"] == "string_type":
        quoted = " in quotes" if item["input"] in (True, False) else ""
        return f"{key}: must be a text{quoted} (found {item['input']!r})"
    # YAML only has lists.
    message = item["msg"].removeprefix("Value error, ").replace("tuple", "list")
    return f"{key}: {message[0].lower()}{message[1:]} (found {item['input']!r})"


def _unknown(key: str, known: Sequence[str] | None = None) -> str:
    known = [*dotted_keys(), *Config.model_fields] if known is None else known
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # The right name in the wrong section is a likelier mistake than a typo.
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
