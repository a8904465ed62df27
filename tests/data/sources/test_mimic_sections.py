import pytest

from raymed.data.sources.mimic_sections import sections_of

FULL = "\n".join(
    [
        "                                 FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___ year old man with cough  // pneumonia?",
        " ",
        " FINDINGS: ",
        " ",
        " The heart is large.  A measurement was",
        " taken at 10:30.",
        " ",
        " No effusion.",
        " ",
        " IMPRESSION: ",
        " ",
        " 1.  Cardiomegaly.",
        " 2.  No pneumonia.",
    ]
)
"""As in the archive, a blank line holds a space."""


def test_findings_and_impression() -> None:
    assert sections_of(FULL) == (
        "The heart is large.  A measurement was\n taken at 10:30.\n \n No effusion.",
        "1.  Cardiomegaly.\n 2.  No pneumonia.",
        "",
    )


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("CONCLUSION", "impression"),
        ("IMPRESSON", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINGS/ IMPRESSION", "impression"),
        ("FINIDNGS", "findings"),
        ("REFERENCE FINDINGS", "findings"),
        ("CHEST, TWO VIEWS", "findings"),
        ("PORTABLE UPRIGHT AP VIEW", "findings"),
        ("FRONTAL SEMI-UPRIGHT RADIOGRAPH", "findings"),
        ("CLINICAL HISTORY", None),
        ("HISTORY, CHEST PAIN", None),
        ("WET READ", None),
        ("TECHNIQUE", None),
    ],
)
def test_spellings_of_headings(heading: str, section: str | None) -> None:
    found = sections_of(f"FINAL REPORT\n {heading}:  Clear.\n")
    assert {name: text for name, text in found._asdict().items() if text} == (
        {section: "Clear."} if section else {}
    )


@pytest.mark.parametrize(
    ("report", "findings", "impression", "other"),
    [
        # The addendum stands above the report; an empty last section does not count.
        ("\n IMPRESSION: Old.\n \n IMPRESSION: New.\n \n IMPRESSION: \n \n", "", "New.", ""),
        ("\n CHEST, PA LATERAL:\n \n INDICATION: Cough.\n \n FINDINGS: Clear.", "Clear.", "", ""),
        # Capitals inside a line, and on the line on which a section begins, are text.
        ("\n FINDINGS: Seen. IMPRESSION: x\n NOTE: y", "Seen. IMPRESSION: x", "", ""),
        ("\n FINDINGS:\n IMPRESSION: Clear.", "IMPRESSION: Clear.", "", ""),
        ("\n Findings: Clear.", "", "", ""),
        ("\n FINDINGS:Clear.", "", "", ""),
        # Neither section: the paragraphs after the first one of the last section.
        ("FINAL REPORT\n CT: one.\n \n Two.\n \n Three.\n", "", "", "Two.\n \n Three."),
        ("FINAL REPORT\n \n Clear lungs.\n \n Normal.\n", "", "", "Clear lungs.\n \n Normal."),
        # Without such paragraphs, what is said under the comparison.
        ("\n COMPARISON: None. Lungs clear.\n DATE: ___", "", "", "None. Lungs clear."),
        ("\n COMPARSION: ___.\n \n Lungs clear.", "", "", "Lungs clear."),
        ("Lungs clear.", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_rules(report: str, findings: str, impression: str, other: str) -> None:
    assert sections_of(report) == (findings, impression, other)
