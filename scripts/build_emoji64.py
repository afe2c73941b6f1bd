"""Build the atlases and the index of emoji64 from packages of the npm registry.

    npm install --ignore-scripts emojibase-data@17.0.0 @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/noto@1.2.9 \\
      @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 \\
      @iconify-json/fluent-emoji-high-contrast@1.2.6 @iconify-json/noto-v1@1.2.5 \\
      @iconify-json/emojione@1.2.3 @iconify-json/fxemoji@1.2.2
    pip install resvg-py
    python scripts/build_emoji64.py node_modules imagen_pytorch/data/emoji64 [STYLE ...]

Without names of styles it builds all; with names it builds these and leaves the other atlases as they are. The licences
of the artwork are in ``LICENSE-emoji64.txt`` of the target folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SIDE, COLUMNS = 64, 40
SKIPPED = ("skin-tone", "hair-style")

#: Root mean square difference, 0 to 1, below which a drawing is a copy of one of another style.
COPY = 0.03


class Source(NamedTuple):
    """Where a style comes from.

    Attributes:
        package: on the npm registry.
        by_name: icons are named by the concept, not listed by code point.
        lossy: the atlas is WebP of quality 90 with exact alpha; otherwise lossless.
        shown: slug of the concept that an icon shows, by slug of its name, where they differ.
    """

    package: str
    by_name: bool = False
    lossy: bool = False
    shown: dict[str, str] = {}


#: Icons of Firefox OS, by slug, that show another concept than their name says; "" for those that show none well.
FXEMOJI = {
    "cat": "catface", "dog": "dogface", "mouse": "mouseface", "tiger": "tigerface", "umbrella": "closedumbrella",
    "sunglasses": "smilingfacewithsunglasses", "whale": "spoutingwhale",
    **dict.fromkeys(("fog", "keyboard", "kiss", "lightrail", "snowmanwithoutsnow", "station", "tramcar", "window"), ""),
}  # fmt: skip

SOURCES = {
    "noto": Source("@iconify-json/noto"),
    "twemoji": Source("@iconify-json/twemoji"),
    "flat": Source("@iconify-json/fluent-emoji-flat"),
    "3d": Source("@lobehub/fluent-emoji-3d", lossy=True),
    "mono": Source("@iconify-json/fluent-emoji-high-contrast"),
    "blob": Source("@iconify-json/noto-v1", by_name=True),
    "emojione": Source("@iconify-json/emojione", by_name=True),
    "fxemoji": Source("@iconify-json/fxemoji", by_name=True, shown=FXEMOJI),
}


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_points(text: str) -> str:
    """Return code points in lower case, joined by "-", without variation selectors."""
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def phrase(label: str, sub: str) -> str:
    """Return a noun phrase without article: "flag of Japan" for "flag: Japan"."""
    before, _, after = label.partition(": ")
    if sub in ("country-flag", "subdivision-flag"):
        return f"flag of {after or before}"
    if sub == "keycap":
        return f"keycap {after or before}"
    if sub == "time" and re.search(r"o’clock|-thirty", label):
        return f"clock face showing {label}"
    if label.endswith(" facing right"):
        rest = label.removesuffix(" facing right").rstrip(":")
        return f"{phrase(rest, sub) if ': ' in rest else rest} facing right"
    if after:
        return f"{before} with {after}" if sub != "family" else f"family of {after}"
    return label


def concepts(modules: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return entries by code points, and code points by slug of the name."""
    groups = read_json(modules / "emojibase-data/meta/groups.json")
    entries, slugs = {}, {}
    for item in read_json(modules / "emojibase-data/en/data.json"):
        sub = groups["subgroups"].get(str(item.get("subgroup")), SKIPPED[0])
        if sub in SKIPPED:
            continue
        code = code_points(item["hexcode"])
        tags = [tag for tag in item.get("tags", []) if re.fullmatch(r"[a-z][a-z’' -]*", tag)]
        text = phrase(item["label"], sub)
        entries[code] = {"text": text, "tags": tags, "group": groups["groups"][str(item["group"])], "sub": sub}
        if item["label"].isascii() and item["label"][-1] in "#*":
            continue  # nothing is left of the sign in a slug
        for name in (item["label"], text):
            slugs.setdefault(slug(name), code)
    return entries, slugs


def slug(name: str) -> str:
    """Return the letters and digits of a name, in lower case and without accents."""
    plain = unicodedata.normalize("NFKD", name.lower().replace("&", "and"))
    return re.sub(r"[^a-z0-9]", "", plain)


