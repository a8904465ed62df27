import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from raymed.data.dataset import PreparedDataset
from raymed.data.destination import Destination, new_dataset
from raymed.data.examples import Example
from raymed.data.parts import write_part
from raymed.data.schema import DatasetInfo
from raymed.data.sources.phantom import draw
from raymed.errors import UsageError
from tests.support.prepared import prepare_examples, prepare_phantom


@pytest.fixture
def uri() -> Iterator[str]:
    """A folder that does not exist yet, in a file system without rename."""
    folder = f"fsspec+memory://{uuid.uuid4().hex}/data"
    yield folder
    filesystem, root = pafs.FileSystem.from_uri(folder)
    if filesystem.get_file_info(root).type != pafs.FileType.NotFound:
        filesystem.delete_dir(root)


def files_of(uri: str) -> dict[str, bytes]:
    filesystem, root = pafs.FileSystem.from_uri(uri)
    selector = pafs.FileSelector(root, allow_not_found=True, recursive=True)
    return {
        info.path.removeprefix(f"{root}/"): filesystem.open_input_stream(info.path).read()
        for info in filesystem.get_file_info(selector)
        if info.type == pafs.FileType.File
    }


def prepared(out: str | Path, studies: int = 12, **options: object) -> DatasetInfo:
    return prepare_phantom(out, studies, **options)


def begin(out: str | Path, overwrite: bool = False) -> Destination:
    with new_dataset(out, overwrite) as destination:
        return destination


def test_a_dataset_in_a_store_equals_a_local_one(uri: str, tmp_path: Path) -> None:
    info = prepared(uri)
    assert info == prepared(tmp_path / "local")
    local = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert files_of(uri) == local
    assert len(PreparedDataset.open(uri).split("train")) == info.counts["train"]


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    prepared(f"file://{tmp_path}/out")
    assert (tmp_path / "out/dataset.json").is_file()
    with pytest.raises(UsageError, match=r"out: a prepared dataset is already there"):
        prepared(f"file://{tmp_path}/out")


def test_existing_content_in_a_store(uri: str) -> None:
    first = prepared(uri)
    with pytest.raises(UsageError, match="already there"):
        prepared(uri)
    second = prepared(uri, studies=20, overwrite=True)
    assert second.content_hash != first.content_hash
    assert PreparedDataset.open(uri).info == second
    filesystem, root = pafs.FileSystem.from_uri(uri)
    filesystem.delete_file(f"{root}/dataset.json")
    before = files_of(uri)
    with pytest.raises(UsageError, match="is not a prepared dataset"):
        prepared(uri, overwrite=True)
    assert files_of(uri) == before


def failing(studies: int) -> Iterator[Example]:
    yield from draw(studies, image_size=32)
    raise UsageError("the source broke")


def one_part_is_written(do: Callable[[Any], Any], pieces: Iterable[Any]) -> Iterator[Any]:
    for piece in pieces:
        yield do(piece)
        if do is write_part:
            raise OSError("the network is gone")


def test_a_failed_attempt_in_a_store_leaves_nothing(uri: str) -> None:
    with pytest.raises(UsageError, match="broke"):
        prepare_examples(failing(200), uri, image_size=32)
    assert files_of(uri) == {}
    first = prepared(uri)
    before = files_of(uri)
    with pytest.raises(UsageError, match="broke"):
        prepare_examples(failing(200), uri, overwrite=True, image_size=32)
    assert files_of(uri) == before
    assert PreparedDataset.open(uri).info == first
    with pytest.raises(UsageError, match="cannot be written: the network is gone"):
        prepared(uri, overwrite=True, executor=one_part_is_written)
    assert files_of(uri) == {}, "the old one is gone, and no part of the new one is left"


def test_an_interrupted_dataset_in_a_store_is_reported_and_removed(uri: str) -> None:
    filesystem, root = pafs.FileSystem.from_uri(uri)
    filesystem.create_dir(f"{root}/_preparing")
    for name in ("_preparing/0000000.pixels", "train-00000.parquet"):
        with filesystem.open_output_stream(f"{root}/{name}") as stream:
            stream.write(b"half")
    with pytest.raises(UsageError, match="not a prepared dataset"):
        PreparedDataset.open(uri)
    with pytest.raises(UsageError, match=r"or preparing it was interrupted.*overwrite=true"):
        prepared(uri)
    prepared(uri, overwrite=True)
    assert files_of(uri)["train-00000.parquet"] != b"half"
    assert not any(name.startswith("_preparing") for name in files_of(uri))


def test_a_uri_that_pyarrow_does_not_support() -> None:
    with pytest.raises(UsageError, match="nosuch://x: is not a path or URI that pyarrow supports"):
        begin("nosuch://x")


def test_a_killed_process_leaves_no_dataset_and_its_files_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out[1]"  # the brackets are literal
    program = (
        "import sys, time\n"
        "from raymed.data.destination import new_dataset\n"
        "with new_dataset(sys.argv[1], False) as destination:\n"
        "    (destination.scratch / '0000000.pixels').write_bytes(b'0' * 1000)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (left,) = tmp_path.iterdir()
        assert begin(out).final != left
        assert left.is_dir(), "a live process keeps its folder"
        out.rmdir()
        os.kill(process.pid, signal.SIGKILL)
    assert (left / "_preparing/0000000.pixels").is_file()
    begin(out)
    assert list(tmp_path.iterdir()) == [out]
