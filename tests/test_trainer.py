"""One training step after another: losses, micro-batches, updates, averages, precision, and whose turn it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer, NullUnet, Unet
from imagen_pytorch.training.unet_trainer import TrainingDiverged

SIZES = (8, 16)


def trainer(sizes=(8,), kind=Imagen, model=None, **options):
    return ImagenTrainer(small_imagen(sizes, kind, **(model or {})), **{"lr": 1e-3, "verbose": False, **options})


def step(made, number=None, size=16, **options):
    loss = made(pictures(size=size), texts=CAPTIONS, unet_number=number, **options)
    made.update(number)
    return loss


def weights(module):
    return {name: item.clone() for name, item in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def gradients(made, number=1):
    return [item.grad.clone() for item in made.imagen.get_unet(number).parameters() if item.grad is not None]


# -- losses and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("self_cond", [False, True])
def test_gradients_of_pieces_add_up_to_those_of_the_whole(kind, number, self_cond):
    found = []
    for pieces in (None, 3):
        torch.manual_seed(0)
        made = trainer(
            SIZES, kind, {"unet": {"self_cond": self_cond}, "per_sample_random_aug_noise_level": True}, seed=3
        )
        with torch.no_grad():  # much of a new network is zero, and then so is the gradient of the rest
            for item in made.imagen.get_unet(number).parameters():
                item += 0.05 * torch.randn(item.shape, generator=torch.Generator().manual_seed(item.numel()))
        loss = made(pictures(7, 16), texts=[*CAPTIONS, *CAPTIONS[:3]], unet_number=number, max_batch_size=pieces)
        found.append((loss, gradients(made, number)))
    (whole, expected), (loss, in_batches) = found
    assert sum(bool(item.abs().max() > 0) for item in expected) > len(expected) / 2
    assert loss == pytest.approx(whole, rel=1e-5)
    for mine, theirs in zip(in_batches, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-6)


def test_the_loss_is_a_float_and_only_training_mode_makes_gradients():
    made = trainer()
    made.eval()
    assert isinstance(made(pictures(), texts=CAPTIONS), float) and not gradients(made)
    with pytest.raises(ValueError, match="nothing to update from"):
        made.update()
    made.train()
    assert isinstance(made(pictures(), texts=CAPTIONS), float) and gradients(made)


def test_arrays_and_uint8_are_taken_as_they_are():
    losses = []
    whole = (pictures() * 255).round()
    for images in (whole.to(torch.uint8), whole.to(torch.uint8).numpy(), whole / 255):
        made = trainer(seed=1, model={"text_embed_dim": 5})
        torch.manual_seed(5)
        embeds = np.ones((4, 3, 5), dtype=np.float32)
        losses.append(made(images, text_embeds=embeds, text_masks=np.ones((4, 3), dtype=bool)))
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)


def test_a_seed_repeats_a_training_whatever_is_drawn_in_between():
    results = []
    for disturb in (False, True):
        torch.manual_seed(0)
        made = trainer(seed=7, model={"unet": {"dropout": 0.2}})
        for _ in range(3):
            step(made, size=8)
            if disturb:
                torch.rand(5)
                made.sample(texts=["x"], use_tqdm=False)
        results.append(weights(made.imagen))
    assert same(*results)


def test_torchs_own_seed_means_what_users_expect():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        made = trainer()
        torch.manual_seed(seed)
        step(made, size=8)
        results.append(weights(made.imagen))
    assert same(results[0], results[1]) and not same(results[0], results[2])


# -- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_the_rate_is_full_after_warm_up_and_stays(steps):
    made = trainer(warmup_steps=steps)
    rates = []
    for _ in range(steps + 3):
        rates.append(made.get_lr(1))
        step(made, size=8)
    assert rates[: steps + 3] == pytest.approx([1e-3 * min(1, (index + 1) / steps) for index in range(steps + 3)])
    assert made.get_lr(1) == pytest.approx(1e-3)


def test_the_rate_ends_at_zero_after_a_cosine_and_stays():
    made = trainer(cosine_decay_max_steps=4)
    rates = [made.get_lr(1)]
    for _ in range(7):
        step(made, size=8)
        rates.append(made.get_lr(1))
    assert rates == pytest.approx([1e-3, 8.5355e-4, 5e-4, 1.46447e-4, 0, 0, 0, 0], abs=1e-8)


def test_rates_are_per_unet():
    made = trainer(SIZES, lr=(1e-3, 2e-3), warmup_steps=(None, 2))
    assert (made.get_lr(1), made.get_lr(2)) == pytest.approx((1e-3, 1e-3))
    with pytest.raises(ValueError, match="lr needs one value, or one for each of the 2 U-Nets; got 3"):
        trainer(SIZES, lr=(1, 2, 3))


def test_the_warm_up_tells_how_far_it_is(tmp_path):
    made = trainer(SIZES, warmup_steps=(3, None), cosine_decay_max_steps=8)
    assert made.warmup1 is None and made.warmup0.warmup_period == 3 and trainer().warmup0 is None
    for taken in range(3):
        step(made, 1)
        assert made.warmup0.last_step == made.warmup0.state_dict()["last_step"] == taken + 1
        cosine = (1 + math.cos(math.pi * (taken + 1) / 8)) / 2
        assert made.get_lr(1) == pytest.approx(1e-3 * cosine * made.warmup0.warmup_factor())
    assert [made.warmup0.warmup_factor(step) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    made.save(tmp_path / "a.pt")
    other = trainer(SIZES, warmup_steps=9)
    other.load(tmp_path / "a.pt")
    assert other.warmup0.last_step == 3 and other.warmup0.warmup_factor() == pytest.approx(4 / 9)
    with pytest.raises(AttributeError, match="warmup2"):
        _ = made.warmup2


def test_every_unet_has_its_network_and_its_scaler():
    """Which the first loss of a U-Net makes, and which nobody needs to ask for."""
    made = trainer(SIZES)
    made.wrap_unet(2)
    assert made.unet_trainers[0].network is None and made.unet_trainers[1].network is made.imagen.unets[1]
    made.set_accelerator_scaler(2)
    assert made.accelerator.scaler is made.scaler1 and made.scaler1 is not made.scaler0
    step(made, 1)
    assert made.unet_trainers[0].network is made.imagen.unets[0]
    with pytest.raises(ValueError, match="U-Nets are numbered 1 to 2, got 3"):
        made.wrap_unet(3)


def test_gradients_are_clipped_to_the_norm():
    made = trainer(max_grad_norm=1e-3, lr=1.0)
    made.unet_trainers[0].optimizer = torch.optim.SGD(made.imagen.unets[0].parameters(), lr=1.0)
    before = torch.cat([item.detach().clone().flatten() for item in made.imagen.parameters()])
    step(made, size=8)
    after = torch.cat([item.detach().flatten() for item in made.imagen.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_spares_vectors():
    groups = trainer(weight_decay=0.1).optim0.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(item.ndim >= 2 for item in groups[0]["params"]) and all(item.ndim < 2 for item in groups[1]["params"])
    assert len(trainer(weight_decay=0.1, group_wd_params=False).optim0.param_groups) == 1
    assert isinstance(trainer(weight_decay=0.1).optim0, torch.optim.AdamW)


def test_every_unet_trains_in_one_process_and_leaves_the_others_alone():
    made = trainer(SIZES)
    step(made, 1)
    first, average = weights(made.imagen.unets[0]), weights(made.ema_unets[0])
    optimizer = made.optim0.state_dict()
    step(made, 2)
    step(made, 2)
    assert same(weights(made.imagen.unets[0]), first) and same(weights(made.ema_unets[0]), average)
    assert str(made.optim0.state_dict()) == str(optimizer)
    step(made, 1)
    assert made.steps.tolist() == [2, 2] and made.num_steps_taken(1) == 2
    assert not same(weights(made.imagen.unets[0]), first)


def test_a_number_that_cannot_be_meant_is_refused():
    made = trainer(SIZES)
    with pytest.raises(ValueError, match="name the U-Net: unet_number=1 to 2"):
        made(pictures(size=16), texts=CAPTIONS)
    with pytest.raises(ValueError, match="numbered 1 to 2, got 3"):
        made(pictures(size=16), texts=CAPTIONS, unet_number=3)
    only = trainer(SIZES, only_train_unet_number=2)
    with pytest.raises(ValueError, match="trains U-Net 2 only, got 1"):
        only(pictures(size=16), texts=CAPTIONS, unet_number=1)
    step(only)
    assert only.steps.tolist() == [0, 1]


def test_only_the_upsampler_behind_a_placeholder():
    unets = [NullUnet(), Unet(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8, layer_attns=False)]
    imagen = Imagen(unets, image_sizes=SIZES, text_encoder_name="builtin:words:16", timesteps=2)
    made = ImagenTrainer(imagen, verbose=False)
    step(made, 2)
    sampled = made.sample(texts=CAPTIONS, start_image_or_video=pictures(), start_at_unet_number=2, use_tqdm=False)
    assert sampled.shape == (4, 3, 16, 16)


# -- numbers that go wrong --------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted():
    made = trainer(warmup_steps=5)
    step(made, size=8)
    before, average, rate = weights(made.imagen), weights(made.ema_unets), made.get_lr(1)
    poisoned = pictures()
    poisoned[0, 0, 0, 0] = float("nan")
    with pytest.warns(UserWarning, match="loss of U-Net 1 is not finite: the update was skipped"):
        assert np.isnan(made(poisoned, texts=CAPTIONS))
        assert made.update() is False
    assert same(weights(made.imagen), before) and same(weights(made.ema_unets), average)
    assert made.steps.tolist() == [1] and made.skipped_steps == [1] and made.get_lr(1) == rate
    step(made, size=8)
    assert made.steps.tolist() == [2] and all(bool(item.isfinite().all()) for item in made.imagen.parameters())


def test_a_gradient_that_is_not_finite_is_skipped_too():
    made = trainer()
    before = weights(made.imagen)
    made(pictures(), texts=CAPTIONS)
    next(iter(made.imagen.parameters())).grad.fill_(float("inf"))
    with pytest.warns(UserWarning, match="gradient of U-Net 1 is not finite"):
        assert made.update() is False
    assert same(weights(made.imagen), before)


@pytest.mark.filterwarnings("ignore:the loss of U-Net")
def test_too_many_in_a_row_end_the_training():
    made = trainer(max_skipped_steps=2)
    poisoned = torch.full((4, 3, 8, 8), float("nan"))
    for _ in range(2):
        made(poisoned, texts=CAPTIONS)
        made.update()
    made(poisoned, texts=CAPTIONS)
    with pytest.raises(TrainingDiverged, match="3 updates in a row without a finite loss"):
        made.update()


# -- averages ---------------------------------------------------------------------------------------------------------


def test_averages_follow_the_weights_as_asked():
    made = trainer(ema_beta=0.5, ema_update_after_step=0, ema_update_every=1, ema_power=1e9, ema_inv_gamma=1e-9)
    name = "final_conv.weight"
    values, expected = [], None
    for _ in range(4):
        step(made, size=8)
        values.append(made.imagen.unets[0].state_dict()[name].clone())
    average = made.get_ema_unet(1).state_dict()[name]
    for value in values:  # the average begins at the first weights
        expected = value if expected is None else 0.5 * expected + 0.5 * value
    torch.testing.assert_close(average, expected)


def test_without_averages_the_weights_themselves_are_sampled():
    made = trainer(use_ema=False)
    assert made.ema_unets is None and made.get_ema_unet(1) is made.imagen.unets[0]
    step(made, size=8)
    assert made.sample(texts=["x"], use_tqdm=False).shape == (1, 3, 8, 8)


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
@pytest.mark.parametrize("options", [{"fp16": True}, {"precision": "fp16"}, {"precision": "bf16"}])
def test_mixed_precision_trains(kind, options):
    made = trainer(kind=kind, seed=0, **options)
    assert made.scaler0.is_enabled() == ("bf16" not in options.values())
    seen = []
    made.imagen.unets[0].mid_block1.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    for _ in range(20):
        assert np.isfinite(step(made, size=8))
    assert seen[0] == (torch.bfloat16 if "bf16" in options.values() else torch.float16)
    assert int(made.steps[0]) > 0 and made.steps[0] + made.skipped_steps[0] == 20
    parameters = list(made.imagen.parameters())
    assert all(item.dtype == torch.float32 and bool(item.isfinite().all()) for item in parameters)


def test_uint8_pictures_are_scaled_in_half_precision_too():
    whole = (pictures() * 255).round()
    losses = [trainer(seed=1, fp16=True)(images, texts=CAPTIONS) for images in (whole.to(torch.uint8), whole / 255)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fp16": True, "precision": "bf16"}, ValueError, "give either fp16=True or precision='bf16', not both"),
        ({"precision": "fp8"}, ValueError, "precision must be one of no, fp16, bf16, got 'fp8'"),
        ({"split_valid_fraction": 1.5}, ValueError, r"split_valid_fraction must lie in \[0, 1\], got 1.5"),
        ({"learning_rate": 1}, TypeError, 'takes no argument "learning_rate"'),
        ({"ema_betta": 1}, TypeError, 'takes no argument "ema_betta"; did you mean "ema_beta"?'),
        ({"warmup_step": 1}, TypeError, 'did you mean "warmup_steps"?'),
        ({"warmup_steps": 0}, ValueError, "warmup_steps must be at least 1 or None, got 0"),
        ({"checkpoint_path": "x"}, ValueError, "checkpoint_path and checkpoint_every belong together"),
        ({"only_train_unet_number": 4}, ValueError, "numbered 1 to 1, got 4"),
    ],
)
def test_mistakes_have_a_sentence(options, error, message):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        trainer(**options)


def test_a_model_or_a_checkpoint():
    with pytest.raises(ValueError, match="either imagen or imagen_checkpoint_path"):
        ImagenTrainer()


def test_old_lion_is_answered():
    with pytest.warns(DeprecationWarning, match="use_lion is no longer supported"):
        trainer(use_lion=True)


def test_what_a_trainer_knows_about_itself():
    made = trainer(SIZES, ElucidatedImagen)
    assert made.is_elucidated and made.num_unets == 2 and made.is_main and made.is_local_main
    assert not made.is_distributed and made.device.type == "cpu" and made.accelerator.num_processes == 1
    assert made.optim1 is made.unet_trainers[1].optimizer and made.scheduler0 is None
    with pytest.raises(AttributeError, match="optim2"):
        made.optim2  # noqa: B018
    assert not made.can_checkpoint and not made.prepared
    step(made, 2)
    assert made.prepared and made.unwrapped_unet is made.imagen.unets[1]


def test_it_speaks_only_if_it_may(capsys):
    made = trainer(SIZES, verbose=True)
    made.print_untrained_unets()
    made.print_unet_devices()
    assert capsys.readouterr().out.splitlines() == [
        "U-Net 1 has not been trained yet",
        "U-Net 2 has not been trained yet",
        "U-Net 1: cpu",
        "U-Net 2: cpu",
    ]
    made.verbose = False
    made.print_unet_devices()
    assert capsys.readouterr().out == ""
