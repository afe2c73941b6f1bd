"""Given frames of the video U-Net, its mistakes, its training and its copies."""

from __future__ import annotations

import pytest
import torch
from unet3d_toys import (  # noqa: F401
    BOTH_WAYS,
    FRAMES,
    PLAIN,
    SIZE,
    awake,
    close,
    far,
    inputs,
    make,
    picture_by_picture,
    taught_pictures,
    unchecked,
)

from imagen_pytorch import Unet

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
