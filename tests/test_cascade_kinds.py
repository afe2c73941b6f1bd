"""Arguments of another kind, and arguments that cannot do anything: each is named, before any work is done."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from cascade_toys import DIM, cascade, pictures, sample, text, unchecked, unet

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, NullUnet, Unet


def refused(match, call, *arguments, **options):
    with unchecked(), pytest.raises((TypeError, ValueError), match=match):
        call(*arguments, **options)


@pytest.mark.parametrize("number", ["1", 1.5, 0, 3, True, 10**30])
def test_a_number_of_a_unet_is_named(number):
    model = cascade(stages=2, condition_on_text=False)
    trainer = ImagenTrainer(model, verbose=False)
    for call in (model, model.training_batch, trainer):
        refused("unet_number", call, pictures(), unet_number=number)
    for call in (model.get_unet, trainer.validate_unet_number, trainer.get_lr, trainer.update):
        refused("unet_number", call, number)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["a", "b"], r"after the images come text_embeds or a network, got list; write texts=\[\.\.\.\]"),
        (2, "got int; write .*unet_number=.* for a number"),
        ("a", "got str; write texts"),
    ],
)
def test_what_stands_behind_the_images_is_embeddings_or_a_network(given, match):
    refused(match, cascade(), pictures(), given)


def test_captions_in_the_place_of_embeddings_are_told_where_they_belong():
    trainer = ImagenTrainer(cascade(), verbose=False)
    refused(r"text_embeds must be .*, got list; captions are texts=\[\.\.\.\]", trainer, pictures(), ["a", "b"])


@pytest.mark.parametrize("generator", [5, "a", [], [1, 2], (None, None)])
def test_a_source_of_noise_is_a_generator(generator):
    model = cascade(condition_on_text=False)
    for call in (model, model.training_batch, model.sample):
        options = {"batch_size": 2, "use_tqdm": False} if call == model.sample else {"images": pictures()}
        refused("generator must be a torch.Generator", call, generator=generator, **options)


@pytest.mark.parametrize("name", ["return_pil_images", "return_all_unet_outputs"])
@pytest.mark.parametrize("value", ["no", 2, [], torch.zeros(2)])
def test_a_switch_of_the_result_is_true_or_false(name, value):
    refused(f"{name} must be True or False", cascade(condition_on_text=False).sample, **{name: value})


@pytest.mark.parametrize("value", [[], {}, ["no"], 16])
def test_a_precision_is_a_name(value):
    refused("precision must be one of no, fp16, bf16", cascade(condition_on_text=False).sample, precision=value)


@pytest.mark.parametrize("name", ["cond_images", "init_images", "inpaint_images", "start_image_or_video"])
def test_an_image_without_axes_is_refused(name):
    model = cascade(stages=2, unet_options={"cond_images_channels": 3}, condition_on_text=False)
    more = {
        "inpaint_images": {"inpaint_masks": torch.ones(1, 8, 8)},
        "start_image_or_video": {"start_at_unet_number": 2},
    }
    refused(f"{name} must be", model.sample, **{name: torch.tensor(1.0)}, **more.get(name, {}))


@pytest.mark.parametrize("name", ["texts", "text_embeds", "text_masks"])
def test_a_model_without_text_takes_none(name):
    given = {"texts": ["a"], "text_embeds": text(1), "text_masks": torch.ones(1, 3)}
    refused(f"it takes no {name}", sample, cascade(condition_on_text=False), **{name: given[name]})


def test_guidance_without_anything_to_guide_on_is_said():
    model = cascade(condition_on_text=False)
    with pytest.warns(UserWarning, match="cond_scale has no effect here"):
        guided = sample(model, cond_scale=3.0, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(guided, sample(model, seed=1), rtol=0, atol=0)
        sample(model, cond_scale=1.0)
        sample(cascade(), text_embeds=text(1), cond_scale=3.0)
        steered = cascade(unet_options={"cond_images_channels": 3}, condition_on_text=False, cond_images_drop_prob=0.1)
        sample(steered, cond_images=pictures(1), cond_scale=3.0)


EDM = ("sigma_min", "sigma_max", "sigma_data", "rho", "P_mean", "P_std", "S_churn", "S_tmin", "S_tmax", "S_noise")


@pytest.mark.parametrize("name", EDM)
def test_a_number_that_has_no_default_is_not_left_out(name):
    refused(f"{name} must be a number, got None", cascade, ElucidatedImagen, condition_on_text=False, **{name: None})


def test_an_upsampler_has_a_level_of_noise():
    for levels in (None, (0.2, None)):
        refused(
            "lowres_sample_noise_level must be a number, got None", cascade, stages=2, lowres_sample_noise_level=levels
        )


@pytest.mark.parametrize("unets", [[], ()])
def test_a_cascade_has_a_unet(unets):
    refused("unets must hold at least one U-Net", Imagen, unets, image_sizes=8)


@pytest.mark.parametrize("given", [3, "model.pt", [], {}])
def test_a_trainer_is_given_a_model(given):
    refused("imagen must be an Imagen or ElucidatedImagen, got", ImagenTrainer, given)


def test_a_trainer_is_not_given_a_network():
    refused("got Unet", ImagenTrainer, unet())
    assert isinstance(unet(), Unet)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_decays_of_adam_may_be_whole_numbers(name):
    trainer = ImagenTrainer(cascade(condition_on_text=False), verbose=False, **{name: 0})
    trainer(pictures())
    assert trainer.update() and np.isfinite(trainer(pictures()))


@pytest.mark.parametrize("size", ["2", 1.5, 0, -1, [1], True])
def test_the_size_of_pieces_is_a_whole_number(size):
    model = cascade(condition_on_text=False)
    trainer = ImagenTrainer(model, verbose=False)
    refused("max_batch_size must be", trainer, pictures(), max_batch_size=size)
    refused("max_batch_size must be", model.sample, batch_size=3, max_batch_size=size)


def test_captions_of_numpy_are_cut_into_pieces_too():
    model, words = cascade(text_encoder=lambda captions: torch.ones(len(captions), 2, DIM)), np.array(["a", "b", "c"])
    whole = sample(model, texts=["a", "b", "c"], negative_texts=["d", "e", "f"], cond_scale=2.0)
    with unchecked():
        pieces = sample(model, texts=words, negative_texts=np.array(["d", "e", "f"]), cond_scale=2.0, max_batch_size=2)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", ["cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_named(device):
    refused(f'this machine has no device "{device}"', cascade(condition_on_text=False).sample, device=device)


def test_a_placeholder_at_the_end_is_not_sampled_behind():
    model = Imagen((unet(cond_on_text=False), NullUnet()), image_sizes=(4, 8), condition_on_text=False, timesteps=2)
    refused(r"U-Net 2 is a NullUnet: stop sampling before it \(stop_at_unet_number\)", sample, model)
    model = Imagen((NullUnet(), unet(cond_on_text=False)), image_sizes=(4, 8), condition_on_text=False, timesteps=2)
    refused(r"U-Net 1 is a NullUnet: start sampling after it \(start_at_unet_number\)", sample, model)


@pytest.mark.parametrize(
    ("data", "options", "match"),
    [
        ("pics", {}, "a data set has a length and items, got str; imagen_pytorch.data.Dataset reads a folder"),
        (5, {}, "a data set has a length and items, got int"),
        (None, {"batch_size": "4"}, "batch_size must be a whole number, got '4'"),
        (None, {"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        (None, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (None, {"num_workers": "2"}, "num_workers must be a whole number, got '2'"),
        (None, {"num_workers": -1}, "num_workers must be at least 0, got -1"),
        (None, {"shuffle": "no"}, "shuffle must be True or False, got 'no'"),
        (None, {"drop_last": "x"}, "drop_last must be True or False, got 'x'"),
    ],
)
def test_data_and_their_options_are_checked_when_they_are_added(data, options, match):
    trainer = ImagenTrainer(cascade(condition_on_text=False), verbose=False)
    for add in (trainer.add_train_dataset, trainer.add_valid_dataset):
        refused(match, add, list(pictures()) if data is None else data, **options)


@pytest.mark.parametrize("end", [[], (), [1], (None,), "x", 2.5, True])
def test_the_end_of_a_decay_is_one_number(end):
    trainer = ImagenTrainer(cascade(condition_on_text=False), verbose=False)
    refused("cosine_decay_max_steps must be", trainer.set_decay, 1, end)
    assert trainer.decay_steps(1) is None
