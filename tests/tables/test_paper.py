"""The paper's figures, against the text of the paper."""

import re
from pathlib import Path

import pytest

from raymed.sections import SYSTEMS
from raymed.tables.paper import MEASURES, SYSTEM_NAMES, TABLE_SYSTEMS, paper_figures

FOLDER = Path(__file__).resolve().parents[2] / "../shared/paper"
NUMBER = r"(?<![\d.])0\.\d{2,3}(?!\d)"


@pytest.fixture(scope="module")
def paper() -> str:
    files = sorted(FOLDER.glob("*.txt"))
    if not files:
        pytest.skip("the text of the paper is not beside the project, in shared/paper")
    return files[0].read_text(encoding="utf-8")


def flat(table: str, half: str) -> list[float]:
    return [value for row in paper_figures(table, half).values() for value in row.values()]


@pytest.mark.parametrize(
    ("table", "figures"),
    [
        ("1", [*flat("1", "iu_xray"), *flat("1", "peir_gross")]),
        ("2", flat("2", "iu_xray")),
        ("3", [*flat("3", "iu_xray"), *flat("3", "peir_gross")]),
    ],
)
def test_the_numbers_of_a_table_stand_in_the_paper_in_this_order(
    paper: str, table: str, figures: list[float]
) -> None:
    # Nothing else is written in this form between a table's numbers, so they are the last ones
    # before its caption.
    (caption,) = re.finditer(rf"^Table {table}\. ", paper, re.MULTILINE)
    before = [float(number) for number in re.findall(NUMBER, paper[: caption.start()])]
    assert len(figures) == {"1": 15 * 7, "2": 8, "3": 12}[table]
    assert before[-len(figures) :] == figures


def test_the_rows_of_table_1_bear_the_papers_names(paper: str) -> None:
    values = rf"[^\n]*\n((?:{NUMBER}\n){{7}})"
    for system in TABLE_SYSTEMS["1"]:
        name = re.escape(SYSTEM_NAMES[system])
        rows = [text.split() for text in re.findall(name + values, paper)]
        expected = [
            list(figures[system].values())
            for figures in (paper_figures("1", "iu_xray"), paper_figures("1", "peir_gross"))
            if system in figures
        ]
        assert [[float(number) for number in row] for row in rows] == expected


def test_every_system_is_named_and_every_table_has_its_measures() -> None:
    assert set(SYSTEM_NAMES) == set(SYSTEMS)
    assert TABLE_SYSTEMS.keys() == MEASURES.keys()
    assert paper_figures("attention", "iu_xray") == {}
    assert paper_figures("2", "peir_gross") == {}
    assert paper_figures("3", "iu_xray")["co_attention"] == {
        "recall_5": 0.644,
        "recall_10": 0.716,
        "recall_20": 0.792,
    }
