import io
import json

import pandas as pd
import pytest

from raymed.data import cells


def test_missing_is_what_pandas_takes_so_in_any_case() -> None:
    known = ["", "nan", "NaN", "N/A", "#N/A", "NULL", "None", "<NA>", "NA", "-nan", "null", "n/a"]
    words = ["None.", "no", "-", "Not available", "nano", "0"]
    texts = pd.read_csv(io.StringIO("\n".join(["x", *(f'"{text}"' for text in known + words)])))
    is_missing = dict(zip(known + words, texts["x"].isna(), strict=True))
    assert sum(is_missing.values()) == len(known)
    for text, missing in is_missing.items():
        for spelled in (text, f"  {text}\n", text.upper(), text.lower()):
            assert (cells.text(spelled) == "") == missing, spelled


@pytest.mark.parametrize("missing", [None, float("nan"), [], [None, "nan", float("nan")]])
def test_missing_values_that_are_no_text(missing: object) -> None:
    assert cells.text(missing) == cells.identifier(missing) == ""
    assert cells.values(missing) == []
    assert cells.label(missing) is None


def test_a_list_where_one_text_is_wanted_is_its_paragraphs() -> None:
    assert cells.text(["Heart normal", None, " nan", "Clear."]) == "Heart normal\n\nClear."


@pytest.mark.parametrize("value", [12, 12.0, "12", " 12.0 ", "12.000"])
def test_a_whole_number_is_one_id(value: object) -> None:
    assert cells.identifier(value) == "12"


@pytest.mark.parametrize("value", ["0012", "1.5", "12.0.1", "v12.0", "1e2"])
def test_other_ids_stay_as_they_are(value: str) -> None:
    assert cells.identifier(value) == value


def test_every_way_to_write_several_values_gives_the_same() -> None:
    wanted = ["pleural effusion", "it's", "x, y"]
    written = [wanted, str(wanted), json.dumps(wanted), "pleural effusion; it's|x, y"]
    written.append(str(pd.Series(wanted).to_numpy()))
    assert "', '" not in written[-1]
    for cell in (*written, [*wanted, None, "NaN"]):
        assert cells.values(cell) == wanted, cell
    assert cells.values("a; b, c|d ,", ",") == ["a; b", "c|d"]
    assert cells.values("['a', nan, None]") == ["a"]
    assert cells.values("[]") == []
    assert cells.values("[left] mass") == ["[left] mass"]


@pytest.mark.parametrize("cell", ["[two words, more]", "['a'", "[['a'], 'b']", "[f(x)]", "[('a')"])
def test_what_is_no_list_is_not_taken_for_one(cell: str) -> None:
    if cell.endswith("]"):
        with pytest.raises(ValueError, match="not a Python or JSON list"):
            cells.values(cell)
    else:
        assert cells.values(cell) == [cell]


def test_labels() -> None:
    for value, label in [(1, 1), (1.0, 1), ("1.0", 1), (True, 1), ("TRUE", 1), ("yes", 1)]:
        assert cells.label(value) == label
        assert cells.label({"1.0": "0.0", "TRUE": "false", "yes": "No"}.get(str(value), 0)) == 0
    assert [cells.label(value) for value in (-1, "-1.0", -1.0)] == [-1] * 3
    assert [cells.label(value) for value in ("2", "0.5", "mass", "", ["1"], "inf")] == [None] * 6
