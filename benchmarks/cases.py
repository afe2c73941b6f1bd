"""What is measured: every case makes, for one side, a function that does some work, and says how many units that is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from models import UNETS, WIDTH, captions, inputs, model, of_diffusers, package
from torch import Tensor, nn

Work = tuple[Callable[[], object], int]

ALL, CASCADES, OURS = ("ours", "imagen-pytorch", "diffusers"), ("ours", "imagen-pytorch"), ("ours",)
TINY_T5 = Path(__file__).parent.parent / "tests" / "data" / "tiny-t5"


def _half(device: str, bf16: bool) -> AbstractContextManager[object]:
    """Matrix products and convolutions in bf16, if that is asked for."""
    return torch.autocast(device, torch.bfloat16, enabled=bf16)


def _stepper(network: nn.Module, loss: Callable[[], Tensor], device: str, bf16: bool = False) -> Callable[[], None]:
    """A training step as one would write it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def step() -> None:
        with _half(device, bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(side: str, device: str, unet: str = "readme", size: int = 64, batch: int = 2, bf16: bool = False) -> Work:
    """Loss, gradient, Adam; a unit is a picture."""
    given = inputs(batch, size, device)
    if side == "diffusers":
        network, scheduler = of_diffusers(unet, size, device)

        def loss() -> Tensor:
            noise = torch.randn_like(given["images"])
            times = torch.randint(0, 1000, (batch,), device=device)
            noisy = scheduler.add_noise(given["images"] * 2 - 1, noise, times)
            return nn.functional.mse_loss(network(noisy, times, given["text_embeds"]).sample, noise)

        return _stepper(network, loss, device, bf16), batch
    made = model(side, unet, (size,), 100, device)
    return _stepper(made, lambda: made(**given, unet_number=1), device, bf16), batch


def trainer_step(side: str, device: str, batch: int = 4) -> Work:
    """`ImagenTrainer`: forward, update, averages; "bare" is the same network with loss and gradient alone."""
    given = inputs(batch, 64, device)
    made = model("ours" if side == "bare" else side, "readme", (64,), 100, device)
    if side == "bare":

        def step() -> None:
            made(**given, unet_number=1).backward()
            made.zero_grad()

        return step, batch
    trainer = package(side).ImagenTrainer(made, verbose=False, ema_update_every=1, ema_update_after_step=0)

    def update() -> None:
        trainer(**given, unet_number=1)
        trainer.update(unet_number=1)

    return update, batch


def sample(
    side: str,
    device: str,
    unet: str = "readme",
    size: int = 64,
    batch: int = 1,
    tokens: int = 77,
    steps: int = 20,
    kind: str = "Imagen",
    bf16: bool = False,
    options: dict[str, object] | None = None,
) -> Work:
    """Guided sampling; a unit is a step of one picture. ``options`` are of ours alone."""
    words = captions(batch, device, tokens)
    if side == "diffusers":
        network, scheduler = of_diffusers(unet, size, device)
        both = torch.cat([words["text_embeds"], torch.zeros_like(words["text_embeds"])])

        @torch.inference_mode()
        def draw() -> None:
            scheduler.set_timesteps(steps)
            x = torch.randn(batch, 3, size, size, device=device)
            for moment in scheduler.timesteps:
                with _half(device, bf16):
                    cond, null = network(torch.cat([x, x]), moment, both).sample.chunk(2)
                x = scheduler.step(null + 3 * (cond - null), moment, x).prev_sample

        return draw, steps * batch
    made = model(side, unet, (size,), steps, device, kind)
    named = {"precision": "bf16" if bf16 else "no", **(options or {})} if side == "ours" else {}

    def sampled() -> None:
        with _half(device, bf16 and side != "ours"):
            made.sample(**words, cond_scale=3.0, use_tqdm=False, **named)

    return sampled, steps * batch


def picture(
    side: str, device: str, steps: int = 20, cache_interval: int = 1, unet: str = "small", size: int = 32
) -> Work:
    """A finished picture: few ancestral steps here, the 250 that users take there."""
    words = captions(1, device)
    made = model(side, unet, (size,), 250, device)
    chosen = {"sampler": "ddpm", "steps": steps, "cache_interval": cache_interval}
    named = chosen if side == "ours" else {}
    return lambda: made.sample(**words, cond_scale=3.0, use_tqdm=False, **named), 1


def cascade(side: str, device: str) -> Work:
    """A picture through two stages of four steps."""
    words = captions(1, device)
    made = model(side, "small", (32, 64), 4, device)
    return lambda: made.sample(**words, cond_scale=3.0, use_tqdm=False), 1


def video(side: str, device: str, frames: int = 8) -> Work:
    """A training step of a clip; a unit is a frame."""
    given = inputs(1, 32, device, frames)
    made = model(side, "small", (32,), 100, device, video=True)
    return _stepper(made, lambda: made(**given, unet_number=1), device), frames


def checkpoint(side: str, device: str, action: str) -> Work:
    """Saving or loading a trainer with averages and moments."""
    made = model(side, "readme", (32,), 100, device)
    trainer = package(side).ImagenTrainer(made, verbose=False)
    trainer(**inputs(2, 32, device), unet_number=1)
    trainer.update(unet_number=1)
    path = Path(tempfile.mkdtemp()) / "a.pt"
    trainer.save(path)
    return (lambda: trainer.save(path)) if action == "save" else (lambda: trainer.load(path)), 1


def encode(side: str, device: str, count: int = 64) -> Work:
    """Captions that are new every time through an encoder of the T5 kind; a unit is a caption."""
    from itertools import count as numbers

    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    folder = tempfile.mkdtemp()
    for path in TINY_T5.iterdir():
        (Path(folder) / path.name).write_bytes(path.read_bytes())
    config = T5Config.from_pretrained(folder)
    config.d_model, config.d_kv, config.d_ff, config.num_layers, config.num_heads = 256, 32, 512, 4, 8
    T5EncoderModel(config).save_pretrained(folder)
    calls = numbers()

    def texts() -> list[str]:
        call = next(calls)
        return [f"picture {call} of {'very ' * (index % 9)}small thing number {index}" for index in range(count)]

    if side == "transformers":
        tokenizer, encoder = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).to(device)

        @torch.inference_mode()
        def run() -> Tensor:
            return encoder(**tokenizer(texts(), return_tensors="pt", padding=True).to(device)).last_hidden_state

        return run, count
    from imagen_pytorch.t5 import t5_encode_text

    return lambda: t5_encode_text(texts(), name=folder), count


