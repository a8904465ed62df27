from rich.console import Console

from raymed.data.statistics import PAPER_IU_XRAY, Counts, by_frequency, table

ROWS = [
    ("a", ["the heart is normal", "no effusion"], ["normal"]),
    ("a", ["the heart is normal", "no effusion"], ["normal"]),
    ("b", ["no effusion"], ["lung", "lung", "heart"]),
    ("c", [], []),
]


def test_statistics_are_counted_over_images() -> None:
    counts = Counts()
    for study, sentences, tags in ROWS:
        counts.add(study, sentences, tags)
    found = counts.statistics()
    assert (found.images, found.studies, found.reports) == (4, 3, 2)
    assert (found.unique_tags, found.tags_per_image) == (3, 5 / 4)
    assert found.sentences_per_image == 5 / 4
    assert found.words_per_sentence == (6 + 6 + 2) / 5
    assert (found.unique_words, found.top_words_share) == (6, 1.0)


def test_share_of_the_top_1000_words() -> None:
    counts = Counts()
    often = [f"a{number}" for number in range(1000)]
    counts.add("s", [" ".join(often)] * 3 + ["b c d"], ["t"])
    assert counts.statistics().top_words_share == 3000 / 3003


def test_nothing_counted() -> None:
    assert Counts().statistics().words_per_sentence == 0


def test_by_frequency_breaks_ties_by_the_alphabet() -> None:
    assert list(by_frequency({"b": 1, "c": 2, "a": 1})) == ["c", "a", "b"]


def test_table_shows_the_paper() -> None:
    console = Console(width=100, record=True, quiet=False, file=None)
    with console.capture() as capture:
        console.print(table({"found": Counts().statistics()}, paper=True))
    text = capture.get()
    for shown in ("7,470", "572", "1,915", "2.2", "5.7", "6.5", "99.0%"):
        assert shown in text
    assert len(PAPER_IU_XRAY) == 7
