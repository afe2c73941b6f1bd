"""Laws of the training side of a cascade, with stub networks whose every input is seen."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import KINDS, Net, cascade, changed, pictures, stir, text, unchecked, unet

from imagen_pytorch.cascade import training_inputs
from imagen_pytorch.cascade.lowres import Augmentation, Residual
from imagen_pytorch.diffusion.guidance import dynamic_threshold
from imagen_pytorch.diffusion.schedules import SCHEDULES
from imagen_pytorch.imagen import ElucidatedImagen, Imagen
from imagen_pytorch.nn.presets import NullUnet


@pytest.fixture(autouse=True)
def as_users_call():
    """The sentences of the package, not those of the type checker; that one sees all of this in the feature matrix."""
    with unchecked():
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_loss_is_a_positive_scalar_with_gradients_for_every_weight(kind, number):
    model = cascade(kind, stages=2, cond_drop_prob=0.5)
    batch = model.training_batch(pictures(4, 16), text_embeds=text(4), unet_number=number)
    loss = model.loss(changed(batch, text_keep=torch.tensor([True, False] * 2)))
    loss.backward()
    assert loss.ndim == 0 and loss.item() > 0
    silent = [name for name, part in model.unets[number - 1].named_parameters() if part.grad is None]
    assert silent == []
    others = [part for part in model.unets[2 - number].parameters() if part.grad is not None]
    assert others == []


@pytest.mark.parametrize("kind", KINDS)
def test_mean_gradient_over_pieces_is_the_gradient_of_the_whole(kind):
    model = cascade(kind, stages=2, lowres_residual=(None, 0.3), unet_options={"self_cond": True}).double()
    batch = model.training_batch(pictures(5, 16).double(), text_embeds=text(5).double(), unet_number=2)
    batch = changed(batch, self_condition=True)
    model.loss(batch).backward()
    whole = [part.grad.clone() for part in model.unets[1].parameters()]
    model.zero_grad()
    for piece in batch.split(2):
        (model.loss(piece) * len(piece) / len(batch)).backward()
    for one, part in zip(whole, model.unets[1].parameters(), strict=True):
        torch.testing.assert_close(one, part.grad, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="at least 1"):
        batch.split(0)


def test_one_generator_per_picture_makes_its_draws_independent_of_its_neighbours():
    model = cascade(
        stages=2,
        random_crop_sizes=(None, 8),
        per_sample_random_aug_noise_level=True,
        unet_options={"cond_images_channels": 3},
        cond_images_drop_prob=0.5,
    )
    images, conds, embeds = pictures(4, 16), pictures(4, 16, seed=3), text(4)

    def batch_of(rows):
        generators = [torch.Generator().manual_seed(index) for index in range(4)[rows]]
        given = {"text_embeds": embeds[rows], "cond_images": conds[rows], "generator": generators}
        return model.training_batch(images[rows], unet_number=2, **given)

    whole, part = batch_of(slice(0, 4)), batch_of(slice(2, 4))
    for name in ("x0", "t", "noise", "text_keep", "cond_images_keep", "lowres_cond_img", "lowres_noise_times"):
        assert torch.equal(getattr(whole, name)[2:], getattr(part, name)), name


def test_the_same_generator_gives_the_same_loss_and_noise_can_be_fixed():
    model = cascade()
    losses = [model(pictures(), text_embeds=text(), generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*losses)
    noise = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.training_batch(pictures(), text_embeds=text(), noise=noise).noise, noise)
    with pytest.raises(ValueError, match="noise must be like"):
        model.training_batch(pictures(), text_embeds=text(), noise=noise[:, :1])


OBJECTIVES = [(Imagen, {"pred_objectives": name}) for name in ("noise", "x_start", "v")] + [(ElucidatedImagen, {})]


@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_the_loss_target_is_made_of_the_picture_whether_self_conditioned_or_not(kind, options):
    """A network that answers the published target has no loss; it may not depend on the network's own estimate."""
    model = cascade(kind, unet_options={"self_cond": True}, condition_on_text=False, **options)
    images = pictures()
    batch = model.training_batch(images)
    assert torch.equal(batch.x0, images * 2 - 1)
    process = model.stages[0].process
    level = process.level(batch.t, batch.x0)
    alpha, sigma, x0, noise = level.alpha.float(), level.sigma.float(), batch.x0, batch.noise
    total = (sigma**2 + 0.25 * alpha**2).sqrt()
    edm = (2 * sigma * x0 - noise / 2) / total
    targets = {"noise": noise, "x_start": x0, "v": alpha * noise - sigma * x0, None: edm}
    net = Net(lambda x, time: targets[options.get("pred_objectives")])
    for forced in (False, True):
        assert model.loss(changed(batch, self_condition=forced), net).item() < 1e-9
    assert [call.self_cond is None for call in net.calls] == [True, True, False]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("kind", "options"), OBJECTIVES)
