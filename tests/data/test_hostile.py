"""A folder made to do harm, or only broken: preparing goes on, says why, and copies no identity."""

import io
import json
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.uid import JPEG2000Lossless
from rich.console import Console

from raymed.data.examples import Example, Rejected
from raymed.data.prepare import prepare_source
from raymed.data.sources import iu_xray
from raymed.data.sources.table_columns import TableSettings
from raymed.errors import UsageError
from tests.support.dicom_files import IDENTITY, dataset, saved

PIXELS = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)


def png_bomb() -> bytes:
    """A PNG of a few bytes whose header says 50,000 x 50,000."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def corpus(folder: Path) -> tuple[Path, dict[str, str]]:
    """A table of good and bad images, and each bad one's reason."""
    for number in range(8):
        saved(folder / f"good{number}.dcm", dataset(PIXELS + np.uint16(number)))
    saved(folder / "no_suffix", dataset(PIXELS))
    compressed = dataset(PIXELS)
    compressed.compress(JPEG2000Lossless, generate_instance_uid=False)
    saved(folder / "compressed.dcm", compressed)
    whole = (folder / "compressed.dcm").read_bytes()
    bad = {"../outside.png": "image path is outside the images folder"}
    for name, content, reason in (
        ("cut.dcm", whole[: len(whole) - 200], "DICOM image cannot be decoded"),
        ("head.dcm", whole[:180], "DICOM file has no image"),
        ("text.dcm", b"Zebrowski, no image", "not a PNG, JPEG, TIFF or DICOM image"),
        ("bomb.png", png_bomb(), "image is too large"),
        ("empty.png", b"", "not a PNG, JPEG, TIFF or DICOM image"),
    ):
        (folder / name).write_bytes(content)
        bad[name] = reason
    saved(folder / "bomb.dcm", dataset(PIXELS, Rows=50_000, Columns=50_000))
    bad["bomb.dcm"] = "image is too large"
    saved(folder / "window.dcm", dataset(PIXELS, WindowCenter=1, WindowWidth=9, VOILUTFunction="X"))
    bad["window.dcm"] = "DICOM window has an unknown function"
    saved(folder / "report.dcm", dataset(PIXELS, Rows=None))
    bad["report.dcm"] = "DICOM file has no image"
    good = [*(f"good{number}.dcm" for number in range(8)), "no_suffix", "compressed.dcm"]
    with (folder / "table.jsonl").open("w") as file:
        for number, name in enumerate([*good, *bad]):
            file.write(json.dumps({"image": name, "report": f"Heart {'abc'[number % 3]}."}) + "\n")
    return folder / "table.jsonl", bad


def test_the_rest_is_prepared_and_nobody_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "outside.png")
    table, bad = corpus(tmp_path / "in")
    out = tmp_path / "out"
    console = Console(width=200, force_terminal=False)
    settings = TableSettings(out=str(out), image_size=16)
    tracemalloc.start()
    with console.capture() as capture:
        info = prepare_source("table", str(table), settings, console)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert info.prepared.images == 10
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    assert {row["image_id"]: row["reason"].partition(":")[0] for row in rejected} == bad
    assert peak < 30_000_000
    everything = [capture.get().encode()]
    for path in out.rglob("*"):
        everything += [path.name.encode(), path.read_bytes()]
        if path.suffix == ".parquet":
            # Compressed in the file, so the bytes alone would hide it.
            everything.append(repr(pq.read_table(path).to_pydict()).encode())
            everything.append(repr(pq.read_schema(path).metadata).encode())
    assert len(everything) > 10
    for value in IDENTITY.values():
        for text in (value, value.partition("^")[0]):
            assert not any(text.encode() in content for content in everything), text
    source = b"".join(path.read_bytes() for path in (tmp_path / "in").glob("*.dcm"))
    assert all(value.encode() in source for value in IDENTITY.values())


ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
XML = {
    "billion laughs": f'<!DOCTYPE x [<!ENTITY a0 "ha">{ENTITIES}]><x>&a11;</x>',
    "a file": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    "a document type": '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><x/>',
}


@pytest.mark.parametrize("kind", XML)
def test_xml_that_expands_or_fetches_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    (folder / "1.xml").write_text(XML[kind])
    (folder / "2.xml").write_text('<x><parentImage id="CXR2_IM-0001-1001"/></x>')
    Image.new("L", (4, 4)).save(tmp_path / "CXR2_IM-0001-1001.png")
    first, second = iu_xray.read(tmp_path)
    if kind == "a document type":
        # It is named, not fetched, and the rest is a report without an image.
        assert first == Rejected("", "CXR1", "report has no image")
    else:
        assert isinstance(first, Rejected)
        assert first.reason.startswith("report file is not valid XML: 1.xml: EntitiesForbidden")
    assert isinstance(second, Example)


@pytest.mark.parametrize("packed", [False, True])
def test_a_report_file_of_any_size_is_not_read(tmp_path: Path, packed: bool) -> None:
    large = b"<x>" + b" " * 10_000_001 + b"</x>"
    if packed:
        with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
            member = tarfile.TarInfo("ecgen-radiology/1.xml")
            member.size = len(large)
            archive.addfile(member, io.BytesIO(large))
    else:
        (tmp_path / "ecgen-radiology").mkdir()
        (tmp_path / "ecgen-radiology/1.xml").write_bytes(large)
    pairs = iu_xray.read(tmp_path)
    assert next(pairs) == Rejected("", "1.xml", "report file is too large: 10,000,008 bytes")


@pytest.mark.parametrize(
    ("name", "linkname"),
    [
        ("../../evil.xml", ""),
        ("/etc/evil.xml", ""),
        ("ecgen-radiology/1.xml", "../../../etc/passwd"),
        ("ecgen-radiology/1.xml", "/etc/passwd"),
    ],
)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_archive_members_that_point_outside_are_refused(
    tmp_path: Path, name: str, linkname: str, kind: bytes
) -> None:
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        if linkname:
            member.type, member.linkname = kind, linkname
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(UsageError, match="points outside the archive"):
        list(iu_xray.read(tmp_path))


def test_an_image_name_in_a_report_is_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "ecgen-radiology").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    Image.new("L", (4, 4)).save(folder / "CXR1_IM-0001-1001.png")
    ids = ["../secret", str(tmp_path / "secret"), "CXR1_IM-0001-1001"]
    images = "".join(f'<parentImage id="{one}"/>' for one in ids)
    (folder / "ecgen-radiology/1.xml").write_text(f"<x>{images}</x>")
    read = [example for example in iu_xray.read(folder) if isinstance(example, Example)]
    assert [isinstance(one.image, Path) and one.image.exists() for one in read] == [0, 0, 1]
