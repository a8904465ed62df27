"""Completion scripts for shells.

The scripts are static, so a completion takes no time to start Python. Most words of a command line
are ``key=value``, which generators for argparse do not know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymed.config import Config, dotted_keys, key_metadata
from raymed.data.sources import all_sources
from raymed.keys import Locates
from raymed.model.encoder_shapes import DEPTHS
from raymed.model.systems import SYSTEMS

SHELLS = ("bash", "zsh")

_NAMES = {
    "model.system": [*SYSTEMS],
    "model.encoder": [*DEPTHS],
    "split": ["train", "val", "test"],
    "text": ["paper", "r2gen", "none"],
    "objective": ["likelihood", "cider"],
}
"""The values of keys that no type limits."""


@dataclass(frozen=True)
class Words:
    """What may follow a command.

    Attributes:
        fixed: Words of which one is to be given, such as the names of sources.
        keys: The keys of its settings.
        yaml: Whether its files are YAML.
    """

    fixed: Sequence[str]
    keys: Sequence[str]
    yaml: bool


def completion_script(shell: str, commands: Mapping[str, Words]) -> str:
    """The script that makes a shell complete commands, files, keys and values.

    Args:
        shell: One of `SHELLS`.
        commands: By name, what may follow each.
    """
    cases = [
        f'    {name}) words="{" ".join(words.fixed)}" yaml={int(words.yaml)}\n'
        f'      keys="{" ".join(words.keys)}" ;;\n'
        for name, words in commands.items()
    ]
    limited: dict[str, dict[str, None]] = {}
    for name, words in commands.items():
        for key in words.keys:
            if found := _values(name, key):
                pattern = f"*:{key}" if "." in key else f"{name}:{key}"
                limited.setdefault(" ".join(found), {})[pattern] = None
    values = [f'    {"|".join(them)}) values="{found}" ;;\n' for found, them in limited.items()]
    keys = dict.fromkeys(key for words in commands.values() for key in words.keys)
    paths = "|".join(f"*:{key}" for key in keys if _is_path(key))
    return _SCRIPT.format(
        header=_ZSH if shell == "zsh" else "",
        shell=shell,
        commands=" ".join(commands),
        cases="".join(cases),
        values="".join(values),
        paths=paths,
    )


_ZSH = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n"

# In bash, COMP_WORDS is split at "=" as well, and what replaces a word is what follows the "=";
# zsh knows no COMP_WORDBREAKS and replaces whole words.
_SCRIPT = """\
# To complete raymed's commands, put this into ~/.{shell}rc:
#   eval "$(raymed --print-completion {shell})"
{header}_raymed() {{
  local word command words="" keys="" values="" yaml=0 line=${{COMP_LINE:0:$COMP_POINT}}
  local IFS=$' \\t\\n'
  word=${{line##*[[:space:]]}}
  command=${{COMP_WORDS[1]}}
  COMPREPLY=()
  if [[ $COMP_CWORD -le 1 ]]; then
    COMPREPLY=($(compgen -W "{commands} --help --version --print-completion" -- "$word"))
    return
  fi
  case $command in
{cases}    --print-completion) words="bash zsh" ;;
  esac
  if [[ $word == *=* ]]; then
    local key=${{word%%=*}} value=${{word#*=}}
    case $command:$key in
{values}    {paths}) compopt -o filenames 2>/dev/null; values=$(compgen -f -- "$value") ;;
    esac
    COMPREPLY=($(compgen -W "$values" -P "$key=" -- "$value"))
    [[ ${{COMP_WORDBREAKS-}} == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#"$key="}}")
    return
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  local settings=($(compgen -W "$keys" -S = -- "$word")) files
  if [[ $yaml == 1 ]]; then
    files=($(compgen -f -X '!*.yaml' -- "$word") $(compgen -d -S / -- "$word"))
  else
    files=($(compgen -f -- "$word"))
    compopt -o filenames 2>/dev/null
  fi
  COMPREPLY+=("${{settings[@]}}" "${{files[@]}}")
  # No space after a key or a folder, where more follows.
  [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=/] ]] && compopt -o nospace 2>/dev/null
}}
complete -F _raymed raymed
"""


def _values(command: str, key: str) -> list[str]:
    """The values that a command's key is limited to; empty if they cannot be listed."""
    if command == "prepare":
        owners: list[Any] = [source.settings for source in all_sources().values()]
        return next(filter(None, (_limited(owner, key) for owner in owners)), [])
    section, _, name = key.partition(".")
    if key in _NAMES or not name:
        return _NAMES.get(key, [])
    return _limited(Config.model_fields[section].annotation, name)


def _limited(owner: Any, name: str) -> list[str]:
    schema = owner.model_json_schema()["properties"].get(name, {})
    for each in schema.get("anyOf", [schema]):
        if "enum" in each:
            return list(each["enum"])
        if each.get("type") == "boolean":
            return ["true", "false"]
    return []


def _is_path(key: str) -> bool:
    if key in ("out", "images", "split_file", "references"):
        return True
    return key in dotted_keys() and any(isinstance(one, Locates) for one in key_metadata(key))
