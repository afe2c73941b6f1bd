"""The video U-Net as a whole: frames are pictures first, then they see each other, and only as far as they should."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imagen_pytorch import Unet, Unet3D
from imagen_pytorch.imagen_video import Unet3D as OldName
from imagen_pytorch.nn.attention import LinearAttention
from imagen_pytorch.nn.frames import usual_times
from imagen_pytorch.nn.temporal import TemporalAttention

TOY = dict(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4, text_embed_dim=6)
TOY |= dict(attn_pool_text=False, init_cross_embed=False)  # which cost most of the time of networks so small
PLAIN = dict(cond_on_text=False, attend_at_middle=False)
SIZE, FRAMES = (6, 5), 4
BOTH_WAYS = {"time_causal_attn": False}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Without the run-time checks of annotations, which take most of the time of small networks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def make(kind=Unet3D, **options):
    torch.manual_seed(0)
    return kind(**{**TOY, **options})


def awake(net: nn.Module, share: float = 0.15, seed: int = 1) -> nn.Module:
    """Every weight moved, so that nothing is zero and every part can be seen in the answer."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += share * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def inputs(net, batch=2, frames=FRAMES, size=SIZE) -> dict[str, torch.Tensor]:
    """Everything that the network takes, other pictures of sizes of their own."""
    torch.manual_seed(2)
    given = {"x": torch.randn(batch, net.channels, frames, *size), "time": torch.randn(batch)}
    if net.cond_on_text:
        given |= {"text_embeds": torch.randn(batch, 4, net.text_embed_dim)}
    if net.lowres_cond:
        given |= {"lowres_cond_img": torch.randn(batch, 3, frames, 4, 3), "lowres_noise_times": torch.randn(batch)}
    if net.has_cond_image:
        given |= {"cond_images": torch.randn(batch, net.cond_images_channels, 7, 6)}
    if net.self_cond:
        given |= {"self_cond": torch.randn(batch, net.channels, frames, *size)}
    return given


