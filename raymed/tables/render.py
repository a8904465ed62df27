"""A table as text: for the terminal and as Markdown."""

from collections.abc import Sequence

from rich.table import Table

from raymed.metrics.table import METRICS, Metric, table_metrics
from raymed.tables.results import Row

TITLES = {
    "1": "Table 1: report generation",
    "2": "Table 2: portion of sentences on normality and abnormality",
    "3": "Table 3: tag prediction",
    "attention": "Attention: abnormal sentences whose strongest region or tag is the finding's",
}


def terminal_table(table: str, rows: Sequence[Row]) -> Table:
    """For the terminal: beneath our mean its standard deviation and the paper's figure."""
    metrics = table_metrics(table)
    shown = Table(title=TITLES[table], box=None, padding=(0, 1, 0, 0))
    for head in _heads(metrics):
        shown.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        name, _, detail = row.name.partition(" (")
        shown.add_row(name, *_means(row, metrics), *_counts(row))
        if detail:
            shown.add_row(f"  ({detail}")
        if any(cell.deviation is not None for cell in row.cells.values()):
            shown.add_row("  ±", *_deviations(row, metrics), "", "")
        if row.paper:
            shown.add_row("  paper", *_paper(row, metrics), "", "", style="dim")
    return shown


def markdown_table(table: str, rows: Sequence[Row], note: str) -> str:
    """The same as Markdown, with its title and the note."""
    metrics = table_metrics(table)
    heads = _heads(metrics)
    lines = [
        f"## {TITLES[table]}",
        "",
        note,
        "",
        "| " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * (len(heads) - 1),
        *("| " + " | ".join(_markdown_row(row, metrics)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _heads(metrics: Sequence[Metric]) -> list[str]:
    return ["", *(metric.column for metric in metrics), METRICS["distinct"].column, "runs"]


def _means(row: Row, metrics: Sequence[Metric]) -> list[str]:
    return [m.format(row.cells[m.key].mean if m.key in row.cells else None) for m in metrics]


def _deviations(row: Row, metrics: Sequence[Metric]) -> list[str]:
    deviations = [row.cells[m.key].deviation if m.key in row.cells else None for m in metrics]
    return [
        "" if deviation is None else metric.format(deviation)
        for metric, deviation in zip(metrics, deviations, strict=True)
    ]


def _paper(row: Row, metrics: Sequence[Metric]) -> list[str]:
    return [m.format(row.paper[m.key]) if m.key in row.paper else "" for m in metrics]


def _counts(row: Row) -> tuple[str, str]:
    """Distinct reports and runs."""
    distinct = "" if row.distinct is None else METRICS["distinct"].format(row.distinct)
    return distinct, str(row.runs or "")


def _markdown_row(row: Row, metrics: Sequence[Metric]) -> list[str]:
    columns = _means(row, metrics), _deviations(row, metrics), _paper(row, metrics)
    cells = [
        mean + (f" ±{deviation}" if deviation else "") + (f" ({paper})" if paper else "")
        for mean, deviation, paper in zip(*columns, strict=True)
    ]
    return [row.name, *cells, *_counts(row)]
