"""Choices that make sampling faster and change nothing, or no more than their precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import CAPTIONS, small_imagen

from imagen_pytorch import ElucidatedImagen, Imagen

both = pytest.mark.parametrize("kind", [Imagen, ElucidatedImagen])


def awake(imagen):
    """Weights that make more than grey pictures."""
    torch.manual_seed(1)
    for item in imagen.parameters():
        torch.nn.init.normal_(item, std=0.1)
    return imagen


def sampled(imagen, **changes):
    return imagen.sample(**{"texts": CAPTIONS, "cond_scale": 3.0, "seed": 5, "use_tqdm": False, **changes})


@both
def test_pieces_are_the_pictures_of_one_call(kind):
    imagen = awake(small_imagen((8, 16), kind))
    # kernels round batches of other sizes otherwise, and networks of random weights enlarge that step by step
    torch.testing.assert_close(sampled(imagen, max_batch_size=3), sampled(imagen), rtol=0, atol=1e-4)
    every = sampled(imagen, max_batch_size=1, return_all_unet_outputs=True)
    assert [tuple(item.shape) for item in every] == [(4, 3, 8, 8), (4, 3, 16, 16)]
    with pytest.raises(ValueError, match="max_batch_size must be at least 1, got 0"):
        sampled(imagen, max_batch_size=0)


@both
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_like_single(kind, precision):
    """The picture itself stays single; with eight bits of a mantissa the network's answers differ by about 1e-2."""
    imagen = awake(small_imagen((8,), kind))
    exact, half = sampled(imagen), sampled(imagen, precision=precision)
    assert half.dtype == exact.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.1
    with pytest.raises(ValueError, match="precision must be one of no, fp16, bf16, got 'half'"):
        sampled(imagen, precision="half")


def test_pictures_are_tensors_like_any_other():
    """Networks run in inference mode: neither what they made nor they themselves may be marked by it."""
    imagen = awake(small_imagen())
    seen = []
    pictures = sampled(imagen, callback=lambda number, step, total, x0: seen.append(x0))
    assert not any(item.is_inference() for item in [pictures, *seen])
    scale = torch.ones((), requires_grad=True)
    (pictures * scale).sum().backward()
    imagen(pictures, texts=CAPTIONS).backward()
    assert scale.grad is not None and all(item.grad is not None for item in imagen.unets[0].final_conv.parameters())


COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters
torch.set_num_threads(1)
from test_cascade_fast import awake, sampled
from toys import CAPTIONS, small_imagen
from imagen_pytorch import ImagenTrainer
plain = torch.compile
torch.compile = lambda *arguments, **options: plain(*arguments, **options, backend="eager", fullgraph=True)
imagen = awake(small_imagen(timesteps=4))
names = list(imagen.state_dict())
expected = sampled(imagen)
graphs = []
for count in (4, 3, 4):
    found = sampled(imagen, texts=CAPTIONS[:count], compile=True)
    torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-5)
    graphs.append(counters["stats"]["unique_graphs"])
assert graphs == [1, 2, 2], graphs
assert not counters["graph_break"] and list(imagen.state_dict()) == names

losses = []
for choice in (False, True):
    torch.manual_seed(0)
    trainer = ImagenTrainer(awake(small_imagen()), seed=3, compile=choice, verbose=False)
    before = counters["stats"]["unique_graphs"]
    for step in range(3):
        losses.append(trainer(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)), texts=CAPTIONS))
        trainer.update()
    assert (counters["stats"]["unique_graphs"] - before == 1) == choice
torch.testing.assert_close(losses[:3], losses[3:], rtol=1e-5, atol=1e-6)
"""


def test_compiled_networks_answer_alike_and_are_compiled_once():
    """One graph each, another one for batches of any size, none for further steps; in a process of its own, as the
    run-time checks of annotations cannot be traced."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", COMPILED, here], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
