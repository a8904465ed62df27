"""Preprocessing of reports and tags, as in section 4.1 of the paper, for any script.

The paper's rule is designed for English. The tables below add what other languages need, and what
real reports need in any language.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

WITH_DIGITS = "with digits"
"""Replaces every dropped token with a digit, which may be a patient's number."""
TOO_LONG = "too long"
"""Replaces every token of more than `_LONGEST` characters."""
_LONGEST = 1000
"""Maximum characters of a token; the time to normalise one grows quadratically."""


def _of_blocks(kind: str, *blocks: tuple[int, int]) -> str:
    return "".join(
        chr(point)
        for first, last in blocks
        for point in range(first, last + 1)
        if unicodedata.category(chr(point))[0] == kind
    )


# Thai, Lao, Tibetan, Burmese, Khmer, and the extensions of Burmese.
_SOUTH_EAST = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F)),
    *((0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
)
# Han, Kana and Bopomofo.
_EAST = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
)
_UNSPACED = _of_blocks("L", *_SOUTH_EAST) + _EAST
_MARKS = _of_blocks("M", *_SOUTH_EAST) + "\u3099\u309a\u200c\u200d"
# After either of these, the next consonant is written below the previous one.
_STACKERS = "\u1039\u17d2"
_TOKEN = re.compile(rf"[{_UNSPACED}](?:[{_STACKERS}][{_UNSPACED}]|[{_MARKS}])*|[^\s{_UNSPACED}]+")
_EAST_RUN = rf"[{_EAST}][{_EAST}\u3099\u309a]*"
_EAST_RUNS = re.compile(_EAST_RUN)
_EAST_GAP = re.compile(rf"(?<=[{_EAST}\u3099\u309a])[^\S\n]+(?=[{_EAST}])")
_SPACED_TOKEN = re.compile(rf"{_EAST_RUN}|{_TOKEN.pattern}")
_SPACED_WORD = 3
"""Words of Chinese and Japanese have fewer characters than this on average, clauses have more."""

# Letters and stops in other widths, ligatures and positions. No other compatibility characters: the
# Spanish abbreviation for "number" would become "no".
_FORMS = re.compile("[\ufb00-\ufb06\ufb50-\ufdf9\ufe70-\ufefc\uff01-\uffef]+")
_INVISIBLE = dict.fromkeys(
    (0xAD, 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF)
) | dict.fromkeys((0x200B, 0x1361), " ")
"""Characters that are not part of words, and two word separators: zero width and Ethiopic."""

_ABBREVIATIONS = (
    "Dr dr DR Drs Mr Mrs mrs Ms Prof prof Dra Sra Dott dott vs Vs VS cf Cf viz resp incl "
    "bzw ggf evtl vgl inkl sog"
)
_BEFORE_NUMBERS = "No no NO Nos nos Nr nr Nro nro Núm núm Fig fig Figs figs Abb ca Ca approx"
_LETTER = r"[^\W\d_]"
_BEGINS = r"(?<![^\s.,;:/([\"“„–-])"
# A number such as 1.5 is not two sentences. The rest are Unicode's Sentence_Terminal in modern use.
_STOP = r"(?<!\d)[.!?]|[.!?](?!\d)|[…‼⁇⁈⁉‽。؝؞؟۔।॥։።፧፨།༎၊။។៕᠃᠉꓿]"
_MARK = (
    r"^[^\S\n]*(?:[•‣◦▪●○■□·*–—]|-(?!\d)|\(?\d{1,2}(?:\.(?!\d)|\))"
    r"|\(?[A-Za-z]\)|(?:III?|IV|VI{1,3}|IX)[.)](?=\s))"
)
_BOUNDARY = re.compile(rf"{_MARK}|\n\s*\n|(?P<stop>{_STOP})", re.MULTILINE)
_NO_STOP = re.compile(
    rf"{_BEGINS}(?:{'|'.join(_ABBREVIATIONS.split())}"
    rf"|(?:{'|'.join(_BEFORE_NUMBERS.split())})(?=\.\s*\d)"
    # A single letter: an initial or part of e.g.; but "at 10 a.m. The heart" is two sentences.
    rf"|(?!(?<=[AaPp]\.)[Mm]\.\s+[A-Z])(?:[^\W\d_a-zß-ÿ]|{_LETTER}(?=\.\s?{_LETTER}\.)"
    rf"|(?:(?<={_BEGINS}{_LETTER}\.)|(?<={_BEGINS}{_LETTER}\.\s)){_LETTER}))\."
)

_ELIDED = (
    # French, and Catalan
    "aujourd c d j jusqu l lorsqu m n presqu puisqu qu quelqu quoiqu s t "
    # Italian
    "agl all anch bell coll dagl dall degl dell gl nell nessun quell quest sant senz sugl sull "
    "tutt un v"
)
_ELISION = re.compile(
    rf"(?<![^\W_])({'|'.join(_ELIDED.split())})['’ʼ‘`´′](?=[haeiouyàáâäãèéêëìíîïòóôöùúûüœæ])",
    re.IGNORECASE,
)
_JOINERS = "\u200c\u200d"
_INSIDE_PUNCTUATION = re.compile(r"[^\W_](?:.*[^\W_])?", re.DOTALL)


