"""Every image is decoded once, is found again by its contents, and one that cannot be used is named."""

import dataclasses
import errno
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from template import disk
from template.config import Config, Data
from template.data import decode as module
from template.data.decode import decode, with_bits
from template.data.examples import DataError, Examples, load_examples
from template.data.images.load import load, load_image
from template.data.load import load_data

SIZE = 16


def settings(folder, **changes) -> Data:
    return Data(cache=str(folder / "cache"), image_size=SIZE, **changes)


def caches(folder) -> list[str]:
    return sorted(file.name for file in (folder / "cache").iterdir())


@pytest.fixture
def decoded(monkeypatch) -> list:
    """Grows by one image whenever one is decoded."""
    seen = []

    def counting(source, how):
        seen.append(source)
        return load(source, how)

    monkeypatch.setattr(module, "load", counting)
    return seen


def pixels_of(examples: Examples, data: Data) -> np.ndarray:
    examples, pixels = decode(examples, data)
    return pixels[np.arange(len(examples))]


def test_pixels_are_those_of_load_image_in_the_order_of_the_examples(class_folder, tmp_path):
    examples, pixels = decode(load_examples(str(class_folder)), settings(tmp_path))
    assert len(examples) == len(pixels) == 36
    assert pixels.shape == (36, SIZE, SIZE, 3)
    expected = [load_image(class_folder / name, SIZE, "crop") for name in examples.ids]
    np.testing.assert_array_equal(pixels[np.arange(36)], expected)


def test_another_size_is_tried_on_training_images_alone_and_then_the_others_are_decoded_once(
    class_folder, tmp_path, decoded
):
    config = Config(data=settings(tmp_path, path=str(class_folder)))
    _, parts = load_data(config, config.data)
    assert len(decoded) == 36
    for size, resize in [(20, "crop"), (SIZE, "stretch")]:
        other = dataclasses.replace(config.data, image_size=size, resize=resize)
        decoded.clear()
        train, test = parts.rows("train"), parts.rows("test")
        parts.train(dataclasses.replace(config, data=other))
        assert sorted(decoded) == sorted(parts.examples.images[row].read_bytes() for row in train)
        images, held_out = parts.plain("train", other), parts.plain("test", other)
        pixels = parts.all_pixels(other)
        assert len(decoded) == len(pixels) == 36
        expected = [load_image(class_folder / name, size, resize) for name in parts.examples.ids]
        mixed = np.random.default_rng(0).permutation(36)
        np.testing.assert_array_equal(pixels[mixed], np.stack(expected)[mixed])
        for dataset, rows in ((images, train), (held_out, test)):
            np.testing.assert_array_equal(dataset.read(0, np.arange(len(rows))), np.stack(expected)[rows])
        assert pixels[np.arange(0)].shape == (0, size, size, 3)
        assert len(decoded) == 36
        _, as_first = load_data(dataclasses.replace(config, data=other), other)
        assert as_first.plain("train", other).key == images.key  # its features are found, whichever came first


def test_a_second_run_finds_the_images_decoded_even_under_new_names(class_folder, tmp_path, decoded):
    first = pixels_of(load_examples(str(class_folder)), settings(tmp_path))
    assert len(decoded) == 36
    (class_folder / "disc").rename(class_folder / "circle")
    for number, file in enumerate(sorted((class_folder / "upright").iterdir())):
        file.rename(file.with_name(f"IMG {number:04d}.jpeg"))
    class_folder.rename(tmp_path / "moved")
    second = pixels_of(load_examples(str(tmp_path / "moved")), settings(tmp_path))
    assert len(decoded) == 36
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("change", [{"image_size": 20}, {"resize": "stretch"}])
def test_other_pixels_are_another_cache(class_folder, tmp_path, decoded, change):
    examples = load_examples(str(class_folder))
    decode(examples, settings(tmp_path))
    data = Data(**{"cache": str(tmp_path / "cache"), "image_size": SIZE} | change)
    np.testing.assert_array_equal(
        pixels_of(examples, data), [load_image(file, data.image_size, data.resize) for file in examples.images]
    )
    assert len(caches(tmp_path)) == 2


