"""What `raymed prepare --help` lists: the sources, and every setting with its type and default."""

import textwrap
from typing import Any

from raymed.keys import For
from raymed.sections import LANGUAGES, PrepareConfig

SOURCES = {
    "iu-xray": ("FOLDER", "the archives of Open-i as downloaded, or the Kaggle copy"),
    "peir-gross": ("FOLDER", "what the public downloader of PEIR Gross writes"),
    "r2gen": ("FILE", "R2Gen's annotation.json; its lists train, val and test are the split"),
    "table": ("FILE", "your own: CSV, TSV, JSONL or Parquet; without out=, proposes the settings"),
    "phantom": ("", "chest films drawn by the program; there is nothing to read"),
}
"""Source -> its path, and what it is."""

_WIDTH = 96
_TYPES = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}


def prepare_help() -> str:
    """The text below the options: sources first, then settings, each with the sources it is for."""
    lines = ["sources:"]
    for source, (path, what) in SOURCES.items():
        own = [name for name in PrepareConfig.model_fields if source in sources_of(name)]
        lines.append(f"  {f'{source} {path}':19}{what}")
        lines += _wrapped(f"takes {', '.join(own)}", 21)
    lines += ["", "settings, as key=value:"]
    properties = PrepareConfig.model_json_schema()["properties"]
    for name, field in PrepareConfig.model_fields.items():
        about = _default(field.is_required(), field.default)
        sources = sources_of(name)
        if len(sources) < len(SOURCES):
            about += f"; for {', '.join(sources)}"
        shown = "columns.FIELD" if name == "columns" else name
        lines.append(f"  {shown}: {_type(properties[name])} ({about})")
        lines += _wrapped(field.description or "", 6)
    return "\n".join([*lines, "", *_wrapped(LANGUAGES, 0)])


def sources_of(name: str) -> tuple[str, ...]:
    """The sources that a setting is for."""
    marks = [mark for mark in PrepareConfig.model_fields[name].metadata if isinstance(mark, For)]
    return marks[0].sources if marks else tuple(SOURCES)


def _default(required: bool, default: Any) -> str:
    if required:
        return "must be given"
    if default in (None, {}):
        return "empty by default"
    return f"default {str(default).lower() if isinstance(default, bool) else default}"


def _type(schema: dict[str, Any]) -> str:
    """A setting's type in words, from its JSON schema."""
    schema = next(iter(schema.get("anyOf", [])), schema)
    if "enum" in schema:
        return " or ".join([", ".join(schema["enum"][:-1]), schema["enum"][-1]])
    words = _TYPES.get(schema.get("type", ""), "a text")
    return f"{words} from {schema['minimum']} up" if "minimum" in schema else words


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )
