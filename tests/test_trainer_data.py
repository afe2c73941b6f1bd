"""Data for the trainer, validation, and sampling from a model in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import CAPTIONS, WORDS, pictures, small_imagen, small_unet

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer
from imagen_pytorch.cascade.batching import in_batches
from imagen_pytorch.data import Dataset
from imagen_pytorch.images import resize, to_pil
from imagen_pytorch.training.batches import named_batch
from imagen_pytorch.training.loaders import BatchStream, make_loader
from imagen_pytorch.training.optim import rate_factor


def trainer(sizes=(8,), kind=Imagen, model=None, **options):
    imagen = small_imagen(sizes, kind, **(model or {}))
    return ImagenTrainer(imagen, **{"lr": 1e-2, "verbose": False, "seed": 5, **options})


def pairs(count=8, size=8):
    return [(picture, CAPTIONS[index % 4]) for index, picture in enumerate(pictures(count, size))]


# -- loaders ----------------------------------------------------------------------------------------------------------


EMBEDS = torch.ones(8, 3, 16)
BATCHES = {
    "pictures and captions": pairs(),
    "captions first": [{"texts": text, "images": picture} for picture, text in pairs()],
    "embeddings": list(zip(pictures(8), EMBEDS, strict=True)),
    "arrays": [(picture.numpy(), np.ones((3, 16), dtype=np.float32)) for picture in pictures(8)],
    "masks": list(zip(pictures(8), EMBEDS, torch.ones(8, 3, dtype=torch.bool), strict=True)),
    "uint8": [((picture * 255).to(torch.uint8), text) for picture, text in pairs()],
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_of_any_shape_train(name):
    made = trainer()
    made.add_train_dataset(BATCHES[name], batch_size=4)
    assert np.isfinite(made.train_step(1)) and np.isfinite(made.train_step(unet_number=1, max_batch_size=2))
    assert made.steps.tolist() == [2]


def test_images_as_uint8_train_bit_for_bit_as_floats(tmp_path):
    """Flips and captions are drawn alike."""
    for number, picture in enumerate(pictures(6)):
        to_pil(picture[None])[0].save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(CAPTIONS[number % 4])
    weights = []
    for as_uint8 in (False, True):
        data = Dataset(tmp_path, 8, random_flip=True)
        data.as_uint8 = as_uint8
        assert data[0][0].dtype == (torch.uint8 if as_uint8 else torch.float32)
        torch.manual_seed(1)
        made = trainer()
        made.add_train_dataset(data, batch_size=4, shuffle=True)
        for _ in range(2):
            made.train_step()
        weights.append([item.clone() for item in made.imagen.parameters()])
    assert all(map(torch.equal, *weights))


def test_pictures_alone_train_an_unconditional_model():
    made = trainer(model={"condition_on_text": False})
    made.add_train_dataloader(torch.utils.data.DataLoader(pictures(8), batch_size=4))
    assert np.isfinite(made.train_step())


def test_a_loader_of_your_own_names():
    made = trainer(dl_tuple_output_keywords_names=("text_embeds", "images"))
    made.add_train_dataset(list(zip(EMBEDS, pictures(8), strict=True)), batch_size=4)
    assert np.isfinite(made.train_step())


def test_batches_that_cannot_be_named():
    names = ("images", "text_embeds")
    with pytest.raises(ValueError, match="yields 3 values, but only 2 names are known: images, text_embeds"):
        named_batch((1, 2, 3), names)
    with pytest.raises(TypeError, match="a loader yields tensors, tuples or dicts, got int"):
        named_batch(7, names)


def test_data_are_added_once_and_in_time():
    made = trainer()
    made.add_train_dataset(None)
    with pytest.raises(ValueError, match="^no train data: call add_train_dataset"):
        made.train_step()
    with pytest.raises(ValueError, match="^no valid data: .* or set split_valid_from_train=True"):
        made.valid_step()
    made.add_train_dataset(pairs(), batch_size=4)
    with pytest.raises(ValueError, match="has its train data already"):
        made.add_train_dataset(pairs(), batch_size=4)
    made.train_step()
    with pytest.raises(ValueError, match="the valid data must be added before the first step"):
        made.add_valid_dataset(pairs(), batch_size=4)


def test_an_epoch_has_every_item_once_and_another_order_each_time():
    stream = BatchStream(make_loader(list(range(10)), 3, seed=1, shuffle=True), seed=1)
    epochs = [torch.cat([next(stream) for _ in range(4)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("position", [0, 1, 3, 4, 6])
def test_a_stream_goes_on_where_its_state_was_taken(position):
    def new(seed):
        return BatchStream(make_loader(list(range(10)), 3, seed=seed, shuffle=True), seed=seed)

    stream, other = new(1), new(2)
    for _ in range(position):
        next(stream)
    other.load_state_dict(stream.state_dict())
    assert [next(stream).tolist() for _ in range(7)] == [next(other).tolist() for _ in range(7)]


def test_a_stream_without_batches_says_so():
    with pytest.raises(ValueError, match="the loader yields no batch"):
        next(BatchStream([], seed=0))


def test_fewer_data_than_a_batch_are_a_batch():
    stream = BatchStream(make_loader(list(range(3)), 8, seed=0, drop_last=True), seed=0)
    assert next(stream).tolist() == [0, 1, 2]


def test_fewer_data_than_when_the_state_was_taken_begin_the_next_epoch():
    stream = BatchStream(make_loader(list(range(3)), 1, seed=0), seed=0)
    stream.load_state_dict({"seed": 0, "epoch": 0, "position": 7, "orders": []})
    assert next(stream).tolist() == [0] and stream.epoch == 1


# -- validation -------------------------------------------------------------------------------------------------------


def test_a_part_is_set_aside_and_never_trained_on():
    made = trainer(split_valid_from_train=True, split_valid_fraction=0.3)
    items = pairs(10)
    made.add_train_dataset(items, batch_size=2, shuffle=True)
    parts = [set(loader.dataset.dataset.indices) for loader in (made.train_dl, made.valid_dl)]
    assert [len(part) for part in parts] == [7, 3] and not parts[0] & parts[1]
    again = trainer(split_valid_from_train=True, split_valid_fraction=0.3, seed=99)
    again.add_train_dataset(items, batch_size=2, shuffle=True)
    assert set(again.valid_dl.dataset.dataset.indices) == parts[1]
    assert isinstance(made.valid_dl.sampler, torch.utils.data.SequentialSampler)
    with pytest.raises(ValueError, match="leaves 0 to train on and 10 to validate with"):
        trainer(split_valid_from_train=True, split_valid_fraction=1.0).add_train_dataset(items, batch_size=2)


@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
def test_validation_is_the_same_each_time_and_changes_nothing(kind):
    made = trainer(kind=kind, model={"unet": {"dropout": 0.5}, "cond_drop_prob": 0.9})
    made.add_train_dataset(pairs(), batch_size=4)
    made.add_valid_dataset(pairs(4), batch_size=4)
    made.train_step()
    before = [item.clone() for item in made.parameters()]
    random_state = torch.get_rng_state()
    one, two = made.valid_step(unet_number=1), made.valid_step(unet_number=1, max_batch_size=3)
    assert one == pytest.approx(two, rel=1e-5)
    assert all(torch.equal(item, old) for item, old in zip(made.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state) and made.training and made.imagen.training
    assert made.steps.tolist() == [1]


def test_validation_never_drops_a_caption(monkeypatch):
    made = trainer(model={"cond_drop_prob": 1.0})
    made.add_valid_dataset(pairs(4), batch_size=4)
    kept = []
    build = made.imagen.training_batch
    monkeypatch.setattr(made.imagen, "training_batch", lambda **data: kept.append(build(**data)) or kept[-1])
    made.valid_step()
    assert bool(kept[0].text_keep.all())


def test_averages_are_validated_if_asked():
    made = trainer()
    made.add_valid_dataset(pairs(4), batch_size=4)
    for item in made.ema_unets.parameters():
        item.data.fill_(float("nan"))
    assert np.isnan(made.valid_step(use_ema_unets=True)) and np.isfinite(made.valid_step())


# -- sampling ---------------------------------------------------------------------------------------------------------

SEEN = {"use_tqdm": False, "seed": 3}


def trained(**options):
    made = trainer((8, 16), **options)
    for unet in made.imagen.unets:
        torch.nn.init.normal_(unet.final_conv.weight, std=0.2)
    for average in made.ema_unets or ():
        average.copy_params_from_model_to_ema()
    return made


def test_pieces_are_the_whole():
    made = trained()
    scales = (2.0, 1.0)
    whole = made.sample(texts=CAPTIONS, cond_scale=scales, **SEEN)
    for size in (1, 3, 4, 9):
        pieces = made.sample(texts=CAPTIONS, cond_scale=scales, max_batch_size=size, **SEEN)
        # the kernels of odd batches round differently in the last bit
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    stages = made.sample(texts=CAPTIONS, max_batch_size=3, return_all_unet_outputs=True, **SEEN)
    assert [tuple(stage.shape) for stage in stages] == [(4, 3, 8, 8), (4, 3, 16, 16)]
    drawn = made.sample(texts=CAPTIONS, max_batch_size=3, return_pil_images=True, **SEEN)
    assert [picture.size for picture in drawn] == [(16, 16)] * 4


def test_pieces_without_texts():
    made = trained(model={"condition_on_text": False})
    assert made.sample(batch_size=5, max_batch_size=2, **SEEN).shape == (5, 3, 16, 16)
    assert made.sample(max_batch_size=2, **SEEN).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        made.sample(batch_size=5, max_batch_size=0, **SEEN)


def test_arguments_per_unet_are_not_cut_like_a_batch():
    seen = []

    def sample(**arguments):
        seen.append(arguments)
        return torch.zeros(arguments["batch_size"], 1)

    init = (torch.arange(4.0), None)
    arguments = {"texts": CAPTIONS, "cond_scale": (2.0, 1.0), "init_images": init, "seed": 10}
    in_batches(sample, arguments, 3)
    assert [item["cond_scale"] for item in seen] == [(2.0, 1.0)] * 2
    assert [item["seed"] for item in seen] == [[10, 11, 12], [13]]
    assert [item["init_images"][0].tolist() for item in seen] == [[0, 1, 2], [3]] and seen[0]["init_images"][1] is None


def test_averages_are_sampled_and_the_models_own_networks_come_back():
    made = trained()
    own = list(made.imagen.unets)
    for average in made.ema_unets:
        for item in average.ema_model.parameters():
            item.data.zero_()
    averaged = made.sample(texts=CAPTIONS, **SEEN)
    assert not torch.equal(averaged, made.sample(texts=CAPTIONS, use_non_ema=True, **SEEN))
    with pytest.raises(ValueError, match="no sampler"):
        made.sample(texts=CAPTIONS, sampler="nonsense", **SEEN)
    assert all(one is other for one, other in zip(made.imagen.unets, own, strict=True))


def test_upsamplers_that_are_untrained_are_passed_over_and_named():
    made = trainer((4, 8, 16))
    made(pictures(size=16), texts=CAPTIONS, unet_number=1)
    made.update(1)
    with pytest.warns(UserWarning, match="U-Net 2 and U-Net 3 have not been trained yet: images are enlarged without"):
        every = made.sample(texts=CAPTIONS, return_all_unet_outputs=True, **SEEN)
    assert [tuple(item.shape) for item in every] == [(4, 3, size, size) for size in (4, 8, 16)]
    alone = made.sample(texts=CAPTIONS, stop_at_unet_number=1, **SEEN)
    assert torch.equal(every[0], alone)
    for before, after, size in zip(every, every[1:], (8, 16), strict=False):
        assert torch.equal(after, resize(before, size))
    with pytest.warns(UserWarning, match="U-Net 2 and U-Net 3 have not been trained"):
        assert [item.size for item in made.sample(texts=CAPTIONS, return_pil_images=True, **SEEN)] == [(16, 16)] * 4
    with pytest.warns(UserWarning, match="U-Net 2 has not been trained yet: its images are noise"):
        assert made.sample(texts=CAPTIONS, stop_at_unet_number=2, **SEEN).shape == (4, 3, 8, 8)
    made(pictures(size=16), texts=CAPTIONS, unet_number=3)
    made.update(3)
    with pytest.warns(UserWarning, match="U-Net 2 has not been trained yet: images are enlarged without it"):
        every = made.sample(texts=CAPTIONS, return_all_unet_outputs=True, **SEEN)
    assert torch.equal(every[1], resize(every[0], 8)) and every[2].shape == (4, 3, 16, 16)
    assert not torch.equal(every[2], resize(every[1], 16))


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="tiem_steps"):
        trained().sample(texts=CAPTIONS, tiem_steps=3)


def test_rates_by_formula():
    assert [rate_factor(step, 4) for step in (0, 3, 4, 100)] == [0.25, 1, 1, 1]
    assert rate_factor(50, None, 100) == pytest.approx(0.5) and rate_factor(1000, 4, 100) == 0
    assert [rate_factor(step) for step in (0, 7)] == [1, 1]


def test_the_readme_way_of_the_first_versions():
    """A trainer made of two U-Nets, trained one after the other and sampled in pieces."""
    unets = (small_unet(), small_unet(memory_efficient=True))
    imagen = Imagen(unets, text_encoder_name=WORDS, image_sizes=(8, 16), timesteps=2, cond_drop_prob=0.1)
    made = ImagenTrainer(imagen, verbose=False)
    for number in (1, 2):
        loss = made(pictures(6, 16), text_embeds=torch.randn(6, 5, 16), unet_number=number, max_batch_size=4)
        made.update(unet_number=number)
        assert isinstance(loss, float)
    drawn = made.sample(texts=["a puppy", "a squirrel"], cond_scale=3.0, use_tqdm=False)
    assert drawn.shape == (2, 3, 16, 16) and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
