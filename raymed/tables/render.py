"""A table as text: for the terminal, and as Markdown."""

from collections.abc import Sequence

from rich.table import Table

from raymed.tables.paper import MEASURES
from raymed.tables.results import Row

HEADS = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE",
    "cider": "CIDEr",
    "normality": "normality",
    "abnormality": "abnormality",
    "recall_5": "R@5",
    "recall_10": "R@10",
    "recall_20": "R@20",
    "right": "true",
    "region": "region",
    "region_fixed": "fixed",
    "region_chance": "chance",
    "tag": "tag",
    "tag_chance": "chance",
}
TITLES = {
    "1": "Table 1: report generation",
    "2": "Table 2: portion of sentences on normality and abnormality",
    "3": "Table 3: tag prediction",
    "attention": "Attention: abnormal sentences whose strongest region or tag is the finding's",
}


def terminal_table(table: str, rows: Sequence[Row]) -> Table:
    """For the terminal: beneath our mean its standard deviation and the paper's figure."""
    measures = MEASURES[table]
    shown = Table(title=TITLES[table], box=None, padding=(0, 1, 0, 0))
    for head in _heads(table):
        shown.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        shown.add_row(row.name, *_means(row, measures), _distinct(row), str(row.runs or ""))
        if any(cell.deviation is not None for cell in row.cells.values()):
            shown.add_row("  ±", *_deviations(row, measures), "", "")
        if row.paper:
            paper = [f"{row.paper[m]:.3f}" if m in row.paper else "" for m in measures]
            shown.add_row("  paper", *paper, "", "", style="dim")
    return shown


def markdown_table(table: str, rows: Sequence[Row], note: str) -> str:
    """The same as Markdown, with its title and the note."""
    heads = _heads(table)
    lines = [
        f"## {TITLES[table]}",
        "",
        note,
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *("| " + " | ".join(_line(row, MEASURES[table])) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _heads(table: str) -> list[str]:
    return ["", *(HEADS[measure] for measure in MEASURES[table]), "distinct", "runs"]


def _means(row: Row, measures: Sequence[str]) -> list[str]:
    return [f"{row.cells[m].mean:.3f}" if m in row.cells else "-" for m in measures]


def _deviations(row: Row, measures: Sequence[str]) -> list[str]:
    spreads = [row.cells[m].deviation if m in row.cells else None for m in measures]
    return ["" if spread is None else f"{spread:.3f}" for spread in spreads]


def _distinct(row: Row) -> str:
    return "" if row.distinct is None else f"{row.distinct:.0f}"


def _line(row: Row, measures: Sequence[str]) -> list[str]:
    cells = []
    means, deviations = _means(row, measures), _deviations(row, measures)
    for measure, mean, deviation in zip(measures, means, deviations, strict=True):
        spread = f" ±{deviation}" if deviation else ""
        paper = f" ({row.paper[measure]:.3f})" if measure in row.paper else ""
        cells.append(mean + spread + paper)
    return [row.name, *cells, _distinct(row), str(row.runs or "")]
