"""Why a file cannot be used, and what to do about it; what Pillow does not say about PNG and TIFF."""

import codecs
import io
import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import TiffImagePlugin

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")  # JPEG opens MPO too
RAW = "a camera's raw file, of which at most a thumbnail can be read; convert it to JPEG, PNG or TIFF"

_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WEBP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
_RAW_BEGINNINGS = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}
_LEAST = {b"gAMA": 4, b"cHRM": 32, b"pHYs": 9, b"sRGB": 1}
"""Bytes of chunks of a PNG."""
_MOST_TEXT = 2**20
"""Bytes of text or profile that Pillow takes from a PNG; for more it refuses the whole file."""


class BadImageError(ValueError):
    """An image that cannot be used; the message is the reason, without the file's name."""


class TooLargeError(BadImageError):
    """An image of more pixels than may be.

    Args:
        size: in words.
        megapixels: the limit.
    """

    def __init__(self, size: str, megapixels: float) -> None:
        much = f"{size} is more than {megapixels:g} megapixels"
        super().__init__(f"{much}; make it smaller, or raise data.max_megapixels")
        self.size, self.megapixels = size, megapixels


class ReadError(BadImageError):
    """A file that cannot be read now. It says nothing about the contents, so it must not be cached."""


def explain_failure(data: bytes, error: Exception) -> str:
    """What a file is that Pillow does not open, and what to do."""
    head, brand = data[:512].lstrip().lower(), data[4:12]
    page = head.startswith((b"<!doctype", b"<html", b"<svg")) or (head.startswith(b"<?xml") and b"<svg" in head)
    kinds = {
        f"a web page or SVG, not a photograph ({len(data):,} bytes; a failed download? Get it again)": page,
        "a Git LFS pointer instead of the image; get it with: git lfs pull": head.startswith(b"version https://git"),
        "HEIC (iPhone); convert it to JPEG": brand[:4] == b"ftyp" and brand[4:] in _HEIC,
        "JPEG XL; convert it to JPEG or PNG": data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ",
        "JPEG 2000; convert it to JPEG or PNG": data[4:8] == b"jP  " or data[:4] == b"\xff\x4f\xff\x51",
        "DICOM; convert it to PNG of 16 bits": data[128:132] == b"DICM",
        RAW: data.startswith(_RAW_BEGINNINGS) or brand == b"ftypcrx ",
    }
    for reason, applies in kinds.items():
        if applies:
            return reason
    for beginning, kind in _BEGINNINGS.items():
        if data.startswith(beginning) and (kind != "BMP" or len(data) > 50):
            own = {"TIFF": _tiff, "JPEG": _jpeg}.get(kind, lambda _: "")(data)
            return own or _of_kind(kind, error)
    if brand in {b"ftypavif", b"ftypavis"}:
        return _avif(data)
    if _is_text(data[:64]):
        return "text, not an image; remove it"
    return f"not an image in {', '.join(FORMATS)}; convert it to JPEG or PNG if it is one"


def _is_text(beginning: bytes) -> bool:
    try:  # incremental, as the last letter may be cut
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(beginning)
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable() and text != ""


def is_raw(tags: TiffImagePlugin.ImageFileDirectory_v2, data: bytes) -> bool:
    """Whether a TIFF is a camera's raw file: CR2, or DNG, or with an undeveloped page."""
    return data[8:10] == b"CR" or 50706 in tags or tags.get(262) in {32803, 34892}


