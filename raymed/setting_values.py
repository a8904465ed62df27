"""Settings as a user gives them: ``key=value`` texts, or a mapping."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from raymed import yaml12
from raymed.errors import UsageError

GivenSettings = Sequence[str] | Mapping[str, Any]
"""``key=value`` texts, or a mapping: of dotted keys, or of sections as in a YAML file."""


def setting_values(settings: GivenSettings, origin: str) -> dict[str, Any]:
    """The values of settings by their keys; of a key given twice, the last one.

    Args:
        settings: Texts or a mapping. Paths in a mapping become texts; its containers are copied.
        origin: What messages name as the origin of the settings.

    Raises:
        UsageError: A text is not of the form ``key=value``, or something else was given.
    """
    if isinstance(settings, str):
        settings = [settings]
    if not isinstance(settings, Mapping):
        return dict(_key_value(text, origin) for text in settings)
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise UsageError(f"{origin}: keys must be texts, not {key!r}")
        if isinstance(value, Mapping) and "." not in key:
            values |= {f"{key}.{name}": _plain(one) for name, one in value.items()}
        else:
            values[key] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    """The value with paths as texts, and with containers of its own."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _key_value(text: Any, origin: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if not separator or not key:
        raise UsageError(f"{origin}: {text!r} is not of the form key=value")
    return key, read_value(key, value)


def read_value(key: str, text: str) -> Any:
    """A value written as YAML.

    Raises:
        UsageError: It is not valid YAML; the message names the key.
    """
    try:
        return yaml12.read(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{key}: '{text}' cannot be read as a YAML value: {error}") from None
