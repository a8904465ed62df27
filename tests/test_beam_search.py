"""Greedy and beam search of every kind of writer, against plain loops and all there is to write."""

from itertools import product

import pytest
import torch
from torch import Tensor

from raymed.generation import beam_search, decode_passages
from raymed.model.system import Context, Decoder
from raymed.model.systems.att_rk import SemanticLSTM
from raymed.model.systems.cnn_rnn import ImageThenWords
from raymed.model.systems.lrcn import FactoredLSTM
from raymed.model.systems.soft_att import AttendingLSTM
from raymed.model.systems.transformer import TransformerDecoder
from raymed.model.word_lstm import WordLSTM
from raymed.sections import GenerationConfig
from raymed.tokens import END, PAD, START, UNKNOWN
from tests.support.passages import passages_of

WORDS, SIZE, HIDDEN, PASSAGES = 7, 5, 6, 5
"""Three words beside the special ones."""

Ids = list[int]


def build(kind: str, seed: int) -> tuple[Decoder, Context]:
    """A writer of random weights and what five passages are written from."""
    torch.manual_seed(seed)
    match kind:
        case "word_lstm":
            writer: Decoder = WordLSTM(WORDS, SIZE, HIDDEN)
            shapes = [(SIZE,)]
        case "cnn_rnn":
            writer, shapes = ImageThenWords(WORDS, SIZE, HIDDEN), [(SIZE,)]
        case "lrcn":
            writer, shapes = FactoredLSTM(WORDS, SIZE, HIDDEN), [(SIZE,)]
        case "soft_att":
            writer, shapes = AttendingLSTM(WORDS, SIZE, 4, HIDDEN), [(3, 4), (3, HIDDEN)]
        case "att_rk":
            writer, shapes = SemanticLSTM(WORDS, SIZE, 4, HIDDEN), [(4,), (3, SIZE)]
        case "transformer":
            writer, shapes = TransformerDecoder(WORDS, 8, dropout=0.1), [(3, 8)]
    # Wide enough that what is written depends on the words before it.
    scale = 3 if kind == "transformer" else 4
    with torch.no_grad():
        for p in writer.parameters():
            p.normal_(std=scale / p.shape[-1] ** 0.5)
    context = tuple(torch.randn(PASSAGES, *shape, dtype=torch.float64) for shape in shapes)
    writer = writer.double().eval()
    if isinstance(writer, SemanticLSTM):
        context = (*context, *(key.detach() for key in writer.keys(context[1])))
    if isinstance(writer, TransformerDecoder):
        # Normalised outputs differ little in size, so a bias would decide alike for all passages.
        for bias in (writer.norm.bias, writer.w_out.bias):
            bias.detach().zero_()
        context = tuple(3 * key.detach() for key in writer.keys(context[0]))
    return writer, context


KINDS = ("word_lstm", "cnn_rnn", "lrcn", "soft_att", "att_rk", "transformer")
each_kind = pytest.mark.parametrize("kind", KINDS)


def settings(width: int, penalty: float = 0.0, block: int = 0) -> GenerationConfig:
    return GenerationConfig(beam_width=width, length_penalty=penalty, block_ngrams=block)


def row(context: Context, passage: int) -> Context:
    return tuple(each[passage : passage + 1] for each in context)


def words_of(kind: str) -> Ids:
    """What may stand in a passage: a report has START between its sentences."""
    words = range(max(PAD, START, END, UNKNOWN) + 1, WORDS)
    return [*words] if kind == "word_lstm" else [START, *words]


def passages(written: Tensor) -> list[Ids]:
    """Up to the first PAD, after which there is nothing but PAD."""
    found = []
    for ids in written.tolist():
        length = ids.index(PAD) if PAD in ids else len(ids)
        assert ids[length:] == [PAD] * (len(ids) - length)
        found.append(ids[:length])
    return found


@torch.no_grad()
def scores(
    writer: Decoder, context: Context, found: list[Ids], limit: int, penalty: float
) -> list[float]:
    """log p / length^penalty of passages of one context, read in full; END counts if it is there.

    Args:
        context: of one passage.
    """
    whole = [[START, *words, *([END] if len(words) < limit else [])] for words in found]
    padded = [[*ids, *[PAD] * (limit + 1 - len(ids))] for ids in whole]
    contexts = tuple(each.expand(len(found), *each.shape[1:]) for each in context)
    logits = writer(contexts, passages_of(torch.tensor(padded))).logits
    log_p = logits.log_softmax(dim=1).tolist()
    following = iter(log_p)
    return [
        sum(next(following)[word] for word in ids[1:]) / (len(ids) - 1) ** penalty for ids in whole
    ]


def repeats(words: Ids, n: int) -> bool:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


@torch.no_grad()
def greedy(kind: str, writer: Decoder, context: Context, limit: int, block: int = 0) -> Ids:
    """One most probable word after the other, with the whole prefix read again for each."""
    words: Ids = []
    while len(words) < limit:
        # A word has to stand behind the prefix for its logits to be given: any but PAD.
        passages = passages_of(torch.tensor([[START, *words, END]]))
        logits = writer(context, passages).logits[-1].tolist()
        allowed = [w for w in words_of(kind) if not (block and repeats([*words, w], block))]
        best = max([END, *allowed], key=lambda word: logits[word])
        if best == END:
            break
        words.append(best)
    return words


