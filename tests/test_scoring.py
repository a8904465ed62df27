"""Scoring anyone's reports: the same figures as an evaluation, whatever the form of the file."""

import csv
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from rich.console import Console

from raymed.cli import main
from raymed.comparing import compare
from raymed.data.dataset import PreparedDataset
from raymed.data.r2gen_text import R2GenText
from raymed.data.text import preprocess
from raymed.errors import UsageError
from raymed.evaluation import evaluate
from raymed.metrics import meteor
from raymed.scores import Evaluation
from raymed.scoring import Request, score
from raymed.training.checkpoint import Checkpoint
from tests.support.r2gen_by_hand import references_by_hand, words_by_hand

ANNOTATION = Path(__file__).resolve().parents[1] / "../shared/data/iu_xray/r2gen_annotation.json"
TEXTS = {
    "a1": "Heart size is normal. No pleural effusion.",
    "a2": "There is a small left effusion.",
    "a3": "The lungs are clear. The heart is enlarged.",
    "a4": "A nodule is seen in the right lung.",
}
THEIRS = {
    "a4": "the lungs are clear. no effusion.",
    "a2": "THERE IS A SMALL RIGHT EFFUSION.",
    "a3": "The lungs are clear; 2 old fractures.",
    "a1": "Heart size is normal.",
}
FINDINGS = ("finding_precision", "finding_recall", "finding_f1")
RECALLS = ("recall_5", "recall_10", "recall_20")


@pytest.fixture(autouse=True)
def _no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise meteor.MeteorUnavailable("left out of this test")

    monkeypatch.setattr(meteor, "align", unavailable)


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    out = tmp_path_factory.mktemp("evaluation")
    checkpoint = Checkpoint.open(trained)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "align", lambda *_, **__: _unavailable())
        return evaluate(checkpoint, checkpoint.config, "train", out), out


def _unavailable() -> None:
    raise meteor.MeteorUnavailable("left out of this test")


def texts(content: dict[str, str]) -> dict[str, str]:
    return {name: " ".join(preprocess(text).sentences) for name, text in content.items()}


def write(path: Path, content: dict[str, str], column: str = "report") -> Path:
    """The same reports in any of the forms."""
    rows = [{"image_id": name, column: text} for name, text in content.items()]
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(content))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["image_id", column])
                writer.writeheader()
                writer.writerows(rows)
        case ".txt":
            path.write_text("\n".join(content[name] for name in sorted(content)) + "\n")
    return path


def test_an_evaluations_predictions_score_as_the_evaluation(
    evaluated: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    evaluation, folder = evaluated
    found = score(str(folder), Request(None), tmp_path)
    own, *others = evaluation.rows
    # As JSON, in which what is undefined is equal to itself.
    before, after = evaluation.as_json(), found.as_json()
    for part in ("rows", "intervals"):
        assert after[part]["predictions"] == before[part][own]
        assert all(after[part][name] == before[part][name] for name in others)
    assert found.truth_normality == evaluation.truth_normality
    assert found.studies == evaluation.studies == 24
    assert evaluation.rows[own]["finding_f1"] is not None
    assert not (tmp_path / "predictions.parquet").exists()
    left = json.loads((tmp_path / "scores.json").read_text())
    assert left["rows"]["predictions"] == before["rows"][own]
    assert left["made_from"]["predictions"]["path"] == str(folder / "predictions.parquet")


def test_an_exported_baseline_scores_as_in_the_evaluation(
    evaluated: tuple[Evaluation, Path], phantom: Path, tmp_path: Path
) -> None:
    evaluation, folder = evaluated
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    sentences = {row["image_id"]: row["nearest_sentences"] for row in reversed(rows)}
    (tmp_path / "nearest.json").write_text(json.dumps(sentences))
    request = Request(str(phantom), split="train")
    found = score(str(tmp_path / "nearest.json"), request, tmp_path / "out")
    before, after = (each.as_json()["rows"] for each in (evaluation, found))
    wanted = before["nearest image"]
    compared = {key: value for key, value in wanted.items() if key not in RECALLS}
    assert {key: after["predictions"][key] for key in compared} == compared
    assert after["constant report"] == before["constant report"]
    assert after["nearest image"] == wanted
    assert found.left_out == ()

    # Joined, it is not known where sentences end.
    joined = {name: " ".join(each) for name, each in sentences.items()}
    (tmp_path / "joined.json").write_text(json.dumps(joined))
    found = score(str(tmp_path / "joined.json"), request, tmp_path / "joined")
    without = {*FINDINGS, "normality", *RECALLS}
    assert {key for key, value in found.rows["predictions"].items() if value is None} == {
        *without,
        "meteor",
    }
    assert all(found.rows["predictions"][key] == wanted[key] for key in wanted.keys() - without)
    assert any("where sentences end" in line for line in found.notes())


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".csv", ".parquet"])
def test_any_form_is_matched_by_id_and_preprocessed(kind: str, tmp_path: Path) -> None:
    own = write(tmp_path / f"own{kind}", THEIRS)
    truth = write(tmp_path / f"truth{kind}", TEXTS, "reference")
    found = score(str(own), Request(str(truth)), tmp_path / "out").rows["predictions"]
    references, reports = texts(TEXTS), texts(THEIRS)
    assert reports["a3"] == "the lungs are clear old fractures"
    pair = [{name: [each[name]] for name in references} for each in (references, reports)]
    assert found["bleu_2"] == pytest.approx(Bleu(4).compute_score(*pair, verbose=0)[0][1])
    cider, of_each = Cider().compute_score(*pair)
    assert found["cider"] == pytest.approx(cider)
    table = pq.read_table(tmp_path / "out" / "per_report.parquet").to_pydict()
    assert table["image_id"] == list(references)
    assert table["cider"] == pytest.approx(of_each)
    assert table["bleu_2"] == pytest.approx(Bleu(4).compute_score(*pair, verbose=0)[1][1])
    lines = (tmp_path / "out" / "radeval.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "id": "a1",
        "ref": "heart size is normal. no pleural effusion.",
        "hyp": "heart size is normal.",
    }


