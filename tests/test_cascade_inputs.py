"""Images, clips and masks that a caller hands in: each is checked alike, before any work is done."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from cascade_toys import KINDS, cascade, clips, pictures, sample, text, video_cascade
from PIL import Image

from imagen_pytorch import ImagenTrainer
from imagen_pytorch.imagen import Imagen


def image_model(**options):
    return cascade(stages=2, unet_options={"cond_images_channels": 3}, condition_on_text=False, **options)


def video_model(**options):
    return video_cascade(condition_on_text=False, **options)


def plain(model, **options):
    return sample(model, steps=1, batch_size=2, cond_images=pictures(), **options)


MASK = torch.ones(2, 8, 8, dtype=torch.bool)
MASK[:, :, 4:] = False

#: every argument that holds images: how it is handed in, an image that fits, and whether this is sampling
IMAGES = {
    "images": (lambda m, x: m(x, unet_number=1, cond_images=pictures()), pictures(2, 16), False),
    "cond_images in training": (lambda m, x: m(pictures(2, 16), unet_number=1, cond_images=x), pictures(), False),
    "cond_images": (lambda m, x: sample(m, steps=1, batch_size=2, cond_images=x), pictures(), True),
    "init_images": (lambda m, x: plain(m, init_images=x, strength=1.0), pictures(), True),
    "inpaint_images": (
        lambda m, x: plain(m, inpaint_images=x, inpaint_masks=MASK, inpaint_resample_times=1),
        pictures(),
        True,
    ),
    "start_image_or_video": (
        lambda m, x: plain(m, start_image_or_video=x, start_at_unet_number=2),
        pictures(),
        True,
    ),
}
CLIPS = {
    "images": (lambda m, x: m(x), clips(), False),
    "cond_video_frames in training": (lambda m, x: m(clips(), cond_video_frames=x), clips(2, 2), False),
    "post_cond_video_frames in training": (lambda m, x: m(clips(), post_cond_video_frames=x), clips(2, 2), False),
    "cond_video_frames": (lambda m, x: sample(m, video_frames=2, cond_video_frames=x), clips(2, 2), True),
    "post_cond_video_frames": (lambda m, x: sample(m, video_frames=2, post_cond_video_frames=x), clips(2, 2), True),
    "init_images": (lambda m, x: sample(m, init_images=x, strength=1.0), clips(), True),
    "inpaint_videos": (
        lambda m, x: sample(m, inpaint_videos=x, inpaint_masks=MASK[:, :4, 2:6], inpaint_resample_times=1),
        clips(2, 4, 4),
        True,
    ),
}
CASES = [(image_model, name, *row) for name, row in IMAGES.items()]
CASES += [(video_model, name, *row) for name, row in CLIPS.items()]
every_image = pytest.mark.parametrize(
    ("make", "name", "call", "good", "sampling"), CASES, ids=[f"{make.__name__}-{name}" for make, name, *_ in CASES]
)


def spoiled(x, value):
    """One value changed, in a pixel that counts everywhere."""
    x = x.clone()
    x[..., 0, 0] = value
    return x


@every_image
def test_every_image_is_checked_where_it_is_handed_in(make, name, call, good, sampling):
    model = make()
    name = name.removesuffix(" in training")
    shown = "inpaint_videos" if name == "inpaint_videos" else name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = call(model, good)
    assert torch.isfinite(expected).all()

    for wrong in (good * 255, good.double() * -255):
        with pytest.raises(ValueError, match=rf"{shown} must lie in \[0, 1\], got .*divide by 255 or pass uint8"):
            call(model, wrong)
    for wrong in (spoiled(good, -0.5), spoiled(good, 1.5)):
        with pytest.warns(UserWarning, match=rf"{shown} should lie in \[0, 1\]"):
            call(model, wrong)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        if sampling:
            with pytest.raises(ValueError, match=f"{shown} hold values that are not finite"):
                call(model, spoiled(good, wrong))
        else:  # the trainer sees it in the loss, counts and skips it
            assert not torch.isfinite(call(model, spoiled(good, wrong)))
    with pytest.raises(ValueError, match=f"{shown} must be .*channels"):
        call(model, torch.cat([good, good[:, :1]], dim=1))
    for wrong in (good[0], good[0, 0, 0], good[None]):
        with pytest.raises(ValueError, match=rf"{shown} must be \(batch"):
            call(model, wrong)
    with pytest.raises(ValueError, match=f"{shown} must be .*last axis"):
        call(model, good.movedim(1, -1).contiguous())
    with pytest.raises(ValueError, match=f"must hold at least one image|need as many {shown}"):
        call(model, good[:0])
    for wrong in ((good * 255).long(), good > 0.5):
        with pytest.raises(TypeError, match=f"{shown} must be floating point in .* or uint8"):
            call(model, wrong)
    for wrong in (Image.new("RGB", (8, 8)), "a.png", [0.5], 3):
        if name != "init_images" or not isinstance(wrong, list):  # a list is one entry per U-Net
            with pytest.raises(TypeError, match=f"{shown} must be a tensor or a NumPy array"):
                call(model, wrong)


@every_image
def test_arrays_and_uint8_are_taken_as_the_same_images(make, name, call, good, sampling):
    model = make().eval()
    whole = (good * 255).round().to(torch.uint8)

    def made(given):
        torch.manual_seed(0)
        return call(model, given)

    expected = made(whole.float() / 255)
    torch.testing.assert_close(made(whole), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(whole.numpy()), expected, rtol=0, atol=1e-6)
    backwards = np.ascontiguousarray(whole.numpy()[..., ::-1])[..., ::-1]
    torch.testing.assert_close(made(backwards), expected, rtol=0, atol=1e-6)
    double = (whole.numpy() / 255).astype(">f8")
    double.flags.writeable = False
    torch.testing.assert_close(made(double), expected, rtol=0, atol=1e-5)


def test_models_on_minus_one_to_one_give_other_advice():
    model = cascade(condition_on_text=False, auto_normalize_img=False)
    with pytest.raises(ValueError, match=r"images must lie in \[-1, 1\], got .*auto_normalize_img=False.*latents"):
        model(pictures() * 40 - 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(pictures() * 2 - 1)


def test_a_warning_about_the_range_does_not_repeat():
    model = cascade(condition_on_text=False)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for seed in range(3):
            model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))
    assert len([item for item in shown if "should lie in" in str(item.message)]) == 1


def test_known_pixels_outside_of_the_range_are_clipped_and_unknown_ones_may_be_anything():
    model = cascade(condition_on_text=False)
    image = spoiled(pictures(), 1.2)
    image[:, :, :, 4:] = float("nan")
    with pytest.warns(UserWarning, match="inpaint_images should lie in"):
        made = sample(model, inpaint_images=image, inpaint_masks=MASK, inpaint_resample_times=1)
    assert torch.equal(made[:, :, :, :4], image[:, :, :, :4].clamp(0, 1))
    assert torch.isfinite(made).all()


# -- masks ------------------------------------------------------------------------------------------------------------


def kept(mask, frames=False):
    """Where the model keeps black pixels."""
    if frames:
        made = sample(video_model(), inpaint_videos=clips(1, 4, 4) * 0, inpaint_masks=mask, inpaint_resample_times=1)
    else:
        model = cascade(condition_on_text=False)
        made = sample(model, inpaint_images=torch.zeros(1, 3, 8, 8), inpaint_masks=mask, inpaint_resample_times=1)
    return (made == 0).all(1)[0]


@pytest.mark.parametrize("frames", [False, True])
def test_masks_of_numbers_are_cut_in_the_middle(frames):
    shape = (1, 4, 4, 4) if frames else (1, 8, 8)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    keep = noise > 0.5
    jpeg = torch.where(keep, 255 - (noise * 3).int(), (noise * 3).int()).to(torch.uint8)
    blurred = torch.where(keep, 0.5 + noise / 2, noise / 2.1)
    expected = kept(keep, frames)
    assert torch.equal(expected, keep[0])
    for mask in (jpeg, jpeg.int(), jpeg.numpy(), keep.to(torch.uint8), keep.long(), keep.float(), blurred):
        assert torch.equal(kept(mask, frames), expected)


@pytest.mark.parametrize(
    "mask",
    [
        torch.full((1, 8, 8), 255.0),
        torch.full((1, 8, 8), -0.1),
        torch.full((1, 8, 8), float("nan")),
        torch.full((1, 8, 8), 256),
        torch.full((1, 8, 8), -1),
    ],
)
def test_masks_outside_of_their_range_are_refused(mask):
    with pytest.raises(ValueError, match="inpaint_masks must be booleans"):
        kept(mask)


def test_a_mask_of_pieces_means_the_same_as_that_of_the_whole():
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[0, :, :4], mask[1] = 255, torch.randint(0, 2, (8, 8))
    options = {"inpaint_images": torch.zeros(2, 3, 8, 8), "inpaint_masks": mask, "inpaint_resample_times": 1}
    model = cascade(condition_on_text=False)
    pieces = sample(model, max_batch_size=1, **options)
    torch.testing.assert_close(pieces, sample(model, **options), rtol=0, atol=1e-6)
    assert not (pieces[1] == 0).all(0).any(), "values of 0 and 1 beside 255 are an encoder's idea of black"


@pytest.mark.parametrize("sampling", [False, True])
def test_text_masks_are_0_and_1(sampling):
    model = cascade().eval()
    embeds, mask = text(2, 4), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)

    def made(given):
        torch.manual_seed(0)
        if sampling:
            return sample(model, text_embeds=embeds, text_masks=given)
        return model(pictures(), text_embeds=embeds, text_masks=given)

    expected = made(mask)
    assert not torch.equal(expected, made(~mask))
    for same in (mask.long(), mask.float(), mask.to(torch.uint8), mask.numpy()):
        assert torch.equal(made(same), expected)
    added = torch.zeros(2, 4).masked_fill(~mask, -float("inf"))
    for wrong in (added, added.clamp(min=-1e4), mask * 255, mask.float() / 2):
        with pytest.raises(ValueError, match=r"text_masks must be true \(1\) where a token counts.*pass mask == 0"):
            made(wrong)
    with pytest.raises(ValueError, match=r"text_masks must be \(2, 4\), got \(2, 3\)"):
        made(mask[:, :3])


def test_text_masks_without_embeddings_are_refused():
    model = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    with pytest.raises(ValueError, match="text_masks belong to text_embeds"):
        sample(model, texts=["a"], text_masks=torch.ones(1, 1))


def test_ignore_time_is_true_false_or_one_of_them_for_each_clip():
    model = video_model().eval()

    def made(given):
        torch.manual_seed(0)
        return model(clips(), ignore_time=given)

    each = made(torch.tensor([True, False]))
    for same in (torch.tensor([1, 0]), torch.tensor([1.0, 0.0]), np.array([True, False])):
        assert torch.equal(made(same), each)
    assert torch.equal(made(np.bool_(True)), made(True)) and torch.equal(made(None), made(False))
    with pytest.raises(ValueError, match="ignore_time must be booleans, or the numbers 0 and 1"):
        made(torch.tensor([-1.0, 0.3]))
    with pytest.raises(ValueError, match=r"ignore_time must be True, False or \(2,\) of them, got \(3,\)"):
        made(torch.tensor([True, False, True]))
    with pytest.raises(TypeError, match="ignore_time must be a tensor"):
        made("yes")


# -- captions and conditioning images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_in_the_second_place_are_the_caption(kind):
    model, embeds = cascade(kind).eval(), text()
    found = []
    for call in (lambda: model(pictures(), embeds), lambda: model(pictures(), text_embeds=embeds)):
        torch.manual_seed(0)
        found.append(call())
    assert torch.equal(*found)
    with pytest.raises(TypeError, match="given twice"):
        model(pictures(), embeds, text_embeds=embeds)


def test_a_trainer_takes_embeddings_in_the_second_place_and_arrays():
    trainer, again, third = (ImagenTrainer(cascade(), verbose=False, seed=0) for _ in range(3))
    expected = again(pictures(), text_embeds=text())
    assert trainer(pictures(), text()) == expected
    mask = np.ones((2, 3), dtype=bool)
    assert third(pictures().numpy(), text_embeds=text().numpy(), text_masks=mask) == expected
    for wrong in (Image.new("RGB", (8, 8)), [Image.new("RGB", (8, 8))], 3):
        with pytest.raises(TypeError, match="images must be a tensor or a NumPy array"):
            trainer(wrong, text())


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_images_may_be_absent_where_training_drops_some(kind):
    options = {"unet_options": {"cond_images_channels": 4}}
    model = cascade(kind, cond_images_drop_prob=0.5, **options)
    model.eval()
    absent = sample(model, text_embeds=text())
    given = sample(model, text_embeds=text(), cond_images=pictures(channels=4))
    assert torch.equal(sample(model, text_embeds=text(), cond_images=torch.zeros(2, 4, 8, 8)), absent)
    assert not torch.equal(given, absent)
    assert torch.isfinite(model(pictures(), text_embeds=text()))
    without = cascade(kind, **options)
    with pytest.raises(ValueError, match="needs cond_images.*cond_images_drop_prob above 0"):
        sample(without, text_embeds=text())
    with pytest.raises(ValueError, match="needs cond_images.*cond_images_drop_prob above 0"):
        without(pictures(), text_embeds=text())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused_before_sampling(wrong):
    embeds = text()
    embeds[0, 0, 0] = wrong
    with pytest.raises(ValueError, match="text_embeds hold values that are not finite"):
        sample(cascade(), text_embeds=embeds)


def test_captions_are_strings():
    model = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    for call in (lambda texts: sample(model, texts=texts), lambda texts: model(pictures(), texts=texts)):
        with pytest.raises(TypeError, match="texts must be a list of captions, got one string"):
            call("a cat")
        with pytest.raises(TypeError, match="texts must be a list of strings, got NoneType among them"):
            call(["a cat", None])
    with pytest.raises(ValueError, match="at least one caption"):
        sample(model, texts=[])


@pytest.mark.parametrize("kind", KINDS)
def test_two_numbers_for_one_network_are_ambiguous(kind):
    with pytest.raises(ValueError, match=r"two stages need two U-Nets.*height 8 and width 16 .*\(\(8, 16\),\)"):
        cascade(kind, image_sizes=(8,), condition_on_text=False).__class__(
            cascade(condition_on_text=False).unets[0], image_sizes=(8, 16), condition_on_text=False
        )
    recorded = cascade(kind, image_sizes=((8, 16),), condition_on_text=False).to_config()
    assert recorded["image_sizes"] == [[8, 16]]


def test_a_rectangle_that_earlier_versions_recorded_opens():
    from imagen_pytorch.imagen import imagen_from_config

    config_ = cascade(Imagen, image_sizes=((8, 16),), condition_on_text=False).to_config()
    again = imagen_from_config({**config_, "image_sizes": [8, 16]})
    assert again.image_sizes == ((8, 16),)
