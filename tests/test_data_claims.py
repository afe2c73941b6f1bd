"""What a file claims about its size is looked at before memory is taken: in its header, its tiles, its frames."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import pytest
from PIL import Image, features

from imagen_pytorch.data import Dataset, TableDataset
from imagen_pytorch.data.decoding import MAX_PIXELS, REFUSED, _formats, decode, opened

#: sides that no other number in the header of a small file is likely to have
WIDTH, HEIGHT = 351, 293
CLAIMED = 48_000


def encoded(form, size=(16, 16), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, 1 if mode == "1" else 99).save(buffer, form, **options)
    return buffer.getvalue()


def refused(content):
    """Why a file is refused; it takes no memory to find out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError) as caught:
        decode(content, (4, 4))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes
    return str(caught.value)


#: how each format that can be made here writes a side, and the modes of those that take no colours
FORMATS = {
    **dict.fromkeys(("AVIF", "JPEG2000", "PNG", "QOI"), ">I"),
    **dict.fromkeys(("BMP", "DDS", "DIB"), "<I"),
    **dict.fromkeys(("JPEG", "MPO", "SGI"), ">H"),
    **dict.fromkeys(("GIF", "MSP", "PCX", "TGA", "TIFF", "WEBP"), "<H"),
    **dict.fromkeys(("IM", "PPM", "XBM"), ""),
}
MODES = {"MSP": "1", "XBM": "1"}


