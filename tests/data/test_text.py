import unicodedata

import pytest

from raymed.data.text import (
    TOO_LONG,
    WITH_DIGITS,
    one_sentence,
    preprocess,
    sentences,
    tag_name,
    with_full_stops,
)


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


@pytest.mark.parametrize(
    "text",
    [
        "हृदय का आकार सामान्य है। फेफड़े साफ हैं।",  # Hindi: vowel signs, viramas, a danda
        "القَلْبُ طبيعي. هل يوجد انصباب؟ لا",  # Arabic with vowel marks
        "دل نارمل ہے۔ پھیپھڑے صاف ہیں۔",  # Urdu
        "می\u200cشود. قلب",  # Persian: a joiner in the word
        "இதயம் இயல்பானது. நுரையீரல்",  # Tamil
        "שָׁלוֹם. תקין",  # Hebrew with points
        "Tim bi\u0300nh thươ\u0300ng. Phổi sáng",  # Vietnamese, decomposed in part
        "Сердце в норме. Лёгкие чистые!",
        "심장은 정상이다. 흉수 없음.",
        "የልብ መጠን። ሳንባ",  # Ethiopic
    ],
)
def test_words_of_spaced_scripts_stay_whole(text: str) -> None:
    stopped = text
    for stop in "!؟۔।።":
        stopped = stopped.replace(stop, ".")
    assert stopped.rstrip(".").count(".") >= 1
    expected = [
        unicodedata.normalize("NFC", sentence.strip()).lower()
        for sentence in stopped.rstrip(".").split(".")
    ]
    assert preprocess(text) == (expected, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("两肺清晰，未见气胸。心影增大！", ["两 肺 清 晰 未 见 气 胸", "心 影 增 大"]),
        ("ＣＴ示正常．Lungs清晰", ["ct 示 正 常", "lungs 清 晰"]),
        ("ปอดใส ไม่พบน้ำ", ["ป อ ด ใ ส ไ ม่ พ บ น้ ำ"]),
        ("ປອດ ບໍ່ມີນ້ຳ", ["ປ ອ ດ ບໍ່ ມີ ນ້ ຳ"]),
        ("គ្មានទឹក។ បេះដូង", ["គ្មា ន ទឹ ក", "បេះ ដូ ង"]),
        ("နှလုံး။ အဆုတ်", ["နှ လုံး", "အ ဆု တ်"]),
        ("異常なし。ｶﾞｽ像", ["異 常 な し", "ガ ス 像"]),
        ("正常\n清晰", ["正 常", "清 晰"]),
        ("が\u3099", ["が\u3099"]),
    ],
)
def test_scripts_without_spaces_are_divided_by_character(text: str, expected: list[str]) -> None:
    assert preprocess(text) == (expected, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("两肺 纹理 清晰 。 心影 大小 正常 。", ["两肺 纹理 清晰", "心影 大小 正常"]),
        ("两肺 清晰，未见 明显 异常；T12 骨折 ct示", ["两肺 清晰 未见 明显 异常 骨折 ct 示"]),
        ("心拡大 を 認め ない。が\u3099 ﾍﾟｰｽ", ["心拡大 を 認め ない", "が\u3099 ペース"]),
        # Spaces after stops, beside other scripts and between clauses do not make words.
        ("两肺清晰。 正常。", ["两 肺 清 晰", "正 常"]),
        ("CT 示 T12 骨折", ["ct 示 骨 折"]),
        ("胸部正面 两肺清晰，未见气胸", ["胸 部 正 面 两 肺 清 晰 未 见 气 胸"]),
        ("ปอดใส ไม่พบ", ["ป อ ด ใ ส ไ ม่ พ บ"]),
    ],
)
def test_chinese_and_japanese_that_is_spaced_keeps_its_words(
    text: str, expected: list[str]
) -> None:
    assert sentences(text) == expected
    assert sentences(one_sentence(text)) == [" ".join(expected)]


def test_numbers_beside_characters_are_dropped_alone() -> None:
    assert preprocess("右肺5cm结节，T12骨折") == (["右 肺 结 节 骨 折"], [WITH_DIGITS] * 2)