def icons(folder: Path, codes: dict[str, str] | None, shown: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """Yield code points and drawing of each icon of an Iconify package, by its name if ``codes`` are given."""
    import resvg_py

    table = read_json(folder / "icons.json")
    if codes is None:
        listed = read_json(folder / "chars.json")
    else:
        names = {shown.get(slug(name), slug(name)): name for name in table["icons"] | table.get("aliases", {})}
        listed = {codes[name]: icon for name, icon in names.items() if name in codes}
    for code, name in listed.items():
        flipped = False
        while name in table.get("aliases", {}):
            alias = table["aliases"][name]
            flipped, name = flipped ^ bool(alias.get("hFlip")), alias["parent"]
        if name not in table["icons"]:
            continue
        icon = table["icons"][name]
        width, height = (icon.get(key, table.get(key, 16)) for key in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        scale = SIDE / max(width, height)
        png = resvg_py.svg_to_bytes(
            svg_string=f'<svg {space} viewBox="{box}">{icon["body"]}</svg>',
            width=round(width * scale), height=round(height * scale), skip_system_fonts=True,
        )  # fmt: skip
        drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        yield code_points(code), drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else drawing


def images(folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield code points and drawing of each file of a package of images."""
    for path in sorted((folder / "assets").glob("*.webp")):
        with Image.open(path) as drawing:
            yield code_points(path.stem), drawing.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def tile_of(drawing: Image.Image) -> np.ndarray:
    """Return a drawing, centred on a square, as an array; colours of transparent pixels are 0."""
    drawing.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(drawing, ((SIDE - drawing.width) // 2, (SIDE - drawing.height) // 2))
    pixels = np.array(square)
    pixels[pixels[..., 3] == 0] = 0
    return pixels


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the root mean square difference of two tiles, 0 to 1, with colours times alpha."""
    flat = [np.concatenate([x[..., :3] * (x[..., 3:] / 255), x[..., 3:]], -1) / 255 for x in (one, other)]
    return float(np.sqrt(np.mean((flat[0] - flat[1]) ** 2)))


def read_atlas(path: Path, codes: list[str]) -> dict[str, np.ndarray]:
    """Return the tiles of an atlas by code points."""
    with Image.open(path) as atlas:
        pixels = np.array(atlas.convert("RGBA"))
    tiles = pixels.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 4)
    return dict(zip(codes, tiles, strict=False))


def write_atlas(path: Path, tiles: list[np.ndarray], lossy: bool) -> None:
    """Write an atlas, row by row."""
    sheet = np.zeros((-(-len(tiles) // COLUMNS) * SIDE, COLUMNS * SIDE, 4), np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // COLUMNS * SIDE, place % COLUMNS * SIDE
        sheet[top : top + SIDE, left : left + SIDE] = tile
    options = {"quality": 90, "alpha_quality": 100} if lossy else {"lossless": True, "quality": 100}
    Image.fromarray(sheet).save(path, method=6, **options)


def build(style: str, modules: Path, entries: dict, slugs: dict[str, str], others: list[dict]) -> dict[str, np.ndarray]:
    """Return the tiles of a style in the order of the catalogue, without empty ones and copies."""
    source = SOURCES[style]
    folder = modules / source.package
    by_name = slugs if source.by_name else None
    found = images(folder) if (folder / "assets").is_dir() else icons(folder, by_name, source.shown)
    drawn = {code: tile_of(drawing) for code, drawing in found if code in entries}
    kept, seen = {}, set()
    for code in entries:
        if code not in drawn or not drawn[code][..., 3].any():
            continue
        key = hashlib.md5(drawn[code].tobytes()).digest()
        same = [tiles[code] for tiles in others if source.by_name and code in tiles]
        copied = any(difference(drawn[code], tile) < COPY for tile in same)
        if key not in seen and not copied:
            seen.add(key)
            kept[code] = drawn[code]
    return kept


def main(modules: Path, folder: Path, styles: list[str]) -> None:
    """Build styles and write the index of all."""
    entries, slugs = concepts(modules)
    index = folder / "index.json"
    listed = read_json(index)["styles"] if index.is_file() else {}
    atlases: dict[str, dict[str, np.ndarray]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for style in SOURCES:
        path = folder / f"{style}.webp"
        if style in styles or not styles:
            atlases[style] = build(style, modules, entries, slugs, list(atlases.values()))
            write_atlas(path, list(atlases[style].values()), SOURCES[style].lossy)
        elif style in listed:
            atlases[style] = read_atlas(path, listed[style])
        sys.stdout.write(f"{style}: {len(atlases.get(style, ()))}\n")
    used = {code for tiles in atlases.values() for code in tiles}
    contents = {
        "tile": SIDE, "columns": COLUMNS, "styles": {style: list(tiles) for style, tiles in atlases.items()},
        "entries": {code: entry for code, entry in entries.items() if code in used},
    }  # fmt: skip
    index.write_text(json.dumps(contents, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
