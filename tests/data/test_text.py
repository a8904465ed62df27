import pytest

from raymed.data.text import sentences, tag_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The heart is normal. No effusion!", ["the heart is normal", "no effusion"]),
        ("1. Nodule of 1.5 cm.2. Clear lungs", ["nodule of cm", "clear lungs"]),
        ("Normal chest x-XXXX.", ["normal chest"]),
        ("(Stable) \u201cheart\u201d; XXXX/XXXX, lungs' size", ["stable heart lungs size"]),
        ("Impression\n\nLungs are\nclear", ["impression", "lungs are clear"]),
        ("Gesto\u0308rt", ["gest\u00f6rt"]),
        ("1. 2.5 -- ... ?", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_tag_name() -> None:
    assert tag_name("  Pulmonary\n Atelectasis ") == "pulmonary atelectasis"
