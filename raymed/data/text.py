"""Preprocessing of reports and tags, as in section 4.1 of the paper."""

import re
import unicodedata

# A number such as 1.5 is not two sentences; a blank line ends one that has no full stop.
_SENTENCE_END = re.compile(r"(?<!\d)[.!?]|[.!?](?!\d)|\n\s*\n")
_INSIDE_PUNCTUATION = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)
_LONGEST = 1000
"""Characters of a token; normalising takes a time that grows with their square."""


def sentences(text: str) -> list[str]:
    """Return the sentences of a report: lower-case alphabetic words joined by one space.

    The text is split into sentences first: at a full stop, exclamation or question mark that
    does not stand between two digits, and at a blank line. Then every token is dropped that is
    not purely alphabetic once the punctuation around it is stripped (``x-ray``, ``1.5``). A
    sentence left without words is dropped. A token of more than 1,000 characters is no word.
    """
    found = []
    for sentence in _SENTENCE_END.split(text):
        tokens = (token for token in sentence.split() if len(token) <= _LONGEST)
        words = [word for word in map(_word, tokens) if word.isalpha()]
        if words:
            found.append(" ".join(words))
    return found


def _word(token: str) -> str:
    match = _INSIDE_PUNCTUATION.search(unicodedata.normalize("NFC", token).lower())
    return match[0] if match else ""


def tag_name(text: str) -> str:
    """Return a tag in lower case with one space between its words."""
    return " ".join(text.lower().split())