def doubled(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In double precision, where rounding hides nothing."""
    return {name: value.double() for name, value in given.items()}


def frame_of(given: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """What belongs to one frame, as a picture network takes it."""
    return {name: value[:, :, index] if value.ndim == 5 else value for name, value in given.items()}


def taught_pictures(video: Unet3D, pictures: Unet) -> None:
    """Give a video network the weights of a picture network. The first convolution has one more channel, for the mark;
    the layers between frames stay as they were."""
    weights = dict(pictures.state_dict())
    for name in [name for name in weights if name.startswith("init_conv.") and name.endswith("weight")]:
        weights[name] = F.pad(weights[name], (0, 0, 0, 0, 0, 1))
    missing, unexpected = video.load_state_dict(weights, strict=False)
    between = ("temporal", "squeeze", "stretch", "rate", "shift_share")
    assert not unexpected and missing and all(any(part in name for part in between) for name in missing)


def stir_between(video: Unet3D, pictures: Unet) -> None:
    """As if the layers between frames had been trained."""
    of_pictures = pictures.state_dict().keys()
    for name, part in video.named_parameters():
        if name not in of_pictures:
            part.data += 0.3 * torch.randn_like(part)


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=atol)


def far(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).detach().abs().max()) > 1e-3


# -- frames are pictures ----------------------------------------------------------------------------------------------

FLAGS = [
    name
    for name, item in inspect.signature(Unet.__init__).parameters.items()
    if isinstance(item.default, bool) and name != "gradient_checkpointing"
]
VARIANTS = {name: {name: not TOY.get(name, inspect.signature(Unet).parameters[name].default)} for name in FLAGS} | {
    "as it comes": {},
    "layers of attention": {"layer_attns": True, "layer_attns_depth": 2, "use_linear_cross_attn": True},
    "linear layers": {"layer_attns": False, "use_linear_attn": True},
    "pictures beside": {"cond_images_channels": 2, "lowres_cond": True, "self_cond": True, "memory_efficient": True},
}
KINDS = {
    "causal": {},
    "both ways": BOTH_WAYS,
    "fewer frames": {"temporal_strides": (1, 2)},
    "fewer frames both ways": {"temporal_strides": (2, 1), **BOTH_WAYS},
}


def pair(video_options=None, **options):
    """A picture network with trained weights, and a new video network that was given them."""
    options = {"layer_attns": True, **options}
    pictures = awake(make(Unet, **options)).double()
    video = make(Unet3D, **options, **(video_options or {})).double().eval()
    taught_pictures(video, pictures)
    return pictures, video


def picture_by_picture(pictures: Unet, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([pictures(**frame_of(given, index)) for index in range(given["x"].shape[2])], dim=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_are_pictures_at_first_and_whenever_time_is_ignored(variant):
    """One frame, or several that are independent at initialisation, or with trained layers between frames that are
    told to ignore time: what the picture network with the same weights says."""
    pictures, video = pair(**VARIANTS[variant])
    given = doubled(inputs(video, frames=2))
    with torch.no_grad():
        expected = picture_by_picture(pictures, given)
        assert expected.abs().max() > 0.1
        one = {name: value[:, :, :1] if value.ndim == 5 else value for name, value in given.items()}
        assert close(video(**one), expected[:, :, :1]) and close(video(**given), expected)
        stir_between(video, pictures)
        assert far(video(**given), expected) and close(video(**given, ignore_time=True), expected)


def test_the_other_way_of_seeing_starts_with_independent_pictures_too():
    pictures, video = pair(BOTH_WAYS)
    given = doubled(inputs(video))
    assert close(video(**given), picture_by_picture(pictures, given))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_made_pictures_only_still_does_after_its_layers_between_frames_are_trained(kind):
    """Strides or not: of what lies between frames, nothing acts where time is ignored."""
    pictures, video = pair(KINDS[kind])
    given = doubled(inputs(video))
    stir_between(video, pictures)
    assert close(video(**given, ignore_time=True), picture_by_picture(pictures, given))


def test_training_on_pictures_leaves_the_layers_between_frames_alone():
    video = make()
    given = inputs(video, frames=1)
    (video(**given, ignore_time=True) - 1).square().mean().backward()
    moved = {name for name, part in video.named_parameters() if part.grad is not None}
    assert moved == {name for name, _ in make(Unet, layer_attns=False).named_parameters()}


def test_it_is_one_class_under_two_names_with_attention_within_frames_off():
    assert OldName is Unet3D
    net = make()
    assert [level.attention for level in (*net.downs, *net.ups)] == [None] * 4 and net.mid_attn is not None
    assert make(layer_attns=(False, True)).downs[1].attention is not None
    with pytest.raises(TypeError, match="time_causal"):
        make(time_causal=True)


# -- who sees whom ----------------------------------------------------------------------------------------------------

EVERYTHING = {"layer_attns": True, "ff_time_token_shift": True, "use_global_context_attn": True}
STRIDES = pytest.mark.parametrize("strides", [1, (2, 1), (1, 2)], ids=str)


def answers_to_change(net, frame, **given):
    """The answers before and after one frame was changed."""
    x = given.pop("x")
    other = x.clone()
    other[:, :, frame] += 1
    with torch.no_grad():
        return net(x=x, **given), net(x=other, **given)


@STRIDES
@pytest.mark.parametrize("efficient", [False, True])
def test_in_a_causal_network_no_frame_sees_a_later_one(strides, efficient):
    more = {"memory_efficient": efficient, "combine_upsample_fmaps": efficient, "skip_layer_excitation": efficient}
    net = awake(make(**EVERYTHING, **more, temporal_strides=strides, self_cond=True))
    given = inputs(net)
    for frame in range(FRAMES):
        before, after = answers_to_change(net, frame, **given)
        assert torch.equal(before[:, :, :frame], after[:, :, :frame])
        assert far(before[:, :, frame], after[:, :, frame])
        if frame + 1 < FRAMES:
            assert far(before[:, :, -1], after[:, :, -1])


@STRIDES
def test_in_a_causal_network_no_gradient_comes_back_from_earlier_answers(strides):
    net = awake(make(**EVERYTHING, temporal_strides=strides))
    given = inputs(net)
    x = given.pop("x").requires_grad_()
    answer = net(x=x, **given)
    for frame in range(FRAMES):
        (grad,) = torch.autograd.grad(answer[:, :, frame].sum(), x, retain_graph=True)
        assert not grad[:, :, frame + 1 :].any()
        assert grad[:, :, frame].abs().max() > 1e-3
        assert frame == 0 or grad[:, :, 0].abs().max() > 1e-5


@STRIDES
@pytest.mark.parametrize("causal", [False, True])
def test_frames_that_ignore_time_see_no_other(strides, causal):
    net = awake(make(**EVERYTHING, temporal_strides=strides, time_causal_attn=causal))
    before, after = answers_to_change(net, 2, **inputs(net), ignore_time=True)
    moved = (before != after).flatten(3).any(-1).flatten(0, 1).any(0)
    assert moved.tolist() == [False, False, True, False]


@STRIDES
def test_a_network_of_both_ways_sees_all_frames(strides):
    net = awake(make(**EVERYTHING, temporal_strides=strides, **BOTH_WAYS))
    for frame in range(FRAMES):
        before, after = answers_to_change(net, frame, **inputs(net))
        assert all(far(before[:, :, index], after[:, :, index]) for index in range(FRAMES))


def test_clips_do_not_see_each_other():
    net = awake(make(**EVERYTHING, **BOTH_WAYS))
    given = inputs(net)
    other = given["x"].clone()
    other[1] += 1
    before, after = net(**given), net(**given | {"x": other})
    assert torch.equal(before[0], after[0]) and far(before[1], after[1])


DIFFERENCES = {
    "times": {"frame_times": torch.tensor([[0.0, 0.1, 0.5, 2.0], [1.0, 0.0, 3.0, 0.2]])},
    "rates": {"fps": torch.tensor([4.0, 24.0]), "fps_keep": torch.tensor([True, False])},
    "pictures": {"ignore_time": torch.tensor([True, False]), "fps": torch.tensor([4.0, 24.0])},
}


@pytest.mark.parametrize(
    ("difference", "strides"),
    [("times", 1), ("times", (1, 2)), ("rates", 1), ("rates", (2, 1)), ("pictures", 1)],
    ids=str,
)
def test_a_clip_is_treated_alike_in_any_batch(difference, strides):
    """Each clip its own noise level, caption, times and rate, or some of them independent pictures: as if each came
    alone."""
    net = awake(make(**BOTH_WAYS, layer_attns=True, temporal_strides=strides))
    given, told = inputs(net), DIFFERENCES[difference]
    together = net(**given, **told)
    for index in range(2):
        rows = slice(index, index + 1)
        alone = {name: value[rows] for name, value in {**given, **told}.items()}
        if difference == "pictures":
            alone["ignore_time"] = bool(alone["ignore_time"])
        assert close(net(**alone), together[rows], 1e-5)
    plain = net(**given)
    assert far(plain[0], together[0]) and far(plain[1], together[1])


# -- when frames are --------------------------------------------------------------------------------------------------

TIMES = torch.tensor([[0.0, 0.125, 0.5, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("strides", [1, (1, 2)], ids=str)
def test_frames_may_come_in_any_order(strides):
    net = awake(make(**BOTH_WAYS, temporal_strides=strides, self_cond=True, lowres_cond=True))
    given = inputs(net)
    order = torch.tensor([2, 0, 3, 1])
    mixed = {name: value[:, :, order] if value.ndim == 5 else value for name, value in given.items()}
    straight, shuffled = net(**given, frame_times=TIMES), net(**mixed, frame_times=TIMES[:, order])
    assert close(shuffled, straight[:, :, order], 1e-5)
    assert far(net(**mixed, frame_times=TIMES), shuffled)


def test_a_causal_network_goes_by_the_times():
    net = awake(make())
    given = inputs(net)
    order = torch.tensor([2, 0, 3, 1])
    mixed = {"x": given["x"][:, :, order]}
    straight, shuffled = net(**given, frame_times=TIMES), net(**given | mixed, frame_times=TIMES[:, order])
    assert close(shuffled, straight[:, :, order], 1e-5)


@pytest.mark.parametrize("shift", [1.0, -7.5, 1000.0])
def test_only_differences_of_times_count(shift):
    net = awake(make(**BOTH_WAYS))
    given = inputs(net)
    assert torch.equal(net(**given, frame_times=TIMES), net(**given, frame_times=TIMES + shift))
    assert far(net(**given, frame_times=TIMES), net(**given, frame_times=2 * TIMES))
    assert far(net(**given, frame_times=TIMES), net(**given))


@pytest.mark.parametrize("fps", [None, 10, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_steady_rate_written_down_is_the_usual_path_bit_for_bit(fps, dtype, frames=20):
    net = awake(make(**PLAIN))
    given = inputs(net, frames=frames, size=(4, 4))
    told = {} if fps is None else {"fps": fps}
    times = usual_times(frames, fps or 8, first=5).to(dtype)
    assert torch.equal(net(**given, **told), net(**given, **told, frame_times=times))
    each = torch.full((2,), float(fps or 8))
    assert close(net(**given, **told), net(**given, frame_times=usual_times(frames, each), **told), 1e-5)


def test_any_number_of_frames():
    net = awake(make(**BOTH_WAYS))
    for frames in (1, 2, 3, 7, 20):
        answer = net(**inputs(net, frames=frames))
        assert answer.shape == (2, 3, frames, *SIZE) and answer.isfinite().all()


def test_the_rate_is_heard_once_it_was_trained_and_can_be_hidden():
    net = make(**PLAIN)
    given = inputs(net)
    assert torch.equal(net(**given, fps=4.0), net(**given))  # a new network says zero
    awake(net)
    times = {"frame_times": TIMES}  # so that the rate is heard, not seen in the times
    slow, fast, silent = (net(**given, **times, **told) for told in ({"fps": 4.0}, {"fps": 24}, {}))
    assert far(slow, fast) and far(slow, silent) and far(fast, silent)
    rates, keep = torch.tensor([4.0, 24.0]), torch.tensor([True, False])
    some = net(**given, **times, fps=rates, fps_keep=keep)
    assert close(some[0], slow[0]) and close(some[1], silent[1])
    assert close(net(**given, **times, fps=rates)[1], fast[1])
    hidden = net(**given, **times, fps=rates, fps_keep=torch.zeros(2, dtype=torch.bool))
    assert torch.equal(hidden, silent)


def test_frames_that_ignore_time_hear_no_rate():
    net = awake(make(**PLAIN))
    given = inputs(net)
    assert torch.equal(net(**given, fps=4.0, ignore_time=True), net(**given, ignore_time=True))
    both = torch.ones(2, dtype=torch.bool)
    assert close(net(**given, fps=4.0, ignore_time=both), net(**given, ignore_time=True))


# -- given frames -----------------------------------------------------------------------------------------------------


def seen_by(net) -> list[torch.Tensor]:
    """A list that fills with what the first convolution is shown, as clips."""
    seen = []
    net.init_conv.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    return seen


ROUTES = {
    "none": (0, 0),
    "before": (3, 0),
    "behind": (0, 2),
    "around": (3, 1),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "more", [{}, {"self_cond": True}, {"lowres_cond": True, "self_cond": True, "cond_images_channels": 1}]
)
def test_given_frames_stand_around_the_clip_and_are_marked(route, more):
    """The order is before, clip, behind, for all that belongs to a frame; sizes need not fit."""
    before, behind = ROUTES[route]
    net = awake(make(**BOTH_WAYS, **more))
    given = inputs(net)
    around = {
        name: torch.full((2, 3, count, 3, 4), value)
        for name, count, value in (("cond_video_frames", before, 5.0), ("post_cond_video_frames", behind, 7.0))
        if count
    }
    seen = seen_by(net)
    answer = net(**given, **around)
    assert answer.shape == given["x"].shape
    total = before + FRAMES + behind
    clips = seen[0].unflatten(0, (2, total)).transpose(1, 2)[..., : SIZE[0], : SIZE[1]]
    parts = {
        "cond_images": net.cond_images_channels,
        "x": 3,
        "self_cond": 3 * net.self_cond,
        "lowres": 3 * net.lowres_cond,
    }
    assert clips.shape[1] == sum(parts.values()) + 1
    pictures, x, self_cond, lowres, marks = clips.split([*parts.values(), 1], dim=1)
    inside = slice(before, before + FRAMES)
    assert torch.equal(x[:, :, inside], given["x"])
    torch.testing.assert_close(x[:, :, :before], torch.full_like(x[:, :, :before], 5.0))
    torch.testing.assert_close(x[:, :, before + FRAMES :], torch.full_like(x[:, :, before + FRAMES :], 7.0))
    assert marks[:, 0, :, 0, 0].tolist() == [[1.0] * before + [0.0] * FRAMES + [1.0] * behind] * 2
    assert torch.equal(marks, marks[..., :1, :1].expand_as(marks))
    if net.self_cond:
        assert torch.equal(self_cond[:, :, inside], given["self_cond"])
        assert not self_cond[:, :, :before].any() and not self_cond[:, :, before + FRAMES :].any()
    if net.lowres_cond:  # of the clip alone: given frames stand for themselves
        assert torch.equal(lowres[:, :, :before], x[:, :, :before])
        assert torch.equal(lowres[:, :, before + FRAMES :], x[:, :, before + FRAMES :])
    if net.has_cond_image:
        assert torch.equal(pictures, pictures[:, :, :1].expand_as(pictures)) and pictures.any()


@pytest.mark.parametrize("route", ROUTES)
def test_answer_i_is_that_of_frame_i(route):
    """With layers between frames that mix nothing, each answer depends on its own frame alone."""
    before, behind = ROUTES[route]
    net = make(**BOTH_WAYS, **PLAIN)
    pictures = awake(make(Unet, **PLAIN, layer_attns=False))
    taught_pictures(net, pictures)
    given = inputs(net)
    around = {"cond_video_frames": before, "post_cond_video_frames": behind}
    around = {name: torch.randn(2, 3, count, *SIZE) for name, count in around.items() if count}
    assert close(net(**given, **around), picture_by_picture(pictures, given))


def test_given_frames_are_heard_from_both_sides_and_beside_a_picture():
    net = awake(make(**BOTH_WAYS, cond_images_channels=1))
    given = inputs(net)
    parts = {
        name: torch.randn(2, 3, 2, *SIZE, requires_grad=True)
        for name in ("cond_video_frames", "post_cond_video_frames")
    }
    given["cond_images"].requires_grad_()
    net(**given, **parts).square().sum().backward()
    assert all(part.grad[:, :, index].abs().max() > 1e-4 for part in parts.values() for index in (0, 1))
    assert given["cond_images"].grad.abs().max() > 1e-4
    with torch.no_grad():
        plain, only = net(**given), [net(**given, **{name: part}) for name, part in parts.items()]
    assert far(plain, only[0]) and far(plain, only[1]) and far(*only)
    blank = given | {"cond_images_keep": torch.zeros(2, dtype=torch.bool)}
    assert far(net(**blank, **parts), net(**given, **parts))


def test_the_mark_tells_given_frames_from_noisy_ones():
    """A given frame is not a noisy one with the same pixels."""
    net = awake(make(**BOTH_WAYS))
    given = inputs(net)
    x = given.pop("x")
    split = net(x=x[:, :, 1:], cond_video_frames=x[:, :, :1], **given)
    whole = net(x=x, **given)
    assert far(split, whole[:, :, 1:])
    with torch.no_grad():
        net.init_conv.weight[:, -1] = 0
    assert close(net(x=x[:, :, 1:], cond_video_frames=x[:, :, :1], **given), net(x=x, **given)[:, :, 1:], 1e-5)


def test_a_given_frame_may_lie_between_noisy_ones():
    """Where its time says, whichever side it was handed in on."""
    net = awake(make(**BOTH_WAYS, lowres_cond=True))
    given = inputs(net)
    part, times = torch.randn(2, 3, 1, *SIZE), torch.tensor([[0.3, 0.0, 0.125, 0.5, 2.0]])
    seen = seen_by(net)
    first = net(**given, cond_video_frames=part, frame_times=times)
    last = net(**given, post_cond_video_frames=part, frame_times=times[:, [1, 2, 3, 4, 0]])
    assert close(first, last, 1e-5)
    assert seen[0].unflatten(0, (2, 5))[:, :, -1, 0, 0].tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]] * 2
    other = net(**given, cond_video_frames=part, frame_times=torch.tensor([[-1.0, 0.0, 0.125, 0.5, 2.0]]))
    assert far(first, other)
    mixed = torch.tensor([2, 0, 3, 1])
    shuffled = {name: value[:, :, mixed] if value.ndim == 5 else value for name, value in given.items()}
    again = net(
        **shuffled, cond_video_frames=part, frame_times=torch.cat([times[:, :1], times[:, 1:][:, mixed]], dim=1)
    )
    assert close(again, first[:, :, mixed], 1e-5)


def test_given_frames_go_before_without_times():
    """By default a clip starts at zero and its given frames lie before and behind it, at the usual rate."""
    net = awake(make(**BOTH_WAYS))
    given, pre, post = inputs(net), torch.randn(2, 3, 2, *SIZE), torch.randn(2, 3, 1, *SIZE)
    times = torch.arange(-2.0, 5.0)[None] / 12
    around = {"cond_video_frames": pre, "post_cond_video_frames": post, "fps": 12.0}
    assert close(net(**given, **around), net(**given, **around, frame_times=times), 1e-5)


def test_the_low_resolution_clip_may_have_the_given_frames_too():
    net = awake(make(**BOTH_WAYS, lowres_cond=True))
    given, pre = inputs(net), torch.randn(2, 3, 2, *SIZE)
    low = given["lowres_cond_img"]
    seen = seen_by(net)
    whole = torch.cat([torch.full((2, 3, 2, 4, 3), 9.0), low], dim=2)
    net(**given | {"lowres_cond_img": whole}, cond_video_frames=pre)
    lowres = seen[0].unflatten(0, (2, 6))[:, :2, 3:6]
    torch.testing.assert_close(lowres, torch.full_like(lowres, 9.0))


@pytest.mark.parametrize("strides", [2, (1, 2)], ids=str)
def test_given_frames_count_for_the_strides(strides):
    net = awake(make(**BOTH_WAYS, temporal_strides=strides))
    given = inputs(net, frames=3)
    odd = {"cond_video_frames": torch.randn(2, 3, 1 if strides == (1, 2) else 5, 3, 3)}
    assert net(**given, **odd).shape == (2, 3, 3, *SIZE)


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
