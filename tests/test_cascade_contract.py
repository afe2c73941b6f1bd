"""The objects as users know them: constructors, attributes, copies, configuration, helpers of earlier versions."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from cascade_toys import DIM, KINDS, cascade, pictures, sample, text, unchecked, unet

from imagen_pytorch.diffusion.losses import LOSSES
from imagen_pytorch.imagen import ElucidatedImagen, Imagen, imagen_from_config
from imagen_pytorch.nn.presets import NullUnet
from imagen_pytorch.text import TextEncoder


@pytest.fixture(autouse=True)
def as_users_call():
    """The sentences of the package, not those of the type checker; that one sees all of this in the feature matrix."""
    with unchecked():
        yield


SHARED = {
    "image_sizes": inspect.Parameter.empty,
    "text_encoder_name": "google/t5-v1_1-base",
    "text_embed_dim": None,
    "channels": 3,
    "cond_drop_prob": 0.1,
    "random_crop_sizes": None,
    "lowres_noise_schedule": "linear",
    "lowres_sample_noise_level": 0.2,
    "per_sample_random_aug_noise_level": False,
    "condition_on_text": True,
    "auto_normalize_img": True,
    "dynamic_thresholding": True,
    "dynamic_thresholding_percentile": 0.95,
    "only_train_unet_number": None,
    "temporal_downsample_factor": 1,
    "resize_cond_video_frames": True,
}
ORIGINAL = {"timesteps": 1000, "loss_type": "l2", "noise_schedules": "cosine", "pred_objectives": "noise",
            "min_snr_loss_weight": True, "min_snr_gamma": 5}  # fmt: skip
ELUCIDATED = {"num_sample_steps": 32, "sigma_min": 0.002, "sigma_max": 80, "sigma_data": 0.5, "rho": 7, "P_mean": -1.2,
              "P_std": 1.2, "S_churn": 80, "S_tmin": 0.05, "S_tmax": 50, "S_noise": 1.003}  # fmt: skip


@pytest.mark.parametrize(("kind", "own"), [(Imagen, ORIGINAL), (ElucidatedImagen, ELUCIDATED)])
def test_arguments_and_their_defaults_are_the_known_ones(kind, own):
    parameters = inspect.signature(kind.__init__).parameters
    for name, default in {**SHARED, **own}.items():
        assert parameters[name].default == default, name
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    assert not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_takes_its_arguments_in_the_known_order(kind):
    names = list(inspect.signature(kind.forward).parameters)
    assert names[1:8] == ["images", "unet", "texts", "text_embeds", "text_masks", "unet_number", "cond_images"]


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_that_users_read(kind):
    model = cascade(kind, stages=2, random_crop_sizes=(None, 8), only_train_unet_number=2)
    assert model.image_sizes == (8, 16) and model.random_crop_sizes == (None, 8)
    assert len(model.unets) == 2 and isinstance(model.unets, torch.nn.ModuleList)
    assert model.channels == 3 and model.sample_channels == (3, 3)
    assert model.condition_on_text and not model.unconditional and model.can_classifier_guidance
    assert not model.is_video and model.temporal_downsample_factor == (1, 1) and model.resize_cond_video_frames
    assert model.text_embed_dim == DIM and model.cond_drop_prob == 0.1
    assert model.dynamic_thresholding == (True, True) and model.dynamic_thresholding_percentile == 0.95
    assert model.input_image_range == (0.0, 1.0) and model.lowres_sample_noise_level == 0.2
    assert not model.per_sample_random_aug_noise_level and model.only_train_unet_number == 2
    assert model.device == torch.device("cpu")
    images = pictures()
    torch.testing.assert_close(model.unnormalize_img(model.normalize_img(images)), images)
    assert [item.num_timesteps for item in model.noise_schedulers] == [3, 3]
    level = model.lowres_noise_schedule.log_snr(torch.tensor(0.2)).sigmoid().sqrt()
    assert level.item() == pytest.approx(0.819, abs=5e-4)


def test_sizes_are_ints_for_squares_and_pairs_for_the_rest():
    assert cascade(condition_on_text=False, image_sizes=(8, (16, 24))).image_sizes == (8, (16, 24))
    single = Imagen(unet(), image_sizes=8, condition_on_text=False)
    pair = Imagen(unet(), image_sizes=((8, 12),), condition_on_text=False)
    assert single.image_sizes == (8,) and pair.image_sizes == ((8, 12),)
    assert [stage.size for stage in (*single.stages, *pair.stages)] == [(8, 8), (8, 12)]


def test_stages_without_a_schedule_of_their_own_are_cosine_then_linear():
    model = cascade(stages=3, noise_schedules="linear", pred_objectives=("noise", "v", "x_start"), loss_type="huber")
    assert [type(stage.process.schedule).__name__ for stage in model.stages] == ["Linear", "Cosine", "Linear"]
    assert [type(stage.process.objective).__name__ for stage in model.stages] == ["Noise", "Velocity", "XStart"]
    assert model.pred_objectives == ("noise", "v", "x_start") and model.min_snr_gamma == (5.0,) * 3
    assert model.loss_type == "huber" and model.loss_fn is LOSSES["huber"]


def test_the_earlier_loss_weight_takes_the_place_of_min_snr():
    model = cascade(p2_loss_weight_gamma=(0.5,), p2_loss_weight_k=2.0)
    level = model.stages[0].process.level(torch.tensor([0.3]), torch.zeros(1, 3, 8, 8))
    factor = model.stages[0].process.weighting.prediction_weight(level, level.alpha)
    assert factor.item() == pytest.approx((2 + math.exp(level.log_snr.item())) ** -0.5, rel=1e-5)
    with pytest.raises(ValueError, match=r"p2_loss_weight_gamma must lie in \[0, 2\]"):
        cascade(p2_loss_weight_gamma=3.0)


@pytest.mark.parametrize(("gamma", "objective", "weight"), [
    (5.0, "noise", lambda snr: min(snr, 5) / snr),
    (2.0, "x_start", lambda snr: min(snr, 2)),
    (5.0, "v", lambda snr: min(snr, 5) / (snr + 1)),
])  # fmt: skip
def test_min_snr_weights_are_the_published_ones(gamma, objective, weight):
    process = cascade(pred_objectives=objective, min_snr_gamma=gamma).stages[0].process
    for log_snr in (-3.0, 0.5, 4.0):
        t = process.schedule.inverse(torch.tensor([log_snr], dtype=torch.float64))
        level = process.schedule(t)
        factor = process.weighting.prediction_weight(level, process.objective.coefficients(level).c_out)
        assert factor.item() == pytest.approx(weight(math.exp(log_snr)), rel=1e-6)


MISTAKES = {
    "2 U-Nets need as many image_sizes, got 1": {"image_sizes": (8,)},
    "must not shrink": {"image_sizes": (16, 8)},
    "an image size is a positive int": {"image_sizes": (8, 0)},
    "its entry must be None": {"random_crop_sizes": (8, 8)},
    "a training crop of .* does not fit": {"random_crop_sizes": (None, 64)},
    "2 U-Nets take at most as many noise_schedules, got 3": {"noise_schedules": ("cosine",) * 3},
    'no noise schedule "sigmiod"': {"noise_schedules": "sigmiod"},
    "pred_objectives needs one value, or one for each of the 2 U-Nets; got 3": {"pred_objectives": ("noise",) * 3},
    "timesteps needs one value": {"timesteps": (1, 2, 3)},
    'no objective "epsilon"': {"pred_objectives": "epsilon"},
    'no loss type "l3"': {"loss_type": "l3"},
    'no sampler "eular"': {"sampler": "eular"},
    'no resize_mode "lanczos"': {"resize_mode": "lanczos"},
    "temporal_downsample_factor is for video": {"temporal_downsample_factor": (2, 1)},
    "cond_drop_prob must lie between 0 and 1, got 1.5": {"cond_drop_prob": 1.5},
    "lowres_sample_noise_level must lie between 0 and 1, got 2": {"lowres_sample_noise_level": (0.2, 2.0)},
    "dynamic_thresholding_percentile must lie": {"dynamic_thresholding_percentile": 95},
    "only_train_unet_number: U-Nets are numbered 1 to 2, got 3": {"only_train_unet_number": 3},
    "lowres_residual: the first U-Net": {"lowres_residual": (0.5, 0.5)},
    "lowres_residual must be above 0": {"lowres_residual": (None, -1.0)},
    "channels must be at least 1, got 0": {"channels": 0},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_constructor_mistakes_get_a_sentence(message):
    with pytest.raises(ValueError, match=message):
        Imagen([unet(), unet()], **{"image_sizes": (8, 16), "text_embed_dim": DIM, **MISTAKES[message]})


@pytest.mark.parametrize("kind", KINDS)
def test_self_conditioning_is_chosen_for_the_network_or_for_the_model(kind):
    fits = {"image_sizes": (8, 16), "condition_on_text": False}
    model = kind((unet(), unet()), self_cond=(True, None), **fits)
    assert [network.self_cond for network in model.unets] == [True, False]
    assert [network.self_cond for network in imagen_from_config(model.to_config()).unets] == [True, False]
    assert kind((unet(self_cond=True), unet()), **fits).unets[0].self_cond
    with pytest.raises(ValueError, match="U-Net 2 was built with self_cond=False, the model with self_cond=True"):
        kind((unet(), unet(self_cond=False)), self_cond=True, **fits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_network_is_refused(kind):
    with pytest.raises(TypeError, match="U-Net 2 must be a Unet, Unet3D or NullUnet, got Linear"):
        kind([unet(), torch.nn.Linear(1, 1)], image_sizes=(8, 16), condition_on_text=False)
    with pytest.raises(TypeError, match="unexpected keyword"):
        kind(unet(), image_sizes=8, condition_on_text=False, timestep=3)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        cascade(ElucidatedImagen, sigma_min=90.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_leaves_the_model_whole_and_it_copies_and_pickles(kind):
    model = cascade(kind, stages=2)
    before = sum(part.numel() for part in model.parameters())
    model(pictures(2, 16), text_embeds=text(), unet_number=1).backward()
    sample(model, text_embeds=text(), stop_at_unet_number=1)
    assert sum(part.numel() for part in model.parameters()) == before > 0
    assert not any(isinstance(value, torch.nn.Module) for value in model._locals.values())
    model.double()
    assert {part.dtype for part in model.parameters()} == {torch.float64}
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
        assert twin.to_config() == model.to_config()
        one, other = (sample(item, text_embeds=text().double(), steps=1) for item in (model, twin))
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_rebuilt_from_its_own_description(kind):
    unets = [NullUnet(), unet(self_cond=True)]
    options = {"image_sizes": (8, (16, 24)), "lowres_residual": (None, 0.5), "cond_drop_prob": 0.3}
    per_unet = {"lowres_sample_noise_level": (0.1, 0.3), "dynamic_thresholding": (False, True)}
    model = kind(unets, text_embed_dim=DIM, **options, **per_unet)
    described = model.to_config()
    twin = imagen_from_config(copy.deepcopy(described))
    twin.load_state_dict(model.state_dict())
    assert type(twin) is kind and twin.cond_drop_prob == 0.3 and twin.to_config() == described
    network = model.unets[1]
    network.__class__ = type("FSDPUnet", (type(network),), {})  # what sharding makes of it
    assert model.to_config() == described
    assert twin.image_sizes == model.image_sizes and twin.stages == model.stages
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    one, other = (
        item(pictures(2, (16, 24)), text_embeds=text(), unet_number=2, generator=seed)
        for item, seed in zip((model, twin), seeds, strict=True)
    )
    assert torch.equal(one, other)


def test_trained_weights_survive_being_put_into_a_cascade():
    network = unet(text_embed_dim=DIM)
    torch.nn.init.normal_(network.final_conv.weight)
    fits = Imagen(network, image_sizes=8, text_embed_dim=DIM)
    assert fits.unets[0] is network
    with pytest.warns(UserWarning, match="no longer fit"):
        refitted = Imagen([NullUnet(), network], image_sizes=(8, 16), text_embed_dim=DIM)
    kept = network.mid_block1.conv1.weight
    assert torch.equal(refitted.unets[1].mid_block1.conv1.weight, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_network_is_accepted(kind):
    with torch.compiler.set_stance("force_eager"):
        compiled = torch.compile(unet())
        model = kind([compiled, unet()], image_sizes=(8, 16), text_embed_dim=DIM,
                     **({"timesteps": 1} if kind is Imagen else {"num_sample_steps": 1}))  # fmt: skip
        assert not [name for name in model.state_dict() if "_orig_mod" in name]
        model(pictures(2, 16), text_embeds=text(), unet_number=1).backward()
        assert sample(model, text_embeds=text(), cond_scale=2.0).shape == (2, 3, 16, 16)
        assert sum(part.numel() for part in copy.deepcopy(model).parameters()) > 0


class Letters(TextEncoder):
    """Each letter is a token whose state is its number in every feature."""

    dim = 4

    def __init__(self):
        super().__init__("letters")

    def states(self, captions, device):
        return [torch.tensor([[float(ord(letter))] * 4 for letter in caption or " "]) for caption in captions]


def test_any_text_encoder_object_serves_and_sets_the_width():
    model = Imagen(unet(), image_sizes=8, text_encoder=Letters(), timesteps=1)
    assert model.text_embed_dim == 4 and model.text_encoder_name == "letters"
    model(pictures(), texts=["ab", ""]).backward()
    assert sample(model, texts=["abc"]).shape == (1, 3, 8, 8)
    embeds, mask = model.encode_text(["ab", "c"], return_attn_mask=True)
    assert torch.equal(embeds, model.encode_text(["ab", "c"])) and mask.tolist() == [[True, True], [True, False]]
    described = model.to_config()
    assert described["text_encoder_name"] == "letters" and "text_encoder" not in described
    assert pickle.loads(pickle.dumps(model)).text_encoder.dim == 4


def test_networks_are_found_by_number_and_held_alone_by_number_or_object():
    model = cascade(stages=2)
    assert model.get_unet(2) is model.unets[1]
    for wrong in (0, 3):
        with pytest.raises(ValueError, match="numbered 1 to 2"):
            model.get_unet(wrong)
    with model.one_unet_in_gpu(2), model.one_unet_in_gpu(unet=model.unets[0]):
        pass
    with pytest.raises(ValueError, match="either unet_number or unet"), model.one_unet_in_gpu():
        pass
    with pytest.raises(ValueError, match="does not belong to this model"), model.one_unet_in_gpu(unet=unet()):
        pass
    model.reset_unets_all_one_device("cpu")


def test_the_formulas_of_an_elucidated_model_are_the_published_ones():
    model = cascade(ElucidatedImagen, dynamic_thresholding=False)
    sigma, data = torch.tensor([0.1, 2.0]), 0.4
    total = sigma**2 + data**2
    torch.testing.assert_close(model.c_skip(data, sigma), data**2 / total)
    torch.testing.assert_close(model.c_out(data, sigma), sigma * data / total.sqrt())
    torch.testing.assert_close(model.c_in(data, sigma), 1 / total.sqrt())
    torch.testing.assert_close(model.c_noise(sigma), sigma.log() / 4)
    torch.testing.assert_close(model.loss_weight(data, sigma), total / (sigma * data) ** 2)
    assert model.noise_distribution(-1.2, 1.2, 5000).log().mean().item() == pytest.approx(-1.2, abs=0.07)
    rho, steps = 7, 5
    ends = [80 ** (1 / rho), 0.002 ** (1 / rho)]
    grid = [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)] + [0]
    torch.testing.assert_close(model.sample_schedule(steps, rho, 0.002, 80), torch.tensor(grid), rtol=1e-5, atol=1e-9)
    x, answer = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    seen = {}

    def network(scaled, time, **named):
        seen.update(scaled=scaled, time=time, **named)
        return answer

    x0 = model.preconditioned_network_forward(network, x, sigma, sigma_data=data, text_embeds="given")
    column = total[:, None, None, None]
    expected = data**2 / column * x + sigma[:, None, None, None] * data / column.sqrt() * answer
    torch.testing.assert_close(x0, expected)
    torch.testing.assert_close(seen["scaled"], x / column.sqrt())
    assert seen["text_embeds"] == "given"
    clips = {"clamp": True, "dynamic_threshold": False}
    clipped = model.preconditioned_network_forward(network, x, 2.0, sigma_data=data, **clips)
    assert clipped.abs().max() == 1
    torch.testing.assert_close(model.threshold_x_start(3 * x, dynamic_threshold=False), (3 * x).clamp(-1, 1))
    assert model.threshold_x_start(3 * x).abs().max() == 1
    assert [row._asdict() for row in model.hparams] == [{**ELUCIDATED, "num_sample_steps": 3}]
