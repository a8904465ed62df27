"""How the texts of anyone's reports become sentences before they are scored."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from raymed.data.cells import paragraphs
from raymed.data.r2gen_text import STOP, R2GenRules, has_only_words, limited
from raymed.data.text import preprocess

Report = str | list[str]
"""A text, or a list of its sentences or paragraphs."""
TEXT_RULES = ("paper", "r2gen", "none")


@dataclass(frozen=True)
class TextRule:
    """A rule for the texts of reports.

    Attributes:
        sentences: The sentences of a report: words separated by single spaces.
        ends: Whether a text ends as a sentence does.
    """

    sentences: Callable[[Report], list[str]]
    ends: Callable[[str], bool]


def r2gen(rules: R2GenRules, known: Collection[str] | None = None) -> TextRule:
    """R2Gen's rule.

    Args:
        rules: Those of one of its datasets.
        known: The words that references have; others are unknown, and reports are cut to the
            dataset's length. None: reports are those of a system. They are not cut, and a text that
            has only words already stays as it is: it may have been cut before its full stop.
    """

    def sentences(report: Report) -> list[str]:
        texts = [report] if isinstance(report, str) else report
        if known is None and all(map(has_only_words, texts)):
            return _separated(report)
        found = [" ".join(words) for text in texts for words in rules.words(text)]
        return found if known is None else limited(found, known, rules.max_words)

    return TextRule(sentences, _ends_with_stop)


def _preprocessed(report: Report) -> list[str]:
    return preprocess(report if isinstance(report, str) else paragraphs(report)).sentences


def _separated(report: Report) -> list[str]:
    if isinstance(report, list):
        return [" ".join(part.split()) for part in report]
    sentences: list[list[str]] = [[]]
    for word in report.split():
        if sentences[-1][-1:] == [STOP]:
            sentences.append([])
        sentences[-1].append(word)
    return [" ".join(words) for words in sentences]


def _ends_with_stop(text: str) -> bool:
    return text.rstrip()[-1:] == STOP


PAPER = TextRule(_preprocessed, _ends_with_stop)
"""The rule by which datasets are prepared; lower-case words stay as they are."""
NONE = TextRule(_separated, lambda text: text.split()[-1:] == [STOP])
"""Words are only separated by single spaces. A sentence ends with a full stop that is a word."""
