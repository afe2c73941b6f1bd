"""What people who know lucidrains/imagen-pytorch type first, at toy size: the same calls, shapes and ranges."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import unchecked

from imagen_pytorch import (
    BaseUnet64,
    ElucidatedImagen,
    Imagen,
    ImagenTrainer,
    NullUnet,
    SRUnet256,
    SRUnet1024,
    Unet,
    Unet3D,
)
from imagen_pytorch.t5 import get_encoded_dim


@pytest.fixture(autouse=True)
def as_users_call():
    """As without a type checker."""
    with unchecked():
        yield


def base(**options):
    """A first U-Net, as in the examples but eight channels wide."""
    return Unet(**{"dim": 8, "cond_dim": 16, "dim_mults": (1, 2, 4, 8), "num_resnet_blocks": 1,
                   "layer_attns": (False, True, True, True), "layer_cross_attns": (False, True, True, True),
                   "attn_heads": 2, "attn_dim_head": 8, **options})  # fmt: skip


def upsampler(**options):
    """A second U-Net."""
    return base(**{"num_resnet_blocks": (1, 2, 2, 2), "layer_attns": (False, False, False, True),
                   "layer_cross_attns": (False, False, False, True), **options})  # fmt: skip


def video_unet():
    """As in the example, but narrow."""
    return Unet3D(dim=8, dim_mults=(1, 2, 4, 8), attn_heads=2, attn_dim_head=8)


def in_range(images, *shape):
    return tuple(images.shape) == shape and bool(((images >= 0) & (images <= 1)).all())


TEXTS = ["a whale breaching from afar", "young girl blowing out candles on her birthday cake",
         "fireworks with blue and green sparkles"]  # fmt: skip


def test_text_to_image():
    imagen = Imagen(unets=(base(), upsampler()), image_sizes=(16, 32), timesteps=3, cond_drop_prob=0.1)
    assert imagen.text_embed_dim == 768
    text_embeds, images = torch.randn(4, 9, 768), torch.rand(4, 3, 32, 32)
    for i in (1, 2):
        loss = imagen(images, text_embeds=text_embeds, unet_number=i)
        loss.backward()
        assert loss.ndim == 0 and torch.isfinite(loss)
    images = imagen.sample(text_embeds=text_embeds[:3], cond_scale=3.0, use_tqdm=False)
    assert in_range(images, 3, 3, 32, 32)


def test_random_numbers_in_place_of_pictures_are_taken_with_a_warning():
    """The examples have no pictures and train on normal noise."""
    imagen = Imagen(unets=(base(), upsampler()), image_sizes=(16, 32), timesteps=3, cond_drop_prob=0.1)
    text_masks = torch.ones(4, 9, dtype=torch.bool)
    with pytest.warns(UserWarning, match=r"images should lie in \[0, 1\]"):
        loss = imagen(
            torch.randn(4, 3, 32, 32), text_embeds=torch.randn(4, 9, 768), text_masks=text_masks, unet_number=2
        )
    loss.backward()
    assert torch.isfinite(loss)


def test_captions_as_strings_with_an_encoder_from_a_folder(request):
    folder = str(request.path.parent / "data" / "tiny-t5")
    imagen = Imagen((base(), upsampler()), image_sizes=(16, 32), timesteps=2, text_encoder_name=folder)
    assert imagen.text_embed_dim == get_encoded_dim(folder)
    imagen(torch.rand(3, 3, 32, 32), texts=TEXTS, unet_number=1).backward()
    images = imagen.sample(texts=TEXTS, cond_scale=3.0, use_tqdm=False)
    assert in_range(images, 3, 3, 32, 32)
    pictures = imagen.sample(texts=TEXTS, cond_scale=3.0, return_pil_images=True, use_tqdm=False)
    assert [picture.size for picture in pictures] == [(32, 32)] * 3


def test_lists_of_unets_and_all_outputs():
    imagen = Imagen([base(), upsampler()], image_sizes=[16, 32], timesteps=[3, 2], noise_schedules=["cosine", "linear"],
                    pred_objectives=["noise", "x_start"], cond_drop_prob=0.1)  # fmt: skip
    outputs = imagen.sample(
        text_embeds=torch.randn(2, 5, 768), cond_scale=[3.0, 1.0], return_all_unet_outputs=True, use_tqdm=False
    )
    assert [tuple(item.shape) for item in outputs] == [(2, 3, 16, 16), (2, 3, 32, 32)]


def test_pictures_without_text():
    imagen = Imagen(
        condition_on_text=False, unets=(base(), upsampler(memory_efficient=True)), image_sizes=(16, 32), timesteps=3
    )
    training_images = torch.rand(4, 3, 32, 32)
    for i in (1, 2):
        imagen(training_images, unet_number=i).backward()
    assert in_range(imagen.sample(batch_size=16, use_tqdm=False), 16, 3, 32, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pictures_to_pictures(dtype):
    unets = (base(cond_images_channels=3), upsampler(cond_images_channels=3))
    imagen = Imagen(unets=unets, image_sizes=(16, 32), timesteps=2)
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    cond_images = levels if dtype == torch.uint8 else levels / 255
    text_embeds = torch.randn(2, 6, 768)
    imagen(torch.rand(2, 3, 32, 32), text_embeds=text_embeds, cond_images=cond_images, unet_number=2).backward()
    images = imagen.sample(text_embeds=text_embeds, cond_images=cond_images, cond_scale=3.0, use_tqdm=False)
    assert in_range(images, 2, 3, 32, 32)
    with pytest.raises(ValueError, match="needs cond_images"):
        imagen.sample(text_embeds=text_embeds, use_tqdm=False)


def test_the_elucidated_cascade():
    imagen = ElucidatedImagen(
        unets=(base(), upsampler()),
        image_sizes=(16, 32),
        cond_drop_prob=0.1,
        num_sample_steps=(4, 2),
        sigma_min=0.002,
        sigma_max=(80, 160),
        sigma_data=0.5,
        rho=7,
        P_mean=-1.2,
        P_std=1.2,
        S_churn=80,
        S_tmin=0.05,
        S_tmax=50,
        S_noise=1.003,
    )
    text_embeds = torch.randn(3, 9, 768)
    imagen(torch.rand(3, 3, 32, 32), text_embeds=text_embeds, unet_number=2).backward()
    assert in_range(imagen.sample(text_embeds=text_embeds, cond_scale=3.0, use_tqdm=False), 3, 3, 32, 32)
    wide = imagen.sample(text_embeds=text_embeds, sigma_max=(100, None), stop_at_unet_number=1, use_tqdm=False)
    assert in_range(wide, 3, 3, 16, 16)
    assert [row.num_sample_steps for row in imagen.hparams] == [4, 2] and imagen.hparams[1].sigma_max == 160


def test_training_the_upsampler_alone():
    imagen = Imagen(unets=(NullUnet(), upsampler()), image_sizes=(16, 32), timesteps=3, cond_drop_prob=0.1)
    text_embeds = torch.randn(2, 7, 768)
    imagen(torch.rand(2, 3, 32, 32), text_embeds=text_embeds, unet_number=2).backward()
    images = imagen.sample(
        text_embeds=text_embeds,
        start_at_unet_number=2,
        start_image_or_video=torch.rand(2, 3, 16, 16),
        cond_scale=3.0,
        use_tqdm=False,
    )
    assert in_range(images, 2, 3, 32, 32)


@pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])
def test_painting_into_pictures(kind):
    steps = {"timesteps": 2} if kind is Imagen else {"num_sample_steps": 2}
    imagen = kind(unets=(base(), upsampler()), image_sizes=(16, 32), **steps)
    text_embeds, inpaint_images = torch.randn(2, 4, 768), torch.rand(2, 3, 32, 32)
    inpaint_masks = torch.zeros((2, 32, 32), dtype=torch.bool)
    inpaint_masks[:, 8:24] = True
    images = imagen.sample(
        text_embeds=text_embeds,
        inpaint_images=inpaint_images,
        inpaint_masks=inpaint_masks,
        inpaint_resample_times=2,
        cond_scale=5.0,
        use_tqdm=False,
    )
    assert in_range(images, 2, 3, 32, 32)
    assert torch.equal(images[:, :, 8:24], inpaint_images[:, :, 8:24])


def test_starting_from_pictures():
    imagen = Imagen(unets=(base(), upsampler()), image_sizes=(16, 32), timesteps=4)
    images = imagen.sample(
        text_embeds=torch.randn(2, 4, 768), init_images=torch.rand(2, 3, 32, 32), skip_steps=(2, 3), use_tqdm=False
    )
    assert in_range(images, 2, 3, 32, 32)


def test_training_on_crops_and_own_noise_levels():
    imagen = Imagen(unets=(base(), upsampler()), image_sizes=(16, 32), random_crop_sizes=(None, 16), timesteps=2,
                    lowres_sample_noise_level=0.3, per_sample_random_aug_noise_level=True, auto_normalize_img=False,
                    dynamic_thresholding=(True, False), loss_type="huber")  # fmt: skip
    text_embeds = torch.randn(2, 4, 768)
    imagen(torch.rand(2, 3, 32, 32) * 2 - 1, text_embeds=text_embeds, unet_number=2).backward()
    images = imagen.sample(text_embeds=text_embeds, lowres_sample_noise_level=0.1, use_tqdm=False)
    assert images.shape == (2, 3, 32, 32) and -1 <= images.min() < 0 and images.max() <= 1


def test_presets_in_three_stages():
    small = {"dim": 8, "num_resnet_blocks": 1, "attn_heads": 2, "attn_dim_head": 8}
    imagen = Imagen(
        (BaseUnet64(**small), SRUnet256(**small), SRUnet1024(**small)), image_sizes=(8, 16, 32), timesteps=(2, 1, 1)
    )
    text_embeds = torch.randn(2, 4, 768)
    imagen(torch.rand(2, 3, 32, 32), text_embeds=text_embeds, unet_number=3).backward()
    assert in_range(imagen.sample(text_embeds=text_embeds, cond_scale=2.0, use_tqdm=False), 2, 3, 32, 32)


def test_padded_embeddings_need_no_mask():
    imagen = Imagen(base(), image_sizes=16, timesteps=2)
    text_embeds = torch.randn(2, 5, 768)
    text_embeds[1, 3:] = 0
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    torch.nn.init.normal_(imagen.unets[0].final_conv.weight)
    results = [
        imagen.sample(text_embeds=text_embeds, cond_scale=2.0, seed=1, use_tqdm=False, **more)
        for more in ({}, {"text_masks": mask})
    ]
    assert torch.equal(*results)


def test_text_to_video():
    """Training on 10 frames, sampling 20."""
    imagen = ElucidatedImagen(
        unets=(video_unet(), video_unet()),
        image_sizes=(16, 32),
        random_crop_sizes=(None, 16),
        temporal_downsample_factor=(2, 1),
        num_sample_steps=2,
        cond_drop_prob=0.1,
        sigma_min=0.002,
        sigma_max=(80, 160),
        sigma_data=0.5,
        rho=7,
        P_mean=-1.2,
        P_std=1.2,
        S_churn=80,
        S_tmin=0.05,
        S_tmax=50,
        S_noise=1.003,
        text_encoder_name="builtin:words",
    )
    texts = [*TEXTS, "dust motes swirling in the morning sunshine on the windowsill"]
    videos = torch.rand(4, 3, 10, 32, 32)
    trainer = ImagenTrainer(imagen)
    loss = trainer(videos, texts=texts, unet_number=1, ignore_time=False)
    trainer.update(unet_number=1)
    assert loss > 0
    with pytest.warns(UserWarning, match="U-Net 2 has not been trained yet"):
        assert in_range(trainer.sample(texts=texts, video_frames=20, use_tqdm=False), 4, 3, 20, 32, 32)
    trainer(videos, texts=texts, unet_number=2)
    trainer.update(unet_number=2)
    assert in_range(trainer.sample(texts=texts, video_frames=20, use_tqdm=False), 4, 3, 20, 32, 32)


def test_pictures_before_videos():
    """A video network trains on text and picture pairs without its layers between frames."""
    imagen = Imagen(video_unet(), image_sizes=16, timesteps=2, text_embed_dim=12)
    before = {name: part.clone() for name, part in imagen.state_dict().items()}
    trainer = ImagenTrainer(imagen)
    trainer(torch.rand(2, 3, 16, 16), text_embeds=torch.randn(2, 5, 12))
    trainer.update()
    moved = {name for name, part in imagen.state_dict().items() if not torch.equal(part, before[name])}
    assert moved and not [name for name in moved if "temporal" in name or "rate" in name]
