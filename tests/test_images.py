"""What a file becomes: the right pixels, the right way up, or a reason; never a wrong image without a word."""

import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import corpus
import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageCms, ImageFile

from template.config import Data
from template.data.decode import with_bits
from template.data.images import read
from template.data.images.load import BadImageError, load, load_image

chunk, deep_png, profile, tiff = corpus.chunk, corpus.deep_png, corpus.profile, corpus.tiff
RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def flat(mode: str, colour) -> Image.Image:
    return Image.new(mode, (24, 24), colour)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reason(source, size: int = 16) -> str:
    with pytest.raises(BadImageError) as caught:
        load_image(source, size, "crop")
    return str(caught.value)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# The right pixels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG", "AVIF", "MPO"])
def test_every_format_is_read(kind):
    # The middle of a flat colour survives any compression; palettes of 256 colours hold these.
    pixels = load_image(encode(flat("RGB", (200, 100, 50)), kind), 16, "stretch")
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels[8, 8], (200, 100, 50), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_file_bytes_and_array_agree_bit_for_bit(tmp_path, kind):
    array = noise(40, 60)
    data = encode(Image.fromarray(array), kind)
    (tmp_path / "wrong_ending.jpg").write_bytes(data)  # the contents count, not the name
    expected = load_image(array, 24, "crop")
    np.testing.assert_array_equal(load_image(data, 24, "crop"), expected)
    np.testing.assert_array_equal(load_image(tmp_path / "wrong_ending.jpg", 24, "crop"), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90),
        (99, lambda a: a),  # no such orientation
    ],
)
def test_exif_orientation_turns_the_image(kind, orientation, upright):
    stored = noise(20, 30)
    turned = load_image(encode(Image.fromarray(stored), kind, exif=exif(orientation)), 16, "stretch")
    np.testing.assert_array_equal(turned, load_image(np.ascontiguousarray(upright(stored)), 16, "stretch"))


def test_a_phone_held_upright_has_its_left_edge_on_top():
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:, :40] = 255  # orientation 6: turn by 90 degrees clockwise to see it upright
    pixels = load_image(encode(Image.fromarray(stored), "JPEG", exif=exif(6)), 16, "stretch").astype(int)
    assert pixels[:7].min() > 240
    assert pixels[9:].max() < 15


@pytest.mark.filterwarnings("ignore")  # Pillow says so too
def test_broken_exif_costs_no_image():
    data = encode(flat("RGB", BLUE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    np.testing.assert_allclose(load_image(data, 16, "crop")[0, 0], BLUE, atol=3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat("RGBA", (255, 0, 0, 0)), WHITE),  # hidden colours must not come out
        (flat("RGBA", (255, 0, 0, 255)), RED),
        (flat("RGBA", (255, 0, 0, 51)), (255, 204, 204)),  # 20 % red on 80 % white
        (flat("LA", (100, 255)), (100, 100, 100)),
        (flat("LA", (100, 51)), (224, 224, 224)),  # 0.2 * 100 + 0.8 * 255
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), WHITE),
        (flat("1", 0), (0, 0, 0)),
    ],
    ids=["clear", "opaque", "faint", "grey", "faint grey", "L", "1-bit white", "1-bit black"],
)
def test_alpha_lies_on_white_and_grey_is_three_equal_channels(image, expected):
    pixels = load_image(encode(image, "PNG"), 16, "crop")
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1)


def said(source, size: int = 24, **how) -> tuple[np.ndarray, str]:
    return load(source, Data(image_size=size, resize="stretch", **how))


@pytest.mark.parametrize(
    "data",
    [
        lambda rgb: encode(Image.fromarray(np.dstack([rgb, np.zeros((24, 24), np.uint8)])), "PNG"),
        corpus.bmp_of_32_bits,
        lambda rgb: np.dstack([rgb, np.zeros((24, 24), np.uint8)]),
    ],
    ids=["PNG", "BMP", "array"],
)
def test_alpha_that_is_0_everywhere_is_an_unused_byte(data):
    rgb = noise(24, 24)
    pixels, note = said(data(rgb))
    np.testing.assert_array_equal(pixels, rgb)
    assert note == "alpha is 0 everywhere and was ignored"


