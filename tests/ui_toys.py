"""A studio of images of one colour, for tests of the page."""

from __future__ import annotations

import torch
from PIL import Image

from imagen_pytorch.ui.form import Form


class ToyStudio:
    """Makes images without a model, in two stages of three steps."""

    models, samplers = ("emoji", "other"), ("ddim", "heun")

    def __init__(self, output) -> None:
        self.output, self.forms, self.steps, self.error = output, [], [], None

    def make(self, form: Form, callback):
        self.forms.append(form)
        if self.error is not None:
            raise self.error
        for unet in (1, 2):
            for step in range(3):
                self.steps.append((unet, step))
                callback(unet, step, 3, torch.full((int(form.count), 3, 4 * unet, 4 * unet), 0.5))
        files = []
        for index in range(int(form.count)):
            path = self.output / f"{len(self.forms)}-{index}.png"
            Image.new("RGB", (8, 8), "red").save(path)
            files.append((path, f"seed {index}"))
        return files, "seed 0"

    def settings(self, path: str):
        return {
            "prompt": "a red heart",
            "seed": "7",
            "steps": "2,3",
            "sampler": "ddim",
            "guidance": "1.5",
            "negative": "",
        }

    def sentence(self, error):
        return str(error) if isinstance(error, ValueError) else None

    def runs(self):
        return ["runs/b", "runs/a"]

    def run(self, folder):
        return f"{folder}: step 3", Image.new("RGB", (8, 8)), None


FIELDS = {
    "prompt": "a red heart",
    "negative": "",
    "model": "emoji",
    "count": 2,
    "seed": "",
    "steps": "",
    "sampler": "",
    "guidance": "",
}