def is_reduced(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether a page of a TIFF is a smaller copy of another, or the mask of one."""
    return bool(int(tags.get(254) or 0) & 5) or tags.get(255) == 2


def unsupported_layout(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    """What a TIFF has that Pillow silently decodes to noise, or ""."""
    bits = max(tags.get(258) or (1,))
    if tags.get(284) == 2 and bits > 8 and int(tags.get(277) or 1) > 1:
        return "more than 8 bits in separate planes"
    return "a sign in 8 bits" if bits == 8 and 2 in (tags.get(339) or ()) else ""


def black_is_zero(data: bytes) -> bytes | None:
    """A WhiteIsZero TIFF as BlackIsZero, None of any other file: Pillow does not read all of the former."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 10:
        return None
    (start,) = struct.unpack_from(order + "I", data, 4)
    for place in range(start + 2, min(start + 2 + 12 * 64, len(data) - 12), 12):
        tag, kind, _ = struct.unpack_from(order + "HHI", data, place)
        if tag == 262 and kind in {3, 4}:
            length = {3: 2, 4: 4}[kind]
            value = data[place + 8 : place + 8 + length]
            one = struct.pack(order + {3: "H", 4: "I"}[kind], 1)
            return None if any(value) else data[: place + 8] + one + data[place + 8 + length :]
    return None


def strip_chunks(data: bytes) -> bytes:
    """A PNG without chunks for which Pillow would refuse it although its pixels are whole. Other files as they are.

    Editors keep megabytes of XMP or of a workflow in compressed text; others cut a gamma short, or change a text and
    not its checksum.
    """
    if not data.startswith(b"\x89PNG"):
        return data
    for start, stop in [chunk[1:] for chunk in _chunks(data) if _is_unfit(data, *chunk)][::-1]:
        data = data[:start] + data[stop:]
    return data


def declared_bits(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2 | None) -> int:
    """How many bits of 16 a PNG or TIFF says that it uses, or 0."""
    if tags is not None:
        bits = min(tags.get(258) or (16,))
        most = tags.get(281) or tags.get(341) or (0,)
        most = max(most) if isinstance(most, tuple) else most
        return bits if bits < 16 else int(most).bit_length() % 16
    if data.startswith(b"\x89PNG"):
        for name, start, stop in _chunks(data):
            if name == b"sBIT":
                return max(data[start + 8 : stop - 4][:3], default=0)
            if name == b"IDAT":
                break
    return 0


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the chunks of a PNG, as far as they are whole."""
    start = 8
    while start + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        stop = start + 12 + length
        if stop > len(data):
            return
        yield name, start, stop
        start = stop


def _is_unfit(data: bytes, name: bytes, start: int, stop: int) -> bool:
    """Whether a chunk that no pixel needs is damaged, or longer than Pillow takes."""
    if not name[0] & 32 or name in {b"acTL", b"fcTL", b"fdAT"}:  # upper case: the image itself
        return False
    body, checksum = data[start + 8 : stop - 4], int.from_bytes(data[stop - 4 : stop])
    return len(body) < _LEAST.get(name, 0) or zlib.crc32(name + body) != checksum or _is_long(name, body)


def _is_long(name: bytes, body: bytes) -> bool:
    """Whether a chunk of text or a profile is longer than Pillow takes, or packed in a way of its own."""
    if name in {b"tEXt", b"iTXt"} and len(body) > _MOST_TEXT:
        return True
    if name in {b"zTXt", b"iCCP"}:
        method, packed = body.partition(b"\0")[2][:1], body.partition(b"\0")[2][1:]
        if method != b"\0":
            return True
    elif name == b"iTXt" and body.partition(b"\0")[2][:1] == b"\1":
        packed = body.partition(b"\0")[2][2:].split(b"\0", 2)[-1]
    else:
        return False
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_TEXT + 1)) > _MOST_TEXT
    except zlib.error:
        return False


def _of_kind(kind: str, error: Exception) -> str:
    """Of a file that begins as one of a format that we read."""
    why = " ".join(str(error).split())
    if "nsupported" in why or "not supported" in why or "layers" in why:
        return f"not supported: {kind} of this kind ({why}); convert it to JPEG or PNG"
    return f"{kind} is damaged or cut short (it cannot be opened); copy or download it again"


def _jpeg(data: bytes) -> str:
    """The bits of a JPEG that has not 8; "" of others."""
    start = 2
    while start + 9 < len(data) and data[start] == 0xFF:
        marker, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4])
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            bits = data[start + 4]
            return f"not supported: JPEG of {bits} bits; convert it to PNG of 8 or 16 bits" if bits in {12, 16} else ""
        start += 2 + length
    return ""


def _avif(data: bytes) -> str:
    """An AVIF is refused for its size before it can be opened."""
    place = data.find(b"ispe")
    if 0 <= place <= len(data) - 16:
        width, height = struct.unpack_from(">II", data, place + 8)
        if width * height > 2**28:
            return f"AVIF of {width} x {height} is more pixels than can be decoded; make it smaller"
    return "AVIF is damaged or cut short, or of a kind that is not supported; copy it again or convert it to JPEG"


def _tiff(data: bytes) -> str:
    """What numbers a whole TIFF holds that Pillow cannot read; "" if it is not whole."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
            file = io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            if is_raw(tags, data):
                return RAW
            places, lengths = (tags.get(273) or tags[324]), (tags.get(279) or tags[325])
            if max(place + length for place, length in zip(places, lengths, strict=True)) > len(data):
                return ""
            bits, samples = max(tags.get(258, (1,))), tags.get(277, 1)
            kind = _SAMPLES.get(max(tags.get(339, (1,))), "numbers of an unusual kind")
    except Exception:  # whatever a damaged directory makes of it
        return ""
    bands = f"{samples} band{'s' * (samples != 1)}"
    return f"not supported: TIFF with {bands} of {bits}-bit {kind}; convert it to 8 or 16 bits, grey or RGB"