def test_two_text_files_are_matched_line_by_line(tmp_path: Path) -> None:
    own, truth = write(tmp_path / "own.txt", THEIRS), write(tmp_path / "truth.txt", TEXTS)
    lines = score(str(own), Request(str(truth)), tmp_path / "lines").rows
    named = (write(tmp_path / "own.json", THEIRS), write(tmp_path / "truth.json", TEXTS))
    assert lines == score(str(named[0]), Request(str(named[1])), tmp_path / "named").rows
    truth.write_text("The lungs are clear.\n\n")
    with pytest.raises(UsageError, match=r"own\.txt: has 4 lines, but .*truth\.txt has 2"):
        score(str(own), Request(str(truth)), tmp_path / "shifted")


def test_an_annotation_files_split_is_scored(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", THEIRS)
    record = {"image_path": ["0.png"]}
    content = {
        "train": [{"id": "t", "report": "Not scored.", **record}],
        # As in the distributed file, whose third key is damaged.
        "    ": [{"id": n, "report": t, "split": "test", **record} for n, t in TEXTS.items()],
    }
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    request = Request(str(tmp_path / "annotation.json"))
    found = score(str(own), request, tmp_path / "out")
    plain = write(tmp_path / "truth.json", TEXTS)
    assert found.rows == score(str(own), Request(str(plain)), tmp_path / "plain").rows
    with pytest.raises(UsageError, match=r"annotation\.json: has no reports of split val"):
        score(str(own), Request(request.references, split="val"), tmp_path / "val")


def test_what_does_not_match_is_reported(tmp_path: Path) -> None:
    theirs = {**{name: THEIRS[name] for name in ("a1", "a2")}, "b": "Clear lungs."}
    own = write(tmp_path / "own.json", theirs)
    truth = write(tmp_path / "truth.json", {**TEXTS, "a2": "12 3."})
    found = score(str(own), Request(str(truth)), tmp_path / "out")
    assert found.images == 1
    assert found.left_out == (
        "References without a prediction, not scored: 2 of 4 (a3, a4)",
        "Predictions without a reference, not scored: 1 of 3 (b)",
        "References without words, not scored: 1 of 4 (a2)",
    )
    other = write(tmp_path / "other.json", {"b": "Clear lungs."})
    with pytest.raises(UsageError, match=r"no id is in .*truth.*have b; references have a1, a2"):
        score(str(other), Request(str(truth)), tmp_path / "none")


def test_predictions_by_study_are_matched_with_a_studys_first_image(tmp_path: Path) -> None:
    rows = [
        {"image_id": f"{name}-{view}", "study": name, "reference": text}
        for name, text in TEXTS.items()
        for view in (0, 1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "truth.parquet")
    own = write(tmp_path / "own.json", THEIRS)
    found = score(str(own), Request(str(tmp_path / "truth.parquet")), tmp_path / "out")
    assert (found.images, found.studies) == (4, 4)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    assert table["image_id"] == [f"{name}-0" for name in TEXTS]
    assert table["report"] == list(texts({name: THEIRS[name] for name in TEXTS}).values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["text=r2"], "text: must be paper or r2gen or none, not 'r2'"),
        (["tex=none"], "tex: no such key; score accepts references, split, text"),
        (["references=nowhere.json"], "nowhere.json: cannot be read"),
        ([], "own.json: has no references"),
        (["references=own.csv"], "has no column reference .* are id, words. Name .* reference="),
        (["references=twice.jsonl"], "ids with several reports: 1, such as x; each"),
    ],
)
def test_mistakes_are_named(
    settings: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own.json", THEIRS)
    (tmp_path / "own.csv").write_text("id,words\n1,clear\n")
    (tmp_path / "twice.jsonl").write_text('{"id": "x", "report": "a"}\n' * 2)
    assert main(["score", "own.json", *settings]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert not (tmp_path / "scores" / "own" / "scores.json").exists()


def test_two_systems_are_compared_on_what_both_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "heart",
        "lungs",
        "clear",
        "effusion",
        "nodule",
        "normal",
        "left",
        "right",
        "small",
        "large",
    ]
    truth = {f"s{n:02}": " ".join((*words[n % 9 :], *words[: n % 7])) for n in range(40)}
    good = {n: " ".join(t.split()[:-1]) for n, t in truth.items()}
    bad = {n: " ".join(t.split()[::3]) for n, t in truth.items() if n != "s00"}
    files = [write(tmp_path / f"{n}.json", c) for n, c in (("good", good), ("bad", bad))]
    reference = write(tmp_path / "truth.json", truth)
    found = compare(*map(str, files), Request(str(reference)))
    assert (found.images, found.studies) == (39, 39)
    by_key = {each.metric: each for each in found.differences}
    cider = Cider().compute_score(
        {n: [t] for n, t in truth.items() if n in bad},
        {n: [t] for n, t in good.items() if n in bad},
    )[0]
    assert by_key["cider"].first == pytest.approx(cider)
    assert by_key["bleu_1"].p == 1 / 10001
    assert by_key["bleu_1"].interval[0] > 0
    assert by_key["bleu_1"].sentence(("A", "B")).startswith("A is higher than B in BLEU-1: ")
    same = compare(str(files[0]), str(files[0]), Request(str(reference)))
    assert all(each.p == 1 and each.difference == 0 for each in same.differences)
    assert "is not distinguishable from" in same.sentences()[0]

    out = tmp_path / "out"
    command = ["compare", *map(str, files), f"references={reference}", f"out={out}"]
    assert main(command) == 0
    assert "good is higher than bad in CIDEr: " in capsys.readouterr().out
    assert json.loads((out / "comparison.json").read_text())["images"] == 39


def test_evaluations_are_compared_by_their_own_references(
    evaluated: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    evaluation, folder = evaluated
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    path = tmp_path / "nearest.json"
    path.write_text(json.dumps({row["image_id"]: row["nearest_sentences"] for row in rows}))
    found = compare(str(folder), str(path), Request(None))
    own = next(iter(evaluation.rows))
    for each in found.differences:
        wanted = tuple(evaluation.rows[name][each.metric] for name in (own, "nearest image"))
        assert (each.first, each.second) == pytest.approx(wanted)
    assert {"cider", "bleu_4", "normality", "finding_f1"} <= {e.metric for e in found.differences}
    with pytest.raises(UsageError, match=r"nearest\.json: has no references"):
        compare(str(path), str(folder), Request(None))


def test_the_intervals_are_shown_below_the_scores(evaluated: tuple[Evaluation, Path]) -> None:
    evaluation, _ = evaluated
    console = Console(width=200)
    with console.capture() as captured:
        console.print(evaluation.table())
    lines = captured.get().splitlines()
    at = next(number for number, line in enumerate(lines) if "CIDEr" in line)
    low, high = evaluation.intervals["constant report"]["cider"]
    assert f" {low:.3f}-{high:.3f} " in lines[at + 1]
    assert low <= evaluation.rows["constant report"]["cider"] <= high
    assert "bootstrap intervals over studies" in captured.get()
    assert "distinct" not in evaluation.intervals["constant report"]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(evaluation.table())
    assert "…" not in captured.get()


def test_references_of_a_dataset_are_its_own(phantom: Path, tmp_path: Path) -> None:
    split = PreparedDataset.open(phantom).split("train")
    perfect = dict(zip(split.image_ids, split.references, strict=True))
    own = write(tmp_path / "own.json", perfect)
    found = score(str(own), Request(str(phantom), split="train"), tmp_path / "out")
    assert found.rows["predictions"]["bleu_4"] == pytest.approx(1)
    assert found.rows["predictions"]["cider"] == pytest.approx(10)


def test_references_in_r2gens_words_are_not_compared_with_others(
    phantom: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(phantom, tmp_path / "data")
    info = json.loads((copy / "dataset.json").read_text())
    made = R2GenText("iu_xray", 3, 59, 20, 0.0, 0.0)
    (copy / "dataset.json").write_text(json.dumps({**info, "text": "r2gen", "r2gen": vars(made)}))
    split = PreparedDataset.open(copy).split("test")
    own = write(tmp_path / "own.json", dict(zip(split.image_ids, split.references, strict=True)))
    with pytest.raises(UsageError, match=r"data: was prepared with text=r2gen.*set text=r2gen"):
        score(str(own), Request(str(copy)), tmp_path / "out")
    with pytest.raises(UsageError, match=r"was prepared with text=paper: prepare it with text=r2"):
        score(str(own), Request(str(phantom), rule="r2gen"), tmp_path / "out")
    found = score(str(own), Request(str(copy), rule="none"), tmp_path / "out")
    assert found.rows["predictions"]["bleu_4"] == pytest.approx(1)
    score(str(own), Request(str(copy), rule="r2gen"), tmp_path / "r2gen")
    table = pq.read_table(tmp_path / "r2gen" / "predictions.parquet").to_pydict()
    assert table["reference"] == table["report"] == list(split.references)


def annotated(path: Path, records: dict[str, list[str]]) -> list[str]:
    """Write an annotation file of IU X-Ray's form; return the ids of its test split."""
    content = {
        split: [
            {"id": f"CXR{n}_IM-{split_number}", "report": text, "image_path": ["0.png"]}
            for n, text in enumerate(texts)
        ]
        for split_number, (split, texts) in enumerate(records.items())
    }
    path.write_text(json.dumps(content))
    return [str(record["id"]) for record in content["test"]]


def check_r2gen(annotation: Path, records: dict[str, list[str]], ids: list[str]) -> None:
    """References are R2Gen's, and reports in its words do not change."""
    expected = references_by_hand(records, mimic=False)["test"]
    own = write(annotation.parent / "own.json", dict(zip(ids, expected, strict=True)))
    request = Request(str(annotation), rule="r2gen")
    found = score(str(own), request, annotation.parent / "out")
    table = pq.read_table(annotation.parent / "out" / "predictions.parquet").to_pydict()
    assert table["reference"] == table["report"] == expected
    assert found.left_out == ()


def test_an_annotation_file_is_scored_as_r2gen_scores_it(tmp_path: Path) -> None:
    common = "1. The heart is normal. 2. No focal airspace-disease, effusion (1.5 cm)."
    rare = "Degenerative changes of the spine. The heart is normal."
    records = {"train": [common] * 3 + [rare], "val": [], "test": [rare, common, common * 9]}
    ids = annotated(tmp_path / "annotation.json", records)
    check_r2gen(tmp_path / "annotation.json", records, ids)
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    unknown = "<unk> <unk> <unk> the <unk> . the heart is normal ."
    assert table["reference"][0] == unknown
    raw = write(tmp_path / "raw.json", dict(zip(ids, records["test"], strict=True)))
    score(str(raw), Request(str(tmp_path / "annotation.json"), rule="r2gen"), tmp_path / "of-raw")
    table = pq.read_table(tmp_path / "of-raw" / "predictions.parquet").to_pydict()
    whole = [" ".join(words_by_hand(text, mimic=False)) for text in records["test"]]
    assert table["report"] == whole
    with pytest.raises(UsageError, match="text=r2gen: give references=FILE, an annotation file"):
        Request(None, rule="r2gen")


@pytest.mark.skipif(not ANNOTATION.exists(), reason="needs R2Gen's annotation file in ../shared")
def test_the_real_annotation_file_is_scored_as_r2gen_scores_it(tmp_path: Path) -> None:
    content = json.loads(ANNOTATION.read_text())
    named = {split.strip() or "test": records for split, records in content.items()}
    records = {split: [record["report"] for record in each] for split, each in named.items()}
    (tmp_path / "annotation.json").symlink_to(ANNOTATION)
    ids = [record["id"] for record in named["test"]]
    check_r2gen(tmp_path / "annotation.json", records, ids)


def test_full_stops_of_r2gens_texts_end_sentences(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", {"a": "heart is normal . lungs are dark .", "b": "clear ."})
    truth = write(tmp_path / "truth.json", {"a": "heart is normal .", "b": "lungs are dark ."})
    found = score(str(own), Request(str(truth), rule="none"), tmp_path / "out")
    # Of the three sentences generated, one has none of the words of normality.
    assert found.rows["predictions"]["normality"] == pytest.approx(2 / 3)
    assert found.left_out == ()
    lines = map(json.loads, (tmp_path / "out" / "radeval.jsonl").read_text().splitlines())
    assert [line["hyp"] for line in lines] == ["heart is normal . lungs are dark .", "clear ."]
