"""What a model costs: estimates without memory equal what a real step on the CPU does."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import SMALL, small_imagen, small_unet

from imagen_pytorch import ElucidatedImagen, Imagen, NullUnet, Unet3D
from imagen_pytorch.construction import build_on_meta
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.nn.presets import UNETS as UNET_CLASSES
from imagen_pytorch.profiling.advice import Machine, advice, scaled, this_machine
from imagen_pytorch.profiling.estimates import (
    Plan,
    Sampling,
    StageEstimate,
    Training,
    estimate,
    estimate_stage,
    evaluations,
    held,
    sampling_cost,
    training_cost,
    weight_bytes,
)
from imagen_pytorch.profiling.metering import CostCounter, SavedTensors
from imagen_pytorch.profiling.shapes import argument, as_rows, fake_copy, frames_of, one_row

BARE = {"dim_mults": (1,), "layer_cross_attns": False, "attend_at_middle": False, "mid_cross_attn": False}
BARE |= {"num_resnet_blocks": 0, "use_global_context_attn": False}
#: without backward passes, which take most of the time
FORWARD = {"enough": 0}
ATTENTIVE = {**BARE, "layer_attns": True, "layer_cross_attns": True, "cond_images_channels": 2, "self_cond": True}
EFFICIENT = {**BARE, "use_linear_attn": True, "memory_efficient": True, "gradient_checkpointing": True}


@pytest.fixture(autouse=True, scope="module")
def unchecked_annotations(checked_annotations):
    """Meters see every single operator: checking them would multiply the time."""
    jaxtyping.config.update("jaxtyping_disable", True)


def real_step(imagen, number: int, rows: int, precision: str = "no"):
    """Bytes saved and at most alive in a training step that really runs."""
    unet = imagen.unets[number - 1].train()
    batch = as_rows(one_row(imagen, number), rows, torch.zeros, torch.device("cpu"))
    meter = CostCounter(given=held(unet, batch))
    dtype = {"no": None, "bf16": torch.bfloat16}[precision]
    with meter.without_gradients(unet):
        with meter, SavedTensors(unet) as saved, torch.autocast("cpu", dtype, dtype is not None):
            loss = imagen.loss(batch)
        kept, flops = saved.release(), meter.flops
        with meter:
            loss.backward()
    return flops, kept, meter.peak


# -- FLOPs and bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_of_a_convolution(device):
    conv = nn.Conv2d(3, 8, 5, stride=2, padding=2, device=device)
    with CostCounter() as meter:
        conv(torch.zeros(2, 3, 16, 12, device=device))
    assert meter.flops == 2 * (2 * 8 * 8 * 6) * 3 * 5 * 5


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("masked", [False, True])
def test_flops_of_attention(device, masked):
    """The fused kernel of a CPU is one that torch's own counter passes over."""
    query, key = (torch.zeros(2, 4, count, 16, device=device) for count in (10, 12))
    mask = torch.ones(2, 1, 1, 12, dtype=torch.bool, device=device) if masked else None
    with CostCounter() as meter:
        F.scaled_dot_product_attention(query, key, key, attn_mask=mask)
    assert meter.flops == 2 * (2 * 4 * 10 * 12 * 16) * 2


def test_the_meter_follows_what_is_made_and_dropped():
    with CostCounter() as meter:
        first = torch.zeros(100)
        second = first.view(10, 10)  # the same memory
        assert meter.live == 400
        third = first + 1
        del first, second
        assert (meter.live, meter.peak) == (400, 800)
        del third
    assert meter.live == 0


def test_gradients_of_weights_do_not_count():
    layer = nn.Linear(30, 30, bias=False)
    with CostCounter(given=layer.parameters()) as meter, meter.without_gradients(layer):
        loss = layer(torch.zeros(1, 30)).sum()
        assert meter.live < 400  # a view of the weight is no new memory
        loss.backward()
    del loss
    assert layer.weight.grad.nbytes == 3600 and meter.live == 0 and 3600 < meter.peak < 3600 + 400


def test_a_training_step_takes_what_was_estimated():
    """Bytes saved for the backward pass, highest number of bytes and FLOPs, all of them exactly."""
    imagen = small_imagen(unet=ATTENTIVE)
    cost = training_cost(imagen, 1, Plan(batch_size=3))
    assert (cost.flops, cost.saved, cost.peak) == real_step(imagen, 1, 3)
    assert cost.peak > cost.saved > 0


def test_half_precision_takes_half_of_it():
    """But for the statistics of norms, which a CPU keeps in single precision and the estimate does not."""
    imagen = small_imagen(unet=BARE)
    half = training_cost(imagen, 1, Plan(batch_size=3, precision="bf16"))
    flops, saved, peak = real_step(imagen, 1, 3, "bf16")
    assert half.flops == flops
    assert half.saved == pytest.approx(saved, rel=0.03) and half.peak == pytest.approx(peak, rel=0.03)


def test_an_enlarging_stage_trains_on_crops_and_samples_whole_pictures():
    """With levels that are computed once more in the backward pass, which costs as much again as the forward pass."""
    imagen = small_imagen((4, 16), unet=EFFICIENT, random_crop_sizes=(None, 8))
    cost = training_cost(imagen, 2, Plan(batch_size=2))
    assert (cost.flops, cost.saved, cost.peak) == real_step(imagen, 2, 2)
    each, once = sampling_cost(imagen, 2, 1, Plan())
    assert 3.5 < each.flops / (cost.flops / 2 - once) < 4


