"""The findings and the impression of a report of MIMIC-CXR.

The rules are those by which the archive's authors made its label tables (MIT-LCP/mimic-cxr,
``txt/section_parser.py`` and ``txt/create_section_files.py``), without their list of 54 reports
that were corrected by hand.
"""

import re
from typing import NamedTuple

_HEADING = re.compile(r"^([A-Z ()/,-]+):\s", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")

_SPELLINGS = {
    # The single report with the heading NDICATION has its impression there.
    "impression": "conclusion ndication impresson imprression imoression impressoin imprssion "
    "impresion imperssion mpression impession",
    "findings": "finding findins findindgs findgings findngs findnings finidngs",
    "comparison": "comparision comparsion comparrison comparisions",
}
"""Section -> the single words that also name it, most of them misspellings in the archive."""
_SECTION_OF = {
    "reference exam": "comparison",
    **{word: section for section, words in _SPELLINGS.items() for word in words.split()},
}
_CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
"""A heading with one of these in it names that section; the first one decides."""
_TITLES = re.compile(
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|two views"
    "|one view|(?:frontal|pa|ap|lateral) view|bone window|frontal (?:semi-)?upright|ribs"
)
"""What is in the title of a whole study, below which the findings stand."""


class Sections(NamedTuple):
    """The sections of a report, "" where there is none."""

    findings: str
    impression: str
    other: str
    """Without findings and impression, what stands for them: the paragraphs after the first one of
    the last section, or else the section about the comparison."""


def sections_of(report: str) -> Sections:
    """Find the sections of a report.

    A heading is in capitals, at the start of a line, and ends in a colon; the line on which the
    text of a section begins has no further heading. The headings of findings and impression have
    many spellings, and the title of an examination (``CHEST, PA AND LATERAL:``) is one for
    findings. Of several sections with the same name the last one counts, since an addendum stands
    above the report that it amends; empty findings and impressions do not count.

    Args:
        report: The text of a report file.
    """
    found = [
        (name, text)
        for name, text in _divided(report)
        if text.strip() or name not in ("findings", "impression")
    ]
    sections = dict(found)
    if "findings" not in sections and "impression" not in sections and found:
        name, text = found[-1]
        first, *rest = _BLANK_LINE.split(text, maxsplit=1)
        sections[name] = first
        other = rest[0] if rest else sections.get("comparison", "")
    else:
        other = ""
    return Sections(
        sections.get("findings", "").strip(), sections.get("impression", "").strip(), other.strip()
    )


def _divided(report: str) -> list[tuple[str, str]]:
    """Return the name and text of each section, beginning with what is above the first heading."""
    headings: list[re.Match[str]] = []
    for match in _HEADING.finditer(report):
        if not headings or 0 <= report.find("\n", headings[-1].end()) < match.start():
            headings.append(match)
    starts = [0, *(match.end() for match in headings)]
    # The line break before a heading is not the end of a blank line of the section.
    ends = [*(max(0, match.start() - 1) for match in headings), len(report)]
    names = ["", *(_section_name(match[1]) for match in headings)]
    return [(name, report[start:end]) for name, start, end in zip(names, starts, ends, strict=True)]


def _section_name(heading: str) -> str:
    name = heading.strip().lower()
    if name in _SECTION_OF:
        return _SECTION_OF[name]
    for section in _CONTAINED:
        if section in name:
            return section
    return "findings" if _TITLES.search(name) else name
