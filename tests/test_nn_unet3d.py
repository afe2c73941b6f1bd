"""The video U-Net as a whole: frames are pictures first, then they see each other, and only as far as they should."""

from __future__ import annotations

import inspect

import pytest
import torch
from unet3d_toys import (  # noqa: F401
    BOTH_WAYS,
    EVERYTHING,
    FRAMES,
    PLAIN,
    SIZE,
    TOY,
    answers_to_change,
    awake,
    close,
    doubled,
    far,
    inputs,
    make,
    picture_by_picture,
    stir_between,
    taught_pictures,
    unchecked,
)

from imagen_pytorch import Unet, Unet3D
from imagen_pytorch.imagen_video import Unet3D as OldName
from imagen_pytorch.nn.frames import usual_times

# -- frames are pictures ----------------------------------------------------------------------------------------------

FLAGS = [
    name
    for name, item in inspect.signature(Unet.__init__).parameters.items()
    if isinstance(item.default, bool) and name != "gradient_checkpointing"
]
VARIANTS = {name: {name: not TOY.get(name, inspect.signature(Unet).parameters[name].default)} for name in FLAGS} | {
    "as it comes": {},
    "layers of attention": {"layer_attns": True, "layer_attns_depth": 2, "use_linear_cross_attn": True},
    "shared keys": {"layer_attns": True, "attn_kv_heads": 1},
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

STRIDES = pytest.mark.parametrize("strides", [1, (2, 1), (1, 2)], ids=str)


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
