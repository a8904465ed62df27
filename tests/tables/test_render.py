"""Tables as text, read back."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from raymed.metrics.table import table_metrics
from raymed.tables.paper import TABLE_SYSTEMS
from raymed.tables.render import TITLES, markdown_table, terminal_table
from raymed.tables.results import Cell, Row, table_rows
from tests.support.table_scores import Fabricated


@pytest.fixture
def made(tmp_path: Path) -> Fabricated:
    return Fabricated(tmp_path)


def keys_of(table: str) -> list[str]:
    return [metric.key for metric in table_metrics(table)]


def rows_of(made: Fabricated, table: str, seeds: int) -> list[Row]:
    runs = [
        made.run(system, seed, table == "attention", distinct=7000)
        for system in TABLE_SYSTEMS[table]
        for seed in range(seeds)
    ]
    return table_rows(table, "iu_xray", runs)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("table", ["1", "2", "3", "attention"])
def test_markdown_holds_every_figure(made: Fabricated, table: str, seeds: int) -> None:
    rows = rows_of(made, table, seeds)
    text = markdown_table(table, rows, "A note.")
    title, empty, note, gap, *lines = text.removesuffix("\n").split("\n")
    assert (title, empty, note, gap) == (f"## {TITLES[table]}", "", "A note.", "")
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads, rule, *body = split
    assert heads == ["", *(metric.column for metric in table_metrics(table)), "distinct", "runs"]
    assert rule == ["---", *["---:"] * (len(heads) - 1)]
    assert len(body) == len(rows)
    for row, (name, *cells, distinct, runs) in zip(rows, body, strict=True):
        assert name == row.name
        assert distinct == ("" if row.distinct is None else str(round(row.distinct)))
        assert runs == (str(seeds) if row.runs else "")
        for measure, cell in zip(keys_of(table), cells, strict=True):
            if measure not in row.cells:
                assert cell.split(" ")[0] == "-"
                continue
            found = re.fullmatch(r"(\d\.\d{3})( ±(\d\.\d{3}))?( \((\d\.\d{3})\))?", cell)
            assert found, cell
            assert float(found[1]) == pytest.approx(row.cells[measure].mean, abs=5.1e-4)
            deviation = row.cells[measure].deviation
            assert (found[3] is None) == (deviation is None) == (row.runs < 2)
            if deviation is not None:
                assert float(found[3]) == pytest.approx(deviation, abs=5.1e-4)
            assert (found[5] and float(found[5])) == row.paper.get(measure)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("table", ["1", "2", "3", "attention"])
def test_a_table_fits_a_terminal_of_80_columns(made: Fabricated, table: str, seeds: int) -> None:
    rows = rows_of(made, table, seeds)
    file = io.StringIO()
    Console(file=file, width=80).print(terminal_table(table, rows))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in file.getvalue()
    words = " ".join(lines).split()
    assert " ".join(words).startswith(TITLES[table])
    start = next(i for i, line in enumerate(lines) if line.split()[-2:] == ["distinct", "runs"])
    assert lines[start].split()[:-2] == [metric.column for metric in table_metrics(table)]
    body = iter(lines[start + 1 :])
    for row in rows:
        line = next(body)
        name, _, detail = row.name.partition(" (")
        assert line.startswith(f"{name} ")
        shown = line.removeprefix(name).split()
        means = [f"{row.cells[m].mean:.3f}" if m in row.cells else "-" for m in keys_of(table)]
        assert shown[: len(means)] == means
        ends = [] if row.distinct is None else [f"{row.distinct:.0f}"]
        assert shown[len(means) :] == ends + ([str(row.runs)] if row.runs else [])
        if detail:
            assert next(body).split() == [f"({detail}"]
        if row.runs > 1:
            spread = [f"{cell.deviation:.3f}" for cell in row.cells.values()]
            assert next(body).split() == ["±", *spread]
        if row.paper:
            assert next(body).split() == ["paper", *(f"{x:.3f}" for x in row.paper.values())]
    assert list(body) == []


def test_a_missing_metric_is_a_dash_in_its_column() -> None:
    row = Row("lrcn", {"cider": Cell(1.25, 0.5)}, {"meteor": 0.155}, 4.0, 2)
    (line,) = (x for x in markdown_table("1", [row], "").splitlines() if x.startswith("| lrcn"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["lrcn", *["-"] * 4, "- (0.155)", "-", "1.250 ±0.500", "4", "2"]
    file = io.StringIO()
    Console(file=file, width=80).print(terminal_table("1", [row]))
    *_, means, spread, paper = file.getvalue().splitlines()
    assert means.split() == ["lrcn", *["-"] * 6, "1.250", "4", "2"]
    # All three end in the same columns.
    assert means.index("1.250") == spread.index("0.500")
    assert paper.index("0.155") + 4 == [found.start() for found in re.finditer("-", means)][4]