def test_self_conditioning_feeds_the_thresholded_estimate_of_the_picture(kind, options, dynamic):
    model = cascade(
        kind, unet_options={"self_cond": True}, condition_on_text=False, dynamic_thresholding=dynamic, **options
    )
    batch = changed(model.training_batch(pictures()), self_condition=True)
    answer = torch.randn(2, 3, 8, 8)
    net = Net(lambda x, time: answer)
    model.loss(batch, net)
    process = model.stages[0].process
    level = process.level(batch.t, batch.x0)
    alpha, sigma = level.alpha.float(), level.sigma.float()
    x_t = alpha * batch.x0 + sigma * batch.noise
    estimates = {
        "noise": (x_t - sigma * answer) / alpha,
        "x_start": answer,
        "v": alpha * x_t - sigma * answer,
        None: (0.25 * x_t + sigma * 0.5 * (sigma**2 + 0.25).sqrt() * answer) / (sigma**2 + 0.25),
    }
    estimate = estimates[options.get("pred_objectives")]
    expected = dynamic_threshold(estimate, 0.95) if dynamic else estimate.clamp(-1, 1)
    torch.testing.assert_close(net.calls[1].self_cond, expected, rtol=1e-4, atol=1e-4)


def test_a_residual_stage_thresholds_the_picture_that_its_estimate_means():
    model = cascade(stages=2, unet_options={"self_cond": True}, condition_on_text=False, pred_objectives="x_start",
                    dynamic_thresholding=False, lowres_residual=(None, 0.25))  # fmt: skip
    batch = changed(model.training_batch(pictures(2, 16), unet_number=2), self_condition=True)
    net = Net(lambda x, time: torch.full_like(x, 100.0))
    model.loss(batch, net)
    torch.testing.assert_close(batch.base + 0.25 * net.calls[1].self_cond, torch.ones_like(batch.base))
    assert "base" not in vars(net.calls[0])


@pytest.mark.parametrize("normalizes", [True, False])
def test_uint8_pictures_equal_floats_and_cover_the_range(normalizes):
    model = cascade(condition_on_text=False, auto_normalize_img=normalizes)
    levels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    levels[0, 0, 0, :2] = torch.tensor([0, 255])
    x0 = model.training_batch(levels).x0
    floats = levels / 255 if normalizes else levels / 127.5 - 1
    torch.testing.assert_close(x0, model.training_batch(floats).x0)
    assert x0.min() == -1 and x0.max() == 1


def test_uint8_pictures_become_floats_on_the_device(monkeypatch):
    """They are sent as they are, a fourth of the bytes."""
    found = []
    monkeypatch.setattr(training_inputs, "sent", lambda images, device: found.append((images.dtype, device)) or images)
    model = cascade(condition_on_text=False)
    model.training_batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    model.training_batch(torch.zeros(2, 3, 8, 8))
    assert found == [(torch.uint8, torch.device("cpu"))]


@pytest.mark.parametrize("kind", KINDS)
def test_any_precision_of_pictures_has_a_finite_loss(kind):
    model = cascade(kind, condition_on_text=False)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert torch.isfinite(model(pictures(4).to(dtype)))
    schedule = model.stages[0].process.schedule
    batch = model.training_batch(pictures(2).half())
    noisiest = changed(batch, t=torch.full((2,), schedule.time_range()[0]))
    assert torch.isfinite(model.loss(noisiest))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_weights_train_on_single_precision_pictures_and_noise_levels(kind):
    model = cascade(kind, stages=2, unet_options={"self_cond": True, "cond_images_channels": 3}).to(torch.bfloat16)
    given = {"text_embeds": text(), "cond_images": pictures(), "unet_number": 2}
    batch = changed(model.training_batch(pictures(2, 16), **given), self_condition=True)
    assert batch.x0.dtype == batch.t.dtype == batch.lowres_noise_times.dtype == torch.float32
    loss = model.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    net = Net()
    model.loss(batch, net)
    assert net.calls[0].x.dtype == torch.bfloat16 and net.calls[0].time.dtype == torch.float32


