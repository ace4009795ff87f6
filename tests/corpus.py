"""Write files and folders that are not what one would wish for, and what should become of each.

    python tests/corpus.py FOLDER

makes FOLDER/files (one data folder: class `good` of plain images, class `odd` of every kind of file below) and
FOLDER/folders (a data folder of every kind), and FOLDER/expected.json: of each file whether it is "used" or a part of
the reason for which it is left out; of each folder how many images are found and used in which classes, or a part of
the message with which it is refused. Tests run it all; point a program of your own at it to see how that does.
"""

import argparse
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from template import runs

USED = "used"


def noise(height: int = 40, width: int = 48, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **how) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **how)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, bits: int = 8, colours: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def jpeg_claiming(side: int) -> bytes:
    data = bytearray(encode(noise(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def deep_png(values: np.ndarray) -> bytes:
    """16 bits in grey, grey with alpha, RGB or RGBA, as they are."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    array: np.ndarray, kind: int = 1, photometric: int | None = None, extra: dict | None = None, order: str = "<"
) -> bytes:
    """An uncompressed TIFF of numbers of any kind, [h, w, c] (1 unsigned, 2 signed, 3 floating), as it is on paper.

    `extra` are tags of type LONG, which replace those of that number.
    """
    height, width, channels = array.shape
    colours = 2 if channels >= 3 else 1
    tags = {
        256: (width,), 257: (height,), 258: (array.itemsize * 8,) * channels, 259: (1,),
        262: (colours if photometric is None else photometric,), 273: (8,), 277: (channels,), 278: (height,),
        279: (array.nbytes,), 339: (kind,) * channels, **(extra or {}),
    }  # fmt: skip
    extras = channels - (3 if colours == 2 else 1)
    if extras > 0 and 338 not in tags:
        tags[338] = (0,) * extras
    start, table, behind = 8 + array.nbytes, b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(behind)
            behind, packed = behind + packed, struct.pack(order + "I", place)
        table += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    contents = array.astype(array.dtype.newbyteorder(order)).tobytes()
    return (
        struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, start)
        + contents
        + struct.pack(order + "H", len(tags))
        + table
        + bytes(4)
        + behind
    )


def pages(*images: Image.Image, thumbnails: int = 0) -> bytes:
    """A TIFF of several pages, of which the first so many say that they are smaller copies of another."""
    tag = struct.Struct("<HHII")
    data = encode(images[0], "TIFF", save_all=True, append_images=images[1:], tiffinfo={254: 1})
    parts = data.split(tag.pack(254, 4, 1, 1))
    kinds = [tag.pack(254, 4, 1, int(page < thumbnails)) for page in range(len(images))]
    return b"".join(part + kind for part, kind in zip(parts, [*kinds, b""], strict=True))


DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
"""What red, green and blue are in XYZ under D50."""


def profile(primaries: tuple, gamma: float) -> bytes:
    """A colour profile (ICC version 2) of these primaries; of one triple, the profile of a grey scale."""

    def xyz(values: tuple) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    named = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"none\0" + bytes(12 + 67)
    tags = {b"desc": named, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1, 0.8249))}
    if len(primaries) == 3:
        tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    space = b"RGB " if len(primaries) == 3 else b"GRAY"
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz((0.9642, 1, 0.8249))[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


ODD_EXIF = (
    b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    + struct.pack("<HHI", 0x9286, 2, 4) + b"\xff\xfe\0\1" + bytes(4)
)  # fmt: skip
"""Turn by 90 degrees, and a comment that is no text."""


def long_text() -> PngImagePlugin.PngInfo:
    """Two megabytes, as editors and generators of images leave them."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    text.add_text("workflow", "x" * 2_000_000, zip=True)
    return text


def bmp_of_32_bits(array: np.ndarray) -> bytes:
    """With a mask for alpha (version 4), which is 0 everywhere."""
    height, width = array.shape[:2]
    pixels = np.dstack([array[::-1, :, ::-1], np.zeros((height, width), np.uint8)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def bmp_of_masks() -> bytes:
    """16 bits a pixel, of which 4 are for each colour."""
    header = struct.pack("<IiiHHIIiiII", 40, 48, 40, 1, 16, 3, 3840, 0, 0, 0, 0) + struct.pack("<3I", 0xF00, 0xF0, 0xF)
    return b"BM" + struct.pack("<IHHI", 66 + 3840, 0, 0, 66) + header + noise(40, 32).tobytes()


def avif_claiming(side: int) -> bytes:
    data = bytearray(encode(noise(), "AVIF"))
    place = data.index(b"ispe") + 8
    data[place : place + 8] = struct.pack(">II", side, side)
    return bytes(data)


def images() -> dict[str, bytes]:
    """Files that can be used, whatever they are called."""
    rgb = Image.fromarray(noise())
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.fromarray(noise()[..., 0]))
    frames = {"save_all": True, "append_images": [Image.fromarray(noise(seed=1))], "duration": 100}
    deep = noise()[..., 0].astype(np.uint16) * 257
    jpeg, png, palette = encode(rgb, "JPEG"), encode(rgb, "PNG"), rgb.quantize(16)
    deep_rgb = b"".join(b"\0" + row.astype(">u2").tobytes() for row in noise(8, 8).astype(np.uint16) * 257)
    return {
        "plain.jpg": jpeg,
        "upper case.JPG": encode(noise(seed=2), "JPEG"),
        "jfif.jfif": encode(noise(seed=3), "JPEG"),
        "jpe.jpe": encode(noise(seed=4), "JPEG"),
        "no ending": encode(noise(seed=5), "JPEG"),
        "grey.jpg": encode(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "full colour.jpg": encode(rgb, "JPEG", subsampling=0, quality=95),
        "turned.jpg": encode(rgb, "JPEG", exif=exif(6)),
        "mirrored.jpg": encode(rgb, "JPEG", exif=exif(2)),
        "broken exif.jpg": encode(rgb, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage"),
        "more behind the end.jpg": jpeg + b"more" * 100,
        "several images.mpo": encode(rgb, "MPO", **frames),
        "plain.png": encode(rgb, "PNG"),
        "grey.png": encode(rgb.convert("L"), "PNG"),
        "grey and clear.png": encode(clear.convert("LA"), "PNG"),
        "clear.png": encode(clear, "PNG"),
        "palette.png": encode(palette, "PNG"),
        "clear palette.png": encode(palette, "PNG", transparency=0),
        "one bit.png": encode(rgb.convert("1"), "PNG"),
        "16 bits.png": encode(deep, "PNG"),
        "16 bits in colour.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(deep_rgb)) + chunk(b"IEND", b""),
        "moving.png": encode(rgb, "PNG", **frames),
        "plain.gif": encode(rgb, "GIF"),
        "moving.gif": encode(rgb, "GIF", **frames),
        "plain.webp": encode(rgb, "WEBP"),
        "clear.webp": encode(clear, "WEBP", lossless=True),
        "moving.webp": encode(rgb, "WEBP", **frames),
        "plain.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
        "one bit.bmp": encode(rgb.convert("1"), "BMP"),
        "plain.tif": encode(rgb, "TIFF"),
        "packed.tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "16 bits.tif": encode(deep, "TIFF"),
        "floats.tif": encode(Image.fromarray(noise()[..., 0].astype(np.float32)), "TIFF"),
        "plain.ppm": encode(rgb, "PPM"),
        "one bit.pbm": encode(rgb.convert("1"), "PPM"),
        "plain.avif": encode(rgb, "AVIF"),
        "really a png.jpg": encode(noise(seed=6), "PNG"),
        "really a gif.jpg": encode(noise(seed=7), "GIF"),
        "really a bmp.jpg": encode(noise(seed=8), "BMP"),
        "really a webp.jpg": encode(noise(seed=9), "WEBP"),
        "really a tiff.jpg": encode(noise(seed=10), "TIFF"),
        "really an avif.jpg": encode(noise(seed=11), "AVIF"),
        "really a jpeg.png": encode(noise(seed=12), "JPEG"),
        "one pixel.png": encode(noise(1, 1), "PNG"),
        "a line.png": encode(noise(1, 300), "PNG"),
        "one colour.png": encode(np.full((30, 30, 3), 90, np.uint8), "PNG"),
        "new\nline.png": encode(noise(seed=13), "PNG"),
        "\x1b[31mred.png": encode(noise(seed=14), "PNG"),
        "-dash.png": encode(noise(seed=15), "PNG"),
        "12 bits of 16.png": deep_png(noise(seed=30).astype(np.uint16)[..., :1] * 16),
        "12 bits of 16 in colour.png": deep_png(noise(seed=31).astype(np.uint16) * 16),
        "white is zero, in the other byte order.tif": tiff(
            noise(seed=36).astype(np.uint16)[..., :1] * 257, photometric=0, order=">"
        ),
        "10 bits of 16.tif": tiff(noise(seed=32).astype(np.uint16)[..., :1] * 4),
        "14 bits of 16 in colour.tif": tiff(noise(seed=33).astype(np.uint16) * 64),
        "cut gamma.png": png[:33] + chunk(b"gAMA", b"") + png[33:],
        "white is zero.tif": tiff(noise(seed=34).astype(np.uint16)[..., :1] * 257, photometric=0),
        "alpha is 0 everywhere.png": encode(np.dstack([noise(), np.zeros((40, 48), np.uint8)]), "PNG"),
        "alpha is an unused byte.bmp": bmp_of_32_bits(noise()),
        "white on clear.png": encode(np.dstack([np.full((40, 48, 3), 255, np.uint8), noise()[..., :1]]), "PNG"),
        "a phone's colours.jpg": encode(rgb, "JPEG", icc_profile=profile(DISPLAY_P3, 2.2)),
        "a camera's colours.png": encode(rgb, "PNG", icc_profile=profile(PROPHOTO, 1.8)),
        "a scanner's grey.jpg": encode(rgb.convert("L"), "JPEG", icc_profile=profile((1,), 1.8)),
        "broken profile.jpg": encode(rgb, "JPEG", icc_profile=profile(DISPLAY_P3, 2.2)[:200]),
        "profile of another kind.jpg": encode(rgb, "JPEG", icc_profile=profile((1,), 2.2)),
        "lab.tif": encode(Image.new("LAB", (40, 40), (128, 150, 90)), "TIFF"),
        "pages.tif": pages(rgb, Image.fromarray(noise(seed=35))),
        "thumbnail first.tif": pages(Image.fromarray(noise(8, 9)), rgb, thumbnails=1),
        "long text.png": encode(rgb, "PNG", pnginfo=long_text()),
        "long profile.png": encode(rgb, "PNG", icc_profile=bytes(1_500_000)),
        "odd exif.jpg": encode(rgb, "JPEG", exif=ODD_EXIF),
        "plain page.tif": encode(Image.new("1", (5000, 5100), 1), "TIFF", compression="group4"),
        "=1+1, \"quoted\" 'names' & <b>%s[*].png": encode(noise(seed=16), "PNG"),
        "写真 🌻.png": encode(noise(seed=17), "PNG"),
        os.fsdecode(b"latin \xe9.png"): encode(noise(seed=18), "PNG"),
    }  # fmt: skip


def no_images() -> dict[str, tuple[bytes, str]]:
    """Files that cannot be used, and a part of the reason."""
    jpeg, png, gif = (encode(noise(), kind) for kind in ("JPEG", "PNG", "GIF"))
    bmp, webp, tif = (encode(noise(), kind) for kind in ("BMP", "WEBP", "TIFF"))
    holes = jpeg[: len(jpeg) // 2] + b"\xff\xd8\xff\xd9" * 20 + jpeg[len(jpeg) // 2 + 80 :]
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    webp_claiming = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f" + bytes(8)
    gif_claiming = b"GIF89a" + struct.pack("<HH", 65000, 65000) + b"\x80\0\0\0\0\0\xff\xff\xff"
    gif_claiming += b"\x2c\0\0\0\0\1\0\1\0\0\x02\x02\x44\x01\0\x3b"  # one image of 1 x 1
    bmp_claiming = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 40000, 40000, 1, 24, *[0] * 6)
    nan = Image.fromarray(np.full((9, 9), np.nan, np.float32))
    cut = "damaged or cut short"
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"cats, dogs and birds", "text"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404", "web page"),
        "drawing.svg": (b'<?xml version="1.0"?><svg/>', "web page or SVG"),
        "zeros.jpg": (bytes(780), "not an image"),
        "random.jpg": (noise(9, 9, 99).tobytes(), "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], cut),
        "nearly all.jpg": (jpeg[: len(jpeg) * 99 // 100], cut),
        "no end.jpg": (jpeg[:-2], cut),
        "holes.jpg": (holes, cut),
        "four bytes.jpg": (jpeg[:4], cut),
        "half.png": (png[: len(png) // 2], cut),
        "flipped.png": (bytes(flipped), cut),
        "half.gif": (gif[: len(gif) // 2], cut),
        "half.bmp": (bmp[: len(bmp) // 2], cut),
        "half.webp": (webp[: len(webp) // 2], cut),
        "half.tif": (tif[: len(tif) // 2], cut),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "phone.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        "eleven bytes.jpg": (b"\xff\x0a" + b"\xff" * 9, "JPEG XL"),
        "box.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        "new.jp2": (encode(noise(), "JPEG2000"), "JPEG 2000"),
        "icon.ico": (encode(noise(32, 32), "ICO"), "not an image"),
        "paper.pdf": (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "not an image"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "film.mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "not an image"),
        "archive.zip": (b"PK\3\4\x14\0\0\0" + bytes(40), "not an image"),
        "pickle.png": (b"\x80\4\x95\x1a\0\0\0\0\0\0\0\x8c\5posix", "not an image"),
        "not numbers.tif": (encode(nan, "TIFF"), "not finite"),
        "huge.png": (png_claiming(20_000, 20_000), "pixels"),
        "huge, one bit.png": (png_claiming(30_000, 30_000, 1, 0), "pixels"),
        "huge.jpg": (jpeg_claiming(20_000), "pixels"),
        "huge.webp": (webp_claiming, "pixels"),
        "huge.gif": (gif_claiming, "pixels"),
        "huge.bmp": (bmp_claiming, "pixels"),
        "huge.avif": (avif_claiming(17_000), "pixels"),
        "camera.nef": (pages(Image.fromarray(noise(seed=40)), thumbnails=1), "raw file"),
        "camera.dng": (tiff(noise(seed=41), extra={50706: (1,)}), "raw file"),
        "camera.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(500), "raw file"),
        "camera.orf": (b"IIRO\x08\0\0\0" + bytes(500), "raw file"),
        "floats in colour.tif": (
            tiff(noise().astype(np.float32), kind=3),
            "not supported: TIFF with 3 bands of 32-bit f",
        ),
        "doubles.tif": (
            tiff(noise()[..., :1].astype(np.float64), kind=3),
            "not supported: TIFF with 1 band of 64-bit f",
        ),
        "long integers.tif": (tiff(noise().astype(np.uint32)), "not supported: TIFF with 3 bands of 32-bit unsigned"),
        "a satellite's.tif": (
            tiff(np.repeat(noise()[..., :1], 13, axis=2), photometric=1),
            "not supported: TIFF with 13",
        ),
        "planes.tif": (
            tiff(noise().astype(np.uint16), extra={284: (2,)}),
            "not supported: TIFF with more than 8 bits in",
        ),
        "masks.bmp": (bmp_of_masks(), "not supported: BMP"),
        "12 bits.jpg": (jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "not supported: JPEG"),
        "notes.txt": (b"nothing to see", "text"),
    }


def write_files(root: Path) -> dict[str, str]:
    """The data folder of all kinds of files; what is expected of each."""
    expected = {}
    (root / "good").mkdir(parents=True)
    (root / "odd").mkdir()
    for number in range(20):
        (root / "good" / f"{number}.png").write_bytes(encode(noise(seed=100 + number), "PNG"))
    for name, data in images().items():
        (root / "odd" / name).write_bytes(data)
        expected[name] = USED
    for name, (data, reason) in no_images().items():
        (root / "odd" / name).write_bytes(data)
        expected[name] = reason
    (root / "odd" / "link.jpg").symlink_to("nowhere.jpg")
    expected["link.jpg"] = "broken link"
    os.mkfifo(root / "odd" / "pipe.jpg")
    expected["pipe.jpg"] = "pipe"
    (root / "odd" / "device.jpg").symlink_to("/dev/zero")
    expected["device.jpg"] = "device"
    return {runs.legible(name): reason for name, reason in expected.items()}


def fill(root: Path, *names: str, each: int = 10) -> Path:
    """Class folders with different images."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            seed = zlib.crc32(f"{name}/{number}".encode())
            (root / name / f"{number}.png").write_bytes(encode(noise(12, 12, seed), "PNG"))
    return root


def _copy(source: str, target: str) -> Callable[[Path], None]:
    return lambda root: (
        (root / target).parent.mkdir(parents=True, exist_ok=True), shutil.copy(root / source, root / target)
    )  # fmt: skip


def _link(place: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / place).symlink_to(target)


def _text(name: str, text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda root: (
        (root / name).parent.mkdir(parents=True, exist_ok=True), (root / name).write_bytes(text.encode(encoding))
    )  # fmt: skip


def _folder(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).mkdir(parents=True)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _break(name: str) -> Callable[[Path], None]:
    return lambda root: [file.write_bytes(b"") for file in (root / name).iterdir()]


AB = ("a", "b")
PARTS = ("train/a", "train/b", "val/a", "val/b", "test/a", "test/b")


def folder_kinds() -> dict[str, tuple[tuple[str, ...], list[Callable], dict | str]]:
    """Name: class folders of ten images, what is done to them, and what is expected.

    Expected are `classes`, `found` and `used`, `skipped`: parts of names with their reasons, and `spelled`: the class
    of folders that are spelled in another way; or a refusal.
    """

    def well(
        classes: tuple[str, ...] = AB, found: int = 20, used: int = 20, spelled: dict | None = None, **skipped: str
    ) -> dict:
        return {"classes": list(classes), "found": found, "used": used, "skipped": skipped, "spelled": spelled or {}}

    def table(header: str, row: str) -> str:
        return header + "".join(row.format(c=c, n=n) for c in AB for n in range(10))

    rows = table("path,label\n", "{c}/{n}.png,{c}\n")
    return {
        "plain": (AB, [], well()),
        "parts": (PARTS, [], well(found=60, used=60)),
        "parts by other names": (("training/a", "training/b", "Valid/a", "Valid/b"), [], well(found=40, used=40)),
        "a test part without a class": (PARTS[:5], [], "no image in the given ['test'] part"),
        "a class in the test part alone": ((*PARTS, "test/c"), [], "'c'"),
        "parts without train": (("val/a", "test/a"), [], "no train/ folder"),
        "train beside classes": (("train/a", "train/b", "cat"), [], "expected only train/, val/ and test/"),
        "parts by longer names": (
            ("training_set/a", "training_set/b", "test_set/a", "test_set/b"), [], well(found=40, used=40)
        ),
        "parts within names": (("seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b"), [], well(found=40, used=40)),
        "parts in classes": (("a/train", "a/test", "b/train", "b/test"), [], well(found=40, used=40)),
        "a class called train": (("train", "bus"), [], well(("bus", "train"))),
        "test beside classes": ((*AB, "test"), [], "beside ['a', 'b']"),
        "images without labels in test": ((*PARTS, "test/unknown"), [], "in test/ alone"),
        "a part twice": (("train/a", "train/b", "val/a", "valid/a"), [], "names a part twice"),
        "the folder above": (("photos/a", "photos/b"), [], "--data.path="),
        "two folders above": (("photos/train/a", "photos/train/b", "code/x"), [], "a level too high"),
        "flat beside a table": ((), [_text("1.jpg", ""), _text("labels.csv", "")], "labels.csv'"),
        "flat": ((), [_text("1.jpg", ""), _text("2.jpg", "")], "only 2 files"),
        "nothing": ((), [], "no class folders"),
        "one class": (("a",), [], "at least two classes"),
        "an empty class": (AB, [_folder("c")], "without any file: ['c']"),
        "a class of one image": (AB, [_copy("a/0.png", "c/only.png"), _remove("a/0.png")], "'c'"),
        "a class of broken images": ((*AB, "c"), [_break("c")], "skipped 'c/0.png': the file is empty"),
        "all broken": (AB, [_break("a"), _break("b")], "and 10 more"),
        "loose images": (AB, [_text("loose.jpg", "x")], well(found=21, loose="outside the class folders")),
        "hidden images": (AB, [_text("a/.hidden.jpg", "x")], well(found=21, hidden="hidden")),
        "litter": (
            AB,
            [_text(n, "x") for n in (".DS_Store", "a/.DS_Store", "a/._0.png", "a/Thumbs.db", "a/desktop.ini")],
            well(),
        ),
        "an archive's litter": (AB, [_text("__MACOSX/a/._0.png", "x")], well(found=21, __MACOSX="system folder")),
        "a server's litter": (AB, [_text("a/@eaDir/0.jpg", "x")], well(found=21, eaDir="system folder")),
        "a notebook's litter": (AB, [_text(".ipynb_checkpoints/0.jpg", "x")], well(found=21, ipynb="hidden")),
        "a recycle bin": (AB, [_text("$RECYCLE.BIN/S-1/0.jpg", "x")], well(found=21, RECYCLE="system folder")),
        "a disk's litter": (
            AB,
            [_text(f"{n}/x", "x") for n in ("lost+found", "System Volume Information", "a/.Trash-1000")],
            well(found=23, lost="system folder", Volume="system folder", Trash="hidden"),
        ),
        "hidden thumbnails": (AB, [_text("a/.thumbs/0.jpg", "x")], well(found=21, thumbs="hidden")),
        "folders in classes": (AB, [_copy("a/0.png", "a/more/x.png"), _remove("a/0.png")], well()),
        "a folder called as an image": (AB, [_folder("a/folder.jpg")], well()),
        "other names": (("with space", "new\nline", "🌻"), [], well(("new\nline", "with space", "🌻"), 30, 30)),
        "numbers": (("1", "2", "10"), [], well(("1", "10", "2"), 30, 30)),
        "upper and lower case letters": (("B", "b"), [], well(("B", "b"))),
        "upper and lower case": (("cat", "Cat", "dog"), [], well(("Cat", "dog"), 30, 30, spelled={"cat": "Cat"})),
        "composed and decomposed": (
            ("train/\xe9", "train/b", "val/e\u0301", "val/b", "test/\xe9", "test/b"), [],
            well(("b", "\xe9"), 60, 60, spelled={"e\u0301": "\xe9"}),
        ),
        "a space behind a class": (("cat", "cat ", "b"), [], well(("b", "cat"), 30, 30, spelled={"cat ": "cat"})),
        "an invisible space in a class": (
            ("cat", "c\u200bat", "b"), [], well(("b", "cat"), 30, 30, spelled={"c\u200bat": "cat"})
        ),
        "a link to nowhere": (AB, [_link("a/x.png", "gone.png")], well(found=21, x="broken link")),
        "a link to an image": (AB, [_link("a/x.png", "0.png")], well(found=21, used=21)),
        "a link to a class": (AB, [_link("c", "b")], "0 usable"),
        "a linked class": (("a", ".store/b"), [_link("b", ".store/b")], well(found=21, store="hidden")),
        "a link to a folder in a class": (AB, [_link("a/more", "../b")], well(found=21, more="not followed")),
        "a loop": (AB, [_link("c", ".")], "a loop"),
        "a loop in a class": (AB, [_link("a/again", "..")], well(found=21, again="not followed")),
        "the same image twice": (AB, [_copy("a/0.png", "a/again.png")], well(found=21, used=21)),
        "the same image under two labels": (
            AB, [_copy("a/0.png", "b/again.png")], well(found=21, used=19, again="several labels")
        ),
        "the same image in train and test": (
            PARTS, [_copy("test/a/0.png", "train/a/again.png")], well(found=61, used=60, again="is in test/")
        ),
        "a table": (AB, [_text("data.csv", rows)], well()),
        "a table with a missing file": (
            AB, [_text("data.csv", rows + "a/gone.png,a\n")], well(found=21, gone="no such file")
        ),
        "a table with other columns": (
            AB, [_text("data.csv", table("File Name;Class\n", "{c}/{n}.png;{c}\n"))], well()
        ),
        "a table with tabs": (AB, [_text("data.csv", table("path\tlabel\n", "{c}/{n}.png\t{c}\n"))], well()),
        "a table for Excel": (AB, [_text("data.csv", table("sep=;\npath;label\n", "{c}/{n}.png;{c}\n"))], well()),
        "a table in UTF-16": (AB, [_text("data.csv", rows, "utf-16")], well()),
        "a table in Latin-1": (AB, [_text("data.csv", rows + "a/\xe9.png,a\n", "latin-1")], "CSV UTF-8"),
        "a table of Windows": (AB, [_text("data.csv", table("path,label\n", "{c}\\{n}.png,{c}\n"))], well()),
        "a table with a folder too many": (
            AB, [_text("data.csv", table("path,label\n", "photos/{c}/{n}.png,{c}\n"))], well()
        ),
        "a table with a folder too few": (AB, [_text("data.csv", table("path,label\n", "{n}.png,{c}\n"))], well()),
        "a table of elsewhere": (AB, [_text("data.csv", "path,label\nx/y.png,a\n")], "none of its 1 images was found"),
        "a table without a header": (AB, [_text("data.csv", rows.partition("\n")[2])], "named in its first line"),
        "a table with nan": (AB, [_text("data.csv", rows + "a/0.png,nan\n")], "missing value"),
        "a table with NUL": (AB, [_text("data.csv", rows + "a/0.png\0,a\n")], "NUL"),
        "a table without labels": (AB, [_text("data.csv", "path\na/0.png\n")], "needs columns path,label"),
        "a table with another split": (AB, [_text("data.csv", "path,label,split\na/0.png,a,later\n")], "split must be"),
        "a table with a comma too many": (AB, [_text("data.csv", "path,label\na/0.png,a,b\n")], "more fields"),
        "an empty table": (AB, [_text("data.csv", "path,label\n")], "no rows"),
    }  # fmt: skip


def write_folders(root: Path) -> dict[str, dict | str]:
    """A data folder of every kind; what is expected of each. Where there is a data.csv, it is what to load."""
    expected = {}
    for name, (classes, changes, outcome) in folder_kinds().items():
        (root / name).mkdir(parents=True)
        fill(root / name, *classes)
        for change in changes:
            change(root / name)
        expected[name] = outcome
    return expected


def write(root: Path) -> dict[str, dict]:
    """All of it."""
    expected = {"files": write_files(root / "files"), "folders": write_folders(root / "folders")}
    runs.write_json(root / "expected.json", expected)
    return expected


@runs.script()
def main() -> None:
    """Parse, write, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to make")
    folder = parser.parse_args().folder
    if folder.exists():
        raise SystemExit(f"{str(folder)!r} is there already; give a new one.")
    runs.check_output(folder, "folder", "FOLDER")
    expected = write(folder)
    print(f"{len(expected['files'])} kinds of files and {len(expected['folders'])} kinds of folders in {folder}")


if __name__ == "__main__":
    main()
