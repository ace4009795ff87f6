"""Folders appear whole, damage is seen, one process writes, there is room, and only our own dead litter is swept."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from template import disk


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
    happened, sync, rename = [], disk.sync, Path.rename
    monkeypatch.setattr(disk, "sync", lambda path: (happened.append(path.name), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (happened.append("rename"), rename(self, to))[1])
    write(tmp_path / "folder", "new")
    temporary = f".tmp-{os.getpid()}-folder"
    assert sorted(happened[:3]) == ["a.txt", "b.bin", disk.MANIFEST]
    assert happened[3:] == [temporary, "rename", tmp_path.name]


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


def dead() -> int:
    """Number of a process that has ended."""
    return int(
        subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True).stdout
    )


def test_only_what_dead_processes_left_long_ago_is_swept(tmp_path):
    gone, old = dead(), time.time() - 2 * disk.IDLE
    (tmp_path / f".tmp-{gone}-pixels-1").mkdir()
    kept = [f".tmp-{gone}-fresh", f".tmp-{os.getpid()}-mine", ".tmp-of somebody else", "pixels-2", f"tmp-{gone}-x"]
    swept = [f".tmp-{gone}-features", f".tmp-{gone}-pixels-1/pixels"]
    for name in [*kept, *swept]:
        (tmp_path / name).touch()
        if "fresh" not in name:
            os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / f".tmp-{gone}-pixels-1", (old, old))
    (tmp_path / f".tmp-{gone}-busy").mkdir()
    (tmp_path / f".tmp-{gone}-busy" / "pixels").touch()
    os.utime(tmp_path / f".tmp-{gone}-busy", (old, old))  # in another container its process may be writing now
    disk.sweep(tmp_path)
    assert names(tmp_path) == sorted([*kept, f".tmp-{gone}-busy"])


def test_in_a_folder_of_ours_all_of_our_pattern_is_swept(tmp_path):
    for name in (".tmp-1-x", f".tmp-{dead()}-y", ".tmp-notes", "model.keras"):
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
            (place / f".tmp-{other.pid}-half").touch()
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


# Room


def test_room_is_asked_for_once_for_folders_on_one_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10 * 2**20))
    disk.require({tmp_path / "new" / "run": 6 * 2**20, tmp_path / "cache": 4 * 2**20})
    with pytest.raises(disk.DiskError, match=r"expected 11\.0 MiB .* received 10\.0 MiB. Delete old runs"):
        disk.require({tmp_path / "new" / "run": 6 * 2**20, tmp_path / "cache": 5 * 2**20})


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
