"""The layers between the frames of a clip, each against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_pytorch.nn import softmax_attention
from imagen_pytorch.nn.attention import FeedForward
from imagen_pytorch.nn.frames import Frames, shift_tokens, usual_times
from imagen_pytorch.nn.temporal import TemporalAttention, TemporalConv, TemporalDownsample, TemporalUpsample, TimeBias
from imagen_pytorch.nn.unet3d import time_deltas_between

CLIPS, COUNT, DIM = 2, 6, 8
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])


def awake(module: nn.Module) -> nn.Module:
    """Every parameter random: what starts at zero cannot hide anything."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def steady(count: int = COUNT, fps: float = 8.0, apart: list[bool] | None = None) -> Frames:
    gaps, _ = time_deltas_between(usual_times(count, fps))
    return Frames(count, gaps, None if apart is None else torch.tensor(apart))


def maps(count: int = COUNT) -> torch.Tensor:
    return torch.randn(CLIPS * count, DIM, 3, 2)


def by_clip(x: torch.Tensor, count: int = COUNT) -> torch.Tensor:
    return x.unflatten(0, (-1, count))


MIXING = {
    "convolution": lambda causal: TemporalConv(DIM, 3, causal),
    "long convolution": lambda causal: TemporalConv(DIM, 5, causal),
    "depthwise convolution": lambda causal: TemporalConv(DIM, 3, causal, depthwise=True),
    "attention": lambda causal: TemporalAttention(DIM, 2, 4, causal),
    "cosine attention": lambda causal: TemporalAttention(DIM, 2, 4, causal, cosine=True),
}


# -- what they share --------------------------------------------------------------------------------------------------


@CAUSAL
@pytest.mark.parametrize("kind", MIXING)
def test_a_layer_starts_as_the_identity_and_does_nothing_to_pictures(kind, causal):
    layer, x = MIXING[kind](causal), maps()
    torch.testing.assert_close(layer(x, steady()), x, rtol=0, atol=1e-6)
    assert layer(x, None) is x
    assert awake(layer)(x, None) is x
    assert (layer(x, steady()) - x).abs().max() > 0.1


@CAUSAL
@pytest.mark.parametrize("kind", MIXING)
def test_a_frame_sees_itself_and_earlier_ones_or_all_and_no_other_clip_or_pixel(kind, causal):
    layer, x = awake(MIXING[kind](causal)), maps()
    other = x.clone()
    by_clip(other)[0, 3, :, 1, 1] += 1
    moved = by_clip((layer(other, steady()) - layer(x, steady())).abs().amax(1) > 0)
    assert moved[0, 3, 1, 1] and moved[0, 4, 1, 1]
    assert bool(moved[0, :3].any()) == (not causal)
    assert not moved[1].any()
    moved[:, :, 1, 1] = False
    assert not moved.any()


@pytest.mark.parametrize("kind", MIXING)
def test_independent_pictures_among_the_clips_stay_what_they_are(kind):
    layer, x = awake(MIXING[kind](False)), maps()
    mixed, some = (by_clip(layer(x, frames)) for frames in (steady(), steady(apart=[False, True])))
    assert torch.equal(some[0], mixed[0]) and torch.equal(some[1], by_clip(x)[1])


# -- convolution ------------------------------------------------------------------------------------------------------


