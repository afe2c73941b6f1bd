"""What the tests of video cascades share."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cascade_toys import (
    unchecked,
)

BARE = {"dim_mults": (1,), "layer_cross_attns": False, "final_resnet_block": False, "use_global_context_attn": False}
SILENT = {"condition_on_text": False}
ABOUT_FRAMES = ("video", "frame_times", "fps", "init_images", "cond_images")


@pytest.fixture(autouse=True)
def checks(request):
    """Annotations are checked where arguments of `Imagen.sample` are used that are about frames, and nowhere else:
    it takes seconds."""
    name = request.node.name
    checked = "every_argument" in name and "Elucidated" not in name and any(word in name for word in ABOUT_FRAMES)
    with nullcontext() if checked else unchecked():
        yield


def in_range(found, *shape):
    return tuple(found.shape) == shape and bool(((found >= 0) & (found <= 1)).all())


def told(clip, size=4):
    """A clip whose frames say which they are: frame i has the value i / 16 everywhere."""
    first, count, batch = clip
    return (torch.arange(first, first + count) / 16).view(1, 1, -1, 1, 1).expand(batch, 3, -1, size, size)


def which(frames):
    """What `told` frames say, from [-1, 1]."""
    return ((frames.mean((1, 3, 4)) + 1) * 8).round().int().tolist()


MASK = torch.arange(8).expand(2, 8, 8) < 4