def claiming(content, form):
    """A small file whose header says that it is large."""
    start, claimed = content[:1000], CLAIMED if form != "WEBP" else 16_000  # 14 bits
    for side in (WIDTH, HEIGHT):
        for less in (0, 1) if form == "PCX" else (0,):
            written = FORMATS[form] and struct.pack(FORMATS[form], side - less)
            new = FORMATS[form] and struct.pack(FORMATS[form], claimed - less)
            start = start.replace(written or str(side).encode(), new or str(claimed).encode())
    if form == "PNG":
        start = start[:29] + struct.pack(">I", zlib.crc32(start[12:29])) + start[33:]
    return start + content[1000:]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_that_can_be_made_here_is_refused_by_its_header(form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    content = encoded(form, (WIDTH, HEIGHT), MODES.get(form, "RGB"))
    with opened(content) as picture:
        assert picture.size == (WIDTH, HEIGHT)
    reason = refused(claiming(content, form))
    # WebP and AVIF have limits of their own decoders, which come first
    assert "too large" in reason or "DecompressionBomb" in reason or form in ("AVIF", "WEBP")


def test_the_formats_above_are_all_that_are_read_and_can_be_made():
    Image.init()
    assert set(_formats()) & set(Image.SAVE) - {"HEIF", "JXL"} == set(FORMATS) & set(_formats())


# -- what a header does not tell --------------------------------------------------------------------------------------


def tiff(tags, content):
    """A grey 16 x 16 TIFF with these further tags; 273 and 324 become the place of its contents."""
    tags = sorted({256: 16, 257: 16, 258: 8, 262: 1, 277: 1, **tags}.items())
    place = 14 + 12 * len(tags)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, place if tag in (273, 324) else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def tiled(width, height, content=b"x"):
    return tiff({259: 8, 322: width, 323: height, 324: 0, 325: len(content)}, content)


def png(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def jpeg(side):
    """Its first half: the decoder has what it needs to ask for memory."""
    content = encoded("JPEG", (WIDTH, WIDTH))
    return content.replace(struct.pack(">HH", WIDTH, WIDTH), struct.pack(">HH", side, side), 1)


def icon(content):
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def apple_icon(kind, content):
    return b"icns" + struct.pack(">I4sI", 16 + len(content), kind, 8 + len(content)) + content


def blizzard(content):
    start = b"BLP1" + struct.pack("<IIIIii", 0, 0, 16, 16, 5, 0)
    return start + struct.pack("<33I", 164, *[0] * 15, len(content), *[0] * 15, 0) + content


def gif(side):
    content = bytearray(encoded("GIF", (16, 16), "P"))
    frame = content.index(b",")
    content[frame + 5 : frame + 9] = struct.pack("<HH", side, side)
    return bytes(content)


def animated_webp(side):
    frame = encoded("WEBP", (16, 16), lossless=True)[12:]
    place = frame.index(b"\x2f")  # before twice 14 bits
    bits = struct.unpack_from("<I", frame, place + 1)[0] >> 28 << 28 | (side - 1) << 14 | (side - 1)
    frame = frame[: place + 1] + struct.pack("<I", bits) + frame[place + 5 :]
    sides = (side - 1).to_bytes(3, "little") * 2
    frame = bytes(6) + sides + (100).to_bytes(3, "little") + b"\0" + frame
    body = (
        b"VP8X" + struct.pack("<II", 10, 2) + (15).to_bytes(3, "little") * 2 + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    )
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg2000(side):
    """A box that says 16 x 16 around pixels that say more."""
    content = encoded("JPEG2000", (WIDTH, WIDTH))
    place = content.index(b"ihdr")
    content = content.replace(struct.pack(">II", WIDTH, WIDTH), struct.pack(">II", side, side))
    return content[: place + 4] + struct.pack(">II", 16, 16) + content[place + 12 :]


def grey_bmp(bits):
    return struct.pack("<IiiHHIIiiII", 40, 11_500, 23_000, 1, bits, 0, 0, 0, 0, 0, 0) + bytes(2000)


HIDDEN = {
    "TIFF tile": lambda: tiled(46_000, 46_000),
    "TIFF tile within the limit of images": lambda: tiled(11_000, 11_000),
    "TIFF tile, one side": lambda: tiled(16, 2**31 - 16),
    "TIFF strip of JPEG": lambda: tiff({259: 7, 273: 0, 278: 16, 279: 10**4}, jpeg(30_000)),
    "icon of PNG": lambda: icon(png(11_500)),
    "icon of BMP": lambda: icon(grey_bmp(32)),
    "icon of grey BMP": lambda: icon(grey_bmp(8)),
    "Apple's icon": lambda: apple_icon(b"icp4", png(11_500)),
    "Apple's large icon": lambda: apple_icon(b"ic10", png(11_500)),
    "BLP of JPEG": lambda: blizzard(jpeg(11_500)),
    "GIF frame": lambda: gif(CLAIMED),
    "WebP frame": lambda: animated_webp(16_000),
    "JPEG 2000 codestream": lambda: jpeg2000(30_000),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_sizes_that_the_header_does_not_tell_are_refused(name):
    assert refused(HIDDEN[name]())


@pytest.mark.parametrize("rows", [1, 16, 17, 46_000, 2**31, 2**32 - 1])
def test_strips_of_a_tiff_are_never_larger_than_the_image(rows):
    """The last of these numbers means one strip for all rows."""
    content = bytes([99]) * 256
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = decode(tiff({259: 1, 273: 0, 278: rows, 279: 256}, content), (16, 16)) if rows != 1 else None
    assert rows == 1 or image.getextrema() == (99, 99)
    packed = tiff({259: 8, 273: 0, 278: rows, 279: len(zlib.compress(content))}, zlib.compress(content))
    try:
        decode(packed, (16, 16))
    except OSError:
        assert rows in (1, 2**31)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


@pytest.mark.parametrize("side", [16, 256, 2048])
def test_usual_tiles_are_read(side):
    content = zlib.compress(bytes([99]) * side * side)
    assert decode(tiled(side, side, content), (16, 16)).getextrema() == (99, 99)


def test_formats_that_hold_others_are_not_read():
    assert {"BLP", "ICNS", "ICO"} <= set(REFUSED) and not set(REFUSED) & set(_formats())


def test_images_that_somebody_else_has_opened_are_looked_at_too(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled(11_000, 11_000))
    data = TableDataset([{"image": Image.open(tmp_path / "a.tif")}, {"image": encoded("PNG")}], 4)
    with pytest.warns(UserWarning, match="row 0 cannot be read and is left out: too large: a tile of 11000 x 11000"):
        assert data[0].shape == (3, 4, 4)


@pytest.mark.parametrize("size", [12_000, (2**14, 2**14), 10**9])
def test_sizes_of_items_have_the_same_limit(tmp_path, size):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    with pytest.raises(ValueError, match="image_size: .* pixels(, 134 million are the most| a side)"):
        Dataset(tmp_path, size)
    assert MAX_PIXELS == 2**27
