import torch

from raymed.model.dropout import SeededDropout


def test_mask_of_an_image_is_the_same_wherever_it_stands() -> None:
    dropout = SeededDropout(0.4).train()
    seeds = torch.tensor([5, 2**61 + 7, 11, 5])
    x = torch.ones(4, 50)
    whole = dropout(x, seeds)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(dropout(x, seeds[order]), whole[order])
    for i in range(4):
        assert torch.equal(dropout(x[i : i + 1], seeds[i : i + 1]), whole[i : i + 1])
    assert torch.equal(whole[0], whole[3])
    assert not torch.equal(whole[0], whole[1])


def test_global_random_state_is_neither_read_nor_moved() -> None:
    dropout, x, seeds = SeededDropout(0.5).train(), torch.ones(2, 30), torch.tensor([1, 2])
    torch.manual_seed(0)
    first = dropout(x, seeds)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(dropout(x, seeds), first)


def test_rate_and_mean() -> None:
    rate, images, width = 0.3, 200, 500
    x = torch.full((images, width), 2.0)
    out = SeededDropout(rate).train()(x, torch.arange(images) * 977)
    dropped = (out == 0).double().mean().item()
    # Three standard deviations of a share among so many draws.
    tolerance = 3 * (rate * (1 - rate) / (images * width)) ** 0.5
    assert abs(dropped - rate) < tolerance
    assert torch.allclose(out[out != 0], torch.tensor(2 / (1 - rate)))
    # A unit is not dropped for all images alike, nor an image's neighbours' masks alike.
    per_unit = (out == 0).double().mean(dim=0)
    assert ((per_unit > 0.1) & (per_unit < 0.5)).all()


def test_masks_of_neighbouring_seeds_are_unrelated() -> None:
    dropout, width = SeededDropout(0.5).train(), 20_000
    # The two hidden layers of the classifier take seeds that differ by one.
    seeds = torch.tensor([10**17, 10**17 + 1])
    first, second = dropout(torch.ones(2, width), seeds) == 0
    agreement = (first == second).double().mean().item()
    assert abs(agreement - 0.5) < 3 * 0.5 / width**0.5


def test_off_without_seeds_in_eval_and_at_rate_zero() -> None:
    x, seeds = torch.randn(2, 40), torch.tensor([1, 2])
    assert SeededDropout(0.5).train()(x, None) is x
    assert SeededDropout(0.5).eval()(x, seeds) is x
    assert SeededDropout(0.0).train()(x, seeds) is x
