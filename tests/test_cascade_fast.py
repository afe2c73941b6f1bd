"""Choices that make sampling faster and change nothing, or no more than their precision."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toys import CAPTIONS, small_imagen, small_unet

from imagen_pytorch import ElucidatedImagen, Imagen, ImagenTrainer
from imagen_pytorch.cascade import module_state
from imagen_pytorch.cascade.deepcache import FeatureCache

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


class Roundings(TorchDispatchMode):
    """Counts how often one of these parameters is brought to another precision."""

    def __init__(self, parameters):
        super().__init__()
        self.places, self.count = {item.data_ptr() for item in parameters}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):  # the second in inference mode
            self.count += result.dtype != args[0].dtype and args[0].data_ptr() in self.places
        return result


@both
def test_weights_are_rounded_once_per_stage_and_callbacks_are_not_in_half_precision(kind):
    imagen, seen, counts = awake(small_imagen((8, 16), kind)), [], []
    parts = [part for part in imagen.modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    before = [part.weight for part in parts]

    def look(*_):
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        counts.append(roundings.count)

    with Roundings(before) as roundings:
        sampled(imagen, precision="bf16", steps=3, callback=look)
    assert set(seen) == {torch.float32}
    steps = len(counts) // 2
    assert counts[0] > 0 and counts[:steps] == counts[:1] * steps and counts[steps:] == counts[-1:] * steps
    assert all(part.weight is weight for part, weight in zip(parts, before, strict=True))


def test_an_interrupted_sampling_in_half_precision_gives_the_weights_back():
    imagen = awake(small_imagen((8,)))
    before = dict(imagen.named_parameters())

    def stop(*_):
        assert any(item.dtype == torch.bfloat16 for item in imagen.parameters())
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        sampled(imagen, precision="bf16", callback=stop)
    assert all(item is before[name] for name, item in imagen.named_parameters())


@pytest.mark.parametrize("stops", [False, True])
def test_kernels_lie_as_the_maps_do_while_sampling_and_as_before_after_it(stops):
    imagen = awake(small_imagen((8,), Imagen))
    kernels = [part.weight for part in imagen.modules() if isinstance(part, torch.nn.Conv2d)]
    values, seen = [kernel.clone() for kernel in kernels], []

    def look(*_):
        seen.extend(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
        if stops:
            raise RuntimeError("stop here")

    with torch.inference_mode(), contextlib.suppress(RuntimeError):
        sampled(imagen, callback=look)
    assert seen and all(seen)
    assert all(kernel.is_contiguous() and kernel.equal(value) for kernel, value in zip(kernels, values, strict=True))
    imagen(torch.rand(4, 3, 8, 8), texts=CAPTIONS, unet_number=1).backward()
    assert all(kernel.grad is not None for kernel in kernels)


@pytest.mark.parametrize(
    ("mode", "precision", "changes"),
    [
        (False, "no", True),
        (True, "no", False),
        (False, "bf16", True),
        (True, "bf16", True),
        ("reduce-overhead", "bf16", False),
        ("max-autotune", "bf16", False),
    ],
)
def test_what_a_compiled_network_on_an_accelerator_may_have_recorded_stays(mode, precision, changes, monkeypatch):
    monkeypatch.setattr(module_state, "device_of", lambda _: torch.device("cuda"))
    network = small_unet()
    module_state.compile_once(network, mode)
    before = {name: (item, item.data_ptr()) for name, item in network.named_parameters()}
    with module_state.inference_weights(network, precision):
        inside = {name: (item, item.data_ptr()) for name, item in network.named_parameters()}
    assert any(item is not inside[name][0] or place != inside[name][1] for name, (item, place) in before.items()) == (
        changes
    )
    assert all(item is before[name][0] for name, item in network.named_parameters())


@pytest.mark.parametrize("has", [True, False])
def test_half_precision_that_is_imitated_is_said(has, monkeypatch):
    monkeypatch.setattr(module_state, "computes_in", lambda name, kind: has or name == "no")
    imagen = small_imagen()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sampled(imagen, precision="bf16")
        ImagenTrainer(imagen, precision="bf16", verbose=False)
        sampled(imagen)
    assert [str(item.message).partition(" and ")[0] for item in said] == (
        [] if has else ["this processor has no instructions for bf16"] * 2
    )


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


# -- reuse of inner maps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_efficient": True, "skip_layer_excitation": True},
        {"combine_upsample_fmaps": True, "num_resnet_blocks": (2, 1)},
        {"dim_mults": (1,), "layer_cross_attns": True},
    ],
)
def test_with_the_inner_maps_of_the_same_call_the_answer_is_the_same(options):
    unet = awake(small_unet(**options))
    x, time = torch.randn(2, 3, 8, 8), torch.zeros(2)
    named = {"text_embeds": torch.randn(2, 3, unet.text_embed_dim)} if unet.cond_on_text else {}
    answer, inner = unet(x, time, **named, return_inner=True)
    assert torch.equal(unet(x, time, **named, inner=inner), answer) and torch.equal(unet(x, time, **named), answer)
    assert not torch.equal(unet(x, time, **named, inner=[item + 1 for item in inner]), answer)


class Counted(torch.nn.Module):
    """Says which calls were whole, and which maps the others were given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, inner=None, return_inner=False):
        self.calls.append("whole" if inner is None else inner[0].tolist())
        return (x, [x.repeat_interleave(2)]) if return_inner else x


