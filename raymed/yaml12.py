"""YAML as version 1.2 reads it (its core schema): one reader and one writer for all settings.

PyYAML follows YAML 1.1, which takes ``1e-3`` for a text, ``010`` for 8, ``1:30`` for 90, ``no`` for
a truth value and ``2024-01-01`` for a date. Files and ``key=value`` texts are read here alone, so
that a number is a number wherever it stands.
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
    """A whole number that knows how it was written: ``007``, where a key takes text."""

    text: str


class LiteralFloat(float):
    """A number that knows how it was written."""

    text: str


def read(text: str) -> Any:
    """The value of one YAML document; its numbers remember how they were written.

    Raises:
        yaml.YAMLError: it is none, or gives a key of a mapping twice.
    """
    return yaml.load(text, _Loader)


def write(tree: Any) -> str:
    """YAML that `read`, and every other reader of YAML 1.1 or 1.2, takes back equal to ``tree``."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def literal_text(value: Any) -> Any:
    """Numbers in a value, in lists and mappings too, as the texts that they were written as."""
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
    """Quotes a text that either version would read as something else."""


# Of a text without quotes the loader knows nothing but what follows; the dumper, YAML 1.1 as well.
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
