import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from raymed.data.examples import Example, Rejected
from raymed.data.sources import iu_xray
from raymed.data.statistics import Counts
from raymed.data.text import sentences, tag_name
from raymed.errors import UsageError

REAL = Path(__file__).resolve().parents[3] / "../shared/data/iu_xray"


def xml(impression: str, findings: str, tags: list[str], images: list[str]) -> str:
    return (
        "<eCitation><Abstract>"
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        '<AbstractText Label="INDICATION">Cough.</AbstractText>'
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract>'
        "<MeSH><major>Lung/left</major>"
        + "".join(f"<automatic>{tag}</automatic>" for tag in tags)
        + "</MeSH>"
        + "".join(f'<parentImage id="{image}"/>' for image in images)
        + "</eCitation>"
    )


REPORTS = {
    "10.xml": xml("Tenth.", "", [], ["CXR10_IM-0002-0001"]),
    "2.xml": xml("Second.", "Clear.", ["Edema", "edema"], ["CXR2_IM-0652-1001"]),
    "1.xml": xml("", "Fine.", ["Heart"], ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
    "3.xml": xml("No image.", "", [], []),
    "4.xml": "<eCitation>",
    "5.xml": '<!DOCTYPE a [<!ENTITY x "y">]><eCitation>&x;</eCitation>',
}


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)
    return path


def unpack(folder: Path) -> None:
    (folder / "ecgen-radiology").mkdir()
    for name, content in REPORTS.items():
        (folder / "ecgen-radiology" / name).write_text(content)


