"""The paper's figures, against the text of the paper."""

import re
from pathlib import Path

import pytest

from raymed.metrics.table import table_metrics
from raymed.model.systems import SYSTEMS
from raymed.tables.paper import COLUMNS, TABLE_SYSTEMS, paper_figures, table_systems

FOLDER = Path(__file__).resolve().parents[2] / "../shared/paper"
SYSTEM_NAMES = {
    "cnn_rnn": "CNN-RNN",
    "lrcn": "LRCN",
    "soft_att": "Soft ATT",
    "att_rk": "ATT-RK",
    "no_attention": "Ours-no-Attention",
    "semantic_only": "Ours-Semantic-only",
    "visual_only": "Ours-Visual-only",
    "co_attention": "Ours-CoAttention",
}
"""As the paper calls them."""
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


def test_every_system_of_the_paper_is_in_a_table_and_every_table_has_its_metrics() -> None:
    of_the_paper = {system for systems in TABLE_SYSTEMS.values() for system in systems}
    assert of_the_paper == set(SYSTEMS) - {"transformer"}
    for table, keys in COLUMNS.items():
        assert [metric.key for metric in table_metrics(table)] == list(keys)
    assert all(table_metrics(table) for table in TABLE_SYSTEMS)
    assert paper_figures("attention", "iu_xray") == {}
    assert paper_figures("2", "peir_gross") == {}
    assert paper_figures("3", "iu_xray")["co_attention"] == {
        "recall_5": 0.644,
        "recall_10": 0.716,
        "recall_20": 0.792,
    }


def test_systems_of_the_paper_stay_in_its_tables() -> None:
    assert table_systems("1", ["transformer"])[-1] == "transformer"
    assert table_systems("3", ["lrcn"]) == ["vgg19_tags", "co_attention"]
