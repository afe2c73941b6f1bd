"""One side and one seed of `learning.py`: train, and draw at some steps.

    python benchmarks/learning_side.py SIDE SEED DATA OUTPUT

DATA is a file of `learning.py` with images, embeddings of captions, and settings; OUTPUT gets the drawn images by step.
"""

from __future__ import annotations

import sys
import time

import torch
from models import package

#: arguments that the networks of both packages take
UNET = {
    "dim": 32,
    "dim_mults": (1, 2, 4),
    "num_resnet_blocks": 1,
    "cond_dim": 128,
    "layer_attns": (False, False, True),
    "layer_cross_attns": (False, True, True),
    "attn_heads": 4,
    "attn_dim_head": 32,
}


def main(side: str, seed: str, data: str, output: str) -> None:
    """Train and draw."""
    torch.set_num_threads(1)
    given = torch.load(data, weights_only=True)
    settings = given["settings"]
    made = package(side)
    torch.manual_seed(int(seed))
    width = given["text_embeds"].shape[-1]
    steps = settings["sampling_steps"][side]
    unet = made.Unet(**UNET, text_embed_dim=width, cond_on_text=True)
    own = {"sampler": "ddpm"} if side == "ours" else {}
    imagen = made.Imagen(unet, image_sizes=settings["size"], text_embed_dim=width, timesteps=steps, **own)
    trainer = made.ImagenTrainer(imagen, lr=settings["lr"], verbose=False)
    rows = torch.Generator().manual_seed(int(seed))
    drawn: dict[int, torch.Tensor] = {}
    seconds = 0.0
    for step in range(1, settings["steps"][-1] + 1):
        chosen = torch.randint(len(given["images"]), (settings["batch_size"],), generator=rows)
        batch = {name: given[name][chosen] for name in ("images", "text_embeds", "text_masks")}
        began = time.process_time()
        trainer(batch.pop("images"), **batch, unet_number=1)
        trainer.update(unet_number=1)
        seconds += time.process_time() - began
        if step in settings["steps"]:
            torch.manual_seed(step)
            texts = {name: given[name][given["asked"]] for name in ("text_embeds", "text_masks")}
            found = trainer.sample(**texts, cond_scale=settings["cond_scale"], max_batch_size=32, use_tqdm=False)
            drawn[step] = found.detach().cpu()
    torch.save({"drawn": drawn, "seconds": seconds}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