def test_changed_contents_under_the_same_name_are_decoded_anew(class_folder, tmp_path):
    examples = load_examples(str(class_folder))
    before, old = decode(examples, settings(tmp_path))
    Image.new("RGB", (30, 30), (1, 2, 3)).save(class_folder / "disc" / "05.png")
    after, new = decode(examples, settings(tmp_path))
    row = examples.ids.tolist().index("disc/05.png")
    assert np.flatnonzero(before.digests != after.digests).tolist() == [row]
    np.testing.assert_array_equal(new[np.array([row])][0], np.broadcast_to((1, 2, 3), (SIZE, SIZE, 3)))
    rest = np.delete(np.arange(36), row)
    np.testing.assert_array_equal(old[rest], new[rest])


def test_equal_contents_have_equal_digests_whatever_the_source(class_folder, tmp_path):
    file = class_folder / "disc" / "05.png"
    shutil.copy(file, class_folder / "disc" / "copy.png")
    examples, _ = decode(load_examples(str(class_folder)), settings(tmp_path))
    digest = dict(zip(examples.ids.tolist(), examples.digests.tolist(), strict=True))
    assert digest["disc/copy.png"] == digest["disc/05.png"]
    assert len(set(digest.values())) == len(digest) - 1
    assert module._digest(file.read_bytes()) == digest["disc/05.png"]
    # The same 12 numbers as another shape or type are another image.
    arrays = [np.zeros((2, 2, 3), np.uint8), np.zeros((4, 3), np.uint8), np.zeros((2, 3), np.uint16)]
    assert len({module._digest(array) for array in arrays}) == 3


