"""Options that change how a cascade is trained: laws that each of them obeys, and what each of them does."""

from __future__ import annotations

import pytest
import torch
from cascade_toys import KINDS, cascade, changed, clips, pictures, stir, text, unchecked, video_cascade

from imagen_pytorch.imagen import Imagen, imagen_from_config

#: each option with a value for a cascade of two stages
OPTIONS = {
    "spectral_loss": {"spectral_loss": (None, {"table": "sharp", "weight": 0.5})},
}
each_option = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture(autouse=True)
def as_users_call():
    """Without the checks of annotations, which take most of the time of tiny networks."""
    with unchecked():
        yield


def model_with(name, kind=Imagen, **options):
    return cascade(kind, stages=2, **{**OPTIONS[name], **options})


def batch_of(model, count=5, number=2, **options):
    return model.training_batch(pictures(count, 16), text_embeds=text(count), unet_number=number, **options)


# -- every option -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@each_option
def test_mean_gradient_over_pieces_is_the_gradient_of_the_whole(kind, name):
    model = model_with(name, kind, lowres_residual=(None, 0.3), unet_options={"self_cond": True}).double()
    images, embeds = pictures(5, 16).double(), text(5).double()
    batch = changed(model.training_batch(images, text_embeds=embeds, unet_number=2), self_condition=True)
    model.loss(batch).backward()
    whole = [part.grad.clone() for part in model.unets[1].parameters()]
    model.zero_grad()
    for piece in batch.split(2):
        (model.loss(piece) * len(piece) / len(batch)).backward()
    for one, part in zip(whole, model.unets[1].parameters(), strict=True):
        torch.testing.assert_close(one, part.grad, rtol=1e-6, atol=1e-9)


@each_option
def test_the_draws_of_an_item_do_not_depend_on_its_neighbours(name):
    model = model_with(name, per_sample_random_aug_noise_level=True)
    images, embeds = pictures(4, 16), text(4)

    def drawn(rows):
        generators = [torch.Generator().manual_seed(index) for index in range(4)[rows]]
        return model.training_batch(images[rows], text_embeds=embeds[rows], unet_number=2, generator=generators)

    whole, part = drawn(slice(0, 4)), drawn(slice(2, 4))
    for field, value in whole._tensors().items():
        torch.testing.assert_close(value[2:], getattr(part, field))


@pytest.mark.parametrize("kind", KINDS)
@each_option
def test_a_model_with_it_is_rebuilt_from_its_own_description(kind, name):
    model = model_with(name, kind)
    rebuilt = imagen_from_config(model.to_config())
    assert rebuilt.to_config() == model.to_config()
    rebuilt.load_state_dict(model.state_dict())
    losses = [made(pictures(2, 16), text_embeds=text(), unet_number=2, generator=torch.Generator().manual_seed(1))
              for made in (model, rebuilt)]  # fmt: skip
    assert torch.equal(*losses)


@each_option
def test_the_first_stage_is_as_without_it(name):
    losses = [batch_of(made, number=1, generator=torch.Generator().manual_seed(1)).x0
              for made in (cascade(stages=2), model_with(name))]  # fmt: skip
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", KINDS)
@each_option
def test_it_trains_and_samples_videos(kind, name):
    model = video_cascade(kind, stages=2, **OPTIONS[name])
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
    losses = [stir(made).loss(batch_of(made, generator=torch.Generator().manual_seed(1))) for made in models]
    torch.testing.assert_close(losses[1], 3 * losses[0])
    assert [stage.process.spectral is None for stage in models[1].stages] == [True, False]
