"""What several processes keep in one folder is whole, right, within its limit, and never taken from its readers."""

import errno
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from template import disk
from template.data import array_file as rows_module
from template.data.array_file import ArrayFile
from template.data.cache import Cache

N, SHAPE = 40, (3, 5)
SIZE = N * 15 * 2 + N * 4
"""Bytes of values and checksums."""


def name(number: int, kind: str = "features") -> str:
    return f"{kind}-{number:016x}"


def values(number: int) -> np.ndarray:
    return (np.arange(N * 15).reshape(N, *SHAPE) + number + 1).astype(np.float16)


def ask(
    cache: Cache, number: int, *, memory: float = 0, kind: str = "features", pause: float = 0, seen=None
) -> ArrayFile:
    """The array of a number, made a few rows at a time if it is not there; `seen` grows whenever it is made."""

    def batches(notes: dict):
        notes["number"] = number
        (seen if seen is not None else []).append(number)
        for start in range(0, N, 16):
            time.sleep(pause)
            yield values(number)[start : start + 16]

    return cache.rows(name(number, kind), batches, (N, *SHAPE), np.float16, memory_bytes=memory)


def right(rows: ArrayFile, number: int) -> bool:
    return rows.notes == {"number": number} and rows[np.arange(N)].tobytes() == values(number).tobytes()


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", 1e9)


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


@pytest.mark.parametrize("memory", [0, 1e9], ids=["disk", "memory"])
def test_what_was_made_is_found(cache, memory):
    seen = []
    assert all(right(ask(cache, 1, memory=memory, seen=seen), 1) for _ in range(3))
    assert seen == [1] and files(cache) == [f"{name(1)}.rows"]


def later(wait: float, cache: Cache, results: list) -> None:
    time.sleep(wait)
    results.append(right(ask(cache, 1, pause=0.1), 1))


def test_two_that_make_the_same_at_once_do_not_meet(cache):
    """As in two containers, where both are process 1: here they even are one process."""
    results = []
    threads = [
        threading.Thread(
            target=lambda wait=wait: (time.sleep(wait), results.append(right(ask(cache, 1, pause=0.1), 1)))
        )
        for wait in (0, 0.05, 0.15, 0.25)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4 and files(cache) == [f"{name(1)}.rows"]


def test_readers_lose_nothing_when_a_file_is_deleted_replaced_or_swept(cache):
    reader = ask(cache, 1)
    (cache.folder / f"{name(1)}.rows").unlink()
    assert right(reader, 1)
    again = ask(cache, 1)
    (cache.folder / f"{name(1)}.rows").write_bytes(bytes(SIZE))
    assert right(reader, 1) and right(again, 1)


def test_whoever_is_writing_goes_on_when_the_folder_is_emptied(cache):
    def batches(_):
        yield values(1)
        for path in cache.folder.iterdir():  # by a user, or by a sweep while this machine slept
            path.unlink()
        cache.folder.rmdir()

    rows = cache.rows(name(1), batches, (N, *SHAPE), np.float16, memory_bytes=0)
    assert rows[np.arange(N)].tobytes() == values(1).tobytes()
    assert right(ask(cache, 1), 1)


def test_no_damaged_byte_is_ever_read(cache):
    ask(cache, 1)
    path = cache.folder / f"{name(1)}.rows"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        for memory in (0, 1e9):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert right(ask(cache, 1, memory=memory), 1), f"byte {place}"
    for length in (0, 1, 19, SIZE // 2, SIZE, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert right(ask(cache, 1), 1), f"cut at {length}"
    path.write_bytes(bytes(len(whole)))  # as a file that two wrote at once, or of a disk that lost its power
    assert right(ask(cache, 1), 1)
    for other in (b"", whole + whole, whole + b"x"):
        path.write_bytes(other)
        assert right(ask(cache, 1), 1)


def test_a_file_that_a_network_drive_has_lost_is_made_again(cache, monkeypatch):
    rows, real, lost = ask(cache, 1), os.preadv, []
    seen = rows._stored.file.fileno()

    def preadv(handle, *how):
        if handle == seen and not lost:
            lost.append(handle)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(handle, *how)

    monkeypatch.setattr(rows_module.os, "preadv", preadv)
    assert right(rows, 1) and lost


@pytest.mark.parametrize("memory", [0, 1e9])
def test_what_was_not_used_for_longest_makes_room_but_nothing_in_use(cache, memory):
    limited, hour = Cache(cache.folder, 3.5 * SIZE), 3600

    def age(number: int, hours: float, kind: str = "features") -> None:
        os.utime(cache.folder / f"{name(number, kind)}.rows", (hours * hour, hours * hour))

    held = ask(limited, 1, memory=memory)
    age(1, 1)
    for number, kind in ((2, "pixels"), (3, "features")):
        ask(limited, number, kind=kind)
        age(number, number, kind)
    ask(limited, 4)
    assert files(cache) == [f"{name(1)}.rows", f"{name(3)}.rows", f"{name(4)}.rows"], "pixels too, and not what is held"
    del held
    age(4, 4)
    ask(limited, 3)  # found, and young again
    ask(limited, 5)
    assert files(cache) == [f"{name(3)}.rows", f"{name(4)}.rows", f"{name(5)}.rows"]


def test_what_an_earlier_version_left_counts_and_goes_too_and_nothing_else_does(cache):
    (cache.folder / name(1, "pixels")).mkdir(parents=True)
    (cache.folder / name(1, "pixels") / "pixels").write_bytes(bytes(5 * SIZE))
    (cache.folder / name(2)).write_bytes(bytes(5 * SIZE))
    theirs = ["pixels-abc", "features-of mine", f"{name(3)}.txt", f"my {name(3)}.rows"]
    for mine in theirs:
        (cache.folder / mine).write_bytes(bytes(SIZE))
    assert cache.size_bytes() == 10 * SIZE + (cache.folder / name(1, "pixels")).stat().st_size
    ask(Cache(cache.folder, 0), 4)
    assert files(cache) == sorted([*theirs, f"{name(4)}.rows"])


def test_a_folder_that_cannot_be_written_to_is_told_in_words_and_what_it_holds_is_of_use(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache", Path("/proc/cache")):
        with pytest.raises(disk.DiskError, match=r"cannot be written: .*--data\.cache"):
            ask(Cache(folder, 1e9), 1)
    cache = Cache(tmp_path / "cache", 1e9)
    ask(cache, 1)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "utime", refused)
    assert right(ask(cache, 1), 1)


def test_an_error_in_the_middle_leaves_nothing(cache):
    def batches(_):
        yield values(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.rows(name(1), batches, (N, *SHAPE), np.float16, memory_bytes=0)
    assert files(cache) == []