@pytest.mark.parametrize("scale", [1, 2])
def test_crops_cut_picture_low_resolution_and_conditioning_alike(scale):
    model = cascade(
        stages=2, random_crop_sizes=(None, 8), unet_options={"cond_images_channels": 3}, condition_on_text=False
    )
    ramp = torch.linspace(0, 1, 16).expand(2, 3, 16, 16)
    cond = torch.nn.functional.interpolate(ramp, scale_factor=scale, mode="nearest")
    batch = model.training_batch(ramp, cond_images=cond, unet_number=2)
    assert batch.x0.shape[-2:] == batch.lowres_cond_img.shape[-2:] == batch.cond_images.shape[-2:] == (8, 8)
    torch.testing.assert_close((batch.x0 + 1) / 2, batch.cond_images, atol=1e-6, rtol=0)
    span = batch.cond_images[..., -1] - batch.cond_images[..., 0]
    torch.testing.assert_close(span, torch.full_like(span, 7 / 15))


def test_small_training_pictures_are_antialiased():
    model = cascade(stages=2, condition_on_text=False)
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    batch = model.training_batch(board.float().expand(1, 3, 16, 16), unet_number=1)
    assert float(batch.x0.mean()) == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(batch.x0[..., 1:-1, :], torch.zeros(1, 3, 6, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize("per_sample", [True, False])
def test_low_resolution_is_noised_after_normalising_at_one_level_per_batch_or_picture(per_sample):
    model = cascade(stages=2, per_sample_random_aug_noise_level=per_sample, condition_on_text=False)
    batch = model.training_batch(torch.full((4, 3, 16, 16), 0.5), unet_number=2)
    alpha = torch.sigmoid(batch.lowres_noise_times).sqrt()
    noise = batch.lowres_cond_img / (1 - alpha**2).sqrt()[:, None, None, None]  # grey is 0 after normalising
    assert float(noise.std()) == pytest.approx(1, rel=0.06)
    assert len(set(batch.lowres_noise_times.tolist())) == (4 if per_sample else 1)


def test_augmentation_is_the_published_mixture_and_tells_its_log_snr():
    image, generator = torch.randn(2, 3, 4, 4), torch.Generator().manual_seed(3)
    noised, told = Augmentation(SCHEDULES["linear"]())(image, torch.tensor([0.2, 0.9]), generator)
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    alpha, sigma = torch.sigmoid(told).sqrt(), torch.sigmoid(-told).sqrt()
    assert alpha[0].item() == pytest.approx(0.819, abs=5e-4) and sigma[0].item() == pytest.approx(0.574, abs=5e-4)
    torch.testing.assert_close(noised, alpha[:, None, None, None] * image + sigma[:, None, None, None] * noise)


def test_residual_stage_models_what_the_enlargement_lacks():
    model = cascade(stages=2, lowres_residual=(None, 0.25), condition_on_text=False)
    flat = torch.full((2, 3, 16, 16), 0.3)
    x0 = model.training_batch(flat, unet_number=2).x0
    torch.testing.assert_close(x0, torch.zeros(2, 3, 16, 16), atol=1e-5, rtol=0)
    space = Residual(torch.randn(2, 3, 4, 4), 0.25)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(space.decode(space.encode(x)), x)


def test_conditions_are_dropped_in_training_only_and_by_their_own_shares():
    options = {"unet_options": {"cond_images_channels": 3}, "cond_drop_prob": 0.75, "cond_images_drop_prob": 0.25}
    model = cascade(**options)
    given = {"text_embeds": text(400), "cond_images": pictures(400)}
    batch = model.training_batch(pictures(400), **given)
    assert float(batch.text_keep.float().mean()) == pytest.approx(0.25, abs=0.08)
    assert float(batch.cond_images_keep.float().mean()) == pytest.approx(0.75, abs=0.08)
    model.eval()
    batch = model.training_batch(pictures(400), **given)
    assert batch.text_keep.all() and batch.cond_images_keep.all()


def test_validation_with_one_generator_is_repeatable():
    model = cascade(unet_options={"dropout": 0.5, "self_cond": True}).eval()
    losses = [model(pictures(), text_embeds=text(), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*losses)


def test_times_follow_the_law_of_the_stage():
    model = cascade(ElucidatedImagen, condition_on_text=False, P_mean=0.3, P_std=0.5)
    log_sigma = model.training_batch(pictures(1000)).t.log()
    assert float(log_sigma.mean()) == pytest.approx(0.3, abs=0.06)
    assert float(log_sigma.std()) == pytest.approx(0.5, abs=0.05)
    t = cascade(condition_on_text=False).training_batch(pictures(1000)).t
    assert t.min() >= 0 and t.max() < 1 and float(t.mean()) == pytest.approx(0.5, abs=0.04)


def test_a_wrapper_of_the_network_is_called_in_its_place():
    """Distributed wrappers hide the network in ``.module``; the cascade only ever calls them."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.seen = module, 0

        def forward(self, *args, **kwargs):
            self.seen += 1
            return self.module(*args, **kwargs)

    model = cascade()
    wrapper = Wrapper(model.unets[0])
    losses = [
        model(pictures(), unet=unet, text_embeds=text(), generator=torch.Generator().manual_seed(7))
        for unet in (None, wrapper)
    ]
    assert torch.equal(*losses) and wrapper.seen == 1


def test_an_empty_caption_and_a_tuple_of_captions_train():
    model = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    for texts in (["", "a red ball"], ("a red ball", ""), ["", ""]):
        loss = model(pictures(), texts=texts)
        loss.backward()
        assert torch.isfinite(loss)


def test_a_model_forced_to_be_unconditional_sees_the_null_caption():
    model = cascade(cond_drop_prob=1.0)
    draws = {"generator": torch.Generator().manual_seed(3)}
    dropped = model(pictures(), text_embeds=text(), **draws)
    model.force_unconditional_()
    assert model.unconditional
    batch = model.training_batch(pictures(), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.loss(batch), dropped)
    with pytest.raises(ValueError, match="is unconditional"):
        model(pictures(), text_embeds=text())


def test_a_null_unet_can_hold_any_place_but_is_never_trained():
    model = stir(Imagen([NullUnet(), NullUnet(), unet()], image_sizes=(4, 8, 16), condition_on_text=False, timesteps=2))
    with pytest.raises(ValueError, match="placeholder"):
        model(pictures(2, 16), unet_number=1)
    model(pictures(2, 16), unet_number=3).backward()
    with pytest.raises(ValueError, match="at least one"):
        Imagen([NullUnet()], image_sizes=8, condition_on_text=False)
    start = model.sample(start_at_unet_number=3, start_image_or_video=pictures(2, 8), use_tqdm=False)
    assert start.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="U-Net 1 is a NullUnet"):
        model.sample(use_tqdm=False)


MISTAKES = {
    "unet_number=1 to 2": {"unet_number": None},
    "numbered 1 to 2, got 3": {"unet_number": 3},
    "numbered 1 to 2, got 0": {"unet_number": 0},
    "conditioned on text": {"text_embeds": None},
    r"text_embeds must be \(batch, tokens, 12\)": {"text_embeds": torch.randn(2, 3, 5)},
    r"text_masks must be \(2, 3\)": {"text_masks": torch.ones(2, 4, dtype=torch.bool)},
    "3 images need as many texts, got 2": {"images": pictures(3, 16)},
    "the images are smaller: 8x8": {"images": pictures(2, 8)},
    "other proportions": {"images": pictures(2, (16, 24))},
    "has 3 channels, the images have 1": {"images": pictures(2, 16, 1)},
    "divide by 255": {"images": pictures(2, 16) * 255},
    "built without cond_images_channels": {"cond_images": pictures()},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_training_mistakes_get_a_sentence(message):
    model = cascade(stages=2)
    arguments = {"images": pictures(2, 16), "text_embeds": text(), "unet_number": 2, **MISTAKES[message]}
    with pytest.raises(ValueError, match=message):
        model(arguments.pop("images"), **arguments)


def test_further_training_mistakes_get_a_sentence():
    with pytest.raises(TypeError, match="floating point"):
        cascade(condition_on_text=False)(torch.ones(2, 3, 8, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="may be trained here"):
        cascade(stages=2, only_train_unet_number=2)(pictures(2, 16), text_embeds=text(), unet_number=1)
    words = cascade(text_encoder_name="builtin:words", text_embed_dim=None)
    with pytest.raises(TypeError, match="list of captions"):
        words(pictures(), texts="a cat")
    with pytest.raises(ValueError, match="need as many texts, got 1"):
        words(pictures(), texts=["a cat"])
    with pytest.raises(ValueError, match="as many cond_images, got 1"):
        cascade(unet_options={"cond_images_channels": 3})(pictures(), text_embeds=text(), cond_images=pictures(1))
    with pytest.warns(UserWarning, match=r"should lie in \[0, 1\]"):
        cascade(condition_on_text=False)(pictures() * 2)


@pytest.mark.parametrize("most", [1.0, 0.25])
def test_training_levels_of_the_low_resolution_noise_stay_below_the_maximum(most):
    model = cascade(
        stages=2, lowres_max_noise_level=most, per_sample_random_aug_noise_level=True, condition_on_text=False
    )
    told = model.training_batch(torch.rand(400, 3, 16, 16), unet_number=2).lowres_noise_times
    times = model.augmentation.schedule.inverse(told.double())
    assert float(times.max()) < most and float(times.mean()) == pytest.approx(most / 2, rel=0.1)


def test_a_maximum_of_the_low_resolution_noise_is_a_share():
    with pytest.raises(ValueError, match="lowres_max_noise_level"):
        cascade(lowres_max_noise_level=1.5)