def pack(folder: Path, members: dict[str, str], linkname: str = "") -> None:
    with tarfile.open(folder / "NLMCXR_reports.tgz", "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if linkname:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, linkname, 0
            archive.addfile(member, io.BytesIO(content.encode()))


@pytest.mark.parametrize("packed", [False, True])
def test_official_reports(tmp_path: Path, packed: bool) -> None:
    if packed:
        pack(tmp_path, {f"ecgen-radiology/{name}": text for name, text in REPORTS.items()})
    else:
        unpack(tmp_path)
    one = image(tmp_path / "images/CXR1_1_IM-0001-3001.png")
    two = image(tmp_path / "deeper/down/2_IM-0652-1001.dcm.png")
    image(tmp_path / "images/CXR2_IM-0652-1001.jpg")
    ten = image(tmp_path / "CXR10_IM-0002-0001.jpeg")
    (tmp_path / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-3001.dcm.png,Lateral\n"
    )
    *others, tenth = [pair for pair in iu_xray.read(tmp_path) if isinstance(pair, Example)]
    missing = tmp_path / "CXR1_IM-0001-4001.png"
    assert others == [
        Example("CXR1_IM-0001-3001", "CXR1", one, "Fine.", ("Heart",), view="lateral"),
        Example("CXR1_IM-0001-4001", "CXR1", missing, "Fine.", ("Heart",)),
        Example("CXR2_IM-0652-1001", "CXR2", two, "Second. Clear.", ("Edema", "edema")),
    ]
    assert tenth == Example("CXR10_IM-0002-0001", "CXR10", ten, "Tenth.", ("normal",))
    rejected = [pair for pair in iu_xray.read(tmp_path) if isinstance(pair, Rejected)]
    assert [(pair.study, pair.reason.partition(":")[0]) for pair in rejected] == [
        ("CXR3", "report has no image"),
        ("CXR4", "report file is not valid XML"),
        ("CXR5", "report file is not valid XML"),
    ]


def test_kaggle_copy(tmp_path: Path) -> None:
    (tmp_path / "indiana_reports.csv").write_text(
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        '1.0,normal,normal,Chest,,None.,"Fine, clear.",NaN\n'
        "2,Edema/mild;Lung/left,Edema;Lung,Chest,,None.,Clear.,Second.\n"
        "3,,nan,Chest,,None.,Clear.,Third.\n"
    )
    (tmp_path / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n"
        "1,1_IM-0001-3001.dcm.png,Lateral\n2,2_IM-0652-1001.dcm.png,Frontal\n"
    )
    path = image(tmp_path / "images/images_normalized/1_IM-0001-4001.dcm.png")
    first, second, third, last = iu_xray.read(tmp_path)
    assert first == Example(
        "CXR1_IM-0001-4001", "CXR1", path, "Fine, clear.", ("normal",), view="frontal"
    )
    assert isinstance(second, Example)
    assert second.image_id == "CXR1_IM-0001-3001"
    assert isinstance(third, Example)
    assert (third.report, third.tags) == ("Second. Clear.", ("Edema", "Lung"))
    assert last == Rejected("", "CXR3", "report has no image")

    unpack(tmp_path)
    official = [pair for pair in iu_xray.read(tmp_path) if isinstance(pair, Example)]
    assert official[0].tags == ("Heart",)

    (tmp_path / "indiana_projections.csv").unlink()
    for file in (tmp_path / "ecgen-radiology").iterdir():
        file.unlink()
    (tmp_path / "ecgen-radiology").rmdir()
    with pytest.raises(UsageError, match=r"indiana_projections\.csv: missing"):
        list(iu_xray.read(tmp_path))


@pytest.mark.parametrize(
    ("sections", "texts", "without"),
    [
        ("both", {"CXR1": "Fine.", "CXR2": "Second. Clear.", "CXR10": "Tenth."}, {}),
        ("findings", {"CXR1": "Fine.", "CXR2": "Clear."}, {"CXR10_IM-0002-0001": "CXR10"}),
        (
            "impression",
            {"CXR2": "Second.", "CXR10": "Tenth."},
            {"CXR1_IM-0001-3001": "CXR1", "CXR1_IM-0001-4001": "CXR1"},
        ),
    ],
)
def test_sections(
    tmp_path: Path, sections: Any, texts: dict[str, str], without: dict[str, str]
) -> None:
    unpack(tmp_path)
    image(tmp_path / "CXR1_IM-0001-3001.png")
    pairs = list(iu_xray.read(tmp_path, sections=sections))
    assert {pair.study: pair.report for pair in pairs if isinstance(pair, Example)} == texts
    rejected = [pair for pair in pairs if isinstance(pair, Rejected) and pair.image_id]
    assert {pair.image_id: pair.study for pair in rejected} == without
    assert all(pair.reason == f"report has no {sections} section" for pair in rejected)


@pytest.mark.parametrize("spelling", ["CXR1_1_IM-0001-3001", "CXR1_IM-0001-3001", "1_IM-0001-3001"])
def test_spellings_of_an_image_id(spelling: str) -> None:
    assert iu_xray.image_id(spelling) == "CXR1_IM-0001-3001"


def test_names_that_are_no_image_id() -> None:
    assert iu_xray.image_id("CXR1_2_IM-0001-3001") is None
    assert iu_xray.image_id("synpic40275") is None


def test_members_that_point_outside_are_refused(tmp_path: Path) -> None:
    for name, linkname in (("../1.xml", ""), ("/1.xml", ""), ("1.xml", "../../secret")):
        pack(tmp_path, {name: REPORTS["1.xml"]}, linkname)
        with pytest.raises(UsageError, match="points outside the archive"):
            list(iu_xray.read(tmp_path))


def test_damaged_archive(tmp_path: Path) -> None:
    pack(tmp_path, {f"{number}.xml": REPORTS["1.xml"] * 50 for number in range(50)})
    archive = tmp_path / "NLMCXR_reports.tgz"
    for content in (archive.read_bytes()[:-60], b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(UsageError, match="damaged archive"):
            list(iu_xray.read(tmp_path))


def test_no_reports_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no reports found: the folder must contain NLMCXR_reports\.tgz"
    ):
        list(iu_xray.read(tmp_path))
    with pytest.raises(UsageError, match="none: the folder does not exist"):
        iu_xray.read(tmp_path / "none")
    unpack(tmp_path)
    pairs: list[Example | Rejected] = []
    with pytest.raises(UsageError, match=r"no image of the collection.*CXR1_1_IM-0001-3001\.png"):
        pairs.extend(iu_xray.read(tmp_path))
    assert sum(isinstance(pair, Example) for pair in pairs) == 4


@pytest.mark.skipif(not REAL.is_dir(), reason="the official IU X-Ray report archive is not there")
def test_the_official_archive_has_the_statistics_of_the_paper() -> None:
    counts = Counts()
    pairs = list(iu_xray.read(REAL))
    examples = [pair for pair in pairs if isinstance(pair, Example)]
    for pair in examples:
        counts.add(pair.study, sentences(pair.report), map(tag_name, pair.tags))
    found = counts.statistics()
    assert (found.images, found.unique_tags) == (7470, 572)
    assert round(found.tags_per_image, 1) == 2.2
    assert round(found.sentences_per_image, 1) == 5.7
    assert round(found.words_per_sentence, 1) == 6.5
    assert abs(found.unique_words - 1915) <= 1
    assert round(found.top_words_share, 3) == 0.990
    assert len(pairs) - len(examples) == 104
    assert Counter(pair.view for pair in examples) == {"frontal": 3818, "lateral": 3648, None: 4}
    assert sum(Path(str(pair.image)).is_file() for pair in examples) == 26


@pytest.mark.skipif(not REAL.is_dir(), reason="the official IU X-Ray report archive is not there")
def test_reports_of_the_official_archive_without_findings() -> None:
    """Compared with the archive's XML, read by the standard library."""
    expected = set()
    with tarfile.open(REAL / "NLMCXR_reports.tgz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                root = ElementTree.fromstring(file.read())
                (text,) = [
                    e.text for e in root.iter("AbstractText") if e.get("Label") == "FINDINGS"
                ]
                if not text:
                    expected |= {e.get("id") for e in root.iter("parentImage")}
    pairs = list(iu_xray.read(REAL, sections="findings"))
    reason = "report has no findings section"
    rejected = [p.image_id for p in pairs if isinstance(p, Rejected) and p.reason == reason]
    assert set(rejected) == {iu_xray.image_id(str(name)) for name in expected}
    examples = [pair for pair in pairs if isinstance(pair, Example)]
    assert len(rejected) + len(examples) == 7470
    assert all(pair.report for pair in examples)
