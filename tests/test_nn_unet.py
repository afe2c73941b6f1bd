"""The U-Net as a whole: every option, every size, its start, its cost."""

from __future__ import annotations

import inspect
import warnings

import jaxtyping
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from imagen_pytorch import SRUnet1024, Unet
from imagen_pytorch.nn.attention import LinearAttention
from imagen_pytorch.nn.blocks import BlockOptions, GlobalContext, ResnetBlock, Transformer
from imagen_pytorch.nn.geometry import CrossEmbed, NearestUpsample

TOY = dict(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4, text_embed_dim=6, attn_pool_num_latents=2)
WIDTH, HEIGHT = 13, 10  # neither square nor a multiple of the stride


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time checks of annotations, which take most of the time of many small networks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(**options) -> Unet:
    torch.manual_seed(0)
    return Unet(**{**TOY, **options})


def awake(net: nn.Module) -> nn.Module:
    """Nothing is zero any more, so that every part can be seen in the answer."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net


def inputs(net: Unet, batch: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, torch.Tensor]:
    """Everything that the network takes, the pictures of sizes of their own."""
    torch.manual_seed(2)
    given = {"x": torch.randn(batch, net.channels, *size), "time": torch.randn(batch)}
    if net.cond_on_text:
        given |= {"text_embeds": torch.randn(batch, 4, net.text_embed_dim)}
    if net.lowres_cond:
        given |= {"lowres_cond_img": torch.randn(batch, net.channels, 5, 4), "lowres_noise_times": torch.randn(batch)}
    if net.has_cond_image:
        given |= {"cond_images": torch.randn(batch, net.cond_images_channels, 7, 6)}
    if net.augment_dim:
        given |= {"augment_label": torch.randn(batch, net.augment_dim)}
    if net.self_cond:
        given |= {"self_cond": torch.randn(batch, net.channels, *size)}
    return given


def count(net: nn.Module, *kinds: type) -> int:
    return sum(isinstance(part, kinds) for part in net.modules())


def parameters(net: nn.Module) -> int:
    return sum(item.numel() for item in net.parameters())


# -- every option -----------------------------------------------------------------------------------------------------

OPTIONS = {
    "num_resnet_blocks": ((2, 0), lambda net: [len(level.blocks) for level in net.downs] == [2, 0]),
    "cond_dim": (12, lambda net: net.norm_cond.normalized_shape == (12,)),
    "num_time_tokens": (3, lambda net: net.to_time_tokens(torch.zeros(1, 32)).shape == (1, 3, 8)),
    "learned_sinu_pos_emb_dim": (6, lambda net: net.to_time_hiddens[0].weights.shape == (3,)),
    "dim_mults": ((2, 4), lambda net: [level.dim_out for level in net.ups] == [16, 16]),
    "cond_images_channels": (2, lambda net: net.has_cond_image),
    "channels": (1, lambda net: net.channels == net.channels_out == 1),
    "channels_out": (5, lambda net: net.channels_out == 5 and net.channels == 3),
    "attn_dim_head": (8, lambda net: net.mid_attn.layers[0].attention.null_kv.shape == (2, 2, 8)),
    "attn_kv_heads": (1, lambda net: net.mid_attn.layers[0].attention.null_kv.shape == (2, 1, 4)),
    "attn_heads": (4, lambda net: net.mid_attn.layers[0].attention.null_kv.shape == (2, 4, 4)),
    "ff_mult": (3.0, lambda net: net.mid_attn.layers[0].feed_forward.expand.out_features == 48),
    "lowres_cond": (True, lambda net: net.to_lowres_time_cond.in_features == 8 * 8),
    "layer_attns": ((False, True), lambda net: [part.attention is None for part in net.downs] == [True, False]),
    "layer_attns_depth": ((2, 1), lambda net: [len(part.attention.layers) for part in net.downs] == [2, 1]),
    "layer_mid_attns_depth": (2, lambda net: len(net.mid_attn.layers) == 2),
    "layer_attns_add_text_cond": (False, lambda net: not any(p.reads for p in layers(net))),
    "attend_at_middle": (False, lambda net: net.mid_attn is None),
    "mid_cross_attn": (False, lambda net: net.mid_block1.cross is None is net.mid_block2.cross),
    "layer_cross_attns": ((True, False), lambda net: [p.init_block.cross is None for p in net.downs] == [False, True]),
    "use_linear_attn": ((False, True), lambda net: count(net, LinearAttention) == 2),
    "use_linear_cross_attn": ((True, False), lambda net: count(net, LinearAttention) == 2),
    "cond_on_text": (False, lambda net: not any("text_" in name for name in net.state_dict())),
    "max_text_len": (600, lambda net: net.attn_pool.positions.weight.shape == (600, 8)),
    "text_film": (False, lambda net: net.to_text_non_attn_cond is None),
    "init_dim": (12, lambda net: net.downs[0].init_block.conv1.in_channels == 12),
    "init_conv_kernel_size": (5, lambda net: net.init_conv.kernel_size == (5, 5)),
    "init_cross_embed": (False, lambda net: net.init_conv.kernel_size == (7, 7)),
    "init_cross_embed_kernel_sizes": ((1, 3), lambda net: len(net.init_conv.convs) == 2),
    "cross_embed_downsample": (True, lambda net: isinstance(net.downs[0].after, CrossEmbed)),
    "cross_embed_downsample_kernel_sizes": ((4, 6), lambda net: net.downs[0].after.convs[1].kernel_size == (6, 6)),
    "attn_pool_text": (False, lambda net: net.attn_pool is None),
    "attn_pool_num_latents": (3, lambda net: net.attn_pool.latents.shape == (3, 8)),
    "dropout": (0.5, lambda net: {part.p for part in net.modules() if isinstance(part, nn.Dropout)} >= {0.5}),
    "memory_efficient": (True, lambda net: net.stride == 4 and net.init_resnet_block is not None),
    "init_conv_to_final_conv_residual": (True, lambda net: net.final_res_block.conv1.in_channels == 16),
    "use_global_context_attn": (False, lambda net: count(net, GlobalContext) == 1),  # of the last block
    "skip_layer_excitation": (True, lambda net: [level.excite is None for level in net.ups] == [False, True]),
    "scale_skip_connection": (False, lambda net: {level.skip_scale for level in net.ups} == {1.0}),
    "final_resnet_block": (False, lambda net: net.final_res_block is None),
    "final_conv_kernel_size": (5, lambda net: net.final_conv.kernel_size == (5, 5)),
    "self_cond": (True, lambda net: net.init_conv.convs[0].in_channels == 6),
    "crop_coordinates": (True, lambda net: net.init_conv.convs[0].in_channels == 5),
    "augment_dim": (4, lambda net: net.to_augment_cond.in_features == 4),
    "resize_mode": ("bilinear", lambda net: net.resize_mode == "bilinear"),
    "combine_upsample_fmaps": (True, lambda net: net.final_res_block.conv1.in_channels == 8 + 2 * 8),
    "pixel_shuffle_upsample": (False, lambda net: count(net, NearestUpsample) == 1),
    "resnet_groups": (
        (4, 2),
        lambda net: net.mid_block1.norm1.num_groups == 2 == net.ups[0].init_block.norm1.num_groups,
    ),
    "cosine_sim_attn": (
        True,
        lambda net: net.mid_attn.layers[0].attention.cosine and net.mid_block1.cross.attention.cosine,
    ),
    "gradient_checkpointing": (True, lambda net: net.gradient_checkpointing),
}
# what an option needs beside it before it can be seen
BESIDE = {
    "init_conv_kernel_size": {"init_cross_embed": False},
    "cross_embed_downsample_kernel_sizes": {"cross_embed_downsample": True},
    "use_linear_attn": {"layer_attns": False},
    "resize_mode": {"cond_images_channels": 1},
}
USELESS = {"num_image_tokens": 4, "out_dim": 3, "image_embed_dim": 1024}


def layers(net):
    return [layer for part in (*net.downs, *net.ups) if part.attention is not None for layer in part.attention.layers]


def test_full_attention_wins_over_linear():
    assert count(make(use_linear_attn=True), LinearAttention) == 0


def test_every_argument_is_looked_at_here():
    arguments = set(inspect.signature(Unet).parameters)
    assert arguments - {"dim", "text_embed_dim"} == {*OPTIONS, *USELESS}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", OPTIONS)
def test_option_is_built_as_it_says_and_changes_the_network_or_its_answer(name):
    value, built = OPTIONS[name]
    beside = BESIDE.get(name, {})
    plain, other = awake(make(**beside)), awake(make(**beside, **{name: value}))
    assert built(other)
    given = inputs(other)
    answer = other(**given)
    assert answer.shape == (2, other.channels_out, HEIGHT, WIDTH)
    answer.square().mean().backward()
    assert answer.isfinite().all() and all(p.grad.isfinite().all() for p in other.parameters())
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (plain, other)]
    if shapes[0] == shapes[1]:
        other.load_state_dict(plain.state_dict())
        answers = [net(**given) for net in (plain, other)]
        assert torch.allclose(*answers, atol=1e-5) == (name == "gradient_checkpointing")


@pytest.mark.parametrize("name", USELESS)
def test_arguments_without_effect_say_so(name):
    with pytest.warns(DeprecationWarning, match=f"{name}=.*no effect"):
        make(**{name: USELESS[name]})


def test_a_small_network_does_not_nag():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_heads": 1}, "attn_heads must be at least 2, got 1"),
        ({"attn_heads": 6, "attn_kv_heads": 4}, r"must divide attn_heads=6 \(1, 2, 3, 6\), got 4"),
        ({"attn_kv_heads": 0}, "attn_kv_heads must be at least 1, got 0"),
        ({"text_embed_dim": None}, "text_embed_dim must be given"),
        ({"num_resnet_blocks": (1, 2, 3)}, "num_resnet_blocks needs one value or 2, one for each of dim_mults; got 3"),
        ({"learned_sinu_pos_emb_dim": 5}, "learned_sinu_pos_emb_dim must be even, got 5"),
        ({"resize_mode": "bilnear"}, 'no resize_mode "bilnear"; known: nearest, bilinear'),
        ({"init_cross_embed_kernel_sizes": (2, 4)}, "must be odd"),
        ({"final_conv_kernel_size": 2}, "must be odd, got 2"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# -- sizes and inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 16), (1, 1), (3, 21)])
@pytest.mark.parametrize("memory_efficient", [False, True])
def test_any_height_and_width(size, memory_efficient):
    net = awake(make(memory_efficient=memory_efficient, lowres_cond=True, self_cond=True, cond_images_channels=1))
    assert net(**inputs(net, size=size)).shape == (2, 3, *size)


def test_pictures_are_stacked_in_the_documented_order():
    net = awake(make(cond_images_channels=2, self_cond=True, lowres_cond=True))
    given = inputs(net, size=(8, 8))
    seen = []
    net.init_conv.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    net(**given | {"cond_images": torch.full((2, 2, 4, 4), 2.0), "lowres_cond_img": torch.full((2, 3, 4, 4), 3.0)})
    net(**{name: value for name, value in given.items() if name != "self_cond"})
    assert torch.equal(seen[0][:, :2], torch.full((2, 2, 8, 8), 2.0))
    assert torch.equal(seen[0][:, 2:5], given["x"]) and torch.equal(seen[0][:, 5:8], given["self_cond"])
    torch.testing.assert_close(seen[0][:, 8:], torch.full((2, 3, 8, 8), 3.0))
    assert not seen[1][:, 5:8].any()


def test_a_dropped_conditioning_picture_is_blank():
    net = awake(make(cond_images_channels=2))
    given = inputs(net)
    blank = given | {"cond_images": torch.stack([given["cond_images"][0], torch.zeros(2, 7, 6)])}
    assert torch.equal(net(**given, cond_images_keep=torch.tensor([True, False])), net(**blank))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, {"text_embeds": None}, "is conditioned on text.*text_embeds must be given"),
        ({"lowres_cond": True}, {"lowres_cond_img": None}, "enlarges an image.*lowres_cond_img must be given"),
        ({"lowres_cond": True}, {"lowres_noise_times": None}, "lowres_noise_times must be given"),
        ({"cond_images_channels": 2}, {"cond_images": None}, "cond_images must be given"),
        (
            {"cond_images_channels": 2},
            {"cond_images": torch.zeros(2, 3, 4, 4)},
            r"must have 2 channels and .* got \(2, 3, 4, 4\)",
        ),
        ({}, {"cond_images": torch.zeros(2, 3, 4, 4)}, "cond_images was given, but"),
        ({"cond_on_text": False}, {"text_embeds": torch.zeros(2, 1, 6)}, "text_embeds was given, but"),
        ({}, {"text_embeds": torch.zeros(2, 1, 7)}, r"text_embeds must be \(batch, tokens, 6\), got \(2, 1, 7\)"),
        ({}, {"text_embeds": torch.zeros(2, 6)}, r"text_embeds must be \(batch, tokens, 6\), got \(2, 6\)"),
        ({}, {"text_mask": torch.tensor([[0.0, -torch.inf]]).expand(2, -1)}, "text_mask must be true .*pass mask == 0"),
        ({"lowres_cond": True}, {"lowres_cond_img": torch.zeros(2, 1, 4, 4)}, r"must be \(batch, 3, height, width\)"),
        ({"lowres_cond": True}, {"lowres_cond_img": torch.zeros(2, 3, 4)}, r"must be \(batch, 3, height, width\)"),
        ({"lowres_cond": True}, {"lowres_noise_times": torch.tensor(0.5)}, r"noise_times must be \(batch\), got"),
        ({"self_cond": True}, {"self_cond": torch.zeros(2, 3, 4, 4)}, "self_cond must be .* as x is, got"),
        ({}, {"time": torch.zeros(3)}, r"time must be one number for each of the 2 items, got \(3,\)"),
        ({}, {"time": torch.tensor(0.5)}, r"time must be one number for each of the 2 items, got \(\)"),
        ({}, {"text_keep": torch.ones(3, dtype=torch.bool)}, "a batch of 2 needs as many text_keep, got 3"),
        ({}, {"x": torch.zeros(2, 3, 8)}, r"x must be \(batch, 3, height, width\), got \(2, 3, 8\)"),
        ({}, {"x": torch.zeros(2, 4, 8, 8)}, r"x must be \(batch, 3, height, width\), got \(2, 4, 8, 8\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_missing_and_surplus_inputs_are_named(options, change, message):
    net = make(**options)
    with pytest.raises(ValueError, match=message):
        net(**inputs(net) | change)


# -- start, gradients, precision --------------------------------------------------------------------------------------

KINDS = {
    "text": {},
    "unconditional": {"cond_on_text": False},
    "tokens": {"attn_pool_text": False, "use_linear_attn": True, "layer_attns": (False, True)},
    "linear": {"layer_attns": False, "use_linear_attn": True, "use_linear_cross_attn": True},
    "upsampler": {"lowres_cond": True, "memory_efficient": True, "self_cond": True, "cond_images_channels": 1},
    "decorated": {"combine_upsample_fmaps": True, "skip_layer_excitation": True, "cross_embed_downsample": True},
    "film only": {"mid_cross_attn": False, "layer_cross_attns": False, "layer_attns_add_text_cond": False},
    "attention only": {"text_film": False, "cosine_sim_attn": True, "init_conv_to_final_conv_residual": True},
    "nobody listens": {"mid_cross_attn": False, "layer_cross_attns": False, "layer_attns": False, "lowres_cond": True},
    "plain": {"use_global_context_attn": False, "final_resnet_block": False, "pixel_shuffle_upsample": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_network_answers_exactly_zero(kind):
    net = make(**KINDS[kind])
    assert not net(**inputs(net)).any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
def test_no_parameter_is_dead_after_two_steps(kind):
    net = make(**KINDS[kind], resnet_groups=2)
    given = inputs(net, batch=4) | ({"text_keep": torch.tensor([True, False] * 2)} if net.cond_on_text else {})
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (net(**given) - given["x"]).square().mean().backward()
        optimizer.step()
    dead = [name for name, item in net.named_parameters() if item.grad is None or not item.grad.abs().max() > 1e-12]
    assert not dead


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("memory_efficient", [False, True])
def test_gradient_checkpointing_has_equal_gradients_and_keeps_less(memory_efficient):
    found = []
    for checkpointing in (False, True):
        net = awake(make(gradient_checkpointing=checkpointing, memory_efficient=memory_efficient, num_resnet_blocks=2))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            answer = net(**inputs(net))
        answer.square().mean().backward()
        found.append(([item.grad for item in net.parameters()], sum(kept)))
    (plain, much), (recomputed, little) = found
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert little < much / 2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["text", "linear", "attention only"])
def test_half_precision_is_close_and_finite_at_zero(dtype, kind):
    net = awake(make(**KINDS[kind]))
    given = inputs(net)
    exact = net(**given)
    with torch.autocast("cpu", dtype):
        mixed = net(**given)
    mixed.float().square().mean().backward()
    assert all(item.grad.isfinite().all() for item in net.parameters())
    half = net.to(dtype)(**{name: value.to(dtype) for name, value in given.items()})
    assert half.dtype == dtype
    # a few roundings; cosine attention multiplies its own by 16
    bound = 4 * torch.finfo(dtype).eps * (16 if kind == "attention only" else 1) * exact.norm()
    assert (mixed - exact).norm() < bound and (half - exact).norm() < bound
    assert net(**{name: torch.zeros_like(value, dtype=dtype) for name, value in given.items()}).isfinite().all()


def test_channels_last_gives_the_same_answer():
    net = awake(make(use_linear_attn=True, layer_attns=(False, True)))
    given = inputs(net)
    expected = net(**given)
    net = net.to(memory_format=torch.channels_last)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(**given), expected, rtol=1e-4, atol=1e-4)


# -- cost -------------------------------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.largest = max([self.largest, *(item.numel() for item in made if isinstance(item, torch.Tensor))])
        return out


@pytest.mark.usefixtures("unchecked")
def test_the_1024_preset_attends_to_context_only_and_its_maps_stay_linear():
    with torch.device("meta"):
        net = SRUnet1024(cond_on_text=False, lowres_cond=True)
        x, time = torch.empty(1, 3, 1024, 1024), torch.empty(1)
        with torch.no_grad(), Shapes() as shapes:
            net(x, time, lowres_cond_img=x, lowres_noise_times=time)
    assert not net.mid_attn and not count(net, Transformer)
    # the map before the last convolution with the low-resolution picture joined: no tensor is larger
    assert shapes.largest == (128 + 3) * 1024 * 1024


def test_multi_kernel_stem_costs_what_its_kernels_say():
    def flops(net):
        with FlopCounterMode(display=False) as counter:
            net(**inputs(net, batch=1, size=(16, 16)))
        return counter.get_total_flops(), counter.get_flop_counts()["Unet.init_conv"]

    (many, stem), (one, plain) = flops(make()), flops(make(init_cross_embed=False))
    positions = 2 * 16 * 16 * 3
    assert sum(stem.values()) == positions * (4 * 3**2 + 2 * 7**2 + 2 * 15**2)
    assert sum(plain.values()) == positions * 8 * 7**2
    assert many - one == sum(stem.values()) - sum(plain.values())
    assert "15x15" in Unet.__doc__


def test_combined_maps_cost_parameters_only_when_asked():
    plain, combined = make(), make(combine_upsample_fmaps=True)
    names = {name for name in combined.state_dict() if name.startswith("upsample_combiner")}
    assert names and not any(name.startswith("upsample_combiner") for name in plain.state_dict())
    added = sum(item.numel() for item in combined.upsample_combiner.parameters())
    options = BlockOptions(Unet.geometry, groups=8, hidden_dim=32, cond_dim=8, heads=2, dim_head=4)
    wider = parameters(ResnetBlock(24, 8, options, gated=True)) - parameters(ResnetBlock(8, 8, options, gated=True))
    assert parameters(combined) - parameters(plain) == added + wider
