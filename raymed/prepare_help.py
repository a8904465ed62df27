"""The lists in `raymed prepare --help`: the sources, and the settings with types and defaults."""

import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from raymed.data.sources import all_sources, sources_accepting

LANGUAGES = (
    "Reports may be in any script: combining marks stay with their letters, and each Han, Kana, "
    "Thai, Lao, Khmer, Burmese or Tibetan character counts as a word, unless Chinese or Japanese "
    "is already spaced into words; French and Italian elisions are split in two. Tokens that "
    "contain anything but letters (x-ray, 1.5, doesn't) are dropped, as in the paper, and their "
    "share is printed. METEOR is computed for English alone, and the normality share is designed "
    "for it; the other scores do not depend on the language."
)

_WIDTH = 96
_TYPES = {"integer": "an integer", "number": "a number", "boolean": "true or false"}


def prepare_help() -> str:
    """Return the text below the options: the sources, then the settings, then the languages."""
    sources = all_sources()
    settings = {
        name: (source.settings.model_json_schema()["properties"][name], field)
        for source in sources.values()
        for name, field in source.settings.model_fields.items()
    }
    lines = ["sources:"]
    for source in sources.values():
        own = [name for name in settings if source.accepts_setting(name)]
        lines.append(f"  {f'{source.name} {source.path}':19}{source.summary}")
        lines += _wrapped(f"settings: {', '.join(own)}", 21)
    lines += ["", "settings, as key=value:"]
    for name, (schema, field) in settings.items():
        lines += _described(name, schema, field)
    return "\n".join([*lines, "", *_wrapped(LANGUAGES, 0)])


def _described(name: str, schema: dict[str, Any], field: FieldInfo) -> list[str]:
    """Return the lines about one setting."""
    note = _default(field)
    accepting = sources_accepting(name)
    if len(accepting) < len(all_sources()):
        note += f"; for {', '.join(accepting)}"
    key = f"{name}.FIELD" if schema.get("type") == "object" else name
    return [f"  {key}: {_type(schema)} ({note})", *_wrapped(field.description or "", 6)]


def _default(field: FieldInfo) -> str:
    default = field.default
    if field.is_required():
        return "required"
    if default in (None, {}):
        return "empty by default"
    return f"default {str(default).lower() if isinstance(default, bool) else default}"


def _type(schema: dict[str, Any]) -> str:
    """Describe a type in words, from its JSON schema."""
    schema = next(iter(schema.get("anyOf", [])), schema)
    if "enum" in schema:
        return " or ".join([", ".join(schema["enum"][:-1]), schema["enum"][-1]])
    words = _TYPES.get(schema.get("type", ""), "text")
    return f"{words}, at least {schema['minimum']}" if "minimum" in schema else words


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
