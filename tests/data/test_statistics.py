from rich.console import Console

from raymed.data.statistics import PAPER, Counts, by_frequency, table

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
    assert found.words_per_image == (6 + 6 + 2) / 4
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
    figures = {
        "iu-xray": ("7,470", "572", "1,915", "2.2", "5.7", "6.5", "99.0%"),
        "peir-gross": ("7,442", "1,000", "1.0", "12.0", "4,452"),
        "phantom": (),
    }
    for source, shown in figures.items():
        console = Console(width=100, force_terminal=False)
        with console.capture() as capture:
            console.print(table({"found": Counts().statistics()}, source))
        rows = [line.split("│")[1:-1] for line in capture.get().splitlines() if "│" in line]
        paper = [row[2].strip() for row in rows if len(row) == 3]
        assert sorted(filter(None, paper)) == sorted(shown)
        assert len(shown) == len(PAPER.get(source, {}))
        assert any(row[0].strip() == "words per image" for row in rows)
