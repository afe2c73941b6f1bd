"""Random draws that do not depend on the neighbours, quantiles of any size and precision, broadcasting."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from imagen_pytorch.tensors import (
    BatchShard,
    bernoulli,
    expand_to,
    once,
    per_stage,
    quantile,
    rand,
    randn,
    randn_like,
    seeded,
    token_mask,
)

DRAWS = [randn, rand]


@pytest.mark.parametrize("draw", DRAWS)
def test_an_item_does_not_depend_on_its_batch(draw):
    together = draw((4, 2, 3), seeded([7, 8, 9, 7], 4))
    assert torch.equal(together[:2], draw((2, 2, 3), seeded(7, 2)))
    assert torch.equal(together[2:], draw((2, 2, 3), seeded([9, 7], 2)))
    assert torch.equal(together[0], together[3]) and not torch.equal(together[0], together[1])


@pytest.mark.parametrize("draw", DRAWS)
def test_generators_advance_and_one_serves_a_whole_batch(draw):
    generator = torch.Generator().manual_seed(3)
    first, second = draw((2, 5), generator), draw((2, 5), generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, draw((2, 5), torch.Generator().manual_seed(3)))


def shard_of(counts, rank):
    return replace(BatchShard.of(counts, rank), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("row", [(), (5,), (200,), (3, 20, 20)])
@pytest.mark.parametrize("counts", [[3], [2, 2], [3, 0, 1], [1, 1, 1, 0], [7, 5, 13], [1000, 30]])
def test_the_shards_of_all_ranks_are_the_batch(draw, row, counts):
    """Each rank draws its rows of the global batch; the means of all ranks together are the mean of the batch."""
    alone = shard_of([sum(counts)], 0)
    first, second = draw((sum(counts), *row), alone), draw((sum(counts), *row), alone)
    assert first.shape == (sum(counts), *row) and not torch.equal(first, second)
    assert len(first.flatten(1).unique(dim=0)) == sum(counts) if row else True
    rows, mean = [], 0.0
    for rank, own in enumerate(counts):
        shard = shard_of(counts, rank)
        assert shard.count == max(own, 1) and shard.largest == max(counts) and shard.total == sum(counts)
        found = torch.stack([draw((shard.count, *row), shard) for _ in range(2)])
        rows.append(found[:, :own])  # a rank without rows draws one that counts nothing
        mean += float(found[0].mean()) * shard.weight / len(counts)
    assert torch.equal(torch.cat(rows, 1), torch.stack([first, second]))
    assert mean == pytest.approx(float(first.mean()), abs=1e-6)


@pytest.mark.parametrize("row", [(), (7,), (3, 16, 16), (3, 64, 64)])
def test_draws_of_a_rank_do_not_grow_with_the_number_of_ranks(row):
    """Beyond its own rows a rank draws at most the rest of two blocks of 1,024 numbers."""
    drawn = []

    def sample(shape, **options):
        drawn.append(math.prod(shape))
        return torch.rand(shape, **options)

    for ranks in (1, 2, 64, 1024):
        drawn.clear()
        shard_of([4] * ranks, ranks // 2).draw(sample, (4, *row), None, torch.float32)
        assert sum(drawn) <= 4 * math.prod(row) + 2 * 1024


def test_blocks_are_independent():
    """Their generators start from seeds that follow each other."""
    rows = randn((64, 3, 24, 24), shard_of([64], 0)).flatten(1).double()
    correlation = torch.corrcoef(rows) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 5.5 / rows.shape[1] ** 0.5
    assert abs(rows.mean()) < 4 / rows.numel() ** 0.5 and abs(rows.std() - 1) < 4 / (2 * rows.numel()) ** 0.5
    first = randn((1000, 1024), shard_of([1000], 0))[:, 0]
    assert abs(first.mean()) < 4 / 1000**0.5 and abs(first.std() - 1) < 4 / 2000**0.5
    assert abs((first[1:] * first[:-1]).mean()) < 4 / 1000**0.5


def test_draws_made_ahead_are_those_of_a_plain_list():
    """Whatever follows on a draw that was made ahead: the same, another shape, distribution or precision, or none."""
    requests = [(torch.randn, (3, 4)), (torch.rand, (3, 4)), (torch.randn, ())]
    order = [0, 0, 0, 0, 1, 0, 0, 0, 2, 2, 2, 1, 1, 1, 1, 0]
    plain, ahead = seeded(5, 3), seeded(5, 3)
    for place in order:
        sample, shape = requests[place]
        wanted = torch.stack([sample(shape, generator=item) for item in plain])
        assert torch.equal(ahead.draw(sample, shape, torch.float32, ahead=True), wanted)
    for _ in range(2):
        ahead.draw(torch.rand, (2,), torch.float32, ahead=True), [torch.rand(2, generator=item) for item in plain]
    assert torch.equal(rand((5,), once(ahead)), torch.rand(5, generator=plain[0]))
    wanted = torch.stack([torch.randn(3, 4, generator=item, dtype=torch.float64) for item in plain])
    assert torch.equal(ahead.draw(torch.randn, (3, 4), torch.float64, ahead=False), wanted)


@pytest.mark.parametrize("draw", DRAWS)
def test_without_a_generator_torch_decides(draw):
    torch.manual_seed(5)
    first = draw((2, 3))
    assert not torch.equal(first, draw((2, 3)))
    torch.manual_seed(5)
    assert torch.equal(first, draw((2, 3)))


def test_distributions_and_precision():
    normal, uniform = randn((1, 40_000), seeded(0, 1)), rand((1, 40_000), seeded(0, 1))
    # four standard errors
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 4 / 80_000**0.5
    assert abs(uniform.mean() - 0.5) < 4 / (12 * 40_000) ** 0.5 and uniform.min() >= 0 and uniform.max() < 1
    like = randn_like(torch.zeros(2, 3, dtype=torch.float64), seeded(0, 2))
    assert like.shape == (2, 3) and like.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: seeded([1, 2], 3), "3 images need one seed or 3 seeds, got 2"),
        (lambda: randn((3, 2), seeded(0, 2)), "2 generators cannot serve a batch of 3"),
        (lambda: randn((3, 2), shard_of([2], 0)), "a share of 2 rows cannot serve a batch of 3"),
        (lambda: randn((2, 2), BatchShard.of([2], 0)), "this share has no generator to draw from"),
        (lambda: per_stage((1, 2, 3), 2, "timesteps"), r"timesteps needs one value, .* 2 U-Nets; got 3: \(1, 2, 3\)"),
    ],
)
def test_wrong_counts_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_coins():
    assert not bernoulli(0.0, 1000).any() and bernoulli(1.0, 1000).all()
    assert abs(bernoulli(0.3, 10_000).float().mean() - 0.3) < 4 * (0.21 / 10_000) ** 0.5
    assert torch.equal(bernoulli(0.5, 8, seeded(0, 8))[3:], bernoulli(0.5, 5, seeded(3, 5)))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 4), (2, 3, 5, 4, 4)])
def test_one_value_per_item_meets_any_rank(shape):
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(expand_to(values, torch.zeros(shape)) * torch.ones(shape), torch.ones(shape) * values.reshape(
        2, *(1,) * (len(shape) - 1)))  # fmt: skip
    assert expand_to(torch.tensor(3.0), torch.zeros(shape)).ndim == 0


def by_sorting(x, q):
    ordered = x.double().flatten(1).sort(1).values
    position = q * (ordered.shape[1] - 1)
    low = int(position)
    high = min(low + 1, ordered.shape[1] - 1)
    return ordered[:, low] + (position - low) * (ordered[:, high] - ordered[:, low])


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 3, 8, 8), (2, 3, 4, 5, 5)])
def test_quantile_equals_sorting_and_torch(q, shape):
    x = torch.randn(shape)
    assert torch.allclose(quantile(x, q).double(), by_sorting(x, q), atol=1e-6)
    assert torch.allclose(quantile(x, q), torch.quantile(x.flatten(1), q, dim=1), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantile_in_any_precision(dtype):
    x = torch.randn(2, 3, 16, 16).to(dtype)
    found = quantile(x, 0.95)
    assert found.dtype == dtype and torch.allclose(found.double(), by_sorting(x, 0.95), rtol=torch.finfo(dtype).eps)


def test_quantile_of_more_values_than_torch_takes():
    """Evenly falling values, on which a plain quickselect takes quadratic time: hours here."""
    count = 2**24 + 2
    falling = torch.linspace(1, -1, count)
    image = falling.reshape(1, 3, -1, 2)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(image.flatten(1), 0.95, dim=1)
    position = 0.95 * (count - 1)
    above, below = falling[count - 2 - int(position) : count - int(position)].double()
    expected = below + (position - int(position)) * (above - below)
    assert quantile(image, 0.95).item() == pytest.approx(expected.item(), abs=1e-7)


def test_arguments_per_u_net():
    assert per_stage("cosine", 3, "x") == ("cosine",) * 3 and per_stage(None, 2, "x") == (None, None)
    assert per_stage([1, 2], 2, "x") == (1, 2) and per_stage((True,), 1, "x") == (True,)


def test_a_mask_of_tokens_is_truth_values_or_zeros_and_ones():
    wanted = torch.tensor([[True, True, False]])
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16):
        assert torch.equal(token_mask(wanted.to(dtype), "text_mask"), wanted)
    for other in ([0.0, 0.0, -torch.inf], [1.0, 1.0, 0.5], [255, 255, 0], [1.0, torch.nan, 0.0]):
        with pytest.raises(ValueError, match="^text_mask must be true .*pass mask == 0"):
            token_mask(torch.tensor([other]), "text_mask")
