"""What preprocessing and the limits leave out of reports is counted, printed and kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raymed.data.batches import TokenisedSplit
from raymed.data.dataset import PreparedDataset
from raymed.data.examples import Example, Rejected
from raymed.data.statistics import LeftOutCounts
from raymed.data.text import Text, preprocess
from raymed.data.vocabulary import Vocabulary
from raymed.errors import UsageError
from tests.support.prepared import prepare_examples

LONG = ". ".join(["a " * 39 + "b"] * 15)


def examples(count: int) -> list[Example | Rejected]:
    """One report in three is too long, each third has a dropped token in eight."""
    texts = (LONG, "One two three four five six seven x-ray.", "Heart normal. Lungs clear.")
    return [
        Example(f"i{n}", f"s{n}", np.zeros((8, 8), np.uint8), texts[n % 3], ("ab"[n % 2],))
        for n in range(count)
    ]


def prepared(folder: Path, data: list[Example | Rejected]) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        prepare_examples(data, folder / "out", image_size=8, console=console)
    return capture.get()


def test_shares_are_printed_and_kept(tmp_path: Path) -> None:
    printed = prepared(tmp_path, examples(30))
    # Of 10 reports each: 15 sentences of 40 words; 7 words and one token; 4 words.
    words, tokens = 10 * (15 * 40 + 7 + 4), 10
    cut = 10 * (15 * 40 - 12 * 30)
    assert (
        f"Dropped: {tokens / (words + tokens):.1%} of the tokens are not words (x-ray " in printed
    )
    assert (
        "(generation.max_sentences=12, generation.max_words=30): "
        f"{10 * 3 / (10 * 18):.1%} of the sentences, {cut / words:.1%} of the words;"
    ) in printed
    left_out = PreparedDataset.open(tmp_path / "out").info.left_out
    assert left_out is not None
    assert left_out.tokens == pytest.approx(tokens / (words + tokens))
    assert left_out.frequent == {"x-ray": left_out.tokens}
    assert (left_out.sentences, left_out.words) == pytest.approx((30 / 180, cut / words))


def test_nothing_is_printed_where_nothing_is_left_out(tmp_path: Path) -> None:
    printed = prepared(tmp_path, examples(30)[2::3])
    assert "Dropped" not in printed
    assert "Beyond" not in printed


def test_they_are_printed_where_no_report_could_be_used() -> None:
    console = Console(width=200, force_terminal=False)
    bad = [Example("i", "s", Path("none"), "x-ray t-spine", ())]
    with (
        console.capture() as capture,
        pytest.raises(UsageError, match="no usable image with a report"),
    ):
        prepare_examples(bad, "never", console=console)
    assert (
        "Dropped: 100.0% of the tokens are not words (t-spine 50.0%, x-ray 50.0%)" in capture.get()
    )


def test_a_dataset_of_an_older_version_can_be_opened(tmp_path: Path) -> None:
    prepared(tmp_path, examples(30))
    file = tmp_path / "out/dataset.json"
    content = json.loads(file.read_text())
    del content["left_out"]
    file.write_text(json.dumps(content))
    assert PreparedDataset.open(tmp_path / "out").info.left_out is None


def test_memory_has_a_bound_and_the_frequent_stay() -> None:
    class Few(LeftOutCounts):
        KEPT = 50

    counts = Few()
    for number in range(5000):
        counts.add(Text(["a b"], ["often", f"rare-{number}"]))
        assert len(counts._dropped) <= 102
    assert counts.shares().frequent["often"] == pytest.approx(5000 / 20000)
    assert counts.shares().tokens == pytest.approx(10000 / 20000)


@pytest.mark.parametrize("limits", [(12, 30), (15, 40), (1, 3), (100, 1)])
def test_the_share_that_training_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """Of more images than a block of the cache holds, compared with what the texts say."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = examples(700)
    prepared(tmp_path, data)
    dataset = PreparedDataset.open(tmp_path / "out")
    split = dataset.split("train")
    assert len(split) > 512
    vocabulary = Vocabulary.most_frequent(dataset.words, dataset.tags, 10)
    reports = {e.image_id: preprocess(e.report)[0] for e in data if isinstance(e, Example)}
    words = kept = 0
    for name in split.image_ids:
        lengths = [len(sentence.split()) for sentence in reports[name]]
        words += sum(lengths)
        kept += sum(min(length, limits[1]) for length in lengths[: limits[0]])
    found = TokenisedSplit(split, vocabulary, *limits).cut_share()
    assert found == pytest.approx(1 - kept / words)