@pytest.mark.parametrize("mark", ["'", "\u2019", "\u02bc", "\u00b4"])
def test_elisions_are_two_words(mark: str) -> None:
    for text, expected in {
        "Pas d'épanchement": "pas d épanchement",
        "L'hémithorax qu'il n'y a": "l hémithorax qu il n y a",
        "jusqu'à l'aorte, aujourd'hui": "jusqu à l aorte aujourd hui",
        "Dilatazione DELL'AORTA, un'opacità": "dilatazione dell aorta un opacità",
    }.items():
        assert preprocess(text.replace("'", mark)) == ([expected], [])
    english = "patient's doesn't Bell's o'clock".replace("'", mark)
    # The last mark is a letter in Unicode, so these were words of letters alone before.
    assert preprocess(english).sentences == ([english.lower()] if mark == "\u02bc" else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seen by Dr. M. H. Smith. Clear.", ["seen by dr m h smith", "clear"]),
        ("Edema vs. pneumonia, e.g. LLL.", ["edema vs pneumonia e g lll"]),
        ("At 10:30 a.m. on Monday.", ["at a m on monday"]),
        ("Called at 10 p.m. Lungs clear", ["called at p m", "lungs clear"]),
        ("No. 3 rib fx. Is it? No. Clear", ["no rib fx", "is it", "no", "clear"]),
        ("Z. n. CABG, z.B. rechts, ca. 3 cm", ["z n cabg z b rechts ca cm"]),
        ("Dr.Smith called", ["dr smith called"]),
        ("Finding a. Finding two", ["finding a", "finding two"]),
        ("И. И. Иванов. Норма", ["и и иванов", "норма"]),
    ],
)
def test_initials_and_abbreviations_end_no_sentence(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Heart normal\nLungs clear", ["heart normal", "lungs clear"]),
        ("heart normal\r\nlungs clear", ["heart normal", "lungs clear"]),
        ("心影正常\n两肺清晰", ["心 影 正 常", "两 肺 清 晰"]),
        ("Heart is normal in\nsize\nLungs clear", ["heart is normal in size", "lungs clear"]),
        ("CHEST PA.\nHeart normal\nNo mass", ["chest pa", "heart normal", "no mass"]),
        ("Edema. Heart\nenlarged. Lungs\nclear.", ["edema", "heart enlarged", "lungs clear"]),
        (
            "edema is present in the\nlung. clear\nheart",
            ["edema is present in the lung", "clear heart"],
        ),
        ("Edema.\n- lines ok\n• tubes ok", ["edema", "lines ok", "tubes ok"]),
        ("1) Heart\n2) lungs\na) one\nIII. two", ["heart", "lungs", "one", "two"]),
        ("1. Heart 2.5 cm\n10.Lungs", ["heart cm", "lungs"]),
        ("5 mm nodule\n-5 HU", ["mm nodule", "hu"]),
    ],
)
def test_lines(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_invisible_signs_and_other_forms_of_letters() -> None:
    text = "cardio\u00admegaly \u200fnormal\ufeff ﬁbrosis heart\u200blung İnceleme"
    assert preprocess(text) == (["cardiomegaly normal fibrosis heart lung inceleme"], [])
    # The sign of a number is no "no", and the ordinal's letter no "o".
    assert sentences("Nº № 3") == ["nº"]


def test_what_is_dropped_names_no_number() -> None:
    text = "X-ray of patient's lung: MRN-7734518, 1.5 cm -- c/w edema " + "y" * 1001
    assert preprocess(text) == (
        ["of lung cm edema"],
        ["x-ray", "patient's", WITH_DIGITS, WITH_DIGITS, "c/w", TOO_LONG],
    )


@pytest.mark.parametrize(
    ("text", "words", "dropped"),
    [
        ("e\u0301\u0316" * 500_000, "", [TOO_LONG]),
        ("ｶﾞ" * 200_000, " ".join(["ガ"] * 200_000), []),
        ("A. " * 200_000, " ".join(["a"] * 200_000), []),
    ],
)
def test_a_text_of_any_length_is_read_to_its_end(text: str, words: str, dropped: list[str]) -> None:
    """In a time that grew with its square, this would take hours."""
    assert preprocess(text) == ([words] if words else [], dropped)


def test_one_sentence_has_the_same_words_and_dropped_tokens() -> None:
    text = "HEART: 1.5 cm. Dr. Smith, x-ray.\n- Excellent. L'aorte"
    words, dropped = preprocess(text)
    assert len(words) == 4
    assert preprocess(one_sentence(text)) == ([" ".join(words)], dropped)


def test_sentences_as_one_text() -> None:
    assert (
        with_full_stops(["heart is normal", "", "lungs clear"]) == "heart is normal. lungs clear."
    )
    assert with_full_stops(["heart is normal .", "lungs ."]) == "heart is normal . lungs ."
    assert with_full_stops([]) == ""


def test_tag_name() -> None:
    assert tag_name("  Pulmonary\n Atelectasis ") == "pulmonary atelectasis"
