"""YAML 1.2 (core schema): the one reader and writer of all settings.

PyYAML implements YAML 1.1, in which ``1e-3`` is text, ``010`` is 8, ``1:30`` is 90, ``no`` is a
boolean and ``2024-01-01`` is a date. Files and ``key=value`` settings are both read here, so that a
number is a number in either.
"""

import re
from typing import Any

import yaml

INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
BASES = {"0o": 8, "0x": 16}


class LiteralInt(int):
    """An integer that remembers its spelling, such as ``007``, in case the key takes text."""

    text: str


class LiteralFloat(float):
    """A float that remembers its spelling."""

    text: str


def read(text: str) -> Any:
    """Parse one YAML document; its numbers remember their spelling.

    Raises:
        yaml.YAMLError: The text is not valid YAML, or a mapping has a duplicate key.
    """
    return yaml.load(text, _Loader)


def write(tree: Any) -> str:
    """Format as YAML that `read` and any other YAML 1.1 or 1.2 parser reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def literal_text(value: Any) -> Any:
    """Replace numbers, also within lists and mappings, by the text they were written as."""
    if isinstance(value, LiteralInt | LiteralFloat):
        return value.text
    if isinstance(value, list):
        return [literal_text(one) for one in value]
    if isinstance(value, dict):
        return {key: literal_text(one) for key, one in value.items()}
    return value


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        written: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in written:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} is given twice", key.start_mark
                    )
                written.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> LiteralInt:
        base = BASES.get(node.value[:2], 10)
        number = LiteralInt(node.value.removeprefix("0o") if base == 8 else node.value, base)
        number.text = node.value
        return number

    def construct_number(self, node: yaml.ScalarNode) -> LiteralFloat:
        number = LiteralFloat(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        number.text = node.value
        return number


class _Dumper(yaml.SafeDumper):
    """Quotes any text that either YAML version would read as something else."""


# For unquoted text the loader has only the following rules; the dumper has those of YAML 1.1 too.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", INTEGER, list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), _first
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