@pytest.mark.parametrize("values", [(0, 1), (1, 1), (3, 3)])
def test_alpha_of_which_nothing_can_be_seen_is_ignored_too(values):
    """A mask of 0 and 1 where 0 and 255 are meant."""
    rgb, alpha = noise(24, 24), np.random.default_rng(0).choice(values, (24, 24)).astype(np.uint8)
    pixels, note = said(encode(Image.fromarray(np.dstack([rgb, alpha])), "PNG"))
    np.testing.assert_array_equal(pixels, rgb)
    assert note == "alpha is nearly 0 everywhere and was ignored"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_drawn_in_white_on_nothing_is_seen(mode):
    """On white it would be a white square, as every other of its kind."""
    alpha = np.zeros((24, 24), np.uint8)
    alpha[6:12] = 255
    image = Image.merge("LA", [Image.new("L", (24, 24), 250), Image.fromarray(alpha)]).convert("RGBA")
    if mode == "P":
        palette = Image.fromarray((alpha > 0).astype(np.uint8), "P")
        palette.putpalette([250] * 6)
        data = encode(palette, "PNG", transparency=0)
    else:
        data = encode(image.convert(mode), "PNG")
    pixels, note = said(data)
    np.testing.assert_array_equal(pixels, np.repeat(np.where(alpha, 250, 0)[..., None], 3, axis=2))
    assert note == "white on a transparent background: put on black"
    assert said(encode(Image.new("RGBA", (24, 24), WHITE), "PNG"))[1] == ""


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
SPACES = {
    "Display P3": (profile(corpus.DISPLAY_P3, 2.2), "RGB"),
    "ProPhoto": (profile(corpus.PROPHOTO, 1.8), "RGB"),
    "grey": (profile((1,), 1.4), "L"),
}


def smooth() -> Image.Image:
    """Colours of every kind that all spaces hold, changing slowly, as in a photograph."""
    return Image.fromarray(np.random.default_rng(0).integers(40, 216, (6, 6, 3), dtype=np.uint8)).resize((96, 96))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("space", SPACES)
def test_one_image_in_many_colour_spaces_is_one_image(space, kind):
    """As its profile says; without that it would be off by 5 to 20."""
    contents, mode = SPACES[space]
    own, image = ImageCms.ImageCmsProfile(io.BytesIO(contents)), smooth().convert(mode)
    if mode == "L" and kind == "WEBP":
        pytest.skip("WebP has no grey")
    there = ImageCms.profileToProfile(image.convert("RGB"), SRGB, own, renderingIntent=1, outputMode=mode)
    how = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels, note = said(encode(there, kind, icc_profile=contents, **how), 96)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"), int)).mean() < 2.5
    assert np.abs(np.asarray(there.convert("RGB"), int) - np.asarray(image.convert("RGB"), int)).mean() > 5
    assert not note


@pytest.mark.parametrize("contents", [b"x", SPACES["ProPhoto"][0][:300], SPACES["grey"][0], bytes(10_000)])
def test_a_profile_that_cannot_be_used_costs_no_image(contents):
    pixels, note = said(encode(smooth(), "PNG", icc_profile=contents), 96)
    np.testing.assert_array_equal(pixels, smooth())
    assert "was ignored" in note


def test_black_and_white_with_a_profile_of_grey_is_black_and_white():
    image = smooth().convert("1")
    pixels, note = said(encode(image, "PNG", icc_profile=SPACES["grey"][0]), 96)
    np.testing.assert_array_equal(pixels, image.convert("RGB"))
    assert not note


def test_srgb_with_a_profile_is_left_bit_for_bit():
    for image in (smooth(), smooth().convert("L")):
        pixels, note = said(encode(image, "PNG", icc_profile=SRGB.tobytes()), 96)
        np.testing.assert_array_equal(pixels, image.convert("RGB"))
        assert not note


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_lies_on_white(kind):
    image = Image.new("P", (24, 24), 1)
    image.putpalette([*RED, *BLUE])
    image.paste(0, (0, 0, 12, 24))
    pixels = load_image(encode(image, kind, transparency=0), 24, "crop")
    np.testing.assert_array_equal(pixels[:, 2], np.broadcast_to(WHITE, (24, 3)))
    np.testing.assert_array_equal(pixels[:, 21], np.broadcast_to(BLUE, (24, 3)))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "GIF"])