class Text(NamedTuple):
    """A preprocessed report."""

    sentences: list[str]
    """Words in lower case, separated by single spaces."""
    dropped: list[str]
    """Tokens with a letter or digit that are not words, in lower case, or their replacements."""


def preprocess(text: str) -> Text:
    """Return the sentences of a report, and the tokens that were dropped.

    The text is first split into sentences: at stops (``. ! ?`` and those of other scripts), at
    blank lines, and before lines that begin with a bullet or list mark (``- • 1. 2) II.``), which
    is removed. Not a stop is a full stop between two digits, after one capital or a sequence of
    single letters (``J. Doe``, ``e.g.``), after an abbreviation such as ``Dr.`` or ``vs.``, or in
    ``No. 3``. If a report has no stops, or fewer than half as many as lines, line breaks end
    sentences too, except before a lower-case letter if other lines begin with a capital.

    Then every token that is not purely alphabetic after surrounding punctuation is stripped is
    dropped (``x-ray``, ``1.5``, ``doesn't``), as in the paper. Combining marks belong to their
    letters, so words of all scripts stay intact. In scripts without spaces between words (Han,
    Kana, Thai, Lao, Khmer, Burmese, Tibetan) each character is a word, with its marks, unless the
    report's Han and Kana are already spaced into words of fewer than 3 characters on average.
    French and Italian elisions are two words (``d'épanchement``, ``dell'aorta``). A sentence
    without words is dropped, and so is a token of more than 1,000 characters.
    """
    found: list[str] = []
    dropped: list[str] = []
    pattern = _SPACED_TOKEN if _is_spaced(text) else _TOKEN
    for sentence in _split(text):
        words: list[str] = []
        for token in sentence.split() if sentence.isascii() else pattern.findall(sentence):
            if len(token) > _LONGEST:
                dropped.append(TOO_LONG)
                continue
            for word, is_word in _words(token):
                (words if is_word else dropped).append(word)
        if words:
            found.append(" ".join(words))
    return Text(found, dropped)


def sentences(text: str) -> list[str]:
    """Return the sentences of a report; see `preprocess`."""
    return preprocess(text).sentences


def one_sentence(text: str) -> str:
    """Return a text with the same tokens that `preprocess` reads as one sentence."""
    return " ".join(" ".join(_split(text)).split())


def with_full_stops(sentences: Iterable[str]) -> str:
    """Return sentences as one text; those of R2Gen's text end with a full stop already."""
    return " ".join(each if each.endswith(".") else f"{each}." for each in sentences if each)


def tag_name(text: str) -> str:
    """Return a tag in lower case with single spaces."""
    return " ".join(text.lower().split())


def _split(text: str) -> list[str]:
    """Split a text into sentences, without characters that are not part of any word."""
    text = "\n".join(text.splitlines())
    if not text.isascii():
        text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
        text = text.translate(_INVISIBLE)
    text = _NO_STOP.sub(lambda match: f"{match[0][:-1]} ", text)
    pieces, stops = _pieces(text)
    lines = [line.lstrip() for line in text.split("\n") if line.strip()]
    capitals = text != text.upper() and any(line[0].isupper() for line in lines)
    if len(lines) > 1 and (stops == 0 or (capitals and 2 * stops < len(lines))):
        ended = [line if capitals and line[0].islower() else f"\n{line}" for line in lines]
        pieces, _ = _pieces("\n".join(ended))
    return pieces


def _is_spaced(text: str) -> bool:
    """Whether the Han and Kana of a text are spaced into words."""
    if text.isascii() or not _EAST_GAP.search(text):
        return False
    runs = [len(run) for run in _EAST_RUNS.findall(text)]
    return sum(runs) < _SPACED_WORD * len(runs)


def _pieces(text: str) -> tuple[list[str], int]:
    """Split a text at its boundaries, and count how many of them are stops."""
    pieces, stops, start = [], 0, 0
    for match in _BOUNDARY.finditer(text):
        pieces.append(text[start : match.start()])
        stops += match["stop"] is not None
        start = match.end()
    return [*pieces, text[start:]], stops


@lru_cache(maxsize=2**14)
def _words(token: str) -> tuple[tuple[str, bool], ...]:
    """Split a token into parts and tell which are words; punctuation gives nothing."""
    found = []
    for part in _ELISION.sub(r"\1 ", token).split():
        # lower() turns the Turkish capital into an i with a second, combining dot.
        lower = unicodedata.normalize("NFC", part).replace("\u0130", "i").lower()
        word = _inside(lower)
        if not word:
            continue
        is_word = all(char.isalpha() or _is_mark(char) or char in _JOINERS for char in word)
        if not is_word and any(char.isdecimal() for char in word):
            word = WITH_DIGITS
        found.append((word, is_word))
    return tuple(found)


def _inside(token: str) -> str:
    """Strip surrounding punctuation from a token, but not the marks of its last letter."""
    match = _INSIDE_PUNCTUATION.search(token)
    if not match:
        return ""
    end = match.end()
    while end < len(token) and _is_mark(token[end]):
        end += 1
    return token[match.start() : end]


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M"
