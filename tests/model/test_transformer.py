"""The transformer's parts against torch's own, and what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F

from raymed.errors import UsageError
from raymed.model.systems.transformer import (
    HEADS,
    Model,
    MultiHeadAttention,
    TransformerDecoder,
    sinusoids,
)
from raymed.sections import ModelConfig
from raymed.tokens import END, PAD, START
from tests.support.passages import passages_of

WIDTH = 16


@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_torchs_own(causal: bool) -> None:
    torch.manual_seed(0)
    ours = MultiHeadAttention(WIDTH).double()
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    y = x if causal else torch.randn(3, 7, WIDTH, dtype=torch.float64)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    theirs, shares = F.multi_head_attention_forward(
        *(each.transpose(0, 1) for each in (x, y, y)),
        embed_dim_to_check=WIDTH,
        num_heads=HEADS,
        in_proj_weight=torch.cat([ours.w_q.weight, ours.w_k.weight, ours.w_v.weight]),
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=ours.w_o.weight,
        out_proj_bias=None,
        attn_mask=hidden,
        average_attn_weights=False,
    )
    attended, weights = ours(x, ours.keys(y), hidden)
    torch.testing.assert_close(attended, theirs.transpose(0, 1))
    torch.testing.assert_close(weights, shares)


def test_positions() -> None:
    found = sinusoids(3, 6, torch.zeros(1, 6, dtype=torch.float64))
    for row, t in enumerate((3, 4, 5)):
        for i in (0, 2, 4):
            angle = t / 10000 ** (i / 6)
            expected = [math.sin(angle), math.cos(angle)]
            assert found[row, i : i + 2].tolist() == pytest.approx(expected, abs=1e-12)


@torch.no_grad()
def test_alpha_is_the_last_layers_attention_averaged_over_its_heads() -> None:
    torch.manual_seed(1)
    decoder = TransformerDecoder(9, WIDTH, dropout=0.0).double()
    context = decoder.keys(torch.randn(2, 4, WIDTH, dtype=torch.float64))
    seen = []
    decoder.layers[-1].cross.register_forward_hook(lambda _, __, output: seen.append(output[1]))
    ids = torch.tensor([[START, 5, 6, END], [START, 7, END, PAD]])
    alpha = decoder(context, passages_of(ids)).alpha
    assert alpha.shape == (2, 3, 4)
    for head in range(HEADS):
        alpha = alpha - seen[0][:, head] / HEADS
    torch.testing.assert_close(alpha, torch.zeros_like(alpha))
    assert seen[0].std(dim=1).max() > 1e-3


def test_a_word_does_not_depend_on_those_after_it() -> None:
    torch.manual_seed(2)
    decoder = TransformerDecoder(9, WIDTH, dropout=0.0).double()
    context = decoder.keys(torch.randn(1, 4, WIDTH, dtype=torch.float64))
    logits = [
        decoder(context, passages_of(torch.tensor([[START, 5, word, 6, END]]))).logits
        for word in (7, 8)
    ]
    torch.testing.assert_close(logits[0][:2], logits[1][:2])
    assert not torch.allclose(logits[0][2], logits[1][2])


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.hidden_size: must be a multiple of 8.*not 500"):
        Model.check(ModelConfig(system="transformer", hidden_size=500))