def test_palettes_give_their_colours_and_not_their_numbers(kind):
    image = Image.new("P", (24, 24), 2)
    image.putpalette([*RED, *GREEN, 10, 20, 230])
    image.paste(0, (0, 0, 12, 24))
    pixels = load_image(encode(image, kind), 24, "crop")
    assert tuple(pixels[12, 2]) == RED
    assert tuple(pixels[12, 21]) == (10, 20, 230)


def test_one_bit_bmp():
    array = np.zeros((24, 24), bool)
    array[:12] = True
    pixels = load_image(encode(Image.fromarray(array), "BMP"), 24, "crop")
    assert pixels[:12].min() == 255
    assert pixels[12:].max() == 0


def test_cmyk_jpeg_keeps_its_colour():
    data = encode(flat("RGB", (200, 60, 30)).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    np.testing.assert_allclose(load_image(data, 16, "crop")[8, 8], (200, 60, 30), atol=5)


def ramp16() -> np.ndarray:
    """All levels of 16 bits, from 0 to 65,535."""
    return np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)


def pgm16(array: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % array.shape[::-1] + array.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode(Image.fromarray(ramp16()), "PNG"),
        lambda: encode(Image.fromarray(ramp16()), "TIFF"),
        lambda: pgm16(ramp16()),
        ramp16,
        lambda: ramp16()[..., None],
        lambda: np.repeat(ramp16()[..., None], 3, axis=2),
        cv2.imencode(".png", np.repeat(ramp16()[..., None], 3, axis=2))[1].tobytes,
    ],
    ids=["PNG", "TIFF", "PGM", "array", "array with a channel", "colour array", "colour PNG"],
)
def test_16_bits_are_scaled_by_their_range(make):
    """Pillow's own conversion saturates: all but the darkest 256 levels become white."""
    pixels = load_image(make(), 32, "stretch").astype(float)
    np.testing.assert_allclose(pixels, np.repeat(ramp16()[..., None] / 257, 3, axis=2), atol=1)


@pytest.mark.parametrize("make", [lambda a: encode(Image.fromarray(a), "PNG"), pgm16, lambda a: a])
def test_a_dark_16_bit_image_of_a_set_that_uses_16_bits_stays_dark(make):
    # Scaled by what it holds instead of by the range of its set, it would become bright.
    array = np.random.default_rng(0).integers(0, 6000, (16, 16)).astype(np.uint16)
    for bits in (16, with_bits(Data(), [make(array), make(ramp16())]).bits):
        pixels, note = load(make(array), Data(image_size=16, resize="stretch", bits=bits))
        assert pixels.max() <= 6000 // 257 + 1
        assert not note


def waves(channels: int = 3) -> np.ndarray:
    """Every level of 8 bits, in another order in each channel; uint8 [64, 64, channels]."""
    y, x = np.mgrid[:64, :64]
    levels = [255 * (1 + np.sin(x / (7 + 2 * c) + y / 11)) / 2 for c in range(channels)]
    return np.stack(levels, axis=2).round().astype(np.uint8)