def test_clips_cost_by_their_frames():
    net = {**SMALL, **BARE, "text_embed_dim": 16}
    imagen = Imagen([Unet3D(**net)], image_sizes=8, timesteps=2, text_embed_dim=16, video_frames=2)
    assert frames_of(imagen, 1) == 2 and frames_of(imagen, 1, 5) == 5
    four = training_cost(imagen, 1, Plan(batch_size=1, frames=4, **FORWARD))
    assert four.flops == pytest.approx(2 * training_cost(imagen, 1, Plan(batch_size=1, **FORWARD)).flops, rel=0.1)


# -- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_evaluations_are_those_of_the_sampler(name):
    imagen = small_imagen(sampler=name, timesteps=6)
    asked = []
    process = imagen.stages[0].process
    process.sample(lambda x, *_: asked.append(1) or x, (2, 3, 4, 4))
    assert evaluations(process) == len(asked) >= 6


def test_an_estimate_adds_up():
    made = small_imagen((4, 8), ElucidatedImagen, unet=BARE)
    imagen = build_on_meta(lambda: small_imagen((4, 8), ElucidatedImagen, unet=BARE))
    assert {item.device.type for item in imagen.parameters()} == {"meta"}
    plan = Plan(batch_size=8, max_batch_size=2, **FORWARD)
    first, second = estimate(imagen, plan)
    for stage, unet in zip((first, second), made.unets, strict=True):
        count = sum(item.numel() for item in unet.parameters())
        need = stage.training
        assert stage.parameters == count and stage.weight_bytes == weight_bytes(unet)
        assert (need.gradients, need.moments) == (4 * count, 8 * count)
        parts = need.weights + need.averages + need.gradients + need.moments + need.activations
        assert need.total == parts and need.weights == need.averages == first.weight_bytes + second.weight_bytes
        assert stage.sampling.flops > stage.forward_flops * 2 * stage.sampling.evaluations
    cost = training_cost(imagen, 1, plan)
    assert (first.training.activations, first.training.flops) == (cost.peak, 3 * 4 * cost.flops)
    assert (first.lowres_size, second.lowres_size, second.image_size) == (None, (4, 4), (8, 8))


def test_placeholders_cost_nothing():
    imagen = build_on_meta(lambda: Imagen([NullUnet(), small_unet(**BARE)], image_sizes=(4, 8), text_embed_dim=16))
    assert [stage.number for stage in estimate(imagen, Plan(batch_size=1, **FORWARD))] == [2]
    with pytest.raises(ValueError, match="NullUnet placeholder"):
        estimate_stage(imagen, 1, Plan())


def test_arguments_of_networks_with_other_defaults():
    unet = build_on_meta(lambda: UNET_CLASSES["BaseUnet64"](text_embed_dim=8, dim=16))
    assert argument(unet, "dim") == 16 and tuple(argument(unet, "dim_mults")) == (1, 2, 3, 4)


def test_a_shadow_shares_nothing():
    unet = small_unet(text_embed_dim=16, **BARE)
    other = fake_copy(unet, torch.device("cpu"))
    assert other.state_dict().keys() == unet.state_dict().keys()
    assert not {id(item) for item in unet.parameters()} & {id(item) for item in other.parameters()}
    assert other.final_conv.weight.data_ptr() != unet.final_conv.weight.data_ptr()


# -- advice -----------------------------------------------------------------------------------------------------------

NEED = {"flops": 0, "weights": 10, "averages": 10, "gradients": 10, "moments": 20, "saved_for_backward": 0}


def needing(activations: int, sampling: int = 20, checkpointing: bool = False) -> StageEstimate:
    """An estimate with 50 bytes of weights and the like."""
    training = Training(**NEED, activations=activations, total=50 + activations)
    picture = Sampling(0, 1, 1, 10, sampling - 10, sampling)
    return StageEstimate(1, "Unet", 8, (1,), (4, 4), None, None, None, checkpointing, 5, 20, 0, training, picture)


@pytest.mark.parametrize(
    ("stage", "room", "words"),
    [
        (needing(800), 1000, None),
        (needing(800), 500, ["--max-batch-size 4 needs 450 B", "gradient_checkpointing", "--precision bf16"]),
        (needing(800, checkpointing=True), 140, ["try --max-batch-size 1 with --precision bf16, or a smaller preset"]),
        (needing(800), 52, ["50 B are needed before the first image: take a smaller preset", "fsdp2"]),
    ],
)
def test_advice_when_a_training_does_not_fit(stage, room, words):
    machine = Machine("cpu", "this machine", room)
    found = advice([stage], Plan(batch_size=8), machine)
    assert len(found) == (words is not None)
    for word in words or ():
        assert word in found[0] and "\n" not in found[0]


def test_advice_when_a_picture_does_not_fit():
    (found,) = advice([needing(0, sampling=99)], Plan(), Machine("cuda", "a GPU", 70))
    assert found.startswith("sampling with U-Net 1 needs 99 B, a GPU has 70 B")


def test_this_machine_has_some_memory():
    machine = this_machine()
    assert machine.memory > 1 << 28 and machine.device in ("cpu", "cuda")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1.00 kB"), (12_345, "12.3 kB"), (99_960_000, "100 MB"), (3e30, "3000000 YB")],
)
def test_numbers_have_three_digits(value, text):
    assert scaled(value, "B") == text
