"""That video models learn: the rate of a process from ``fps``, and the way of a digit from its caption."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import unchecked

from imagen_pytorch import ElucidatedImagen, ImagenTrainer, Unet3D
from imagen_pytorch.data.moving_digits import MovingDigits, centre_track

PHI, FRAMES, MEAN, STD = 0.9, 8, 0.5, 0.12
STRIDES = (1, 2, 4)


@pytest.fixture(autouse=True)
def fast():
    with unchecked():
        yield


def autoregressive_clips(count, generator):
    """Clips of one pixel whose value is an AR(1) process, seen at 8, 4 or 2 frames per second."""
    strides = torch.tensor(STRIDES)[torch.randint(len(STRIDES), (count,), generator=generator)]
    values = [torch.randn(count, generator=generator)]
    for _ in range((FRAMES - 1) * max(STRIDES)):
        fresh = torch.randn(count, generator=generator)
        values.append(PHI * values[-1] + (1 - PHI**2) ** 0.5 * fresh)
    places = strides[:, None] * torch.arange(FRAMES)
    clips = torch.stack(values, dim=1).gather(1, places)
    return (MEAN + STD * clips).clamp(0, 1)[:, None, :, None, None], 8.0 / strides


@pytest.mark.slow
def test_the_correlation_of_neighbours_is_that_of_the_rate_that_was_asked_for():
    unet = Unet3D(
        dim=16, dim_mults=(1,), mid_cross_attn=False, layer_cross_attns=False, attend_at_middle=False, attn_heads=2,
        attn_dim_head=16, init_cross_embed=False, init_conv_kernel_size=1, use_global_context_attn=False,
        cond_on_text=False, channels=1, time_causal_attn=False, learned_sinu_pos_emb_dim=8,
    )  # fmt: skip
    imagen = ElucidatedImagen(
        unet, image_sizes=1, channels=1, condition_on_text=False, sampler="dpmpp_2m", num_sample_steps=16,
        sigma_data=2 * STD, sigma_max=20.0, dynamic_thresholding=False,
    )  # fmt: skip
    trainer = ImagenTrainer(
        imagen, lr=4e-3, warmup_steps=20, cosine_decay_max_steps=500, ema_update_every=1, ema_beta=0.98,
        ema_update_after_step=50, seed=0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        clips, fps = autoregressive_clips(64, generator)
        trainer(clips, fps=fps)
        trainer.update()
    for stride in STRIDES:
        made = trainer.sample(batch_size=600, video_frames=FRAMES, fps=8.0 / stride, seed=1, use_tqdm=False)
        values = made[:, 0, :, 0, 0] - made.mean()
        correlation = float((values[:, 1:] * values[:, :-1]).mean() / values.square().mean())
        assert abs(correlation - PHI**stride) < 0.1, f"{8 / stride} frames per second: {correlation:.3f}"
        assert abs(float(values.std()) / STD - 1) < 0.15
    unknown = trainer.sample(batch_size=600, video_frames=FRAMES, seed=1, use_tqdm=False)[:, 0, :, 0, 0] - MEAN
    mixed = float((unknown[:, 1:] * unknown[:, :-1]).mean() / unknown.square().mean())
    assert PHI**4 < mixed < PHI  # hidden rates are part of training: then clips of every rate come out


WAYS = ("left", "right")
SIZE, HALF, STEPS = 12, 4, 400


def digits_model():
    """Small enough to learn two directions in a minute or two."""
    unet = Unet3D(
        dim=16, dim_mults=(1, 2, 4), num_resnet_blocks=(0, 1, 1), cond_dim=32, layer_cross_attns=(False, False, True),
        layer_temporal_attns=(False, True, True), attn_heads=2, attn_dim_head=16, attn_pool_text=False,
        init_cross_embed=False, init_conv_kernel_size=3, use_global_context_attn=False, channels=1,
    )  # fmt: skip
    return ElucidatedImagen(
        unet, image_sizes=SIZE, channels=1, text_encoder_name="builtin:words:32", sampler="dpmpp_2m",
        num_sample_steps=12, sigma_max=20.0, P_mean=0.5, P_std=1.3, video_frames=8,
    )  # fmt: skip


@pytest.mark.slow
def test_digits_go_where_their_caption_says_and_keep_going_in_longer_clips():
    data = MovingDigits(num_frames=8, image_size=SIZE, directions=WAYS, speed=(0.3, 0.4), channels=1, length=4000)
    trainer = ImagenTrainer(
        digits_model(), lr=4e-3, warmup_steps=30, cosine_decay_max_steps=STEPS, max_grad_norm=1.0, ema_beta=0.99,
        ema_update_every=1, ema_update_after_step=50, seed=0,
    )  # fmt: skip
    trainer.add_train_dataset(data, batch_size=8, shuffle=True)
    losses = [trainer.train_step(1) for _ in range(STEPS)]
    assert sum(losses[45:50]) < 0.7 * sum(losses[:5])
    captions = [f"the digit {digit} moves {way}" for digit in range(10) for way in WAYS] * 2
    sign = torch.tensor([-1.0, 1.0] * (len(captions) // 2))

    def moved(clips, first, middle, last):
        """Pixels from the mean place in some frames to that in the next ones, along the caption's direction."""
        track = torch.stack([centre_track(clip, threshold=0.3)[:, 1] for clip in clips])
        return (track[:, middle:last].mean(1) - track[:, first:middle].mean(1)) * sign

    short = trainer.sample(texts=captions, cond_scale=2.0, seed=0, use_tqdm=False)
    assert float((moved(short, 0, HALF, 8) > 0).float().mean()) >= 0.9
    long = trainer.sample(texts=captions, cond_scale=2.0, seed=0, use_tqdm=False, video_frames=16)
    # all true ones do; in the second half most have turned at the border, so nothing is asked of it alone
    assert float((moved(long, 0, 8, 16) > 0).float().mean()) >= 0.9
