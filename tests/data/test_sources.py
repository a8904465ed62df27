import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from raymed.data.prepare import prepare_source
from raymed.data.sources.table_columns import TableSettings
from raymed.errors import UsageError
from raymed.sections import PrepareConfig

REAL = Path(__file__).resolve().parents[2] / "../shared/data/iu_xray"
VIEWS = ["PA", "ap", "Frontal", "LATERAL", "ll", "", "oblique", "frontal", "lateral", "rl"]


def settings(out: Path, **changes: object) -> PrepareConfig:
    return PrepareConfig.model_validate({"out": str(out), "image_size": 8, **changes})


def table_settings(out: Path, **changes: object) -> TableSettings:
    return TableSettings.model_validate({"out": str(out), "image_size": 8, **changes})


def quiet() -> Console:
    return Console(quiet=True)


def table_of(folder: Path, view: str = "view") -> Path:
    rows = []
    for number, name in enumerate(VIEWS):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "report": f"Heart {name}.", view: name})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


@pytest.mark.parametrize("wanted", ["frontal", "lateral"])
def test_a_table_by_view(tmp_path: Path, wanted: str) -> None:
    path = table_of(tmp_path, "position")
    other = {"frontal": "lateral", "lateral": "frontal"}[wanted]
    kept = {"frontal": {"0", "1", "2", "7"}, "lateral": {"3", "4", "8", "9"}}
    options = table_settings(tmp_path / "out", views=wanted, columns={"view": "position"})
    info = prepare_source("table", str(path), options, quiet())
    rows = [
        r for p in (tmp_path / "out").glob("*-0*.parquet") for r in pq.read_table(p).to_pylist()
    ]
    assert {row["image_id"].partition(".")[0] for row in rows} == kept[wanted]
    assert (info.found.images, info.prepared.images) == (10, 4)
    rejected = {
        row["image_id"]: row["reason"]
        for row in pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    }
    expected = dict.fromkeys(
        (f"{n}.png" for n in kept[other]), f"view is {other}, but only {wanted} is kept"
    )
    expected["5.png"] = f"view is unknown, but only {wanted} is kept"
    expected["6.png"] = "view is neither frontal nor lateral: oblique"
    assert rejected == expected


def test_all_views_is_every_image(tmp_path: Path) -> None:
    info = prepare_source(
        "table", str(table_of(tmp_path)), table_settings(tmp_path / "out"), quiet()
    )
    assert (info.prepared.images, info.rejected) == (10, {})


def test_views_of_what_has_none(tmp_path: Path) -> None:
    frontal = settings(tmp_path / "out", views="frontal")
    for source in ("phantom", "peir-gross"):
        with pytest.raises(
            UsageError,
            match=f"views: is a setting of iu-xray, mimic-cxr, table; {source} would ignore",
        ):
            prepare_source(source, str(tmp_path), frontal, quiet())
    by_table = table_settings(tmp_path / "out", views="frontal")
    with pytest.raises(UsageError, match=r"t\.jsonl: no column 'view' for field view"):
        prepare_source("table", str(table_of(tmp_path, "position")), by_table, quiet())
    (tmp_path / "ecgen-radiology").mkdir()
    with pytest.raises(UsageError, match=r"indiana_projections\.csv: missing"):
        prepare_source("iu-xray", str(tmp_path), frontal, quiet())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason="the official IU X-Ray report archive is not there")
def test_frontal_images_of_the_real_archive_with_the_split_of_r2gen(tmp_path: Path) -> None:
    with (REAL / "indiana_projections.csv").open(encoding="utf-8") as file:
        views = {
            f"CXR{row['filename'].partition('.')[0]}": row["projection"]
            for row in csv.DictReader(file)
        }
    listed = json.loads((REAL / "r2gen_split_ids.json").read_text(encoding="utf-8"))
    files = [path.stem for path in (REAL / "images").iterdir()]
    sides = Counter(
        side
        for name in files
        for side, ids in listed.items()
        if views[name] == "Frontal" and name.partition("_")[0] in {i.partition("_")[0] for i in ids}
    )
    options = settings(
        tmp_path / "out",
        views="frontal",
        split="r2gen",
        split_file=str(REAL / "r2gen_split_ids.json"),
    )
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        info = prepare_source("iu-xray", str(REAL), options, console)
    assert info.counts == sides
    assert "train 2,069 ids (2,069 found" in capture.get()
    assert "val 296 ids (296 found" in capture.get()
    assert "test 590 ids (590 found" in capture.get()
    assert (info.found.images, info.found.unique_tags) == (7470, 572)
    lateral = "view is lateral, but only frontal is kept"
    assert info.rejected[lateral] == Counter(views.values())["Lateral"] == 3648
    assert info.rejected["view is unknown, but only frontal is kept"] == 7470 - len(views)
    assert info.views == "frontal"
