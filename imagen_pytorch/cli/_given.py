"""Images that a user gives to ``imagen sample``: read upright, fitted to the model, and named by a hash."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..image_metadata import MAX_FILE
from ._errors import USAGE, CommandFailed, say

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..cascade.cascade import Cascade
    from ..images import Size

#: the options that name images
GIVEN = ("init", "inpaint", "mask")
#: strength of the first U-Net where neither --strength nor the settings state one
USUAL_STRENGTH = 0.4


class GivenImages(NamedTuple):
    """The given images of a request.

    Attributes:
        arguments: of `Cascade.sample`; its tensors have one row.
        entries: of the settings in files: name and hash of each image, and how it is used.
        words: the same for messages; empty without images.
    """

    arguments: dict[str, Any]
    entries: dict[str, Any]
    words: str


def digest_of(path: str | Path) -> str:
    """Return the hash of a file's contents by which settings name a given image.

    Raises:
        OSError: it cannot be read, or is larger than any image.
    """
    from ..data.decoding import check_file

    check_file(path)
    if os.path.getsize(path) > MAX_FILE:
        raise OSError(f"larger than {MAX_FILE >> 20} MiB")
    return sha256(Path(path).read_bytes()).hexdigest()


def named_file(option: str, entry: Any, made: str) -> str:
    """Return the path of an image that settings name: in the current folder, or beside the file that was made with it.

    Args:
        option: that takes it.
        entry: of the settings.
        made: path of the file with the settings.

    Raises:
        CommandFailed: no such file is there, or another one.
    """
    for folder in (Path(), Path(made).parent):
        path = folder / entry["name"]
        if path.is_file() and digest_of(path) == entry["sha256"]:
            return str(path)
    where = "another one now" if Path(entry["name"]).exists() else "not here"
    raise CommandFailed(f"{made} was made with {entry['name']}, which is {where}: give it with --{option} FILE", USAGE)


def read_image(path: str, option: str = "") -> tuple[Image.Image, str]:
    """Return an image, upright, as RGBA, and the hash of its file. The option that names it is for messages.

    Raises:
        click.UsageError: it cannot be read.
    """
    from ..data.decoding import decode, reason_of
    from ..images import DETOURS

    try:
        digest, image = digest_of(path), decode(path)
    except OSError as error:
        raise click.UsageError(f"{option}{' ' * bool(option)}{path} cannot be used: {reason_of(error)}") from error
    return image.convert(DETOURS.get(image.mode, image.mode)).convert("RGBA"), digest


def fitted(image: Image.Image, size: Size, fit: str, average: bool = False) -> Image.Image:
    """Return an RGBA image in another size. Transparent pixels have no influence on the colours of others.

    Args:
        image: in RGBA.
        size: (height, width) to return.
        fit: "crop" keeps the middle of the image, "pad" adds a transparent margin, "stretch" changes its proportions.
        average: take the mean over the pixels that a new one covers, else interpolate.

    Raises:
        OSError: the image with its margin is too large.
    """
    from PIL.Image import Resampling

    from ..data.decoding import check_pixels

    height, width = size
    if fit != "stretch":
        scale = (min if fit == "crop" else max)(image.width / width, image.height / height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        check_pixels((wide, high))
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        image = image.crop((left, top, left + wide, top + high))
    return image.resize((width, height), Resampling.BOX if average else Resampling.BILINEAR)


def _levels(image: Image.Image, channels: int) -> Tensor:
    """Return an image as a batch of one, in 0..255."""
    from ..images import from_pil

    return (from_pil(image, channels)[None] * 255).round().byte()


def _kept(request: Any, image: Image.Image) -> tuple[Image.Image, str | None]:
    """Return the image to be inpainted with alpha only where it is kept, and the hash of the mask if there is one."""
    from PIL import Image, ImageChops

    if request.mask is None:
        kept, digest = image.getchannel("A"), None
    else:
        mask, digest = read_image(request.mask, "--mask")
        if mask.size != image.size:
            sizes = (f"{one.width}x{one.height}" for one in (mask, image))
            raise click.UsageError("--mask has {} pixels and --inpaint {}: they must be alike".format(*sizes))
        white = Image.alpha_composite(Image.new("RGBA", mask.size, "black"), mask).convert("L")
        kept = ImageChops.invert(white)
    shown = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    shown.putalpha(kept.point(lambda level: 255 if level >= 128 else 0))
    return shown, digest


def _to_model(request: Any, image: Image.Image, size: Size, option: str) -> Image.Image:
    """Fit an image and say how."""
    path = getattr(request, option)
    if (image.height, image.width) != size and not request.quiet:
        say(f"{path}: {image.width}x{image.height} pixels, fitted to {size[1]}x{size[0]} (--fit {request.fit})")
    try:
        return fitted(image, size, request.fit, average=option == "inpaint")
    except OSError as error:
        raise click.UsageError(f"--fit {request.fit} of {path}: {error}") from error


def _inpainting(request: Any, size: Size, channels: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arguments and entries of an image that is kept in part."""
    import numpy as np
    import torch

    if channels not in (1, 3):
        raise click.UsageError(f"--inpaint takes a model of grey or RGB images; this one has {channels} channels")
    image, digest = read_image(request.inpaint, "--inpaint")
    shown, mask_digest = _kept(request, image)
    small = _to_model(request, shown, size, "inpaint")
    known = torch.from_numpy(np.array(small.getchannel("A")))[None] == 255
    if known.all():
        where = "--inpaint has no transparent pixels: give --mask" if request.mask is None else "--mask has no white"
        raise click.UsageError(f"nothing of {request.inpaint} is to be painted: {where}")
    small.putalpha(255)
    entries = {"inpaint": digest} if mask_digest is None else {"inpaint": digest, "mask": mask_digest}
    return {"inpaint_images": _levels(small, channels), "inpaint_masks": known}, entries


