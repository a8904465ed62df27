"""Making a configuration's paths absolute: Ray's workers have another working directory."""

from collections.abc import Mapping, Sequence
from typing import Any

from raymed.config import Config, dotted_keys, key_metadata
from raymed.keys import Locates


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every path absolute; URIs stay.

    That includes paths among the values that a sweep searches, and among the settings of a table's
    systems.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    plain = {f"{section}.{key}": v for section, keys in tree.items() for key, v in keys.items()}
    for key, dimension in plain["tune.space"].items():
        dimension["choice"] = dimension["choice"] and _all_absolute(key, dimension["choice"])
        dimension["when"] = {k: _all_absolute(k, values) for k, values in dimension["when"].items()}
    points = plain["tune.points_to_evaluate"]
    plain["tune.points_to_evaluate"] = [_absolute(point) for point in points]
    systems = plain["table.systems"]
    plain["table.systems"] = {name: _absolute(keys) for name, keys in systems.items()}
    return config.override(_absolute(plain))


def _all_absolute(key: str, values: Sequence[Any]) -> list[Any]:
    return [_absolute({key: value})[key] for value in values]


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted keys, with paths made absolute. Unknown keys keep their values."""
    known = [*dotted_keys()]
    absolute = dict(values)
    for key in [key for key, value in values.items() if key in known and value is not None]:
        for mark in key_metadata(key):
            if isinstance(mark, Locates):
                absolute[key] = mark.absolute(values[key])
    return absolute
