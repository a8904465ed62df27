import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare_source
from raymed.data.sources import peir_gross
from raymed.data.text import sentences
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

CAPTIONS = {
    "00000001.jpg": "HEART: Infarct: Gross, fixed tissue. Excellent example, Dr. Smith.",
    "00000002.jpg": "LIVER: Cirrhosis: Gross fixed tissue 1.5 cm",
    "missing.jpg": "KIDNEY: Cyst: Gross",
    "00000003.jpg": "123 4.5",
    "00000004.jpg": "",
    "00000005.jpg": "LUNG: Abscess: Gross",
    "../outside.jpg": "LUNG",
}


def folder_of(folder: Path, *forms: str) -> Path:
    """Write the captions as the public downloader does, and the images."""
    (folder / "peir_gross_images").mkdir(parents=True)
    for name in CAPTIONS:
        if name[0] == "0":
            Image.new("RGB", (6, 4), (200, 30, 30)).save(folder / "peir_gross_images" / name)
    if "json" in forms:
        (folder / "peir_gross_captions.json").write_text(json.dumps(CAPTIONS))
    if "tsv" in forms:
        lines = [f"{name}\t{caption}\n" for name, caption in CAPTIONS.items()]
        (folder / "peir_gross.tsv").write_text("".join(lines))
    return folder


def words_of(caption: str) -> list[str]:
    tokens = caption.lower().replace(".", " ").replace(",", " ").replace(":", " ").split()
    return [token for token in tokens if token.isalpha()]


@pytest.mark.parametrize("form", ["json", "tsv"])
def test_the_two_layouts_agree(tmp_path: Path, form: str) -> None:
    pairs = list(peir_gross.read(folder_of(tmp_path, form)))
    outside = f"../outside.jpg is not below {tmp_path}/peir_gross_images"
    assert pairs[-1] == Rejected(
        "../outside.jpg", "../outside.jpg", f"image path is outside the images folder: {outside}"
    )
    words = "heart infarct gross fixed tissue excellent example dr smith"
    for pair, (name, caption) in zip(pairs[:-1], CAPTIONS.items(), strict=False):
        assert isinstance(pair, Example)
        assert (pair.image_id, pair.study) == (name, name)
        assert pair.image == tmp_path / "peir_gross_images" / name
        assert sentences(pair.report) == [" ".join(words_of(caption))][: bool(words_of(caption))]
        assert pair.tags == tuple(dict.fromkeys(words_of(caption)))
        assert (pair.split, pair.view) == (None, None)
    first, fourth = pairs[0], pairs[3]
    assert isinstance(first, Example)
    assert isinstance(fourth, Example)
    assert (sentences(first.report), fourth.report) == ([words], "123 4.5.")


def test_prepared_beside_the_figures_of_the_paper(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "peir_gross", "json", "tsv")
    settings = PrepareConfig(out=str(tmp_path / "out"), image_size=8)
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        info = prepare_source("peir-gross", str(folder), settings, console)
    rows = [
        r for p in (tmp_path / "out").glob("*-0*.parquet") for r in pq.read_table(p).to_pylist()
    ]
    assert {row["image_id"]: row["sentences"] for row in rows} == {
        name: [" ".join(words_of(CAPTIONS[name]))]
        for name in ("00000001.jpg", "00000002.jpg", "00000005.jpg")
    }
    assert info.rejected == {
        "image path is outside the images folder": 1,
        "image file not found": 1,
        "report has no sentence with a word in it": 1,
        "report is missing": 1,
    }
    words = Counter(
        word for name, text in CAPTIONS.items() if name[0] != "." for word in words_of(text)
    )
    assert info.found.unique_words == len(words)
    # Captions with numbers: 1.5, 123 and 4.5; a caption is one sentence with them too.
    assert info.left_out is not None
    assert info.left_out.tokens == pytest.approx(3 / (words.total() + 3))
    assert info.found.words_per_image == pytest.approx(words.total() / 6)
    assert info.prepared.sentences_per_image == 1
    shown = {
        cells[0]: cells[1:]
        for line in capture.get().splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")[1:-1]]) == 4
    }
    assert shown["images"] == ["6", "3", "7,442"]
    assert shown["unique words"] == [str(len(words)), str(info.prepared.unique_words), "4,452"]
    assert shown["words per image"] == [
        f"{words.total() / 6:.1f}",
        f"{(9 + 6 + 3) / 3:.1f}",
        "12.0",
    ]