def given_images(request: Any, imagen: Cascade) -> GivenImages:
    """Read and fit the given images of a request.

    Args:
        request: the options of a command, those of given images among its attributes.
        imagen: the model.

    Raises:
        click.UsageError: one cannot be read or does not fit, nothing is to be painted, or the model makes videos.
    """
    if request.init is None and request.inpaint is None:
        return GivenImages({}, {}, "")
    if imagen.is_video:
        raise click.UsageError("this model makes videos; --init and --inpaint are for models of images")
    arguments: dict[str, Any] = {}
    digests: dict[str, str] = {}
    entries: dict[str, Any] = {"fit": request.fit}
    words, start = [], request.start_at_unet
    last = imagen.stages[-1].size  # also where an earlier U-Net is the last: its image is the same in both cases
    if request.init is not None:
        image, digests["init"] = read_image(request.init, "--init")
        size = last if start == 1 else imagen.stages[start - 2].size
        levels = _levels(_to_model(request, image, size, "init"), imagen.channels)
        if start == 1:
            strength = USUAL_STRENGTH if request.strength is None else request.strength
            # the others see the first one's image: below 1 they would mix both, like a double exposure
            every = strength if isinstance(strength, list) else [strength] + [1.0] * (len(imagen.unets) - 1)
            arguments |= {"init_images": levels, "strength": every}
            entries["strength"] = strength
            words.append(f"from {request.init} with strength {strength}")
        else:
            arguments |= {"start_image_or_video": levels, "start_at_unet_number": start}
            entries["start_at_unet"] = start
            words.append(f"enlarging {request.init} from U-Net {start} on")
    if request.inpaint is not None:
        more, named = _inpainting(request, last, imagen.channels)
        arguments, digests = {**arguments, **more}, {**digests, **named}
        words.append(f"inpainting {request.inpaint}")
    entries |= {name: {"name": Path(getattr(request, name)).name, "sha256": each} for name, each in digests.items()}
    return GivenImages(arguments, entries, ", ".join(words))
