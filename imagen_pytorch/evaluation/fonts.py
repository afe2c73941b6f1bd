"""The font of captions: Pillow's own, or a system font if a caption has letters that Pillow's lacks."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any

#: Fonts of many scripts, by their file names on Linux, macOS and Windows. Pillow finds them in the system's folders.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "Arial.ttf",
    "msyh.ttc",
    "msgothic.ttc",
    "segoeui.ttf",
)
#: a code point without a letter in any font, drawn as the mark of a missing letter
_NO_LETTER = "\uffff"
#: typographic signs and their plain forms
_PLAIN = {0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-"}


def built_in(size: int) -> Any:
    """Return the font that comes with Pillow."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (ImportError, OSError, TypeError):  # a Pillow without FreeType has one small bitmap font
        return ImageFont.load_default()


def has_letter(font: Any, letter: str) -> bool:
    """Return true if a font draws a letter as itself and not as the box of a missing one."""
    if letter.isascii():
        return True
    try:
        drawn, box = font.getmask(letter), font.getmask(_NO_LETTER)
    except (UnicodeError, OSError):  # a bitmap font has Latin letters only
        return False
    return drawn.size != box.size or bytes(drawn) != bytes(box)


def letters_of(text: str, font: Any) -> str:
    """Rewrite a text in the letters of a font: typographic signs and missing accented letters become plain ones."""
    out = []
    for letter in unicodedata.normalize("NFC", text.translate(_PLAIN)):
        if not has_letter(font, letter):
            plain = unicodedata.normalize("NFKD", letter)
            letter = "".join(part for part in plain if not unicodedata.combining(part))
        out.append(letter)
    return " ".join("".join(out).split())


def _lacking(font: Any, texts: Iterable[str]) -> str:
    """Return the letters of the texts that a font lacks, each once."""
    letters = dict.fromkeys("".join(letters_of(text, font) for text in texts))
    return "".join(letter for letter in letters if not has_letter(font, letter))


def _system_fonts(size: int) -> Iterable[Any]:
    from PIL import ImageFont

    for name in SYSTEM_FONTS:
        try:
            yield ImageFont.truetype(name, size)
        except (ImportError, OSError):
            continue


def font_for(texts: Iterable[str], size: int) -> Any:
    """Return the font that has most letters of the texts: Pillow's own if it has all of them, else a system font.

    Letters that none of them has are named in a warning. They are drawn as boxes.
    """
    texts = list(texts)
    best = built_in(size)
    missing = _lacking(best, texts)
    for font in _system_fonts(size) if missing else ():
        lacking = _lacking(font, texts)
        if len(lacking) < len(missing):
            best, missing = font, lacking
        if not missing:
            break
    if missing:
        warnings.warn(
            f"no font of this machine has the letters {missing[:20]}: captions show boxes for them; install a font "
            "that has them, such as Noto Sans or Noto Sans CJK",
            stacklevel=3,
        )
    return best
