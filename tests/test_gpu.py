"""What holds on a GPU: the same pictures as on a CPU, and a host that runs ahead instead of waiting."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_cascade_fast import awake, both, sampled
from toys import CAPTIONS, pictures, small_imagen

from imagen_pytorch import Imagen, ImagenTrainer, Unet3D
from imagen_pytorch.checkpoint import load_imagen_from_checkpoint
from imagen_pytorch.diffusion.guidance import GUIDANCE
from imagen_pytorch.diffusion.samplers import SAMPLERS
from imagen_pytorch.profiling.estimates import Plan, training_cost

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def exact_products():
    """Convolutions in single precision, which torch rounds to ten bits of a mantissa on a GPU unless it is told."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def no_waiting():
    """An error where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def undisturbed(imagen, **options):
    """A sampling whose steps behind the first may not wait for the GPU."""
    with contextlib.ExitStack() as stack:

        def begin_and_end(_unet, step, total, _x0):
            if step == 0:
                stack.enter_context(no_waiting())
            elif step == total - 1:
                stack.close()

        return sampled(imagen, callback=begin_and_end, **options)


@both
def test_pictures_are_those_of_the_cpu(kind):
    imagen = awake(small_imagen((8, 16), kind))
    expected = sampled(imagen)
    made = sampled(imagen.to(GPU))
    assert made.is_cuda
    torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_no_sampler_waits_for_the_gpu(name):
    undisturbed(awake(small_imagen()).to(GPU), sampler=name, steps=4)


@pytest.mark.parametrize("name", sorted(GUIDANCE))
def test_no_guidance_waits_for_the_gpu(name):
    undisturbed(awake(small_imagen()).to(GPU), guidance=name, steps=4)


@both
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_like_single(kind, precision):
    imagen = awake(small_imagen((8,), kind)).to(GPU)
    exact, half = sampled(imagen), undisturbed(imagen, precision=precision, steps=2)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.1


def loss_and_gradient(imagen):
    imagen.zero_grad()
    torch.manual_seed(0)
    loss = imagen(pictures().to(GPU), texts=CAPTIONS, noise=pictures(seed=3).to(GPU))
    loss.backward()
    return loss, [item.grad.clone() for item in imagen.parameters() if item.grad is not None]


def test_recomputed_levels_have_the_same_gradients():
    whole, again = (
        loss_and_gradient(awake(small_imagen(unet={"gradient_checkpointing": choice})).to(GPU))
        for choice in (False, True)
    )
    torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_training_step_reads_the_loss_and_the_norm_and_learns(kind, precision):
    """fp16 also reads what its loss scale has become."""
    trainer = ImagenTrainer(small_imagen((8,), kind), precision=precision, lr=1e-2, verbose=False)
    shown, losses = pictures(), []
    for _ in range(40):
        losses.append(trainer(shown, texts=CAPTIONS))
        trainer.update()
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])
    with torch.profiler.profile() as profile:
        trainer(shown.to(GPU), texts=CAPTIONS)
        trainer.update()
        torch.cuda.synchronize()
    found = Counter(event.name for event in profile.events() if event.device_type.name == "CPU")
    copies = sum("Memcpy DtoH" in event.name for event in profile.events())
    assert copies == 2 + (precision == "fp16"), found


def test_what_is_saved_from_a_gpu_is_loaded_anywhere(tmp_path):
    trainer = ImagenTrainer(small_imagen(), verbose=False)
    trainer(pictures(), texts=CAPTIONS)
    trainer.update()
    trainer.save(tmp_path / "a.pt")
    assert trainer.device.type == "cuda"
    again = load_imagen_from_checkpoint(tmp_path / "a.pt", load_ema_if_available=False)
    for one, other in zip(trainer.imagen.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.cpu(), other) and not other.is_cuda
    losses = []
    for _ in range(2):
        trainer.load(tmp_path / "a.pt")
        torch.manual_seed(1)
        losses.append(trainer(pictures(), texts=CAPTIONS))
        assert trainer.update()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_clips_are_those_of_the_cpu_and_are_learned():
    options = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8, "text_embed_dim": 16}
    imagen = awake(Imagen(Unet3D(**options), image_sizes=8, timesteps=3, text_encoder_name="builtin:words:16"))
    expected = sampled(imagen, video_frames=4)
    torch.testing.assert_close(sampled(imagen.to(GPU), video_frames=4).cpu(), expected, rtol=0, atol=1e-4)
    undisturbed(imagen, video_frames=4, steps=4)
    imagen(torch.rand(4, 3, 4, 8, 8, device=GPU), texts=CAPTIONS).backward()
    assert all(item.grad.isfinite().all() for item in imagen.parameters() if item.grad is not None)


def test_painting_keeps_what_is_given():
    imagen = awake(small_imagen((8, 16))).to(GPU)
    given, mask = torch.rand(4, 3, 16, 16), torch.zeros(4, 16, 16, dtype=torch.bool)
    mask[:, :8] = True
    made = sampled(imagen, inpaint_images=given, inpaint_masks=mask)
    assert torch.equal(made.cpu()[:, :, :8], given[:, :, :8])


def test_one_network_at_a_time_is_on_the_gpu():
    imagen = awake(small_imagen((8, 16)))
    expected = sampled(imagen)
    made = imagen.sample(texts=CAPTIONS, cond_scale=3.0, seed=5, use_tqdm=False, device=GPU, use_one_unet_in_gpu=True)
    torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=1e-4)
    assert not any(item.is_cuda for item in imagen.parameters())


def test_the_estimated_memory_of_a_training_step_is_near_what_is_taken():
    imagen = small_imagen((32,), unet={"dim": 64}).to(GPU)
    batch = 16

    def step():
        imagen(torch.rand(batch, 3, 32, 32, device=GPU), texts=CAPTIONS * (batch // 4)).backward()

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    taken = torch.cuda.max_memory_allocated() - before
    assert training_cost(imagen, 1, Plan(batch_size=batch, device="cuda")).peak == pytest.approx(taken, rel=0.25)


COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters
torch.backends.cudnn.allow_tf32 = False
from test_cascade_fast import awake, sampled
from toys import CAPTIONS, small_imagen
from imagen_pytorch import ImagenTrainer
for unet, options in (({}, {}), ({"self_cond": True}, {"cache_interval": 2})):
    imagen = awake(small_imagen(timesteps=6, unet=unet)).to("cuda")
    expected = sampled(imagen, **options)
    for _ in range(3):  # graphs are recorded in the second call and replayed in the third
        made = sampled(imagen, compile="reduce-overhead", **options)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-3)
half = awake(small_imagen(timesteps=4)).to("cuda")
expected, graphs = sampled(half, precision="bf16"), []
for _ in range(3):
    torch.testing.assert_close(sampled(half, precision="bf16", compile=True), expected, rtol=0, atol=0.05)
    graphs.append(counters["stats"]["unique_graphs"])
assert graphs == graphs[:1] * 3, graphs
trainer = ImagenTrainer(awake(small_imagen()), lr=1e-2, compile=True, verbose=False)
pictures, losses = torch.rand(4, 3, 8, 8), []
for _ in range(40):
    losses.append(trainer(pictures, texts=CAPTIONS))
    trainer.update()
assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
"""


@pytest.mark.slow
def test_compiled_networks_answer_alike_and_learn():
    """Networks that torch records as CUDA graphs, whose answers the next call overwrites; in a process of its own, as
    the run-time checks of annotations cannot be traced."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", COMPILED, here], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