def test_captions_that_are_missing(tmp_path: Path) -> None:
    folder_of(tmp_path)
    captions = {"a": None, "b": "nan", "c": " NULL ", "d": "None.", "e": ""}
    (tmp_path / "peir_gross_captions.json").write_text(json.dumps(captions))
    read = {pair.image_id: getattr(pair, "report", None) for pair in peir_gross.read(tmp_path)}
    assert read == {"a": "", "b": "", "c": "", "d": "None.", "e": ""}


def test_the_json_is_taken_where_both_lie(tmp_path: Path) -> None:
    folder_of(tmp_path, "json")
    (tmp_path / "peir_gross.tsv").write_text("other.jpg\tOther.\n")
    assert [pair.image_id for pair in peir_gross.read(tmp_path)] == list(CAPTIONS)


def test_tags_are_the_1000_most_frequent_words_of_all_captions(tmp_path: Path) -> None:
    names = [chr(97 + n // 676) + chr(97 + n // 26 % 26) + chr(97 + n % 26) for n in range(1200)]
    captions = {f"{n}.jpg": " ".join(names[: 1000 - n]) for n in range(3)}
    captions["rare.jpg"] = f"{names[0]} {names[1150]}. {names[999]}"
    folder_of(tmp_path)
    (tmp_path / "peir_gross_captions.json").write_text(json.dumps(captions))
    *_, rare = peir_gross.read(tmp_path)
    assert isinstance(rare, Example)
    assert rare.report.strip(".").split() == [names[0], names[1150], names[999]]
    assert rare.tags == (names[0], names[999])


def test_a_line_without_a_tab_is_left_out_with_its_place(tmp_path: Path) -> None:
    folder_of(tmp_path)
    text = "a.jpg\tLiver\r\n\nof a rat\nb.jpg\tHeart\u2028muscle\twall\n"
    (tmp_path / "peir_gross.tsv").write_bytes(text.encode())
    rejected, first, second = peir_gross.read(tmp_path)
    assert rejected == Rejected("", "", "line without a tab: peir_gross.tsv, line 3")
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert (first.report, second.report) == ("Liver.", "Heart muscle wall.")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "other.json",
            b"{}",
            r"no captions found: the folder must contain peir_gross_captions\.json or peir",
        ),
        ("peir_gross_captions.json", b"{", "captions.json: not JSON"),
        (
            "peir_gross_captions.json",
            b"[]",
            "must be an object of image name -> caption, not a list",
        ),
        ("peir_gross_captions.json", b"{}", "not an empty object"),
        (
            "peir_gross_captions.json",
            b'{"a": ["b"]}',
            r"caption of 'a' must be text, not \['b'\]",
        ),
        ("peir_gross_captions.json", b'{"a": "\xe9"}', "not UTF-8"),
        ("peir_gross.tsv", b"a.jpg liver\n", "no line has an image name, a tab and a caption"),
        ("peir_gross.tsv", b"", "no line has an image name"),
    ],
)
def test_what_is_not_the_layout(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder_of(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        peir_gross.read(tmp_path)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gone: the folder does not exist"):
        peir_gross.read(tmp_path / "gone")
    folder_of(tmp_path, "json")
    (tmp_path / "peir_gross_images").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="peir_gross_images: the images folder does not"):
        peir_gross.read(tmp_path)
    first = next(peir_gross.read(tmp_path, tmp_path / "elsewhere"))
    assert isinstance(first, Example)
    assert first.image == tmp_path / "elsewhere/00000001.jpg"
