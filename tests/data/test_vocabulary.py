from raymed.data.vocabulary import Vocabulary
from raymed.tokens import END, PAD, SPECIAL, START, UNKNOWN

COUNTS = {"the": 9, "heart": 4, "lung": 4, "a": 4, "rib": 1}


def test_most_frequent_words_with_ties_in_alphabetical_order() -> None:
    vocabulary = Vocabulary.most_frequent(COUNTS, ["normal"], size=3)
    assert vocabulary.words == ("the", "a", "heart")
    assert vocabulary.tags == ("normal",)
    assert len(vocabulary) == 3 + len(SPECIAL)
    # The order in which the words were counted has no say.
    backwards = dict(reversed(COUNTS.items()))
    assert Vocabulary.most_frequent(backwards, ["normal"], size=3) == vocabulary


def test_more_room_than_words() -> None:
    assert len(Vocabulary.most_frequent(COUNTS, [], size=1000).words) == len(COUNTS)


def test_words_to_ids_and_back() -> None:
    vocabulary = Vocabulary(("the", "heart"), ("normal", "cardiomegaly"))
    assert vocabulary.encode("the heart is the") == [4, 5, UNKNOWN, 4]
    assert vocabulary.encode("") == []
    assert vocabulary.decode([START, 4, UNKNOWN, 5, END, PAD]) == "the heart"
    assert vocabulary.decode(vocabulary.encode("heart the")) == "heart the"
    assert vocabulary.tag_ids == {"normal": 0, "cardiomegaly": 1}


def test_a_word_of_a_report_that_looks_special_is_a_word() -> None:
    assert not set(SPECIAL) & set(Vocabulary(SPECIAL[:0], ()).words)
    vocabulary = Vocabulary(("start", "end"), ())
    assert vocabulary.encode("start end") == [len(SPECIAL), len(SPECIAL) + 1]
