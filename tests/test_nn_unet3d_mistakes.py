"""Mistakes with the video U-Net, its training and its copies."""

from __future__ import annotations

import copy
import math
import pickle

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from unet3d_toys import BOTH_WAYS, EVERYTHING, TOY, answers_to_change, awake, close, far, inputs, make, unchecked  # noqa: F401

from imagen_pytorch import Unet, Unet3D
from imagen_pytorch.nn.attention import LinearAttention
from imagen_pytorch.nn.temporal import TemporalAttention

# -- mistakes ---------------------------------------------------------------------------------------------------------

PRE, POST = torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, 3, 1, 4, 4)
MISTAKES = {
    "a picture": (
        {},
        {"x": torch.zeros(2, 3, 4, 4)},
        r"x must be \(batch, 3, frames, height, width\), got \(2, 3, 4, 4\)",
    ),
    "channels": ({}, {"x": torch.zeros(2, 4, 2, 4, 4)}, r"x must be \(batch, 3, frames, .*got \(2, 4, 2, 4, 4\)"),
    "strides": (
        {"temporal_strides": (2, 2)},
        {"cond_video_frames": PRE},
        r"temporal_strides=\(2, 2\) need a number of frames that 4 divides, given ones included; got 6",
    ),
    "strides per level": ({"temporal_strides": (1, 2, 1)}, {}, "temporal_strides needs one value or 2"),
    "strides and pictures": (
        {"temporal_strides": 2},
        {"ignore_time": torch.tensor([True, False])},
        "with temporal_strides, ignore_time is true or false for all clips",
    ),
    "causal": ({}, {"post_cond_video_frames": POST}, r"this network is causal.*build it with time_causal_attn=False"),
    "causal by times": (
        {},
        {"cond_video_frames": PRE, "frame_times": torch.tensor([[0.0, 0.15, 0.1, 0.2, 0.3, 0.4]])},
        "this network is causal.*later frame_times",
    ),
    "channels of given frames": (
        {},
        {"cond_video_frames": torch.zeros(2, 1, 2, 4, 4)},
        r"cond_video_frames must be \(2, 3, frames, height, width\), got \(2, 1, 2, ",
    ),
    "number of given clips": (
        BOTH_WAYS,
        {"post_cond_video_frames": POST[:1]},
        r"post_cond_video_frames must be \(2, 3, frames, height, width\), got \(1, 3, 1, ",
    ),
    "a given picture": (
        BOTH_WAYS,
        {"cond_video_frames": torch.zeros(2, 3, 4, 4)},
        r"cond_video_frames must be \(2, 3, frames, height, width\), got \(2, 3, 6, 5\)",
    ),
    "number of times": (
        {},
        {"cond_video_frames": PRE, "frame_times": torch.zeros(2, 4)},
        r"frame_times must be \(batch, 6\) seconds, one for each frame, given ones included; got \(2, 4\)",
    ),
    "times of another batch": ({}, {"frame_times": torch.zeros(3, 4)}, r"frame_times must be .*got \(3, 4\)"),
    "times that are no numbers": (
        {},
        {"frame_times": torch.tensor([[0.0, torch.nan, 0.2, 0.3]])},
        "frame_times must be finite numbers of seconds",
    ),
    "no rate": ({}, {"fps": 0.0}, "fps must be positive numbers, got 0.0"),
    "a rate that is no number": ({}, {"fps": torch.tensor([8.0, torch.nan])}, "fps must be positive numbers, got"),
    "time of another batch": ({}, {"time": torch.zeros(3)}, "time must be one number for each of the 2 items"),
    "low resolution": (
        {"lowres_cond": True},
        {"lowres_cond_img": torch.zeros(2, 3, 3, 4, 4), "cond_video_frames": PRE},
        r"lowres_cond_img must have 6 frames \(all of them\) or 4 \(the noisy ones\), got 3",
    ),
    "a clip for a picture": (
        {"cond_images_channels": 3},
        {"cond_images": torch.zeros(2, 3, 4, 4, 4)},
        r"cond_images must have 3 channels and be \(batch, channels, height, width\), got \(2, 3, 4, 4, 4\)",
    ),
    "as for pictures": ({}, {"text_embeds": None}, "text_embeds must be given"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    options, change, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        net = make(**options)
        net(**inputs(net) | change)


# -- training, copies -------------------------------------------------------------------------------------------------

TRAINED = {
    "causal": {},
    "upsampler": {"lowres_cond": True, "memory_efficient": True, "self_cond": True, "cond_images_channels": 1},
    "usual stem": {"init_cross_embed": True, "attn_pool_text": True, "attn_pool_num_latents": 2},
    "attention": {
        "layer_attns": True,
        "layer_attns_depth": 2,
        "temporal_strides": (1, 2),
        "combine_upsample_fmaps": True,
    },
    "strides": {"temporal_strides": (2, 2), **BOTH_WAYS, "skip_layer_excitation": True},
    "linear": {"use_linear_attn": True, "use_linear_cross_attn": True, "cond_on_text": False},
    "no shift": {"ff_time_token_shift": False, "time_rel_pos_bias_depth": 3, "attend_at_middle": False},
}


@pytest.mark.parametrize("kind", TRAINED)
def test_every_parameter_is_trained(kind):
    net = make(**TRAINED[kind], resnet_groups=2)
    given = inputs(net, batch=4)
    given |= {"text_keep": torch.tensor([True, False] * 2)} if net.cond_on_text else {}
    given |= {"fps": torch.tensor([4.0, 8.0, 8.0, 24.0]), "fps_keep": torch.tensor([True, True, False, True])}
    given["cond_video_frames"] = torch.randn(4, 3, 4, 3, 3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (net(**given) - given["x"]).square().mean().backward()
        optimizer.step()
    dead = [name for name, item in net.named_parameters() if item.grad is None or not item.grad.abs().max() > 1e-12]
    assert not dead


def test_linear_attention_is_where_full_attention_is_not():
    net = awake(make(use_linear_attn=True))
    assert sum(isinstance(part, LinearAttention) for part in net.modules()) == 4
    assert far(net(**inputs(net)), torch.zeros(()))


@pytest.mark.parametrize("option", ["ff_time_token_shift", "time_rel_pos_bias_depth"])
def test_options_between_frames_are_built_as_they_say(option):
    net = make(ff_time_token_shift=False, time_rel_pos_bias_depth=3)
    shares = [name for name, _ in make().named_parameters() if name.endswith("shift_share")]
    if option == "ff_time_token_shift":
        assert shares and not [name for name, _ in net.named_parameters() if name.endswith("shift_share")]
    else:
        depths = [sum(isinstance(part, nn.SiLU) for part in item.mid_temporal_attn.bias.net) for item in (make(), net)]
        assert depths == [2, 3]


@pytest.mark.parametrize(("where", "kept"), [(True, 6), ((False, True), 3), ((True, False), 4), (False, 1)], ids=str)
def test_attention_between_frames_is_where_it_is_wanted_and_in_the_middle(where, kept):
    """At the first level it is behind the first convolution too. Convolutions between frames are everywhere."""
    net = awake(make(layer_temporal_attns=where))
    assert sum(isinstance(part, TemporalAttention) for part in net.modules()) == kept
    before, after = answers_to_change(net, 1, **inputs(net))
    assert torch.equal(before[:, :, 0], after[:, :, 0]) and far(before[:, :, 2], after[:, :, 2])
    with pytest.raises(ValueError, match="layer_temporal_attns needs one value or 2"):
        make(layer_temporal_attns=(True, False, True))


@pytest.mark.parametrize("strides", [1, (1, 2)], ids=str)
def test_gradient_checkpointing_has_equal_gradients_and_keeps_less(strides):
    found = []
    for checkpointing in (False, True):
        net = awake(make(gradient_checkpointing=checkpointing, num_resnet_blocks=2, temporal_strides=strides))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            answer = net(**inputs(net), fps=8.0)
        answer.square().mean().backward()
        found.append(([item.grad for item in net.parameters()], sum(kept)))
    (plain, much), (recomputed, little) = found
    for one, other in zip(plain, recomputed, strict=True):
        assert (one is None) == (other is None) and (one is None or torch.equal(one, other))
    assert little < much / 2


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        self.numel = max([self.numel, *(item.numel() for item in made if isinstance(item, torch.Tensor))])
        return out


def test_the_largest_tensor_grows_with_the_frames_not_with_their_square():
    net = awake(make(layer_attns=True, temporal_strides=(1, 2)))
    largest = {}
    for frames in (8, 64):
        given = inputs(net, batch=1, frames=frames, size=(16, 16))
        with torch.no_grad(), Largest() as found:
            net(**given)
        largest[frames] = found.numel
    assert largest[64] == 8 * largest[8]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_answer_alike_and_share_nothing(copied):
    net = awake(make(temporal_strides=(1, 2)))
    other, given = copied(net), inputs(net)
    assert torch.equal(net(**given), other(**given))
    with torch.no_grad():
        other.final_conv.bias += 1
    assert far(net(**given), other(**given))


def test_written_down_read_back_and_refitted(tmp_path):
    net = awake(
        make(temporal_strides=(1, 2), time_causal_attn=False, ff_time_token_shift=False, time_rel_pos_bias_depth=1)
    )
    net.persist_to_file(tmp_path / "net.pt")
    again = Unet.hydrate_from_file(tmp_path / "net.pt").eval()
    given = inputs(net)
    assert type(again) is Unet3D and not again.is_causal
    assert torch.equal(net(**given), again(**given))
    config, state = net.to_config_and_state_dict()
    assert config == {**TOY, "temporal_strides": (1, 2), "time_causal_attn": False} | {
        "ff_time_token_shift": False,
        "time_rel_pos_bias_depth": 1,
    }
    assert torch.equal(Unet3D.from_config_and_state_dict(config, state).eval()(**given), net(**given))
    fits = dict(text_embed_dim=6, channels=3, channels_out=3, cond_on_text=True)
    assert net.cast_model_parameters(lowres_cond=False, **fits) is net
    with pytest.warns(UserWarning, match="trained weights no longer fit"):
        fitted = net.cast_model_parameters(lowres_cond=True, **fits)
    assert type(fitted) is Unet3D and fitted.lowres_cond and fitted.strides == (1, 2) and not fitted.is_causal
    assert torch.equal(fitted.mid_temporal_attn.attention.to_out.weight, net.mid_temporal_attn.attention.to_out.weight)


def test_guidance_of_the_answer_is_linear_for_videos_unless_asked():
    net = awake(make())
    given = inputs(net)
    told, null = net(**given), net(**given, cond_drop_prob=1.0)
    assert torch.equal(net.forward_with_cond_scale(**given), told)
    assert close(net.forward_with_cond_scale(**given, cond_scale=3.0), null + 3 * (told - null), 1e-5)
    across = net.forward_with_cond_scale(**given, cond_scale=3.0, remove_parallel_component=True)
    moved, along = (across - told).flatten(1), told.flatten(1)
    assert F.cosine_similarity(moved, along).abs().max() < 1e-4 and far(across, told)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_and_finite_at_zero(dtype):
    net = awake(make(**BOTH_WAYS, layer_attns=True))
    given = inputs(net) | {"fps": torch.tensor([8.0, 24.0])}
    exact = net(**given)
    half = net.to(dtype)
    answer = half(**{name: value.to(dtype) for name, value in given.items()})
    assert answer.dtype == dtype
    assert (answer - exact).norm() < 8 * torch.finfo(dtype).eps * exact.norm()
    zeros = {name: torch.zeros_like(value, dtype=dtype) for name, value in given.items() if name != "fps"}
    assert half(**zeros, fps=given["fps"]).isfinite().all()


def test_annotations_hold(monkeypatch):
    """With everything, shapes checked."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", False)
    net = awake(make(**EVERYTHING, **BOTH_WAYS, lowres_cond=True, self_cond=True, cond_images_channels=1))
    given = inputs(net)
    told = {
        "cond_video_frames": torch.randn(2, 3, 2, 3, 4),
        "post_cond_video_frames": torch.randn(2, 3, 1, 5, 5),
        "fps": torch.tensor([8.0, 12.0]),
        "fps_keep": torch.tensor([True, False]),
    }
    apart = torch.tensor([True, False])
    each = torch.arange(7.0).expand(2, -1) / torch.tensor([[8.0], [12.0]])
    for more in ({}, {"ignore_time": apart}, {"frame_times": each, "ignore_time": apart}, {"frame_times": each[:1]}):
        assert net(**given, **told, **more).shape == given["x"].shape
    assert math.isfinite(float(net(**given, ignore_time=True).sum().detach()))
