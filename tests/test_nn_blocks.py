"""The parts of the U-Net, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from imagen_pytorch import Unet
from imagen_pytorch.nn.attention import Attention, LinearAttention, l2norm, to_map, to_tokens
from imagen_pytorch.nn.blocks import BlockOptions, Context, GlobalContext, ResnetBlock, Transformer, UpsampleCombiner
from imagen_pytorch.nn.embeddings import FourierFeatures, PerceiverResampler, masked_mean
from imagen_pytorch.nn.geometry import IMAGE

OPTIONS = BlockOptions(IMAGE, groups=4, hidden_dim=12, cond_dim=6, heads=2, dim_head=4)
LINEAR = pytest.mark.parametrize("kind", [Attention, LinearAttention], ids=["full", "linear"])


def awake(module: nn.Module) -> nn.Module:
    """Every parameter random: what starts at zero cannot hide anything."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def context(batch: int = 2, count: int = 5) -> Context:
    return Context(torch.randn(batch, OPTIONS.hidden_dim), torch.randn(batch, count, OPTIONS.cond_dim))


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dim", [8, 3], ids=["wide", "narrow"])
def test_attention_is_the_textbook_formula_with_a_null_token(cosine, dim):
    layer = awake(Attention(dim, heads=2, dim_head=4, context_dim=6, cosine=cosine))
    assert layer.narrow == (dim < 4 and not cosine)
    x, other = torch.randn(2, 7, dim), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    query, key, value = layer.to_qkv(layer.norm(x)).chunk(3, dim=-1)
    key_c, value_c = layer.to_context(layer.norm_context(other)).chunk(2, dim=-1)

    def heads(t):
        return t.unflatten(-1, (2, 4)).transpose(1, 2)

    query, key, key_c = heads(query), heads(key), heads(key_c)
    if cosine:
        query, key, key_c = (t / t.norm(dim=-1, keepdim=True) for t in (query, key, key_c))
    null = layer.null_kv[:, None, :, None].expand(2, 2, 2, 1, 4)
    keys = torch.cat([null[0], key_c, key], dim=2)
    values = torch.cat([null[1], heads(value_c), heads(value)], dim=2)
    scores = query @ keys.transpose(-1, -2) * (16 if cosine else 0.5)
    seen = F.pad(F.pad(mask, (1, 0), value=True), (0, 7), value=True)
    weights = scores.masked_fill(~seen[:, None, None], -math.inf).softmax(-1)
    expected = layer.to_out((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer.tokens(x, [layer.context(other)], mask), expected, rtol=1e-5, atol=1e-5)


def with_all_heads(kind, grouped, *shape, **options):
    """The same layer with a key and a value head of its own for each query head: the shared ones repeated."""
    full, heads = kind(*shape, **options), grouped.heads
    groups, inner = heads // grouped.kv_heads, full.to_out.weight.shape[1]

    def repeated(weight):
        parts = weight.unflatten(0, (2, grouped.kv_heads, inner // heads))
        return parts.repeat_interleave(groups, 1).flatten(0, 2)

    def matched(own, mine):
        if own.shape == mine.shape:
            return mine
        if own.ndim == 3 and own.shape[0] == 2:  # the null token
            return mine.repeat_interleave(groups, dim=1)
        return torch.cat([mine[: own.shape[0] % (2 * inner)], repeated(mine[own.shape[0] % (2 * inner) :])])

    mine = grouped.state_dict()
    full.load_state_dict({name: matched(item, mine[name]) for name, item in full.state_dict().items()})
    return full


@LINEAR
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(
    ("dim", "options"), [(8, {}), (3, {}), (8, {"cosine": True}), (8, {"attend_self": False}),
                         (3, {"attend_self": False})],
)  # fmt: skip
def test_shared_keys_and_values_are_repeated_ones(kind, kv_heads, dim, options):
    """Also in the width of the tokens, where the CPU works in it."""
    if kind is LinearAttention and "cosine" in options:
        options = {}
    shape = (dim, 4, 5, 6)
    grouped = awake(kind(*shape, kv_heads=kv_heads, **options)).double()
    full = with_all_heads(kind, grouped, *shape, **options).double()
    assert sum(map(torch.numel, grouped.parameters())) < sum(map(torch.numel, full.parameters()))
    x, other = torch.randn(4, dim, 2, 3).double(), torch.randn(2, 3, 6).double()
    mask = torch.tensor([[True, False, True], [True, True, False]])
    answers = [layer(x, [layer.context(other[:, :1]), layer.context(other[:, 1:])], mask) for layer in (grouped, full)]
    torch.testing.assert_close(*answers)
    if kind is Attention:
        keys, _ = grouped.context(other)
        assert keys.shape[1] == (4 if grouped.narrow else kv_heads)
        grouped.narrow = False
        torch.testing.assert_close(
            grouped(x, [grouped.context(other[:, :1]), grouped.context(other[:, 1:])], mask), answers[1]
        )


@LINEAR
def test_as_many_key_and_value_heads_as_heads_is_the_layer_without_the_option(kind):
    layers = []
    for options in ({}, {"kv_heads": 2}):
        torch.manual_seed(0)
        layers.append(kind(8, 2, 4, 6, **options))
    one, other = (layer.state_dict() for layer in layers)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Adapter(nn.Module):
    """What is put in the place of a layer: it, and something more."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.more = layer, nn.Linear(layer.in_features, layer.out_features, bias=False)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x):
        return self.layer(x) + self.more(x)


class Twice(nn.Module):
    def forward(self, weight):
        return weight * 2


def _hooked(owner, name):
    getattr(owner, name).register_forward_hook(lambda layer, given, answer: answer * 2)


def _before(owner, name):
    getattr(owner, name).register_forward_pre_hook(lambda layer, given: (given[0] + 1,))


def _patched(owner, name):
    layer = getattr(owner, name)
    layer.forward = lambda x, usual=layer.forward: usual(x) * 2


CHANGES = {
    "adapter": lambda owner, name: setattr(owner, name, awake(Adapter(getattr(owner, name)))),
    "parametrization": lambda owner, name: register_parametrization(getattr(owner, name), "weight", Twice()),
    "hook": _hooked,
    "hook before": _before,
    "forward of its own": _patched,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", ["to_qkv", "to_out", "to_context", "to_weight"])
def test_what_is_put_on_a_layer_counts_where_its_weights_could_be_used_alone(place, change):
    """The narrow form of attention on the CPU, and the gate, are what the wide form and the layer itself say."""
    if place == "to_weight":
        layer, x = awake(GlobalContext(6)), torch.randn(2, 6, 3, 3)
        CHANGES[change](layer, place)
        told = layer.to_weight(x.flatten(2).transpose(1, 2)).softmax(dim=1)
        expected = x * layer.net((x.flatten(2) @ told).squeeze(2))[..., None, None]
        return torch.testing.assert_close(layer(x), expected)
    layer, x, other = (
        awake(Attention(3, heads=2, dim_head=4, context_dim=6)),
        torch.randn(2, 7, 3),
        torch.randn(2, 3, 6),
    )
    before = layer.tokens(x, [layer.context(other)])
    CHANGES[change](layer, place)
    after = layer.tokens(x, [layer.context(other)])
    layer.narrow = False
    torch.testing.assert_close(after, layer.tokens(x, [layer.context(other)]))
    assert not torch.allclose(before, after, atol=1e-3)


def test_plain_layers_are_attended_to_in_their_own_width():
    layer = Attention(3, heads=2, dim_head=4)
    assert layer._narrows(torch.device("cpu")) and not layer._narrows(torch.device("meta"))


def test_linear_attention_is_two_softmaxes_and_two_products():
    layer = awake(LinearAttention(8, heads=2, dim_head=4, context_dim=6))
    x, other = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, True], [False, False, False, True]])
    parts = layer.to_qkv(F.group_norm(x, 1, layer.norm.weight, layer.norm.bias)).flatten(2)
    parts = parts.view(2, 3, 2, 4, 15).transpose(-1, -2)
    own, told = layer.context(other)
    expected = torch.zeros(2, 2, 15, 4)
    for item in range(2):
        keys = torch.cat([own[item][:, mask[item]], parts[item, 1]], dim=1)
        values = torch.cat([told[item][:, mask[item]], parts[item, 2]], dim=1)
        summary = torch.einsum("hnd,hne->hde", keys.softmax(1), values)
        expected[item] = torch.einsum("hnd,hde->hne", parts[item, 0].softmax(-1) / 2, summary)
    expected = layer.to_out(F.silu(expected.permute(0, 1, 3, 2).reshape(2, 8, 3, 5)))
    torch.testing.assert_close(layer(x, [(own, told)], mask), expected, rtol=1e-5, atol=1e-5)


@LINEAR
def test_masked_context_influences_nothing(kind):
    layer, x = awake(kind(8, 2, 4, context_dim=6)), torch.randn(2, 8, 4, 4)
    tokens, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 3 + [False] * 2] * 2)
    changed = torch.where(mask[..., None], tokens, 1e4)
    before = layer(x, [layer.context(tokens)], mask)
    torch.testing.assert_close(layer(x, [layer.context(changed)], mask), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(layer(x, [layer.context(tokens[:, :3])]), before, rtol=0, atol=1e-6)


@LINEAR
def test_context_may_come_in_groups(kind):
    layer, x = awake(kind(8, 2, 4, context_dim=6, attend_self=False)), torch.randn(2, 8, 4, 4)
    first, second = torch.randn(2, 2, 6), torch.randn(2, 3, 6)
    whole = layer(x, [layer.context(torch.cat([first, second], dim=1))])
    torch.testing.assert_close(layer(x, [layer.context(first), layer.context(second)]), whole, rtol=1e-5, atol=1e-6)


def test_nothing_to_attend_to_is_defined():
    layer = awake(Attention(8, 2, 4, context_dim=6, attend_self=False))
    out = layer(torch.randn(1, 8, 2, 2), [layer.context(torch.randn(1, 3, 6))], torch.zeros(1, 3, dtype=torch.bool))
    null = layer.to_out(layer.null_kv[1].flatten())
    torch.testing.assert_close(out, null.view(1, 8, 1, 1).expand_as(out))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_zeros_stay_finite_in_half_precision(dtype):
    assert torch.equal(l2norm(torch.zeros(2, 4, dtype=dtype)), torch.zeros(2, 4, dtype=dtype))
    zeros = torch.zeros(1, 8, 4, 4, dtype=dtype)
    for layer in (Attention(8, 2, 4, cosine=True), LinearAttention(8, 2, 4), ResnetBlock(8, 8, OPTIONS, gated=True)):
        layer = layer.to(dtype)
        out = layer(zeros, Context(zeros.new_zeros(1, 12))) if isinstance(layer, ResnetBlock) else layer(zeros)
        assert out.dtype == dtype and out.isfinite().all()


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numel = max([self.numel, *(item.numel() for item in made if isinstance(item, torch.Tensor))])
        return out


@pytest.mark.parametrize(("side", "masked"), [(128, False), (64, True)])
def test_attention_over_16384_positions_makes_no_square_matrix(side, masked):
    layer, x = Attention(8, 1, 4, context_dim=6), torch.randn(1, 8, side, side)
    mask = torch.tensor([[True, False]]) if masked else None
    with torch.no_grad(), Largest() as largest:
        layer(x, [layer.context(torch.randn(1, 2, 6))], mask)
    assert largest.numel <= 4 * x.numel()


def product_flops(layer: nn.Module, side: int) -> int:
    # the fused kernel of the CPU is not counted; the plain formula has the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 8, side, side)).sum().backward()
    return sum(count for op, count in counter.get_flop_counts()["Global"].items() if "bmm" in str(op))


@LINEAR
def test_four_times_the_positions_cost_four_times_the_products_or_sixteen(kind):
    layer = kind(8, 2, 4)
    growth = product_flops(layer, 32) / product_flops(layer, 16)
    assert growth <= 4.4 if kind is LinearAttention else growth >= 14


def test_depthwise_kernel_set_to_a_delta_is_the_identity():
    layer = LinearAttention(8, 2, 4)
    depthwise = layer.to_qkv[1]
    assert depthwise.weight.shape == (24, 1, 3, 3)
    with torch.no_grad():
        depthwise.weight.zero_()[:, :, 1, 1] = 1
    x = torch.randn(1, 24, 5, 6)
    assert torch.equal(depthwise(x), x)


def test_tokens_and_maps_are_inverse():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(x), x), x)
    assert torch.equal(to_tokens(x)[1, 7], x[1, :, 1, 2])


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cross", ["", "full", "linear"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dim_out", [8, 12])
def test_residual_block_starts_as_its_shortcut(cross, gated, dim_out):
    block = ResnetBlock(8, dim_out, OPTIONS, cross, gated)
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(block(x, context()), block.shortcut(x))
    assert (dim_out == 8) == isinstance(block.shortcut, nn.Identity)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_transformer_starts_as_the_identity(linear, reads):
    transformer, x = Transformer(8, OPTIONS, 2, 2.0, linear, reads), torch.randn(2, 8, 4, 4)
    assert torch.equal(transformer(x, context()), x)
    awake(transformer)
    assert torch.equal(transformer(x, context()), transformer(x, context())) == (not reads)


DROPPING = {
    "residual block": lambda net, x: net.downs[0].blocks[0](x, Context(torch.ones(1, 32))),
    "feed-forward": lambda net, x: net.mid_attn.layers[0].feed_forward(torch.ones(1, 3, 8)),
    "linear attention": lambda net, x: net.downs[0].attention.layers[0].attention(x),
}


@pytest.mark.parametrize("place", DROPPING)
def test_dropout_acts_in_training_only(place):
    net = awake(Unet(dim=8, dim_mults=(1,), cond_on_text=False, dropout=0.5, layer_attns=False, use_linear_attn=True))
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(DROPPING[place](net, x), DROPPING[place](net, x))
    net.eval()
    assert torch.equal(DROPPING[place](net, x), DROPPING[place](net, x))


def test_hidden_vector_scales_and_shifts_behind_the_second_norm():
    block = awake(ResnetBlock(8, 8, OPTIONS))
    x, hidden = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    scale, shift = block.to_scale_shift(hidden)[..., None, None].chunk(2, dim=1)
    inner = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (scale + 1) + shift
    torch.testing.assert_close(block(x, Context(hidden)), x + block.conv2(F.silu(inner)), rtol=1e-5, atol=1e-5)


def test_gate_is_the_attention_pooled_summary():
    gate, x = awake(GlobalContext(8)), torch.randn(2, 8, 3, 4)
    weight = torch.einsum("c,bchw->bhw", gate.to_weight.weight[0], x).flatten(1).softmax(1)
    pooled = torch.einsum("bn,bcn->bc", weight, x.flatten(2))
    torch.testing.assert_close(gate(x), x * gate.net(pooled)[..., None, None])


def test_gate_from_a_smaller_map_reaches_both():
    gate = awake(GlobalContext(8, source=6))
    x, low = torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(2, 6, 4, 4, requires_grad=True)
    factor = gate.gate(low)
    assert factor.shape == (2, 8) and ((factor > 0) & (factor < 1)).all()
    gate(x, low).square().sum().backward()
    assert x.grad.abs().sum() > 0 and low.grad.abs().sum() > 0


def test_norm_groups_divide_the_channels():
    assert [ResnetBlock(dim, dim, OPTIONS).norm1.num_groups for dim in (8, 6, 7)] == [4, 2, 1]


def test_combiner_adds_one_full_size_map_per_level():
    combiner = UpsampleCombiner([8, 4], 4, OPTIONS)
    x, maps = torch.randn(1, 4, 8, 8), [torch.randn(1, 8, 4, 4), torch.randn(1, 4, 8, 8)]
    out = combiner(x, maps)
    assert out.shape == (1, 4 + combiner.extra, 8, 8)
    projected = combiner.projections[0](maps[0])
    assert torch.equal(out[:, 4:8, ::2, 1::2], projected) and torch.equal(out[:, :4], x)


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_sub_pixel_upsampling_starts_without_a_checkerboard():
    up = IMAGE.upsample(8, 4, pixel_shuffle=True)
    out = up(torch.randn(2, 8, 5, 6))
    assert out.shape == (2, 4, 10, 12)
    assert torch.equal(out, F.interpolate(out[..., ::2, ::2], scale_factor=2))
    assert not up.conv.bias.any()
    assert IMAGE.upsample(8, 4, pixel_shuffle=False)(torch.randn(2, 8, 5, 6)).shape == (2, 4, 10, 12)


def test_downsampling_loses_no_pixel():
    down, x = IMAGE.downsample(3, 12), torch.randn(1, 3, 6, 4)
    with torch.no_grad():
        down.conv.weight.copy_(torch.eye(12)[..., None, None])
        down.conv.bias.zero_()
    assert torch.equal(F.pixel_shuffle(down(x), 2), x)


def test_cross_embedding_shares_the_width_and_keeps_the_size():
    embed = IMAGE.cross_embed(3, 32, (15, 3, 7))
    assert [(conv.kernel_size[0], conv.out_channels) for conv in embed.convs] == [(3, 16), (7, 8), (15, 8)]
    assert embed(torch.randn(1, 3, 9, 6)).shape == (1, 32, 9, 6)
    assert IMAGE.cross_embed(3, 8, (2, 4), stride=2)(torch.randn(1, 3, 8, 6)).shape == (1, 8, 4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IMAGE.cross_embed(3, 8, (3, 4)), r"must be odd, got \[3, 4\]"),
        (lambda: IMAGE.cross_embed(3, 8, (2, 3), stride=2), r"must be even, got \[2, 3\]"),
        (lambda: IMAGE.cross_embed(3, 2, (3, 5, 7)), "2 channels are too few for 3 kernels"),
        (lambda: IMAGE.conv(3, 8, 4), "must be odd, got 4"),
        (lambda: FourierFeatures(7), "must be even, got 7"),
    ],
)
def test_impossible_layers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- embeddings -------------------------------------------------------------------------------------------------------


def test_fourier_features_are_the_formula():
    features, s = FourierFeatures(4).double(), torch.tensor([0.3, -20.0, 20.0], dtype=torch.float64)
    angle = 2 * math.pi * s[:, None] * features.weights
    torch.testing.assert_close(features(s), torch.cat([s[:, None], angle.sin(), angle.cos()], dim=1))
    assert features(s).isfinite().all()


def test_half_precision_weights_keep_the_phase():
    features = FourierFeatures(8).bfloat16()
    exact = FourierFeatures(8)
    exact.load_state_dict(features.state_dict())
    s = torch.tensor([8.7654])
    torch.testing.assert_close(features(s).float(), exact(s), rtol=0.01, atol=0.01)


def test_resampler_makes_a_fixed_number_of_tokens_from_those_that_count():
    resampler = awake(PerceiverResampler(8, num_latents=3, max_len=600, heads=2, dim_head=4))
    tokens = torch.randn(2, 6, 8)
    mask = torch.arange(6) < torch.tensor([[4], [1]])
    out = resampler(tokens, mask)
    assert out.shape == (2, 3 + 4, 8)
    changed = torch.where(mask[..., None], tokens, 1e3)
    torch.testing.assert_close(resampler(changed, mask), out, rtol=0, atol=1e-5)
    torch.testing.assert_close(resampler(tokens[:, :4], mask[:, :4]), out, rtol=0, atol=1e-5)
    assert not torch.allclose(resampler(tokens.flip(1)[:, 2:], mask[:, :4])[0], out[0])
    assert resampler(torch.randn(1, 600, 8), torch.ones(1, 600, dtype=torch.bool)).shape == (1, 7, 8)


def test_masked_mean():
    tokens = torch.tensor([[[1.0], [3.0], [50.0]]])
    assert masked_mean(tokens, torch.tensor([[True, True, False]])) == 2
    assert masked_mean(tokens, None) == 18
    assert masked_mean(tokens, torch.zeros(1, 3, dtype=torch.bool)) == 0