@CAUSAL
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_convolution_is_that_of_torch_over_frames(causal, depthwise):
    layer, x = awake(TemporalConv(DIM, 3, causal, depthwise)), maps()
    rows = by_clip(x).permute(0, 3, 4, 2, 1).flatten(0, 2)  # pixels, channels, frames
    padded = F.pad(rows, (2, 0) if causal else (1, 1))
    mixed = F.conv1d(padded, layer.weight[..., 0], layer.bias, groups=DIM if depthwise else 1)
    mixed = mixed.reshape(CLIPS, 3, 2, DIM, COUNT).permute(0, 4, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(layer(x, steady()), x + mixed if depthwise else mixed, rtol=1e-5, atol=1e-5)


# -- bias of time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [8, 10, 24, 29.97])
@pytest.mark.parametrize("count", [6, 20])
def test_the_bias_of_steady_frames_depends_on_their_distance_alone_and_on_its_sign(fps, count):
    bias = awake(TimeBias(2, 16, 2))(steady(count, fps).time_deltas)
    assert bias.shape == (1, 2, count, count)
    for distance in range(1 - count, count):
        along = bias.diagonal(distance, dim1=2, dim2=3)
        assert torch.equal(along, along[..., :1].expand_as(along))
    assert ((bias - bias.transpose(2, 3)).abs().amax((0, 1)) > 1e-4).sum() == count * (count - 1)


def test_the_bias_is_a_network_of_the_signed_logarithm_of_time():
    layer = awake(TimeBias(3, 16, 4))
    assert [item.out_features for item in layer.net if isinstance(item, nn.Linear)] == [16, 16, 16, 16, 3]
    gaps = torch.tensor([[[0.0, 2.0], [-2.0, 0.0]]])
    scaled = torch.log1p(torch.tensor(16.0))
    expected = layer.net(torch.stack([torch.zeros(()), scaled, -scaled, torch.zeros(())])[:, None])
    torch.testing.assert_close(layer(gaps).flatten(2)[0].T, expected)


def test_gaps_are_signed_seconds_in_the_order_of_time():
    gaps, order = time_deltas_between(torch.tensor([[0.0, 0.5, 2.0]], dtype=torch.float64))
    assert order is None
    assert torch.equal(gaps, torch.tensor([[[0.0, 0.5, 2.0], [-0.5, 0.0, 1.5], [-2.0, -1.5, 0.0]]]))
    times = torch.tensor([[2.0, 0.0, 0.5], [0.0, 0.5, 2.0]], dtype=torch.float64)
    mixed, order = time_deltas_between(times)
    assert torch.equal(order, torch.tensor([[1, 2, 0], [0, 1, 2]]))
    assert torch.equal(mixed, gaps.expand(2, -1, -1))


def test_usual_times():
    assert torch.equal(usual_times(3, 4), torch.tensor([[0.0, 0.25, 0.5]], dtype=torch.float64))
    rates = torch.tensor([1.0, 2.0])
    expected = torch.tensor([[-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.equal(usual_times(3, rates, first=-2, step=2), expected)


# -- attention --------------------------------------------------------------------------------------------------------


@CAUSAL
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["times per clip", "shared times"])
def test_attention_is_the_textbook_formula_with_bias_and_null_token(causal, cosine, shared):
    layer, x = awake(TemporalAttention(DIM, 2, 4, causal, cosine=cosine)), maps()
    times = torch.tensor([[0.0, 0.1, 0.5, 0.6, 2.0, 3.0], [0.0, 1.0, 1.5, 4.0, 4.1, 4.2]], dtype=torch.float64)
    gaps, _ = time_deltas_between(times[:1] if shared else times)
    tokens = by_clip(x).flatten(3).permute(0, 3, 1, 2)  # b pixels f c
    inner = layer.attention
    parts = inner.to_qkv(inner.norm(tokens)).unflatten(-1, (3, 2, 4))
    query, key, value = parts.unbind(-3)
    null_key, null_value = (part.expand(CLIPS, 6, 1, -1, -1) for part in inner.null_kv)
    if cosine:
        query, key = (part / part.norm(dim=-1, keepdim=True) for part in (query, key))
    keys, values = torch.cat([null_key, key], dim=2), torch.cat([null_value, value], dim=2)
    logits = torch.einsum("bpihd,bpjhd->bphij", query, keys) * (16 if cosine else 0.5)
    added = layer.bias(gaps)
    if causal:
        later = torch.ones(COUNT, COUNT).triu(1).bool()
        added = added.masked_fill(later, -torch.inf)
    null = layer.null_bias[None, :, None, None].expand(len(gaps), -1, COUNT, -1)
    weights = (logits + torch.cat([null, added], dim=-1)[:, None]).softmax(-1)
    update = inner.to_out(torch.einsum("bphij,bpjhd->bpihd", weights, values).flatten(-2))
    expected = x + update.permute(0, 2, 3, 1).reshape(x.shape)
    torch.testing.assert_close(layer(x, Frames(COUNT, gaps)), expected, rtol=1e-5, atol=1e-5)


def test_the_null_bias_is_one_learned_number_per_head_that_decides_how_much_frames_hear():
    layer, x = awake(TemporalAttention(DIM, 2, 4, False)), maps()
    assert layer.null_bias.shape == (2,)
    layer(x, steady()).square().sum().backward()
    assert (layer.null_bias.grad.abs() > 0).all()
    with torch.no_grad():
        layer.null_bias.fill_(1e4)
        nothing = layer.attention.to_out(layer.attention.null_kv[1].flatten())[:, None, None]
        torch.testing.assert_close(layer(x, steady()), x + nothing)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numel = max([self.numel, *(item.numel() for item in made if isinstance(item, torch.Tensor))])
        return out


@pytest.mark.parametrize("trained", [False, True], ids=["sampling", "training"])
@pytest.mark.parametrize("shared", [False, True], ids=["times per clip", "shared times"])
def test_attention_makes_no_matrix_of_frames_by_frames_for_every_pixel(trained, shared, monkeypatch):
    """However many frames, in the backward pass too."""
    monkeypatch.setattr(softmax_attention, "_AT_ONCE", 2**14)
    clips, count, size, heads, dim_head = 3, 64, 16, 2, 4
    layer, x = TemporalAttention(8, heads, dim_head), torch.randn(clips * count, 8, size, size)
    gaps = time_deltas_between(usual_times(count, 8.0 if shared else torch.tensor([8.0, 5.0, 2.0])))[0]
    with torch.set_grad_enabled(trained), Largest() as largest:
        answer = layer(x, Frames(count, gaps))
        if trained:
            answer.sum().backward()
    square = heads * size**2 * count**2
    assert largest.numel <= 3 * heads * dim_head * clips * count * size**2 < square * clips / 2


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_pieces_has_the_answer_and_the_gradients_of_attention_at_once(causal, monkeypatch):
    layer, x = awake(TemporalAttention(DIM, 2, 4, causal)), maps(count=12)
    results = []
    for at_once in (2**19, 1):
        monkeypatch.setattr(softmax_attention, "_AT_ONCE", at_once)
        given = x.clone().requires_grad_()
        answer = layer(given, steady(12))
        names, parameters = zip(*layer.named_parameters(), strict=True)
        gradients = torch.autograd.grad(answer.square().sum(), (given, *parameters))
        results.append({"answer": answer, "x": gradients[0], **dict(zip(names, gradients[1:], strict=True))})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)


# -- fewer frames, and as many again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2, 3])
def test_squeezing_starts_as_the_mean_or_the_first_and_stretching_as_repetition(stride):
    x, frames = maps(), steady()
    groups = by_clip(x).unflatten(1, (-1, stride))
    for causal, expected in ((False, groups.mean(2)), (True, groups[:, :, 0])):
        few = frames.downsampled(stride, causal)
        down, up = TemporalDownsample(DIM, stride, causal), TemporalUpsample(DIM, stride)
        merged = down(x, few)
        torch.testing.assert_close(merged, expected.flatten(0, 1), rtol=0, atol=1e-6)
        assert torch.equal(up(merged, few), merged.repeat_interleave(stride, dim=0))
        assert awake(down)(x, None) is x and awake(up)(x, None) is x


@CAUSAL
def test_what_becomes_of_a_group_knows_that_group_or_nothing_later_than_its_first_frame(causal):
    squeeze, stretch, x = awake(TemporalDownsample(DIM, 2, causal)), awake(TemporalUpsample(DIM, 2)), maps()
    few = steady().downsampled(2, causal)

    def through(x):
        return by_clip(stretch(squeeze(x, few), few))

    before = through(x)
    for frame in range(COUNT):
        other = x.clone()
        by_clip(other)[:, frame] += 1
        moved = (through(other) != before).flatten(2).any(2).any(0).tolist()
        # frames of the group of this one, or, where only what is later may know it, of the next group that starts there
        first = frame + frame % 2 if causal else frame - frame % 2
        assert [index for index in range(COUNT) if moved[index]] == [i for i in (first, first + 1) if i < COUNT]


def test_times_of_groups():
    frames = steady(fps=1)
    causal, both = (frames.downsampled(2, flag) for flag in (True, False))
    assert causal.count == both.count == 3
    assert torch.equal(causal.time_deltas, time_deltas_between(torch.tensor([[0.0, 2.0, 4.0]], dtype=torch.float64))[0])
    uneven, _ = time_deltas_between(torch.tensor([[0.0, 1.0, 5.0, 7.0]], dtype=torch.float64))
    middle = Frames(4, uneven).downsampled(2, False).time_deltas
    torch.testing.assert_close(middle, torch.tensor([[[0.0, 5.5], [-5.5, 0.0]]]))


# -- token shift ------------------------------------------------------------------------------------------------------


def test_half_of_the_features_move_to_the_next_frame():
    hidden = torch.randn(CLIPS * COUNT, 5, 4)
    moved = by_clip(shift_tokens(hidden, steady(), torch.ones(())))
    clips = by_clip(hidden)
    assert torch.equal(moved[..., 2:], clips[..., 2:])
    assert torch.equal(moved[:, 1:, :, :2], clips[:, :-1, :, :2]) and torch.equal(moved[:, 0], clips[:, 0])
    assert torch.equal(shift_tokens(hidden, steady(), torch.zeros(())), hidden)
    some = by_clip(shift_tokens(hidden, steady(apart=[True, False]), torch.ones(())))
    assert torch.equal(some[0], clips[0]) and torch.equal(some[1], moved[1])


def test_how_far_features_move_is_learned_from_nothing_on():
    x = torch.randn(CLIPS * COUNT, 5, DIM)
    layer, plain = FeedForward(DIM, token_shift=True), FeedForward(DIM)
    assert not layer.shift_share.any() and plain.shift_share is None
    plain.load_state_dict({name: part for name, part in layer.state_dict().items() if name != "shift_share"})
    assert torch.equal(layer(x, steady()), plain(x))
    layer(x, steady()).square().sum().backward()
    assert layer.shift_share.grad.abs() > 0
    with torch.no_grad():
        layer.shift_share.fill_(0.5)
    assert torch.equal(layer(x), plain(x)) and not torch.allclose(layer(x, steady()), plain(x))
