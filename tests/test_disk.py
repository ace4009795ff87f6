"""Folders appear whole, damage is seen, one process writes, there is room, and only our own dead litter is swept."""

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from template import disk, system


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str) -> None:
    with disk.replacing_folder(path) as temporary:
        (temporary / "a.txt").write_text(text)
        (temporary / "b.bin").write_bytes(bytes(100))
        disk.seal(temporary)


def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "folder", text)
        disk.verify(tmp_path / "folder")
        assert (tmp_path / "folder" / "a.txt").read_text() == text
        assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path, error):
    write(tmp_path / "folder", "old")
    with pytest.raises(error), disk.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "a.txt").write_text("half")
        raise error
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "a.txt").read_text() == "old"


def test_files_and_names_are_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    happened, sync, rename = [], system.sync, Path.rename
    monkeypatch.setattr(system, "sync", lambda path: (happened.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (happened.append("rename"), rename(self, to))[1])
    write(tmp_path / "folder", "new")
    assert sorted(happened[:3]) == ["a.txt", "b.bin", disk.MANIFEST]
    assert re.fullmatch(r"\.tmp-[0-9a-f]{16}-folder", happened[3])
    assert happened[4:] == ["rename", tmp_path.name]


@pytest.mark.parametrize("file", ["a.txt", "b.bin", disk.MANIFEST])
def test_every_single_flipped_bit_is_seen_and_the_file_is_named(tmp_path, file):
    write(tmp_path / "folder", "some text")
    path = tmp_path / "folder" / file
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(disk.DamagedError, match="not as the manifest says"):
            disk.verify(tmp_path / "folder")
    path.write_bytes(whole)
    disk.verify(tmp_path / "folder")


def test_a_file_that_is_missing_or_left_over_is_named(tmp_path):
    write(tmp_path / "folder", "some text")
    (tmp_path / "folder" / "more.txt").touch()
    with pytest.raises(disk.DamagedError, match=r"'more\.txt'"):
        disk.verify(tmp_path / "folder")
    (tmp_path / "folder" / "more.txt").unlink()
    (tmp_path / "folder" / "b.bin").unlink()
    with pytest.raises(disk.DamagedError, match=r"'b\.bin'"):
        disk.verify(tmp_path / "folder")


# Litter


LITTER = ".tmp-0123456789abcdef-"


def test_a_temporary_name_is_another_every_time_on_every_machine(tmp_path, monkeypatch):
    """In two containers, both are process 1; and forked from one another, they draw the same random numbers."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    drawn = set()
    for _ in range(100):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        drawn.add(disk.temporary_name(tmp_path / "model.keras").name)
    assert len(drawn) == 100 and all(name.endswith("-model.keras") for name in drawn)


@pytest.mark.parametrize("name", ["a" * 250 + ".png", "é" * 120 + ".png", "写" * 83 + ".png"])
def test_a_name_that_a_file_system_just_takes_has_a_temporary_one_that_it_takes(tmp_path, name):
    (tmp_path / name).touch()
    temporary = disk.temporary_name(tmp_path / name)
    temporary.touch()
    assert temporary.suffix == ".png"


def test_only_what_was_left_half_written_long_ago_is_swept(tmp_path):
    old = time.time() - 2 * disk.IDLE
    kept = [f"{LITTER}fresh", ".tmp-of somebody else", ".tmp-notes", "pixels-2", f"x{LITTER}y", ".tmp-0123-"[:-1]]
    swept = [f"{LITTER}features", ".tmp-4711-of an earlier version", f"{LITTER}pixels-1/pixels", f"{LITTER}new\nline"]
    (tmp_path / f"{LITTER}pixels-1").mkdir()
    (tmp_path / f"{LITTER}busy").mkdir()
    for name in [*kept, *swept, f"{LITTER}busy/pixels"]:
        (tmp_path / name).touch()
        if "fresh" not in name and "busy" not in name:
            os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / f"{LITTER}pixels-1", (old, old))
    os.utime(tmp_path / f"{LITTER}busy", (old, old))  # in another container its process is writing now
    disk.sweep(tmp_path)
    assert names(tmp_path) == sorted([*kept, f"{LITTER}busy"])


def test_in_a_folder_of_ours_all_of_our_pattern_is_swept(tmp_path):
    for name in (".tmp-1-x", f"{LITTER}y", ".tmp-notes", "model.keras"):
        (tmp_path / name).touch()
    disk.sweep(tmp_path, idle=0)
    assert names(tmp_path) == [".tmp-notes", "model.keras"]


# One writer

HOLD = """
import sys, time
from pathlib import Path
from template import disk
with disk.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder: Path):
    """Another process that writes to the folder until it is told, or killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(disk.__file__).parents[1]}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes) as process:
        assert "locked" in process.stdout.readline()
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path):
    with holder(tmp_path) as other:
        refused = pytest.raises(disk.DiskError, match=rf"in use by process {other.pid} on ")
        with refused, disk.locked(tmp_path):
            pytest.fail("two writers")


def test_the_lock_of_a_killed_process_is_stale_and_is_taken_over(tmp_path, capsys):
    with holder(tmp_path) as other:
        (tmp_path / "checkpoints").mkdir()
        for place in (tmp_path, tmp_path / "checkpoints"):
            (place / f"{LITTER}half").touch()
        other.kill()
        other.wait()
        with disk.locked(tmp_path):
            assert f"last process {other.pid}" in capsys.readouterr().out
            assert names(tmp_path / "checkpoints") == []
            assert names(tmp_path) == [".lock", "checkpoints"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, OSError])
def test_the_lock_ends_with_the_block_however_that_ends(tmp_path, error, capsys):
    with contextlib.suppress(KeyboardInterrupt, OSError), disk.locked(tmp_path):
        if error:
            raise error
    with disk.locked(tmp_path):
        assert capsys.readouterr().out == "", "nobody was killed"


def test_a_folder_that_cannot_be_written_to_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(disk.DiskError, match="cannot be written to"), disk.locked(tmp_path / "file"):
        pass


# What can be written


@pytest.mark.parametrize(
    ("path", "kind", "why"),
    [
        ("file", "file", ""),
        ("folder", "folder", ""),
        ("new", "file", ""),
        ("new/and/newer", "file", ""),
        ("new/and/newer", "folder", ""),
        ("file", "folder", "is a file, where there must be a folder or nothing"),
        ("folder", "file", "is a folder, where there must be a file or nothing"),
        ("file/below", "file", "file' is a file, where there must be a folder"),
        ("file/below/it", "folder", "file' is a file, where there must be a folder"),
        ("link", "file", "link to nowhere, where there must be a file or nothing"),
        ("link/below", "folder", "link to nowhere, where there must be a folder or nothing"),
        ("long" * 70, "file", "File name too long"),
        ("/proc/x.csv", "file", "nothing can be made there"),
        ("/proc/home/alice/cache", "folder", "nothing can be made there"),
        ("/dev/null", "file", "is a device"),
    ],
)
def test_whether_something_can_be_written_is_known_before(tmp_path, path, kind, why):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    if why:
        with pytest.raises(disk.DiskError, match=rf"cannot be written: .*{why}.*Choose another with --out\.$"):
            disk.require_writable(tmp_path / path, kind, "--out")
    else:
        disk.require_writable(tmp_path / path, kind, "--out")
    assert names(tmp_path) == ["file", "folder", "link"] and names(tmp_path / "folder") == []
    assert (tmp_path / "file").read_text() == "mine"


def test_without_permission_the_reason_is_said(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refused)  # root may write anywhere
    with pytest.raises(disk.DiskError, match=r"cannot be written: Permission denied\. Choose another with --runs"):
        disk.require_writable(tmp_path, "folder", "--runs")


# Room


def test_room_is_asked_for_once_for_folders_on_one_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * 2**20))
    disk.require_space({tmp_path / "new" / "run": 6 * 2**20, tmp_path / "cache": 4 * 2**20})
    with pytest.raises(disk.DiskError, match=r"expected 11\.0 MiB .* received 10\.0 MiB. Delete old runs"):
        disk.require_space({tmp_path / "new" / "run": 6 * 2**20, tmp_path / "cache": 5 * 2**20})


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("UnknownError: OSError: [Errno 28] No space left on device"), True),
        (OSError(errno.EACCES, "x"), False),
        (ValueError("full of beans"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error, full):
    assert disk.is_full(error) == full