def load(side: str, _device: str, count: int = 64) -> Work:
    """Pictures of 256x256 from a folder to batches of 64x64; a unit is a picture."""
    import numpy as np
    from PIL import Image

    folder, draws = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        coarse.resize((256, 256)).save(folder / f"{index}.jpg")
    package(side)
    from imagen_pytorch.data import Dataset

    data = Dataset(str(folder), image_size=64)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    return lambda: list(loader), count


class Case(NamedTuple):
    """Work, the sides that can do it, and what one unit of it is."""

    make: Callable[..., Work]
    sides: tuple[str, ...]
    unit: str


SMALL = {"unet": "small", "size": 32, "steps": 4}
CASES: dict[str, Case] = {
    "guided step, README": Case(sample, ALL, "step"),
    "guided step, README, bf16": Case(partial(sample, bf16=True), ALL, "step"),
    "guided step, README, compiled": Case(partial(sample, options={"compile": True}), ALL, "step"),
    "guided step, README, bf16 compiled": Case(partial(sample, bf16=True, options={"compile": True}), ALL, "step"),
    "guided step, README, bf16 graphs": Case(
        partial(sample, bf16=True, options={"compile": "reduce-overhead"}), ALL, "step"
    ),
    "guided step, large, bf16 compiled": Case(
        partial(sample, unet="base 256", batch=8, steps=4, bf16=True, options={"compile": True}), ALL, "step"
    ),
    "guided step, README, reused": Case(partial(sample, steps=21, options={"cache_interval": 3}), ALL, "step"),
    "guided step, defaults": Case(partial(sample, unet="default", steps=2), ALL, "step"),
    "guided step, elucidated": Case(partial(sample, kind="ElucidatedImagen", steps=3), CASCADES, "step"),
    "a finished picture, README": Case(partial(picture, unet="readme", size=64), CASCADES, "picture"),
    "a finished picture": Case(picture, CASCADES, "picture"),
    "a finished picture with reuse": Case(partial(picture, steps=24, cache_interval=3), CASCADES, "picture"),
    "cascade 32 to 64": Case(cascade, CASCADES, "picture"),
    "training, README": Case(train, ALL, "picture"),
    "training, README, bf16": Case(partial(train, bf16=True, batch=16), ALL, "picture"),
    "training, large, bf16": Case(partial(train, unet="base 256", batch=8, bf16=True), ALL, "picture"),
    "training, defaults": Case(partial(train, unet="default", batch=1), ALL, "picture"),
    "training, video": Case(partial(video, frames=16), CASCADES, "frame"),
    "trainer step": Case(trainer_step, ("ours", "bare", "imagen-pytorch"), "picture"),
    "trainer step, batch 16": Case(partial(trainer_step, batch=16), ("ours", "bare"), "picture"),
    "checkpoint, save": Case(partial(checkpoint, action="save"), CASCADES, "file"),
    "checkpoint, load": Case(partial(checkpoint, action="load"), CASCADES, "file"),
    "text encoding": Case(encode, ("ours", "transformers"), "caption"),
    "data loading": Case(load, OURS, "picture"),
}
#: how the time of a unit grows: along a curve it should stay where it is, or grow as the work does
CURVES: dict[str, Case] = {
    **{f"batch {n}": Case(partial(sample, **SMALL, batch=n), ALL, "step") for n in (1, 4, 16)},
    **{f"resolution {n}": Case(partial(sample, **{**SMALL, "size": n}), ALL, "step") for n in (16, 32, 64, 128)},
    **{f"tokens {n}": Case(partial(sample, **SMALL, tokens=n), ALL, "step") for n in (16, 64, 256)},
    **{f"steps {n}": Case(partial(sample, **{**SMALL, "steps": n}), ALL, "step") for n in (2, 8)},
    **{f"frames {n}": Case(partial(video, frames=n), CASCADES, "frame") for n in (4, 8, 16, 32)},
}


#: networks whose share of the machine's ceiling is measured, and pictures at once
FORWARDS = {"cpu": (("readme", 8),), "cuda": (("readme", 128), ("base 128", 32), ("base 256", 32))}


def forward(device: str, unet: str, batch: int) -> tuple[Callable[[], object], int]:
    """A forward pass of a network, and its FLOPs by torch's counter; on a GPU compiled and in bf16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = package("ours").Unet(**UNETS[unet], text_embed_dim=WIDTH).to(device).eval()
    given = inputs(batch, 64, device)
    times = torch.randn(batch, device=device)
    fast = device == "cuda"

    @torch.inference_mode()
    def run() -> None:
        with _half(device, fast):
            network(given["images"], times, known)

    with torch.inference_mode():
        with _half(device, fast):
            known = network.condition(batch=batch, size=(64, 64), text_embeds=given["text_embeds"])
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    if fast:
        network.compile()
    return run, counter.get_total_flops()