def test_one_call_in_so_many_is_whole():
    """A smaller batch takes the first maps of a larger one, a larger one is computed whole."""
    net, kept = Counted(), FeatureCache(3)
    for number in range(4):
        kept.answer(net, torch.full((1,), float(number)))
    assert net.calls == ["whole", [0, 0], [0, 0], "whole"]
    kept.answer(net, torch.tensor([5.0, 6.0]))
    kept.answer(net, torch.tensor([7.0]))
    assert net.calls[4:] == ["whole", [5, 5]]
    net, kept = Counted(), FeatureCache(1)
    for _ in range(3):
        kept.answer(net, torch.ones(1))
    assert net.calls == ["whole"] * 3


@both
def test_reuse_changes_pictures_a_little(kind):
    imagen = awake(small_imagen((8, 16), kind))
    options = {"steps": 6, "return_all_unet_outputs": True}
    exact, reused = sampled(imagen, **options), sampled(imagen, cache_interval=(2, 1), **options)
    changes = [(one - other).abs().mean() for one, other in zip(exact, reused, strict=True)]
    assert 0 < changes[0] < 0.1
    single = sampled(imagen, cache_interval=2, max_batch_size=3, **options)
    torch.testing.assert_close(single, sampled(imagen, cache_interval=2, **options), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="cache_interval must be at least 1, got 0"):
        sampled(imagen, cache_interval=0)


# -- waiting for an accelerator ---------------------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts, by the function of this package that does it, how often a number is read out of a tensor."""

    KINDS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.KINDS:
            stack = traceback.extract_stack()
            self.found[next(frame.name for frame in reversed(stack) if "/imagen_pytorch/" in frame.filename)] += 1
        return function(*args, **(kwargs or {}))


@both
def test_a_loss_and_its_gradients_wait_for_no_accelerator(kind):
    """Tensors without contents, of which nothing can be read."""
    with torch.device("meta"):
        imagen = small_imagen((8, 16), kind, text_encoder_name=None, text_embed_dim=8)
        pictures, text = torch.rand(4, 3, 16, 16), torch.rand(4, 5, 8)
    for number in (1, 2):
        imagen(pictures, text_embeds=text, unet_number=number).backward()
        assert all(item.grad is not None for item in imagen.unets[number - 1].final_conv.parameters())
    with pytest.raises(RuntimeError, match="meta"):
        pictures.sum().item()


@both
def test_a_training_step_waits_for_the_loss_that_it_returns_and_for_the_norm(kind):
    """What else is read lies on the CPU wherever the model is: pictures that are checked there (`check_range`, and the
    length of captions, `_trim_text`), new embeddings (`_encode_new`), random states, the seeds of draws (`draw`), and
    the counters of averages."""
    trainer = ImagenTrainer(small_imagen((8,), kind), verbose=False)
    pictures = torch.rand(4, 3, 8, 8)
    with Reads() as reads:
        trainer(pictures, texts=CAPTIONS)
        trainer.update()
    with trainer.randomness.step() as generator:  # wherever the model is
        assert generator.device == torch.device("cpu")
    on_cpu = {"check_range", "_trim_text", "_encode_new", "draw_seed", "draw", "_advance"}
    assert {name: count for name, count in reads.found.items() if name not in on_cpu} == {"loss": 1, "update": 1}
    average = trainer.ema_unets[0].to("meta")
    assert average.step.device == average.initted.device == torch.device("cpu")
    assert next(average.ema_model.parameters()).is_meta


@pytest.mark.parametrize(("kind", "guidance"), [(Imagen, "apg"), (ElucidatedImagen, "cfg")])
def test_steps_of_sampling_wait_for_no_accelerator(kind, guidance, monkeypatch):
    """Only the length of the captions is read, once for each stage."""
    asked = []

    def counted(tensor):
        asked.append(tensor)
        return 5

    with torch.device("meta"):
        imagen = small_imagen((8, 16), kind, text_encoder_name=None, text_embed_dim=8)
        text = torch.rand(2, 5, 8)
    monkeypatch.setattr(torch.Tensor, "__int__", counted)
    for steps in (1, 3):
        asked.clear()
        made = imagen.sample(text_embeds=text, cond_scale=3.0, steps=steps, guidance=guidance, use_tqdm=False)
        assert made.is_meta and made.shape == (2, 3, 16, 16) and len(asked) == 2


# -- compilation ------------------------------------------------------------------------------------------------------

COMPILED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters
torch.set_num_threads(1)
from test_cascade_fast import awake, sampled
from toys import CAPTIONS, small_imagen
from imagen_pytorch import ImagenTrainer
from imagen_pytorch.nn import softmax_attention
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

softmax_attention.PRODUCTS_ARE_FASTER = True
own = awake(small_imagen(timesteps=4))
expected, before = sampled(own, precision="bf16"), counters["stats"]["unique_graphs"]
for count in (4, 3, 2):
    found = sampled(own, texts=CAPTIONS[:count], precision="bf16", compile=True)
    torch.testing.assert_close(found, expected[:count], rtol=0, atol=0.02)
assert counters["stats"]["unique_graphs"] - before == 2 and not counters["graph_break"]

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


@pytest.mark.slow
def test_compiled_networks_answer_alike_and_are_compiled_once():
    """One graph each, another one for batches of any size, none for further steps; in a process of its own, as the
    run-time checks of annotations cannot be traced."""
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", COMPILED, here], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