@each_kind
@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_width_one_is_greedy(kind: str, block: int) -> None:
    lengths = set()
    for seed in range(3):
        writer, context = build(kind, seed)
        found = passages(decode_passages(writer, context, 9, settings(1, block=block)))
        expected = [greedy(kind, writer, row(context, k), 9, block) for k in range(PASSAGES)]
        assert found == expected
        lengths |= set(map(len, found))
    assert len(lengths) > 2


@each_kind
@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_never_worse_than_greedy(kind: str, penalty: float) -> None:
    better = 0
    for seed in range(8):
        writer, context = build(kind, seed)
        for width in (2, 4):
            found = passages(decode_passages(writer, context, 7, settings(width, penalty)))
            for k, words in enumerate(found):
                of_one = row(context, k)
                of_greedy = greedy(kind, writer, of_one, 7)
                ours, theirs = scores(writer, of_one, [words, of_greedy], 7, penalty)
                assert ours >= theirs - 1e-9
                better += ours > theirs + 1e-9
    assert better > 5


def test_the_score_is_that_of_the_words() -> None:
    for kind, penalty, width in product(KINDS, (0.0, 0.6), (1, 3)):
        writer, context = build(kind, 40)
        found = beam_search(writer, context, 6, settings(width, penalty), width)
        for k, words in enumerate(passages(found.words)):
            (expected,) = scores(writer, row(context, k), [words], 6, penalty)
            # A length to a power that is no whole number is rounded to single precision.
            assert found.score[k].item() == pytest.approx(expected, rel=1e-6)


def everything(kind: str, limit: int, block: int) -> list[Ids]:
    """All passages that may be written."""
    of_all_lengths = (product(words_of(kind), repeat=n) for n in range(limit + 1))
    found = [list(words) for of_length in of_all_lengths for words in of_length]
    return [words for words in found if not (block and repeats(words, block))]


@each_kind
@pytest.mark.parametrize(
    ("penalty", "block"), [(0.0, 0), (0.5, 0), (1.0, 0), (0.0, 1), (0.0, 2), (0.8, 2), (0.5, 3)]
)
def test_a_wide_beam_finds_the_best_of_all_passages(kind: str, penalty: float, block: int) -> None:
    limit = 4 if kind == "word_lstm" else 3
    candidates = everything(kind, limit, block)
    lengths = set()
    for seed in range(3):
        writer, context = build(kind, 100 + seed)
        # As many as there are passages: none is ever dropped.
        width = settings(len(everything(kind, limit, 0)), penalty, block)
        found = passages(decode_passages(writer, context, limit, width))
        for k, words in enumerate(found):
            of_all = scores(writer, row(context, k), candidates, limit, penalty)
            assert words == max(zip(of_all, candidates, strict=True))[1]
            lengths.add(len(words))
    assert len(lengths) > 1


def test_a_length_penalty_favours_longer_passages() -> None:
    lengths = []
    for penalty in (0.0, 1.0, 2.0):
        written = [
            words
            for seed in range(10)
            for words in passages(
                decode_passages(*build("word_lstm", seed), 8, settings(4, penalty))
            )
        ]
        lengths.append(sum(map(len, written)))
    assert lengths[0] < lengths[1] < lengths[2]


@each_kind
@pytest.mark.parametrize("width", [1, 3])
def test_no_blocked_sequence_is_generated_twice(kind: str, width: int) -> None:
    for n in (1, 2, 3):
        repeated = 0
        for seed in range(6):
            writer, context = build(kind, seed)
            # Long passages, which without blocking run in circles.
            for words in passages(
                decode_passages(writer, context, 14, settings(width, 2.0, block=n))
            ):
                assert not repeats(words, n)
            free = passages(decode_passages(writer, context, 14, settings(width, 2.0)))
            repeated += sum(repeats(words, n) for words in free)
        assert repeated > 0, "nothing was blocked, so nothing was tested"


@each_kind
@pytest.mark.parametrize(("width", "penalty", "block"), [(1, 0.0, 0), (3, 0.0, 0), (4, 1.0, 2)])
def test_all_passages_at_once_equal_one_at_a_time(
    kind: str, width: int, penalty: float, block: int
) -> None:
    for seed in range(4):
        writer, context = build(kind, seed)
        how = settings(width, penalty, block)
        together = decode_passages(writer, context, 10, how)
        assert together.shape == (PASSAGES, 10)
        for k in range(PASSAGES):
            assert torch.equal(
                decode_passages(writer, row(context, k), 10, how), together[k : k + 1]
            )
        order = torch.tensor([3, 0, 4, 2, 1])
        shuffled = decode_passages(writer, tuple(each[order] for each in context), 10, how)
        assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize("width", [1, 3])
def test_no_contexts_give_no_passages(width: int) -> None:
    writer, context = build("word_lstm", 0)
    assert decode_passages(writer, (context[0][:0],), 3, settings(width)).shape == (0, 3)


def test_a_shorter_limit_only_truncates_the_greedy_passage() -> None:
    writer, context = build("word_lstm", 5)
    whole = decode_passages(writer, context, 8, settings(1))
    for cut in (1, 3):
        assert torch.equal(decode_passages(writer, context, cut, settings(1)), whole[:, :cut])
