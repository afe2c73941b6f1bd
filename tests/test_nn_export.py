"""An exported network answers for batches of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from imagen_pytorch import Unet, Unet3D

MANY = Dim("many", min=2, max=64)
SMALL = {"dim": 8, "dim_mults": (1,), "layer_attns": False, "layer_cross_attns": True, "attn_heads": 2,
         "attn_dim_head": 8, "init_cross_embed": False, "text_embed_dim": 6}  # fmt: skip
PICTURE, CLIP, TEXT = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 4, 8, 8), torch.rand(4, 5, 6)
LOWRES = {"lowres_cond_img": torch.rand(4, 3, 4, 4), "lowres_noise_times": torch.rand(4)}
CASES = {
    "plain": (Unet, {"cond_on_text": False}, PICTURE, {}),
    "text": (Unet, {"dim_mults": (1, 2), "use_linear_cross_attn": (True, False)}, PICTURE,
             {"text_embeds": TEXT, "text_mask": torch.rand(4, 5) > 0.5}),
    "upsampler": (Unet, {"cond_on_text": False, "lowres_cond": True, "cond_images_channels": 2, "self_cond": True,
                         "memory_efficient": True}, PICTURE, {**LOWRES, "cond_images": torch.rand(4, 2, 6, 6)}),
    "video": (Unet3D, {"temporal_strides": 2, "attn_pool_text": False}, CLIP, {"text_embeds": TEXT}),
    "video with rates": (Unet3D, {"cond_on_text": False, "layer_cross_attns": False}, CLIP,
                         {"fps": 2 + torch.rand(4), "cond_video_frames": torch.rand(4, 3, 2, 8, 8)}),
}  # fmt: skip


class Named(nn.Module):
    """A network whose conditions come as a list: torch cannot map shapes to keywords that are only passed on."""

    def __init__(self, net, names):
        super().__init__()
        self.net, self.names = net, names

    def forward(self, x, time, conditions):
        return self.net(x, time, **dict(zip(self.names, conditions, strict=True)))


SLOW = ("text", "upsampler", "video", "video with rates")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_the_batch_of_an_exported_network_is_free(name, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    kind, options, x, conditions = CASES[name]
    net = kind(**{**SMALL, **options}).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    net, names = Named(net, list(conditions)), [{0: MANY}] * len(conditions)
    shapes = {"x": {0: MANY}, "time": {0: MANY}, "conditions": names}
    program = export(net, (x, torch.zeros(4), [*conditions.values()]), dynamic_shapes=shapes, strict=False).module()
    for batch in (2, 7):
        rows = torch.arange(batch) % 4
        given = x[rows] + torch.rand(batch).view(-1, *(1,) * (x.ndim - 1)), torch.linspace(-1, 1, batch)
        parts = [value[rows] for value in conditions.values()]
        torch.testing.assert_close(program(*given, parts), net(*given, parts))
