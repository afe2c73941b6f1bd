"""Clips by their seed, copies of video models, and mistakes with both."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from cascade_toys import (
    KINDS,
    cascade,
    clips,
    pictures,
    sample,
    standing_in,
    text,
    unet,
    video_cascade,
    video_unet,
)
from video_toys import BARE, MASK, SILENT, checks, in_range  # noqa: F401

from imagen_pytorch.imagen import Imagen, imagen_from_config
from imagen_pytorch.tensors import seeded

# -- the same clip, whatever is around it -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stub", [True, False])
def test_a_seeded_clip_is_the_same_in_any_batch(kind, stub):
    """Bit for bit as far as the cascade decides; a network may round differently with the size of its batch."""
    options = {"temporal_downsample_factor": (2, 1), "lowres_residual": (None, 0.5), "cond_images_drop_prob": 0.1}
    model = video_cascade(kind, 2, {"self_cond": True, "cond_images_channels": 3}, **options)
    for number in (1, 2):
        if stub:
            standing_in(model, number, lambda x, time: x.sin() * time.view(-1, 1, 1, 1, 1))
    whole = {
        "text_embeds": text(3),
        "cond_video_frames": clips(3, 2, 8),
        "post_cond_video_frames": clips(3, 2, 8, seed=7),
        "cond_images": pictures(3, 6),
        "fps": torch.tensor([8.0, 12.0, 24.0]),
        "inpaint_videos": clips(3, 4, 8, seed=9),
        "inpaint_masks": torch.arange(8).expand(3, 4, 8, 8) < 2,
        "seed": torch.tensor([5, 1, 9]),
    }

    def made(rows):
        some = {name: value[rows] for name, value in whole.items()}
        some |= {"seed": some["seed"].tolist(), "inpaint_resample_times": 2}
        return sample(model, **some, cond_scale=2.0, sampler="ddpm", steps=3)

    together = made(slice(0, 3))
    for rows in (slice(0, 1), slice(1, 3)):
        if stub:
            assert torch.equal(made(rows), together[rows])
        else:
            torch.testing.assert_close(made(rows), together[rows], atol=2e-4, rtol=0)


def test_training_draws_of_a_clip_do_not_depend_on_its_neighbours():
    options = {"random_crop_sizes": (None, 4), "per_sample_random_aug_noise_level": True, "fps_drop_prob": 0.5}
    model = video_cascade(stages=2, unet_options=BARE, **options, **SILENT)
    whole, rates = clips(4, 3, 8), torch.tensor([4.0, 8.0, 12.0, 24.0])

    def batch_of(rows):
        generators = seeded(0, 4)[rows]
        return model.training_batch(whole[rows], unet_number=2, fps=rates[rows], generator=generators)

    all_four, part = batch_of(slice(0, 4)), batch_of(slice(2, 4))
    for name in ("x0", "t", "noise", "lowres_cond_img", "lowres_noise_times", "fps", "fps_keep", "frame_times"):
        assert torch.equal(getattr(all_four, name)[2:], getattr(part, name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_clips_is_described_copied_and_rebuilt(kind):
    options = {"temporal_downsample_factor": (2, 1), "given_frames_prob": 0.5, "fps": 12.0, "video_frames": 4}
    model = video_cascade(kind, 2, BARE, **options)
    again = imagen_from_config(model.to_config())
    again.load_state_dict(model.state_dict())
    expected = sample(model, text_embeds=text())
    assert in_range(expected, 2, 3, 4, 8, 8)
    for other in (again, copy.deepcopy(model)):
        assert other.is_video and other.given_frames_prob == 0.5 and other.fps == 12
        assert torch.equal(sample(other, text_embeds=text()), expected)


# -- mistakes ---------------------------------------------------------------------------------------------------------

CONSTRUCTION = {
    "video and image networks": (
        lambda: Imagen([unet(), video_unet()], image_sizes=(4, 8), text_embed_dim=12),
        r"all Unet \(images\) or all Unet3D \(videos\), got both",
    ),
    "rates of pictures": (lambda: cascade(stages=2, temporal_downsample_factor=(2, 1)), "is for video cascades"),
    "rising factors": (
        lambda: video_cascade(stages=3, temporal_downsample_factor=(2, 4, 1)),
        r"never rise from stage to stage and end in 1, such as \(4, 2, 1\); got \(2, 4, 1\)",
    ),
    "last factor": (lambda: video_cascade(stages=2, temporal_downsample_factor=(2, 2)), "and end in 1"),
    "one factor for all": (lambda: video_cascade(stages=2, temporal_downsample_factor=2), "and end in 1"),
    "number of factors": (
        lambda: video_cascade(stages=2, temporal_downsample_factor=(4, 2, 1)),
        "temporal_downsample_factor needs one value, or one for each of the 2 U-Nets; got 3",
    ),
    "shares": (lambda: video_cascade(given_frames_prob=2), "given_frames_prob must lie between 0 and 1, got 2"),
    "rate": (lambda: video_cascade(fps=0), "fps must be above 0 and at most 1e.06, got 0"),
    "mode": (lambda: video_cascade(temporal_resize_mode="cubic"), 'no temporal_resize_mode "cubic"; known: linear'),
}


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_impossible_models_get_a_sentence(name):
    make, message = CONSTRUCTION[name]
    with pytest.raises(ValueError, match=message):
        make()


SAMPLING = {
    "no frames": ({}, r"video model: give the number of frames, video_frames=\.\.\."),
    "zero frames": ({"video_frames": 0}, "video_frames must be at least 1, got 0"),
    "factor": ({"video_frames": 3}, r"U-Net 1 makes one of 2 frames .*must be a multiple of that, got 3"),
    "pillow": ({"video_frames": 4, "return_pil_images": True}, "return_pil_images is for images"),
    "frames of a known clip": (
        {"video_frames": 4, "inpaint_videos": clips(2, 6), "inpaint_masks": MASK},
        "inpaint_images must have as many frames as are made, 4; got 6",
    ),
    "frames of a start": (
        {"video_frames": 4, "init_images": (clips(2, 4), clips(2, 2)), "strength": 0.5},
        "init_images must have as many frames as are made, 4; got 2",
    ),
    "masks": (
        {"inpaint_videos": clips(2, 4), "inpaint_masks": torch.ones(2, 3, 8, 8, dtype=torch.bool)},
        r"inpaint_masks must be \(b, h, w\) = \(2, 8, 8\) or \(b, f, h, w\) = \(2, 4, 8, 8\), got \(2, 3, 8, 8\)",
    ),
    "a known picture": (
        {"video_frames": 4, "inpaint_images": pictures(), "inpaint_masks": torch.ones(2, 8, 8, dtype=torch.bool)},
        r"inpaint_images must be \(batch, 3, frames, height, width\), got \(2, 3, 8, 8\)",
    ),
    "two names": (
        {"inpaint_images": clips(), "inpaint_videos": clips(), "inpaint_masks": torch.ones(2, 8, 8, dtype=torch.bool)},
        "two names of the same",
    ),
    "a given picture": (
        {"video_frames": 4, "cond_video_frames": pictures()},
        r"cond_video_frames must be \(batch, 3, frames",
    ),
    "given clips": (
        {"video_frames": 4, "batch_size": 3, "post_cond_video_frames": clips()},
        "3 clips need as many post_cond_video_frames, got 2",
    ),
    "times": (
        {"video_frames": 4, "cond_video_frames": clips(2, 2), "frame_times": torch.zeros(2, 4)},
        r"frame_times must be \(batch, 6\) seconds, one for each frame, given ones included; got \(2, 4\)",
    ),
    "times of clips": ({"video_frames": 4, "batch_size": 3, "frame_times": torch.zeros(2, 4)}, r"got \(2, 4\)"),
    "rates": (
        {"video_frames": 4, "batch_size": 3, "fps": [8, 8]},
        "fps must be positive, one number or one for each of the 3",
    ),
    "no rate": ({"video_frames": 4, "fps": 0}, "fps must be above 0 .*got 0"),
    "frames to start from": (
        {"video_frames": 4, "start_at_unet_number": 2, "start_image_or_video": clips(1, 3)},
        "start_image_or_video must have 2 frames, as U-Net 1 makes, or all 4; got 3",
    ),
    "a picture to start from": (
        {"video_frames": 4, "start_at_unet_number": 2, "start_image_or_video": pictures(1)},
        r"start_image_or_video must be \(batch, 3, frames, height, width\)",
    ),
}


@functools.cache
def slow_first():
    return video_cascade(stages=2, unet_options=BARE, temporal_downsample_factor=(2, 1), **SILENT)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_mistakes_get_a_sentence(name):
    call, message = SAMPLING[name]
    with pytest.raises(ValueError, match=message):
        sample(slow_first(), **call)


TRAINING = {
    "rank": (torch.rand(2, 3, 8), {}, r"images must be \(batch, 3, frames, height, width\), got \(2, 3, 8\)"),
    "channels": (clips(channels=1), {}, "the model has 3 channels, the images have 1"),
    "size": (clips(size=6), {}, "U-Net 2 trains on images of 8x8, the images are smaller: 6x6"),
    "shape": (clips(size=(8, 12)), {}, "images of 8x12 have other proportions"),
    "range": (clips() * 255, {}, "divide by 255 or pass uint8"),
    "given beside pictures": (
        pictures(),
        {"cond_video_frames": clips()},
        "one frame in which nothing moves: they take no cond_video_frames",
    ),
    "given clips": (clips(), {"cond_video_frames": clips(1)}, "2 clips need as many cond_video_frames, got 1"),
    "times": (clips(), {"frame_times": torch.zeros(1, 3)}, r"frame_times must be \(batch, 4\) seconds"),
    "times of clips": (clips(), {"frame_times": torch.zeros(3, 4)}, r"frame_times must be .*got \(3, 4\)"),
    "rates": (clips(), {"fps": [8, 8, 8]}, "fps must be positive, one number or one for each of the 2 clips"),
    "noise": (
        clips(),
        {"noise": torch.zeros(2, 3, 8, 8)},
        r"noise must be like the training images \(2, 3, 4, 8, 8\)",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_mistakes_get_a_sentence(name):
    images, given, message = TRAINING[name]
    with pytest.raises(ValueError, match=message):
        slow_first()(images, unet_number=2, **given)


def test_whole_numbers_that_are_no_uint8_are_refused():
    with pytest.raises(TypeError, match="cond_video_frames must be floating point.*or uint8"):
        slow_first()(clips(), unet_number=1, cond_video_frames=clips().int())


VIDEO_ONLY = {
    "cond_video_frames": clips(),
    "post_cond_video_frames": clips(),
    "frame_times": torch.zeros(1, 4),
    "fps": 8,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*VIDEO_ONLY, "video_frames", "inpaint_videos", "ignore_time"])
def test_models_of_pictures_refuse_what_is_about_frames(kind, name):
    model = cascade(kind, unet_options=BARE, **SILENT)
    message = f"this is an image model: it takes no {name}"
    if name not in ("video_frames", "inpaint_videos"):
        with pytest.raises(ValueError, match=message):
            model(pictures(), **{name: VIDEO_ONLY.get(name, True)})
    if name != "ignore_time":
        value = VIDEO_ONLY.get(name, 4 if name == "video_frames" else pictures())
        with pytest.raises(ValueError, match=message):
            sample(model, **{name: value}, **({"inpaint_masks": MASK} if name == "inpaint_videos" else {}))
    with pytest.raises(ValueError, match=r"images must be \(batch, 3, height, width\), got \(2, 3, 4, 8, 8\)"):
        model(clips())
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        model(pictures(), frames=4)
