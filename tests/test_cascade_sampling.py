"""Laws of sampling from a cascade: what is returned, what a picture may depend on, what a call costs and leaves."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from cascade_toys import KINDS, cascade, pictures, sample, standing_in, text, unchecked

from imagen_pytorch.cascade.module_state import alone_on_device, on_device
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.tensors import SeededGenerators


@pytest.fixture(autouse=True)
def as_users_call():
    """The sentences of the package, not those of the type checker; that one sees all of this in the feature matrix."""
    with unchecked():
        yield


def good(images, shape):
    """The shape that was promised, finite and in [0, 1]."""
    return tuple(images.shape) == shape and bool(((images >= 0) & (images <= 1)).all())


@functools.cache
def ready(kind=Imagen, stages=1, self_cond=False, **options):
    """A cascade that tests share and leave as it is."""
    return cascade(kind, stages, {"self_cond": self_cond}, **options)


# -- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_serves_every_model_with_any_number_of_steps(kind, name):
    model, seen = ready(kind, condition_on_text=False), []
    for steps in (1, 4):
        images = sample(model, batch_size=2, sampler=name, steps=steps, callback=lambda *args: seen.append(args[1:3]))
        assert good(images, (2, 3, 8, 8))
    assert seen == [(0, 1), *((step, 4) for step in range(4))]
    assert good(sample(model, sampler=SAMPLERS[name](), steps=2), (1, 3, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_is_guided_self_conditioned_and_paints_into_known_pixels(kind, name):
    model = ready(kind, self_cond=True)
    known, mask = pictures(), torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :4] = True
    inpaint = {"inpaint_images": known, "inpaint_masks": mask, "inpaint_resample_times": 2}
    images = sample(model, text_embeds=text(), cond_scale=3.0, sampler=name, steps=3, **inpaint)
    assert good(images, (2, 3, 8, 8))
    assert torch.equal(images[:, :, :4], known[:, :, :4])
    assert not torch.equal(images[:, :, 4:], known[:, :, 4:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cascade_returns_what_is_asked_for(kind):
    model = cascade(kind, stages=3)
    embeds = text()
    outputs = sample(model, text_embeds=embeds, cond_scale=2.0, return_all_unet_outputs=True)
    assert [tuple(item.shape) for item in outputs] == [(2, 3, side, side) for side in (8, 16, 32)]
    assert sample(model, text_embeds=embeds, stop_at_unet_number=2).shape == (2, 3, 16, 16)
    images = sample(model, text_embeds=embeds, return_pil_images=True)
    assert [image.size for image in images] == [(32, 32)] * 2
    nested = sample(model, text_embeds=embeds, return_pil_images=True, return_all_unet_outputs=True)
    assert [len(stage) for stage in nested] == [2, 2, 2]
    start = sample(model, text_embeds=embeds, start_at_unet_number=3, start_image_or_video=outputs[1])
    assert good(start, (2, 3, 32, 32))
    levels = (outputs[1] * 255).round().to(torch.uint8)
    one, other = (
        sample(model, text_embeds=embeds, start_at_unet_number=3, start_image_or_video=given)
        for given in (levels, levels / 255)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_any_height_and_width(kind):
    model = cascade(kind, condition_on_text=False, image_sizes=((8, 12), (16, 24)))
    assert sample(model).shape == (1, 3, 16, 24)
    assert sample(model, image_sizes=((7, 9), (15, 11))).shape == (1, 3, 15, 11)
    start = sample(model, image_sizes=(6, 10), start_at_unet_number=2, start_image_or_video=pictures(1, (12, 12)))
    assert start.shape == (1, 3, 10, 10)
    model(pictures(2, (16, 24)), unet_number=2).backward()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_numbers_of_channels(channels):
    model = cascade(stages=2, channels=channels, condition_on_text=False)
    model(pictures(2, 16, channels), unet_number=2).backward()
    assert sample(model).shape == (1, channels, 16, 16)
    assert sample(model, return_pil_images=True)[0].mode == {1: "L", 2: "LA", 4: "RGBA"}[channels]


def test_pictures_of_a_model_without_normalising_are_not_wrapped_around():
    model = cascade(auto_normalize_img=False, condition_on_text=False)
    tensor = sample(model)
    image = sample(model, return_pil_images=True)[0]
    assert -1 <= tensor.min() < 0 and tensor.max() <= 1
    expected = ((tensor[0] + 1) / 2 * 255).round().permute(1, 2, 0).byte()
    assert image.tobytes() == bytes(expected.flatten().tolist())


@pytest.mark.parametrize("normalizes", [True, False])
def test_given_pictures_may_be_uint8_in_either_range(normalizes):
    model = cascade(stages=2, auto_normalize_img=normalizes, condition_on_text=False)
    levels = (pictures(2, 16) * 255).to(torch.uint8)
    floats = levels / 255 if normalizes else levels / 127.5 - 1
    mask = torch.rand(2, 16, 16) < 0.5
    for name, more in (
        ("inpaint_images", {"inpaint_masks": mask, "inpaint_resample_times": 1}),
        ("init_images", {"strength": 0.5}),
        ("start_image_or_video", {"start_at_unet_number": 2}),
    ):
        one, other = (sample(model, batch_size=2, **{name: given}, **more) for given in (levels, floats))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_half_precision_weights_give_pictures():
    for dtype in (torch.bfloat16, torch.float64):
        model = cascade(ElucidatedImagen, stages=2, unet_options={"self_cond": True}).to(dtype)
        assert good(sample(model, text_embeds=text().to(dtype), cond_scale=2.0).float(), (2, 3, 16, 16))


# -- what a picture depends on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [*((Imagen, name) for name in SAMPLERS.names()), (ElucidatedImagen, "edm")])
def test_a_seeded_picture_is_the_same_bit_for_bit_in_any_batch(kind, name):
    """With a network that treats pictures one by one, nothing else in the cascade may tie them together."""
    model = cascade(kind, stages=2, unet_options={"self_cond": True})
    for number in (1, 2):
        standing_in(model, number, lambda x, time: torch.sin(3 * x) * torch.cos(time)[:, None, None, None])
    known, mask = pictures(4, 16), torch.rand(4, 16, 16) < 0.5

    def some(rows):
        given = {"text_embeds": text(4)[rows], "inpaint_images": known[rows], "inpaint_masks": mask[rows]}
        seeds = list(range(5, 9))[rows]
        return sample(model, seed=seeds, sampler=name, steps=2, cond_scale=3.0, inpaint_resample_times=2, **given)

    assert torch.equal(torch.cat([some(slice(0, 1)), some(slice(1, 4))]), some(slice(0, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seeded_picture_of_a_unet_does_not_depend_on_its_neighbours(kind):
    model = cascade(kind, stages=2)
    embeds = text(8)
    options = {"cond_scale": 3.0, "steps": 3}
    together = sample(model, text_embeds=embeds, seed=5, **options)
    halves = [sample(model, text_embeds=embeds[part], seed=5 + 4 * index, **options)
              for index, part in enumerate((slice(0, 4), slice(4, 8)))]  # fmt: skip
    torch.testing.assert_close(torch.cat(halves), together, atol=1e-4, rtol=0)
    listed = sample(model, text_embeds=embeds.flip(0), seed=list(range(12, 4, -1)), **options)
    torch.testing.assert_close(listed.flip(0), together, atol=1e-4, rtol=0)
    generators = [torch.Generator().manual_seed(5 + index) for index in range(8)]
    drawn = sample(model, text_embeds=embeds, seed=None, generator=generators, **options)
    assert torch.equal(drawn, together)


@pytest.mark.parametrize("pooled", [True, False])
def test_padding_and_longer_neighbours_do_not_change_a_picture(pooled):
    model = cascade(unet_options={"attn_pool_text": pooled, "attn_pool_num_latents": 4})
    short, long = text(1, 3), text(1, 9, seed=8)
    padded = torch.nn.functional.pad(short, (0, 0, 0, 6))
    junk = padded + (padded == 0) * 7.0
    mask = torch.arange(9) < 3
    alone = sample(model, text_embeds=short, cond_scale=2.0)
    for embeds, more in ((padded, {}), (junk, {"text_masks": mask[None]})):
        torch.testing.assert_close(sample(model, text_embeds=embeds, cond_scale=2.0, **more), alone, atol=1e-5, rtol=0)
    together = sample(model, text_embeds=torch.cat([padded, long]), cond_scale=2.0)
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


def test_the_seed_is_all_there_is_to_chance():
    model = cascade(unet_options={"dropout": 0.5}).train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = (sample(model, text_embeds=text()) for _ in range(2))
    assert torch.equal(one, other), "dropout was active or the seed was not everything"
    assert torch.equal(torch.get_rng_state(), before), "a seeded call must not use torch's own generator"
    assert not torch.equal(sample(model, text_embeds=text(), seed=1), one)


# -- what a call leaves behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_in_evaluation_mode_inside_and_as_they_were_after(kind):
    model = cascade(kind)
    model.train()
    model.unets[0].final_conv.eval()
    modes = [part.training for part in model.modules()]
    inside = []
    model.unets[0].register_forward_pre_hook(lambda *_: inside.extend(part.training for part in model.modules()))
    assert not sample(model, text_embeds=text()).requires_grad
    assert not any(inside) and [part.training for part in model.modules()] == modes

    def stop(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        sample(model, text_embeds=text(), callback=stop)
    assert [part.training for part in model.modules()] == modes


def test_nothing_is_moved_unless_asked(monkeypatch):
    model = cascade(stages=2)

    def moved(*_, **__):
        raise AssertionError("a network was moved")

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    assert sample(model, text_embeds=text(), device="cpu", use_one_unet_in_gpu=True).shape == (2, 3, 16, 16)


class Movable(torch.nn.Module):
    """Remembers where it was sent."""

    def __init__(self):
        super().__init__()
        self.trips = []

    def to(self, device):
        self.trips.append(str(device))
        return self


def test_networks_return_home_even_from_an_error():
    networks = torch.nn.ModuleList([Movable(), Movable()])
    with pytest.raises(RuntimeError, match="inside"), alone_on_device(networks, 1, torch.device("cuda")):
        assert [network.trips for network in networks] == [["cpu"], ["cuda"]]
        raise RuntimeError("inside")
    assert [network.trips[-1] for network in networks] == ["cpu", "cpu"]
    alone = Movable()
    with pytest.raises(RuntimeError, match="inside"), on_device(alone, torch.device("cuda")):
        raise RuntimeError("inside")
    assert alone.trips == ["cuda", "cpu"]


def test_callback_sees_every_step_and_can_end_a_stage():
    model, seen = cascade(stages=2, condition_on_text=False), []

    def callback(number, step, total, picture):
        seen.append((number, step, total, tuple(picture.shape), bool((picture >= 0).all() and (picture <= 1).all())))
        return step < 1

    sample(model, steps=5, sampler="ddim", callback=callback)
    assert seen == [(n, step, 5, (1, 3, 8 * n, 8 * n), True) for n in (1, 2) for step in (0, 1)]


# -- mistakes ---------------------------------------------------------------------------------------------------------

KNOWN = {"inpaint_images": pictures(), "inpaint_masks": torch.ones(2, 8, 8, dtype=torch.bool)}
MISTAKES = {
    "takes no video_frames": {"video_frames": 4},
    "needs start_image_or_video": {"start_at_unet_number": 2},
    "it needs start_at_unet_number above 1": {"start_image_or_video": pictures()},
    "2 images need as many start_image_or_video, got 3": {
        "start_at_unet_number": 2,
        "start_image_or_video": pictures(3),
    },
    "give both or neither": {"inpaint_images": pictures()},
    r"inpaint_masks must be \(b, h, w\) = \(2, 8, 8\), got \(2, 4, 4\)": {
        **KNOWN,
        "inpaint_masks": torch.ones(2, 4, 4, dtype=torch.bool),
    },
    "inpaint_resample_times must be at least 1": {**KNOWN, "inpaint_resample_times": 0},
    "2 images need as many init_images, got 1": {"init_images": pictures(1)},
    r"init_images must be \(batch, 3, height, width\)": {"init_images": pictures(2, 8, 1)},
    "skip_steps and strength need init_images": {"skip_steps": 1},
    "strength must lie between 0 and 1": {"init_images": pictures(), "strength": 1.5},
    "numbered 1 to 2": {"stop_at_unet_number": 3},
    'no sampler "eular"': {"sampler": "eular"},
    "steps must be at least 1, got 0": {"steps": 0},
    "steps needs one value, or one for each of the 2": {"steps": (1, 2, 3)},
    "cond_scale needs one value": {"cond_scale": (1.0, 2.0, 3.0)},
    'no guidance method "cgf"': {"guidance": "cgf"},
    "give no other guidance": {"guidance": "rescale", "cfg_remove_parallel_component": True},
    "they need a cond_scale": {"negative_texts": "a dog"},
    "seed or generator": {"seed": 1, "generator": torch.Generator()},
    "need one seed or 2 seeds": {"seed": [1, 2, 3]},
    "3 generators cannot serve a batch of 2": {"generator": [torch.Generator() for _ in range(3)]},
    "every U-Net was built without cond_images_channels": {"cond_images": pictures()},
    "2 U-Nets need as many image_sizes": {"image_sizes": (8,)},
    "lowres_sample_noise_level must lie between 0 and 1, got 2": {"lowres_sample_noise_level": 2.0},
    "sigma_min and sigma_max belong": {"sigma_max": 3.0},
    "conditioned on text": {"text_embeds": None},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_sampling_mistakes_get_a_sentence(message):
    with pytest.raises(ValueError, match=message):
        ready(stages=2).sample(**{"text_embeds": text(), "use_tqdm": False, **MISTAKES[message]})


@pytest.mark.parametrize("kind", KINDS)
def test_text_for_an_unconditional_model_is_refused(kind):
    model = ready(kind, condition_on_text=False)
    for given in ({"texts": ["a cat"]}, {"text_embeds": text()}):
        with pytest.raises(ValueError, match="is unconditional"):
            sample(model, **given)


def test_a_string_in_place_of_a_list_is_refused_and_a_tuple_is_not():
    model = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    with pytest.raises(TypeError, match="list of captions"):
        sample(model, texts="a cat")
    assert sample(model, texts=("a cat", "")).shape[0] == 2


def test_the_signature_is_visible_and_texts_come_first():
    for kind in (Imagen, ElucidatedImagen):
        names = list(inspect.signature(kind.sample).parameters)
        assert names[:4] == ["self", "texts", "text_masks", "text_embeds"]
        assert {"cond_scale", "seed", "inpaint_masks", "skip_steps", "sampler", "steps"} <= set(names)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_noise_that_a_thread_draws_ahead_changes_nothing(name, monkeypatch):
    """As where the network is on a GPU."""
    made, begun = ready(stages=2), []
    given = {"text_embeds": text(), "seed": 5, "sampler": name, "steps": 6, "inpaint_resample_times": 2,
             "inpaint_images": pictures(), "inpaint_masks": torch.arange(8).expand(2, 8, 8) < 4}  # fmt: skip
    plain = sample(made, **given)
    draw = SeededGenerators.draw

    def ahead(self, *request):
        found = draw(self, *request[:-1], True)
        begun.append(self._next is not None)
        return found

    monkeypatch.setattr(SeededGenerators, "draw", ahead)
    assert torch.equal(sample(made, **given), plain) and any(begun)