@pytest.fixture
def flawed_folder(class_folder):
    """36 good images and, before, between and after them, six files that are none."""
    out = io.BytesIO()
    Image.open(class_folder / "disc" / "00.png").save(out, "JPEG")
    (class_folder / "across" / "!empty.jpg").write_bytes(b"")
    (class_folder / "across" / "05b.jpg").write_bytes(out.getvalue()[:-40])
    (class_folder / "disc" / "page.jpg").write_text("<html>404</html>")
    (class_folder / "disc" / "notes.txt").write_text("nothing to see")
    (class_folder / "upright" / "link.png").symlink_to("nowhere.png")
    (class_folder / "upright" / "zz.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (class_folder / "loose.png").write_bytes(b"")
    return class_folder


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_files_that_are_no_images_are_named_with_a_reason_and_no_label_moves(flawed_folder, tmp_path, memory_gb):
    found = load_examples(str(flawed_folder))
    examples, pixels = decode(found, settings(tmp_path, memory_gb=memory_gb))
    reasons = dict(examples.skipped)
    assert set(reasons) == {
        "across/!empty.jpg", "across/05b.jpg", "disc/page.jpg", "disc/notes.txt", "upright/link.png",
        "upright/zz.heic", "loose.png",
    }  # fmt: skip
    assert reasons["across/!empty.jpg"].startswith("the file is empty")
    assert "cut short" in reasons["across/05b.jpg"]
    assert "web page" in reasons["disc/page.jpg"]
    assert "broken link" in reasons["upright/link.png"]
    assert "HEIC" in reasons["upright/zz.heic"]
    everything = [file for file in flawed_folder.rglob("*") if not file.is_dir()]
    assert len(examples) + len(examples.skipped) == len(everything)
    for row, name in enumerate(examples.ids):
        assert examples.class_names[examples.labels[row]] == name.split("/")[0]
        np.testing.assert_array_equal(pixels[np.array([row])][0], load_image(flawed_folder / name, SIZE, "crop"))


def test_a_second_run_names_the_same_files(flawed_folder, tmp_path, decoded):
    first, _ = decode(load_examples(str(flawed_folder)), settings(tmp_path))
    count = len(decoded)
    second, _ = decode(load_examples(str(flawed_folder)), settings(tmp_path))
    assert len(decoded) == count
    assert first.skipped == second.skipped
    assert first.ids.tolist() == second.ids.tolist()


def test_a_file_that_comes_back_is_used(flawed_folder, tmp_path):
    decode(load_examples(str(flawed_folder)), settings(tmp_path))
    shutil.copy(flawed_folder / "disc" / "00.png", flawed_folder / "upright" / "nowhere.png")
    examples, _ = decode(load_examples(str(flawed_folder)), settings(tmp_path))
    assert {"upright/link.png", "upright/nowhere.png"} <= set(examples.ids)


def failing(monkeypatch, name: str, at: int, error: Exception) -> None:
    """The file of this name cannot be read the so manieth time, as on a network drive."""
    real, seen = Path.read_bytes, []

    def read_bytes(path):
        if path.name == name:
            seen.append(path)
            if len(seen) == at:
                raise error
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.parametrize("at", [1, 2], ids=["at its digest", "at its pixels"])
@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
              PermissionError(errno.EACCES, "Permission denied"), TimeoutError(errno.ETIMEDOUT, "Timed out"),
              FileNotFoundError(errno.ENOENT, "No such file"), MemoryError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_could_not_be_read_once_is_used_the_next_time(class_folder, tmp_path, monkeypatch, error, at):
    file = class_folder / "disc" / "05.png"
    file.rename(file.with_name("flaky.png"))
    examples = load_examples(str(class_folder))
    with monkeypatch.context() as patch:
        failing(patch, "flaky.png", at, error)
        first, pixels = decode(examples, settings(tmp_path))
    assert [name for name, _ in first.skipped] == ["disc/flaky.png"]
    assert len(first) == len(pixels) == 35
    expected = [load_image(file, SIZE, "crop") for file in first.images]
    np.testing.assert_array_equal(pixels[np.arange(35)], expected, "no label moves")
    second, _ = decode(examples, settings(tmp_path))
    assert len(second) == 36 and not second.skipped


def test_an_image_that_does_not_fit_the_memory_today_may_fit_tomorrow(class_folder, tmp_path, monkeypatch):
    examples = load_examples(str(class_folder))
    data = examples.images[5].read_bytes()
    real = PngImagePlugin.PngImageFile.load

    def load(image):
        if image.fp and image.fp.getbuffer() == data:
            raise MemoryError
        return real(image)

    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", load)
        first, _ = decode(examples, settings(tmp_path))
    ((name, reason),) = first.skipped
    assert name == examples.ids[5] and "not enough memory" in reason
    assert len(decode(examples, settings(tmp_path))[0]) == 36


def test_what_changes_between_digest_and_pixels_is_not_kept_under_the_old_digest(class_folder, tmp_path, monkeypatch):
    """A file that is still being copied: half of it must not be remembered as what the whole looks like."""
    file = class_folder / "disc" / "05.png"
    whole, real, seen = file.read_bytes(), Path.read_bytes, []

    def growing(path):
        seen.append(path)
        return whole[:-1] if path == file and seen.count(file) == 2 else real(path)

    examples = load_examples(str(class_folder))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", growing)
        first, _ = decode(examples, settings(tmp_path))
    assert dict(first.skipped)["disc/05.png"].startswith("it changed while it was read")
    assert len(decode(examples, settings(tmp_path))[0]) == 36


def test_notes_stay_with_their_images_and_dark_ones_are_scaled_with_their_set(class_folder, tmp_path):
    """By what the brightest of the camera needs; a part of the set, as predict.py sees one, by what the run found."""
    bright = np.linspace(0, 4095, 24 * 24).round().astype(np.uint16).reshape(24, 24)
    for name, values in (("across/a.png", bright), ("disc/dark.png", bright // 8)):
        Image.fromarray(values).save(class_folder / name)
    (class_folder / "across" / "!empty.jpg").write_bytes(b"")
    for _ in range(2):  # decoded, and found again
        examples, pixels = decode(load_examples(str(class_folder)), settings(tmp_path))
        notes = dict(zip(examples.ids.tolist(), examples.notes.tolist(), strict=True))
        assert {name: note for name, note in notes.items() if note} == dict.fromkeys(
            ("across/a.png", "disc/dark.png"), "12 of 16 bits are used and scaled to 8"
        )
        row = examples.ids.tolist().index("disc/dark.png")
        assert pixels[np.array([row])].max() <= 255 / 8 + 1
    some = examples.take(np.array([row]))
    assert some.notes.tolist() == ["12 of 16 bits are used and scaled to 8"]
    data = with_bits(settings(tmp_path), load_examples(str(class_folder)).images)
    np.testing.assert_array_equal(decode(some, data)[1][np.array([0])], pixels[np.array([row])])


def test_if_nothing_can_be_used_everything_is_listed(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    examples, pixels = decode(load_examples(str(tmp_path)), settings(tmp_path))
    assert len(examples) == len(pixels) == 0
    assert len(examples.skipped) == 2


@pytest.mark.parametrize("rows", [[0], [35, 0, 17], [3, 3, 3], []])
def test_disk_and_memory_give_the_same_pixels(class_folder, tmp_path, rows):
    examples = load_examples(str(class_folder))
    _, memory = decode(examples, settings(tmp_path, memory_gb=1.0))
    _, disk = decode(examples, settings(tmp_path, memory_gb=0.0))
    assert memory._array is not None and disk._array is None
    rows = np.array(rows, int)
    np.testing.assert_array_equal(memory[rows], disk[rows])
    assert disk[rows].shape == (len(rows), SIZE, SIZE, 3)
    assert disk[rows].dtype == memory[rows].dtype == np.uint8


def test_pixels_are_named_by_the_images_and_how_they_became_square(class_folder, tmp_path):
    """What is computed from them is kept under this name: where it is equal, every pixel must be."""
    examples = load_examples(str(class_folder))
    key = decode(examples, settings(tmp_path))[1].key
    assert key
    fewer = examples.take(np.arange(len(examples)) != 5, ())
    others = [decode(fewer, settings(tmp_path)), decode(examples, settings(tmp_path, resize="stretch"))]
    others.append(decode(examples, Data(cache=str(tmp_path / "cache"), image_size=SIZE + 1)))
    assert len({key, *(pixels.key for _, pixels in others)}) == 4
    assert decode(examples, settings(tmp_path, memory_gb=0.0))[1].key == key
    assert decode(examples, settings(tmp_path / "elsewhere"))[1].key == key
    (class_folder / "disc" / "05.png").rename(class_folder / "disc" / "05.jpg")
    class_folder.rename(tmp_path / "moved")
    assert decode(load_examples(str(tmp_path / "moved")), settings(tmp_path))[1].key == key
    Image.new("RGB", (30, 30), (1, 2, 3)).save(tmp_path / "moved" / "disc" / "05.jpg")
    assert decode(load_examples(str(tmp_path / "moved")), settings(tmp_path))[1].key != key


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_whoever_writes_into_a_batch_does_not_write_into_the_data(class_folder, tmp_path, memory_gb):
    _, pixels = decode(load_examples(str(class_folder)), settings(tmp_path, memory_gb=memory_gb))
    rows = np.arange(4)
    before = pixels[rows].copy()
    pixels[rows][:] = 0
    np.testing.assert_array_equal(pixels[rows], before)


def test_the_budget_of_memory_is_in_gibibytes(class_folder, tmp_path):
    examples = load_examples(str(class_folder))
    needed = 36 * SIZE * SIZE * 3 / 2**30
    assert decode(examples, settings(tmp_path, memory_gb=needed))[1]._array is not None
    assert decode(examples, settings(tmp_path, memory_gb=needed * 0.99))[1]._array is None


def test_a_cache_that_was_cut_short_is_made_again(class_folder, tmp_path):
    examples = load_examples(str(class_folder))
    _, whole = decode(examples, settings(tmp_path))
    (name,) = caches(tmp_path)
    os.truncate(tmp_path / "cache" / name, 36 * SIZE * SIZE * 3 - 1)
    _, again = decode(examples, settings(tmp_path))
    np.testing.assert_array_equal(again[np.arange(36)], whole[np.arange(36)])


def test_a_cache_that_is_cut_short_later_gives_no_invented_pixels(class_folder, tmp_path):
    examples = load_examples(str(class_folder))
    expected = pixels_of(examples, settings(tmp_path))
    _, pixels = decode(examples, settings(tmp_path, memory_gb=0.0))
    (name,) = caches(tmp_path)
    os.truncate(tmp_path / "cache" / name, 100)
    np.testing.assert_array_equal(pixels[np.arange(36)], expected, "they are decoded again")
    os.truncate(tmp_path / "cache" / name, 100)
    (class_folder / "disc" / "05.png").unlink()
    with pytest.raises(DataError, match=r"'disc/05.png': no such file"):
        pixels[np.array([0])]


@pytest.mark.parametrize("death", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_if_decoding_dies_nothing_half_written_is_left_and_the_next_run_is_right(
    class_folder, tmp_path, monkeypatch, death
):
    examples = load_examples(str(class_folder))

    def dying(source, how):
        if source == (class_folder / "disc" / "07.png").read_bytes():
            raise death
        return load(source, how)

    with monkeypatch.context() as patch, pytest.raises(BaseException):  # noqa: B017, PT011
        patch.setattr(module, "load", dying)
        decode(examples, settings(tmp_path))
    assert caches(tmp_path) == []
    np.testing.assert_array_equal(
        pixels_of(examples, settings(tmp_path)), [load_image(file, SIZE, "crop") for file in examples.images]
    )


def test_what_a_killed_run_left_is_never_taken_for_a_cache(class_folder, tmp_path):
    examples = load_examples(str(class_folder))
    expected = pixels_of(examples, settings(tmp_path))
    (name,) = caches(tmp_path)
    half = disk.temporary_name(tmp_path / "cache" / name)
    (tmp_path / "cache" / name).rename(half)
    os.truncate(half, 1000)
    np.testing.assert_array_equal(pixels_of(examples, settings(tmp_path)), expected)
    assert caches(tmp_path) == sorted([half.name, name])


def test_pixels_make_room_within_the_limit_of_the_cache(class_folder, tmp_path):
    """One limit for all that is there, which an earlier version put on each file of activations alone."""
    examples, size = load_examples(str(class_folder)), 36 * SIZE * SIZE * 3
    how = {"cache_gb": 2.5 * size / 2**30, "memory_gb": 0.0}
    _, held = decode(examples, settings(tmp_path, **how))
    expected = held[np.arange(36)]
    for resize in ("pad", "stretch"):
        decode(examples, settings(tmp_path, resize=resize, **how))
    assert len(caches(tmp_path)) == 2
    assert held.path.exists(), "what this run uses stays"
    np.testing.assert_array_equal(held[np.arange(36)], expected)


def test_pixels_that_do_not_fit_the_free_memory_are_read_from_disk_with_a_word(
    class_folder, tmp_path, monkeypatch, capsys
):
    examples = load_examples(str(class_folder))
    needed = 36 * SIZE * SIZE * 3
    for free, held in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(module.device, "available_memory", lambda free=free: free)
        _, pixels = decode(examples, settings(tmp_path))
        assert (pixels._array is not None) == held
        assert ("read from" in capsys.readouterr().out) == (not held)
        assert len(pixels[np.arange(36)]) == 36


def test_without_room_for_the_pixels_nothing_is_decoded(class_folder, tmp_path, monkeypatch, decoded):
    asked = []

    def full(needs):
        asked.append(needs)
        raise disk.DiskError("no room")

    monkeypatch.setattr(module.disk, "require_space", full)
    with pytest.raises(disk.DiskError):
        decode(load_examples(str(class_folder)), settings(tmp_path))
    ((folder, needed),) = asked[0].items()
    assert folder == tmp_path / "cache" and needed == 36 * SIZE * SIZE * 3
    assert not decoded and not (tmp_path / "cache").exists()
