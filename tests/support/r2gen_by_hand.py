"""R2Gen's references as a sequence of substitutions, a loop over characters, and ids."""

import re
from collections import Counter


def words_by_hand(report: str, mimic: bool) -> list[str]:
    """The words of a report, by the rules for MIMIC-CXR or for IU X-Ray."""
    steps = [(r"\n", " "), *[("  ", " ")] * 6, *[(r"\.\.", ".")] * 8] if mimic else []
    steps += [(r"\.\.", ".")] * (0 if mimic else 3) + [(r"1\. ", "")]
    steps += [(rf"\. {number}\. ", ". ") for number in "2345"]
    steps += [(rf" {number}\. ", ". ") for number in "2345"]
    for pattern, by in steps:
        report = re.sub(pattern, by, report)
    words: list[str] = []
    for sentence in report.strip().lower().split(". "):
        kept = ""
        for char in sentence:
            # The class of characters in R2Gen's pattern has a range from the colon to a bracket.
            if char not in ".,?;*!%^&_+()]{}\"/\\'" and not ":" <= char <= "[":
                kept += char
        words += kept.split()
        words.append(".")
    return words


def references_by_hand(records: dict[str, list[str]], mimic: bool) -> dict[str, list[str]]:
    """Split -> references: ids with a start and an end, cut, and read up to the first zero."""
    least, length = (10, 100) if mimic else (3, 60)
    counts = Counter(word for text in records["train"] for word in words_by_hand(text, mimic))
    vocabulary = sorted([*(word for word in counts if counts[word] >= least), "<unk>"])
    number = {word: place for place, word in enumerate(vocabulary, start=1)}
    references: dict[str, list[str]] = {}
    for split, texts in records.items():
        for text in texts:
            words = words_by_hand(text, mimic)
            ids = [0, *(number.get(word, number["<unk>"]) for word in words), 0][:length]
            scored = []
            for each in ids[1:]:
                if each == 0:
                    break
                scored.append(vocabulary[each - 1])
            references.setdefault(split, []).append(" ".join(scored))
    return references
