"""Image metadata: the settings that an image or video was made with, inside its file.

Two texts are written. ``parameters`` has the form that A1111's web interface introduced and many programs read.
``imagen`` is JSON with everything that is needed to make the image again. A PNG holds both as iTXt chunks; JPEG, WebP
and AVIF as the EXIF tags UserComment and ImageDescription; a GIF as its comment, the JSON as the last line; MP4 and
WebM as tags of the container. Files of other formats hold nothing.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .wording import excerpt

#: Version of the JSON under ``imagen``: raised when its entries change their meaning.
SCHEMA = 1
#: Largest number of characters of a text, and of bytes of an image file and of the EXIF data of a JPEG.
MAX_TEXT, MAX_FILE, MAX_JPEG_EXIF = 1 << 20, 1 << 28, 65_527

#: The formats of Pillow that are read.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "AVIF")
#: Numbers of EXIF tags: ImageDescription, the pointer to the Exif directory, and UserComment in that directory.
_DESCRIPTION, _EXIF, _USER_COMMENT = 0x010E, 0x8769, 0x9286
#: Beginnings of the files that are read. MP4 and AVIF have theirs after the length of a box.
_BEGINNINGS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"GIF8")
_WEBM, _BOX = b"\x1a\x45\xdf\xa3", b"ftyp"


class MetadataError(ValueError):
    """A file that holds no settings, or settings that cannot be used. The message is one line."""


class NotAnImage(MetadataError):
    """A file that is not an image or video, or too damaged to be read as one."""


# -- writing ----------------------------------------------------------------------------------------------------------


def _quoted(value: object) -> str:
    """Return a value for a list of ``key: value`` pairs: as JSON if it has a character that means something there."""
    text = ",".join(f"{item}" for item in value) if isinstance(value, list) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n\r"') else text


def parameters_of(settings: Mapping[str, Any]) -> str:
    """Return settings in A1111's form: the prompt, the negative prompt, and a line of ``key: value`` pairs.

    Args:
        settings: as in the JSON; ``size`` is [width, height], and ``model`` has the entries ``name`` and ``digest``.
    """
    model, size = settings["model"], settings["size"]
    pairs = {
        "Steps": settings["steps"],
        "Sampler": settings["sampler"],
        "CFG scale": settings["cond_scale"],
        "Seed": settings["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model["digest"][:10],
        "Model": Path(model["name"]).stem,
        "Version": f"imagen-pytorch {settings['versions']['imagen_pytorch']}",
    }
    negative = settings.get("negative_prompt")
    lines = [settings.get("prompt") or "", f"Negative prompt: {negative}" if negative else ""]
    return "\n".join([*filter(None, lines), ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items())])


def metadata_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the two texts by keyword, for `save_options`."""
    return {"parameters": parameters_of(settings), "imagen": json.dumps({"schema": SCHEMA, **settings})}


def _exif(texts: Mapping[str, str]) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[_DESCRIPTION] = texts["imagen"]  # escaped JSON: the tag holds ASCII only
    exif[_EXIF] = {_USER_COMMENT: b"UNICODE\0" + texts["parameters"].encode("utf-16-be")}
    return exif


def save_options(kind: str | None, texts: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the options with which Pillow or PyAV writes texts into a file.

    A text that does not fit into the file is left out with a warning.

    Args:
        kind: the name of the format in Pillow; None for the tags of a container of PyAV.
        texts: by keyword; all of them go into a PNG, those of `metadata_texts` into other formats. None for no texts.
    """
    if not texts or (kind != "PNG" and "imagen" not in texts):
        return {}
    exif = _exif(texts).tobytes() if kind in ("JPEG", "WEBP", "AVIF") else b""
    if max(map(len, texts.values())) > MAX_TEXT or (kind == "JPEG" and len(exif) > MAX_JPEG_EXIF):
        warnings.warn(f"the settings are too long for a file of {kind or 'video'} and are left out", stacklevel=2)
        return {}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        for keyword, text in texts.items():
            chunks.add_itxt(keyword, text)
        return {"pnginfo": chunks}
    own = {keyword: texts[keyword] for keyword in ("parameters", "imagen")}
    if kind == "GIF":
        return {"comment": "\n".join(own.values()).encode()}
    return {"exif": exif} if exif else {"metadata": own} if kind is None else {}


# -- reading ----------------------------------------------------------------------------------------------------------


def may_hold_settings(start: bytes) -> bool:
    """Return whether a file that begins with these 12 bytes is an image or a video that `read_settings` knows."""
    return start.startswith((*_BEGINNINGS, _WEBM)) or start[4:8] == _BOX


def _text_in_video(path: str) -> str | None:
    try:
        import av
    except ImportError as error:
        raise MetadataError(f"{path}: settings in MP4 and WebM are read with PyAV: pip install av") from error
    with av.open(path) as file:
        return next((text for key, text in file.metadata.items() if key.lower() == "imagen"), None)


def _text_in_image(path: str) -> str | None:
    from PIL import Image

    Image.init()
    with Image.open(path, formats=[kind for kind in _FORMATS if kind in Image.OPEN]) as image:
        if image.format == "PNG":
            return image.info.get("imagen")
        if image.format == "GIF":
            return image.info.get("comment", b"").rpartition(b"\n")[2].decode() or None
        return image.getexif().get(_DESCRIPTION)


def _text(path: str) -> str | None:
    """Return the text ``imagen`` of a file, None if there is none.

    Raises:
        OSError: it cannot be opened.
        MetadataError: it is not an image, or damaged.
    """
    with open(path, "rb") as file:
        start = file.read(12)
    is_video = start.startswith(_WEBM) or (start[4:8] == _BOX and start[8:11] != b"avi")
    if not is_video and os.path.getsize(path) > MAX_FILE:
        raise MetadataError(f"{path} is too large for an image: more than {MAX_FILE >> 20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _text_in_video(path) if is_video else _text_in_image(path)
    except (MetadataError, MemoryError):
        raise
    except Exception as error:  # of damaged files, every kind
        raise NotAnImage(f"{path} is not an image or video whose settings can be read") from error


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings that an image or video of ``imagen sample`` was made with. Nothing is decoded.

    The entries are those of the JSON: ``prompt``, ``seed``, ``cond_scale``, ``steps``, ``sampler``, ``model`` and so
    on. Their values come from the file and are not checked.

    Args:
        path: a PNG, JPEG, WebP, AVIF or GIF file; MP4 and WebM with PyAV.

    Raises:
        OSError: the file cannot be opened.
        MetadataError: it is not an image, holds no settings, or damaged ones, or those of a newer version.
    """
    path = str(path)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise MetadataError(f"{path} is not a file")
    text = _text(path)
    if not isinstance(text, str):
        raise MetadataError(f"{path} holds no settings of imagen sample")
    if len(text) > MAX_TEXT:
        raise MetadataError(f"the settings in {path} are damaged: {len(text):,} characters, at most {MAX_TEXT:,}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{path} holds no settings of imagen sample, or damaged ones") from error
    schema = settings.get("schema") if isinstance(settings, dict) else None
    if type(schema) is not int or schema < 1:
        raise MetadataError(f"the settings in {path} are damaged: they do not say their schema")
    if schema > SCHEMA:
        said = excerpt(schema, 20)
        raise MetadataError(f"the settings in {path} have the schema {said}, this version reads {SCHEMA}: update it")
    return settings