DEEP = {
    "grey PNG": lambda v: deep_png(v[..., :1]),
    "PNG": deep_png,
    "clear grey PNG": lambda v: deep_png(np.dstack([v[..., :1], np.full(v.shape[:2], 65535, np.uint16)])),
    "clear PNG": lambda v: deep_png(np.dstack([v, np.full(v.shape[:2], int(v.max()), np.uint16)])),
    "grey TIFF": lambda v: tiff(v[..., :1]),
    "TIFF": tiff,
    "packed TIFF": lambda v: cv2.imencode(".tif", v[..., ::-1])[1].tobytes(),
    "PGM": lambda v: b"P5 64 64 65535\n" + v[..., 0].astype(">u2").tobytes(),
    "PPM": lambda v: b"P6 64 64 65535\n" + v.astype(">u2").tobytes(),
    "array": lambda v: v,
    "grey array": lambda v: v[..., 0],
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_that_a_16_bit_file_leaves_empty_do_not_make_it_black(kind, bits):
    """Of cameras and microscopes: 4,095 is white there, and would be 15 of 255."""
    values = (waves().astype(np.float64) * (2**bits - 1) / 255).round().astype(np.uint16)
    pixels, note = load(DEEP[kind](values), Data(image_size=64, resize="stretch"))
    expected = waves() if "grey" not in kind and kind != "PGM" else np.repeat(waves()[..., :1], 3, axis=2)
    np.testing.assert_allclose(pixels.astype(int), expected, atol=1)
    assert note == (f"{bits} of 16 bits are used and scaled to 8" if bits < 16 else "")


def test_a_dark_image_is_scaled_as_its_bright_siblings_are():
    """A rule for single files would take 10 bits for a dark image of a camera of 12, and make it as bright as day."""
    bright = np.linspace(0, 4095, 64 * 64).round().astype(np.uint16).reshape(64, 64, 1)
    dark = bright // 8
    data = with_bits(Data(image_size=64, resize="stretch"), [deep_png(dark), deep_png(bright), png()])
    assert data.bits == 12
    light, shade = (load(deep_png(values), data)[0].astype(float) for values in (bright, dark))
    np.testing.assert_allclose(shade, light / 8, atol=1)
    assert load(deep_png(bright * 16), data)[0].max() == 255, "what needs more has more"


def test_files_of_several_devices_are_each_on_their_own():
    """A set of 10 and of 16 bits is no set of dark and bright: those of 10 fill their range."""
    values = waves(1).astype(np.float64) / 255
    ten, sixteen = ((values * (2**bits - 1)).round().astype(np.uint16) for bits in (10, 16))
    data = Data(image_size=64, resize="stretch")
    data = with_bits(data, [deep_png(ten), deep_png(ten), deep_png(ten // 2), deep_png(sixteen)])
    assert data.bits == "auto"
    for array in (ten, sixteen):
        np.testing.assert_allclose(load(deep_png(array), data)[0][..., :1].astype(int), waves(1), atol=1)


def test_what_was_stretched_to_16_bits_stays_dark():
    eight = waves(1) // 16
    np.testing.assert_array_equal(load_image(deep_png(eight.astype(np.uint16) * 257), 64, "stretch")[..., :1], eight)
    assert with_bits(Data(), [deep_png(eight.astype(np.uint16) * 257), png(), b"no image"]).bits == "auto"


def test_bits_that_a_file_declares_are_believed():
    dark = np.full((16, 16, 1), 500, np.uint16)
    dark[0] = 3
    said = chunk(b"sBIT", b"\x0c")
    data = deep_png(dark)
    declared = data[:33] + said + data[33:]  # behind signature and header
    assert load_image(declared, 16, "stretch").max() == round(500 * 255 / 4095)
    assert load_image(deep_png(dark), 16, "stretch").max() == round(500 * 255 / 1023)
    tagged = tiff(dark, extra={281: (4095,)})
    assert load_image(tagged, 16, "stretch").max() == round(500 * 255 / 4095)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_16_bit_tiff_whose_zero_is_white_is_no_negative(bits):
    values = (waves(1).astype(np.float64) * (2**bits - 1) / 255).round().astype(np.uint16)
    for order in "<>":
        pixels = load_image(tiff(2**bits - 1 - values, photometric=0, order=order), 64, "stretch")
        np.testing.assert_allclose(pixels[..., :1].astype(int), waves(1), atol=1)


def test_floats_are_spread_over_their_own_range_and_must_be_finite():
    array = np.linspace(-3, 5, 256, dtype=np.float32).reshape(16, 16)
    pixels = load_image(encode(Image.fromarray(array), "TIFF"), 16, "stretch")[..., 0]
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all()
    array[3, 3] = np.nan
    assert "finite" in reason(encode(Image.fromarray(array), "TIFF"))


def test_of_an_animation_the_first_frame_is_used():
    frames = [flat("RGB", RED), flat("RGB", BLUE)]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(load_image(data, 16, "crop")[8, 8], RED, atol=3)


def test_of_pages_the_first_that_is_no_thumbnail_is_used():
    first, second, thumbnail = (Image.fromarray(noise(24, 24, seed)) for seed in range(3))
    pixels, note = said(corpus.pages(first, second))
    np.testing.assert_array_equal(pixels, first)
    assert note == "only the first of several pages is used"
    pixels, note = said(corpus.pages(thumbnail.resize((9, 9)), first, thumbnails=1))
    np.testing.assert_array_equal(pixels, first)
    assert not note
    assert reason(corpus.pages(thumbnail, thumbnails=1)).startswith("a camera's raw file")


def test_that_there_are_more_frames_is_said_but_not_of_the_other_eye():
    frames = {"save_all": True, "append_images": [flat("RGB", BLUE)]}
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        assert said(encode(flat("RGB", RED), kind, **frames))[1] == "only the first frame of the animation is used"
        assert not said(encode(flat("RGB", RED), kind))[1]
    assert not said(encode(flat("RGB", RED), "MPO", **frames))[1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_odd_tag_costs_neither_the_image_nor_its_turn(kind):
    """To turn it, Pillow writes the whole block anew, which it may not be able to."""
    stored = noise(20, 30)
    how = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    for block in (
        corpus.ODD_EXIF,
        corpus.ODD_EXIF.replace(struct.pack("<HHI", 0x9286, 2, 4), struct.pack("<HHI", 0x8769, 2, 4)),
    ):
        data = encode(Image.fromarray(stored), kind, exif=block, **how)
        if kind == "TIFF":
            data = tiff(stored, extra={274: (6,), 34665: (99_999,)})
        upright = load_image(np.ascontiguousarray(np.rot90(stored, -1)), 16, "stretch")
        assert np.abs(load_image(data, 16, "stretch").astype(int) - upright).mean() < 2


def test_text_and_profiles_of_any_length_cost_no_image():
    image = Image.fromarray(noise(24, 24))
    for how in ({"pnginfo": corpus.long_text()}, {"icc_profile": bytes(1_500_000)}):
        data = encode(image, "PNG", **how)
        np.testing.assert_array_equal(said(data)[0], image)
        assert read.read_header(data) == ("PNG", "RGB", 24, 24)


@pytest.mark.parametrize(
    ("name", "body", "checksum"),
    [(b"gAMA", b"\0", None), (b"cHRM", bytes(5), None), (b"pHYs", b"", None), (b"sRGB", b"", None),
     (b"iCCP", b"a\0\1xxxx", None), (b"tEXt", b"a\0b", b"1234"), (b"tIME", b"", b"\0\0\0\0")],
)  # fmt: skip
def test_what_no_pixel_needs_may_be_damaged(name, body, checksum):
    array = noise(24, 24)
    data, other = png(array), chunk(name, body)
    data = data[:33] + (other[:-4] + checksum if checksum else other) + data[33:]
    np.testing.assert_array_equal(said(data)[0], array)


def test_planes_of_16_bits_are_refused_and_not_read_as_noise():
    array = waves().astype(np.uint16) * 257
    planes = {284: (2,), 273: (8, 8 + 8192, 8 + 16384), 279: (8192,) * 3}
    assert "separate planes" in reason(tiff(array, extra=planes))


def test_bytes_with_a_sign_are_refused_and_not_read_without():
    """-128 to 127 came out as 128 to 255 and 0 to 127: the darkest beside the brightest."""
    data = tiff((waves(1).astype(int) - 128).astype(np.int8), kind=2)
    assert "not supported: TIFF with a sign in 8 bits" in reason(data)


def test_large_images_are_made_smaller_first_and_are_the_same(monkeypatch):
    """A page at 600 dpi has 140 million pixels, and is refused no more; the corpus has one."""
    page = Image.new("1", (1000, 1400), 1)
    page.paste(0, (0, 0, 500, 1400))
    data = encode(page, "TIFF", compression="group4")
    expected = load_image(data, 16, "stretch")
    assert expected[:, :7].max() == 0 and expected[:, 9:].min() == 255
    monkeypatch.setattr(read, "LARGE", 10_000)
    difference = np.abs(load_image(data, 16, "stretch").astype(int) - expected)
    assert difference.max() <= 16  # at the edge between black and white
    clear = Image.fromarray(np.dstack([np.asarray(smooth().resize((600, 500))), np.full((500, 600), 200, np.uint8)]))
    for image in (clear, clear.convert("RGB"), clear.convert("L"), clear.convert("RGB").quantize(64)):
        small = load_image(encode(image, "PNG"), 32, "crop").astype(int)
        monkeypatch.setattr(read, "LARGE", 10**9)
        assert np.abs(small - load_image(encode(image, "PNG"), 32, "crop")).mean() < 1.5
        monkeypatch.setattr(read, "LARGE", 10_000)


def test_a_thumbnail_does_not_hide_a_page_of_too_many_pixels():
    data = corpus.pages(Image.new("L", (9, 9)), Image.new("L", (99, 88)), thumbnails=1)
    assert said(data)[0].shape == (24, 24, 3)
    claim = struct.pack("<HHII", 256, 4, 1, 99)
    assert data.count(claim) == 1
    with pytest.raises(BadImageError, match="2000000 x 88 is more than 150 megapixels"):
        said(data.replace(claim, struct.pack("<HHII", 256, 4, 1, 2_000_000)), max_megapixels=150)


def test_a_setting_raises_the_limit():
    data = png_claiming(16_000, 16_000)
    with pytest.raises(BadImageError, match="more than 250 megapixels"):
        said(data)
    with pytest.raises(BadImageError, match="claims 16000 x 16000 pixels in"):
        said(data, max_megapixels=400)


def test_nothing_of_damaged_files_reaches_the_terminal():
    """Libtiff, Pillow's warnings and its log write there by themselves, and none of them names the file."""
    program = """
import io, sys, numpy as np
from PIL import Image
from template.data.images.load import BadImageError, load_image
out = io.BytesIO()
Image.new("RGB", (40, 40), "red").save(out, "TIFF", compression="tiff_lzw")
for seed in range(300):
    data, rng = bytearray(out.getvalue()), np.random.default_rng(seed)
    data[int(rng.integers(8, len(data)))] = int(rng.integers(256))
    try: load_image(bytes(data), 16, "crop")
    except BadImageError: pass
out = io.BytesIO()
Image.new("RGB", (40, 40)).save(out, "JPEG", exif=b"Exif\\0\\0II*\\0\\xff\\xff\\xff\\xff garbage")
load_image(out.getvalue(), 16, "crop")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == done.stderr == ""


# The right geometry ----------------------------------------------------------------------------------------------


def wide() -> np.ndarray:
    """40 high and 80 wide: red | green | blue | red, of 20 columns each."""
    array = np.zeros((40, 80, 3), np.uint8)
    for column, colour in zip(range(0, 80, 20), (RED, GREEN, BLUE, RED), strict=True):
        array[:, column : column + 20] = colour
    return array


@pytest.mark.parametrize("tall", [False, True])
def test_crop_cuts_the_longer_side_equally(tall):
    pixels = load_image(wide().transpose(1, 0, 2).copy() if tall else wide(), 40, "crop")
    pixels = pixels.transpose(1, 0, 2) if tall else pixels
    np.testing.assert_array_equal(pixels[:, :20], np.broadcast_to(GREEN, (40, 20, 3)))
    np.testing.assert_array_equal(pixels[:, 20:], np.broadcast_to(BLUE, (40, 20, 3)))


@pytest.mark.parametrize("tall", [False, True])
def test_pad_keeps_everything_between_equal_grey_borders(tall):
    pixels = load_image(wide().transpose(1, 0, 2).copy() if tall else wide(), 80, "pad")
    pixels = pixels.transpose(1, 0, 2) if tall else pixels
    np.testing.assert_array_equal(pixels[20:60], wide())
    for border in (pixels[:20], pixels[60:]):
        np.testing.assert_array_equal(border, np.broadcast_to(GREY, (20, 80, 3)))


def test_what_stretching_was_called_before_is_understood():
    data = png(wide())
    np.testing.assert_array_equal(load_image(data, 20, "squash"), load_image(data, 20, "stretch"))


def test_stretch_keeps_everything_and_changes_the_aspect():
    pixels = load_image(wide(), 40, "stretch")
    for start, colour in zip(range(0, 40, 10), (RED, GREEN, BLUE, RED), strict=True):
        inner = pixels[:, start + 2 : start + 8]  # the edges between the colours are blended
        np.testing.assert_array_equal(inner, np.broadcast_to(colour, inner.shape))


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 31), (31, 1), (2, 3), (17, 16)])
def test_the_smallest_and_longest_images_have_a_size_too(shape, resize):
    pixels = load_image(np.full((*shape, 3), 90, np.uint8), 16, resize)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == 90).any()


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1)])
def test_a_image_that_padding_would_lose_is_refused(shape):
    line = np.full((*shape, 3), 90, np.uint8)
    with pytest.raises(BadImageError, match="too narrow"):
        load_image(line, 16, "pad")
    for resize in ("crop", "stretch"):
        np.testing.assert_array_equal(load_image(line, 16, resize), 90)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_making_a_image_smaller_averages_and_does_not_pick(resize):
    """Uniform noise has a standard deviation of 73.9; tf.image.resize leaves 37 of it after a reduction by 16."""
    assert noise(512, 512).std() > 70
    assert load_image(noise(512, 512), 32, resize).std() < 4


def test_a_large_jpeg_decoded_at_a_part_of_its_size_is_the_same_image():
    """With waves as fine as the result can show; decoded at less than twice the result, they would blur by 7 to 10."""
    y, x = np.mgrid[:900, :1200]
    waves = [127 + 120 * np.sin(2 * np.pi * x / 48), y * 255 / 900, 127 + 120 * np.sin(2 * np.pi * (x + y) / 48)]
    array = np.stack(waves, axis=2).astype(np.uint8)
    data = encode(Image.fromarray(array), "JPEG", quality=95, subsampling=0)
    for resize in ("crop", "stretch"):
        difference = load_image(data, 100, resize).astype(float) - load_image(array, 100, resize)
        assert np.abs(difference).mean() < 1.5
        assert np.abs(difference).max() < 8


# A reason instead of an image -----------------------------------------------------------------------------------


def jpeg() -> bytes:
    return encode(Image.fromarray(noise(64, 64)), "JPEG")


def png(array: np.ndarray | None = None) -> bytes:
    return encode(Image.fromarray(noise(64, 64) if array is None else array), "PNG")


def bad_checksum() -> bytes:
    data = bytearray(png())
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (jpeg()[: len(jpeg()) // 2], "JPEG is damaged or cut short"),
        (jpeg()[: len(jpeg()) * 99 // 100], "JPEG is damaged or cut short"),
        (jpeg()[:-2], "JPEG is damaged or cut short"),  # only the end marker is missing
        (png()[: len(png()) // 2], "PNG is damaged or cut short"),
        (bad_checksum(), "PNG is damaged or cut short"),
        (b"\xff\xd8\xff\xe0", "JPEG is damaged"),  # a JPEG's first four bytes and no more
        (b"<!DOCTYPE html><html><body>404", "a web page or SVG"),
        (b"\n  <html>Not found</html>", "a web page or SVG"),
        (b'<?xml version="1.0"?><svg/>', "a web page or SVG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC (iPhone); convert"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic", "HEIC (iPhone); convert"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL; convert"),
        (b"\0\0\0\x18ftypheim\0\0\0\0mif1heim", "HEIC (iPhone); convert"),
        (b"cats, dogs and birds", "text, not an image"),
        (b"path,label\n1.jpg,cat\n", "text, not an image"),
        ("\ufeffGr\u00f6\u00dfe: 3 cm".encode(), "text, not an image"),
        (b"<?xml version='1.0'?>\n<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "text, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (bytes(128) + b"DICM" + bytes(99), "DICOM; convert"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000; convert"),
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(99), "raw file"),
        (bytes(780), "not an image in JPEG, PNG"),
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "not an image in JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # Pillow would start Ghostscript
    ],
    ids=["empty", "half", "99 %", "no end marker", "half PNG", "bad checksum", "4 bytes", "HTML", "more HTML", "SVG",
         "HEIC", "HEIF", "JPEG XL", "another HEIC", "text", "lines", "UTF-8", "XML", "LFS", "DICOM", "JPEG 2000", "CRW",
         "zeros", "PDF", "EPS"],
)  # fmt: skip
def test_unusable_bytes_have_a_reason(data, said):
    assert said in reason(data)


def test_a_jpeg_of_any_length_but_the_whole_is_refused():
    """A part of a photograph must not pass as one with a grey lower half."""
    data = jpeg()
    for length in range(0, len(data), 97):
        assert reason(data[:length])
    load_image(data, 16, "crop")


def test_eleven_bytes_of_jpeg_xl_are_refused_at_once():
    """TensorFlow's decoders stall for ten seconds on these."""
    data = b"\xff\x0a" + bytes([0xFF] * 9)
    start = time.process_time()
    assert "JPEG XL" in reason(data)
    assert time.process_time() - start < 0.5


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of less than a hundred bytes whose header claims this many pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif_claiming(width: int, height: int) -> bytes:
    header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return header + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"  # with one frame of 1 x 1


def bmp_claiming(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("claiming", [png_claiming, gif_claiming, bmp_claiming])
@pytest.mark.parametrize("side", [15_812, 40_000])  # 250.02 million pixels and 1,600 million
def test_too_many_pixels_are_refused_by_the_header(monkeypatch, claiming, side):
    decoded = []
    data = claiming(side, side)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    assert "more than 250 megapixels; make it smaller, or raise data.max_megapixels" in reason(data)
    assert not decoded


def test_the_limit_of_pixels_itself_is_allowed():
    data = Data(image_size=16, max_megapixels=110e-6)
    load(png(noise(10, 11)), data)
    with pytest.raises(BadImageError, match="121 pixels is more than 0.00011 megapixels"):
        load(png(noise(11, 11)), data)


def test_each_image_has_its_own_limit_while_others_are_opened(monkeypatch):
    """Pillow's is that of the process; the runs of a server have several."""
    whole, opened, others = png(noise(40, 50)), Image.open, []

    def open_slowly(*file, **how):
        if not others:  # while the first is opened, another begins, whose limit is lower
            others.append(threading.Thread(target=lambda: read_image_of(100)))
            others[0].start()
            others[0].join(0.3)
        return opened(*file, **how)

    def read_image_of(pixels):
        with pytest.raises(BadImageError, match="2,000 pixels is more than 0.0001 megapixels"):
            load(whole, Data(image_size=16, max_megapixels=pixels / 1e6))
        refused.append(pixels)

    refused, before = [], Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "open", open_slowly)
    assert load(whole, Data(image_size=16, max_megapixels=0.002))[0].shape == (16, 16, 3)
    others[0].join(10)
    assert refused == [100] and before == Image.MAX_IMAGE_PIXELS


def test_files_that_cannot_be_read_have_a_reason(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "no such file" in reason(tmp_path / "missing.jpg")
    assert "broken link" in reason(tmp_path / "link.jpg")
    assert "directory" in reason(tmp_path / "folder.jpg").lower()


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_what_never_ends_is_not_read(tmp_path, target):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jpg").symlink_to(target)
    assert "pipe or device" in reason(tmp_path / "link.jpg")


def test_a_file_larger_than_any_photograph_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "film.jpg").write_bytes(bytes(101))
    monkeypatch.setattr(read, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read"))
    assert "101 bytes are more than 100" in reason(tmp_path / "film.jpg")


def test_more_pixels_than_a_file_of_that_size_can_show_are_refused():
    """A few kilobytes that decode for seconds."""
    flat = encode(Image.new("L", (5000, 5000), 90), "PNG", optimize=True)
    assert len(flat) > 10_000
    load_image(flat, 16, "crop")
    assert "claims 9000 x 9000 pixels in" in reason(png_claiming(9000, 9000))
    assert "claims 9000 x 9000 pixels in" in reason(gif_claiming(9000, 9000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_has_a_reason(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "secret.png").chmod(0)
    assert "no permission" in reason(tmp_path / "secret.png")


@pytest.mark.parametrize(
    "array",
    [
        np.full((8, 8, 3), 0.5, np.float32),
        np.full((8, 8), 0.5),  # grey between 0 and 1: taken for 0 to 255, it would be black
        np.full((8, 8), 70_000, np.int32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
    ],
    ids=["floats", "grey floats", "int32", "empty", "a batch", "5 channels"],
)
def test_an_array_of_another_kind_is_refused(array):
    assert reason(array)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged tags and many pixels
def test_damaged_files_give_pixels_or_a_reason_and_nothing_else():
    """Any other exception would stop a run, and a crash would stop a server."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(noise(12, 12))
    originals = [encode(small, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    for attempt in range(3500):
        data = bytearray(originals[attempt % len(originals)])
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
        try:
            assert load_image(bytes(data), 16, "crop").shape == (16, 16, 3)
        except BadImageError as error:
            assert str(error)
