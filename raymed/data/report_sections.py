"""Which sections of a report are the text to generate."""

from raymed.setting_types import ReportSections


def target_text(findings: str, impression: str, sections: ReportSections) -> str:
    """Return the text of the chosen sections; "" if the report lacks them.

    Args:
        findings: Text of the section, "" if there is none.
        impression: Likewise.
        sections: ``both`` is the impression followed by the findings, as in Jing et al. (2018).
    """
    texts = {
        "findings": findings,
        "impression": impression,
        "both": f"{impression} {findings}",
    }
    return texts[sections].strip()
