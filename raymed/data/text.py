"""Preprocessing of reports and tags, as in section 4.1 of the paper."""

import re
import unicodedata

# A number such as 1.5 is not two sentences; a blank line ends one that has no full stop.
_SENTENCE_END = re.compile(r"(?<!\d)[.!?]|[.!?](?!\d)|\n\s*\n")
_PUNCTUATION_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


def sentences(text: str) -> list[str]:
    """Return the sentences of a report: lower-case alphabetic words joined by one space.

    The text is split into sentences first: at a full stop, exclamation or question mark that
    does not stand between two digits, and at a blank line. Then every token is dropped that is
    not purely alphabetic once the punctuation around it is stripped (``x-ray``, ``1.5``). A
    sentence left without words is dropped.
    """
    found = []
    for sentence in _SENTENCE_END.split(unicodedata.normalize("NFC", text)):
        tokens = (_PUNCTUATION_AROUND.sub("", token) for token in sentence.lower().split())
        words = [token for token in tokens if token.isalpha()]
        if words:
            found.append(" ".join(words))
    return found


def tag_name(text: str) -> str:
    """Return a tag in lower case with one space between its words."""
    return " ".join(text.lower().split())
