"""What holds on POSIX holds on Windows too, as far as that can be imitated: locks, caches, checkpoints, a whole run."""

import importlib
import io
import json
import os
import pkgutil
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import call, class_folders, without_plots
from windows import POSIX_ONLY, windows

import template
from template import disk, runs, system
from template.data import array_file
from template.data.cache import Cache
from template.evaluate.predictions import Predictions


@pytest.fixture(params=["here", "windows"])
def anywhere(request):
    """The test is on this system, and then as on Windows."""
    if request.param == "here":
        yield
    else:
        with windows():
            yield


@pytest.fixture
def there():
    with windows() as fake:
        yield fake


# locks


def test_a_lock_has_one_holder_and_its_text_can_be_read(anywhere, tmp_path):
    with disk.locked(tmp_path):
        assert disk.in_use(tmp_path)
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text(encoding="utf-8")
        with pytest.raises(disk.DiskError, match=f"in use by process {os.getpid()} on"), disk.locked(tmp_path):
            raise AssertionError
    assert not disk.in_use(tmp_path)
    with disk.locked(tmp_path):
        pass


def test_a_lock_leaves_the_file_where_it_was(anywhere, tmp_path):
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"0123456789")
        file.seek(4)
        system.lock(file)
        assert file.read(2) == b"45"
        system.unlock(file)
        assert file.read(2) == b"67"


def test_what_a_process_locked_that_was_killed_is_free(there, tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere since yesterday")
    assert not disk.in_use(tmp_path)
    with disk.locked(tmp_path):
        pass
    assert there.held == {}


# reading


def test_threads_read_the_rows_that_they_ask_for(anywhere, tmp_path):
    values = np.arange(40_000, dtype=np.int64).reshape(400, 100)
    with (tmp_path / "file.rows").open("x+b") as file:
        rows = array_file.ArrayFile(array_file.write(file, [values], (100,), np.int64, {}), memory_bytes=0)
        asked = [np.random.default_rng(seed).integers(400, size=50) for seed in range(16)]
        with ThreadPoolExecutor(8) as threads:
            for want, got in zip(asked, threads.map(rows.__getitem__, asked), strict=True):
                np.testing.assert_array_equal(got, values[want])


def test_a_read_beyond_the_end_is_short(anywhere, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        buffer = bytearray(8)
        assert system.read_into(file, buffer, 6) == 4 and buffer[:4] == b"6789"


# writing


def test_what_is_written_is_the_same_on_every_system(anywhere, tmp_path):
    runs.write_text(tmp_path / "a" / "text.txt", "ein Bär\n猫\n")
    assert (tmp_path / "a" / "text.txt").read_bytes() == "ein Bär\n猫\n".encode()
    with disk.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "state.json").write_bytes(b"{}")
        disk.seal(temporary)
    disk.verify(tmp_path / "folder")
    with disk.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "other.json").write_bytes(b"{}")
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["other.json"]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_patience_ends_when_the_other_lets_go_and_is_only_on_windows(there, tmp_path, monkeypatch):
    monkeypatch.setattr(system.time, "sleep", lambda seconds: held.close())
    held = (tmp_path / "a").open("wb")
    system.patiently((tmp_path / "a").replace, tmp_path / "b")
    assert (tmp_path / "b").exists()
    monkeypatch.setattr(system, "WINDOWS", False)
    with (tmp_path / "b").open("rb"), pytest.raises(PermissionError):
        system.patiently((tmp_path / "b").replace, tmp_path / "c")


def test_patience_has_an_end(there, tmp_path, monkeypatch):
    monkeypatch.setattr(system, "PATIENCE", 0.0)
    with (tmp_path / "a").open("wb"), pytest.raises(PermissionError):
        system.patiently((tmp_path / "a").replace, tmp_path / "b")


@pytest.mark.parametrize("read_by_another", [False, True])
def test_an_open_file_gets_another_name_unless_somebody_reads_that(there, tmp_path, monkeypatch, read_by_another):
    monkeypatch.setattr(system, "PATIENCE", 0.0)
    (tmp_path / "b").write_bytes(b"old")
    reader = (tmp_path / "b").open("rb")
    if not read_by_another:
        reader.close()
    file = (tmp_path / "a").open("x+b")
    file.write(b"new")
    with system.rename_open(file, tmp_path / "b") as file:
        assert file.read() == b"new"
        assert Path(file.name).name == ("a" if read_by_another else "b")
    assert (tmp_path / "b").read_bytes() == (b"old" if read_by_another else b"new")
    reader.close()


# the cache


def numbered(cache: Cache, number: int, memory_bytes: float = 0.0) -> array_file.ArrayFile:
    """An array of 80 kB."""
    values = np.full((100, 100), number, np.int64)
    name = f"features-{number:016x}"
    return cache.rows(name, lambda notes: [values], values.shape, np.int64, memory_bytes=memory_bytes)


def test_a_cache_is_found_again_and_written_twice(anywhere, tmp_path, monkeypatch):
    monkeypatch.setattr(system, "PATIENCE", 0.0)
    cache = Cache(tmp_path, 1e9)
    first = numbered(cache, 7)
    monkeypatch.setattr(Cache, "_found", lambda *_: None)  # as in another process that computes the same now
    second = numbered(cache, 7)
    assert (first[np.arange(100)] == 7).all() and (second[np.arange(100)] == 7).all()
    monkeypatch.undo()
    assert (numbered(cache, 7)[np.arange(100)] == 7).all()
    assert sum(path.name.startswith("features") for path in tmp_path.iterdir()) == 1


def test_room_is_made_by_what_could_be_deleted(there, tmp_path, monkeypatch):
    for number in range(3):
        numbered(Cache(tmp_path, 1e9), number, memory_bytes=1e9)  # and closed
        os.utime(tmp_path / f"features-{number:016x}.rows", (number, number))
    with (tmp_path / f"features-{0:016x}.rows").open("rb"):
        numbered(Cache(tmp_path, 250_000), 3)
    left = sorted(int(path.name[9:25], 16) for path in tmp_path.glob("features-*"))
    assert left == [0, 2, 3], "the oldest is read by somebody, so the one after it goes"


# the shell


@pytest.mark.parametrize("name", ["runs/a", "my runs/a", r"C:\my runs\a", r"C:\runs\a"])
def test_a_quoted_name_is_one_argument(name, monkeypatch):
    assert shlex.split(system.quote(name)) == [name]
    monkeypatch.setattr(system, "WINDOWS", True)
    assert system.quote(name) == (f'"{name}"' if " " in name else name)


# everything


def test_all_modules_import_without_what_only_posix_has(there, monkeypatch):
    """Anew; their libraries are imported, which know their systems themselves."""
    names = [found.name for found in pkgutil.walk_packages(template.__path__, "template.")]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:  # an extra is not installed
            assert not (error.name or "").startswith("template"), name
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "template"}
    for name in POSIX_ONLY:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "msvcrt", there)
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    try:
        for name in filter(before.__contains__, names):
            importlib.import_module(name)
        assert sys.modules["template.system"] is not system and sys.modules["template.system"].WINDOWS
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "template"]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.mark.slow
def test_a_run_is_trained_interrupted_resumed_and_used(there, tmp_path, monkeypatch):
    """As tests/test_scripts.py does it elsewhere."""
    monkeypatch.chdir(tmp_path)
    images = class_folders(tmp_path / "my images")
    settings = [f"--data.path={images}", "--backbone.name=tiny", "--backbone.weights=none", "--data.image_size=32"]
    settings += ["--train.batch_size=8", "--data.val_fraction=0.25", "--data.test_fraction=0.25", "--data.memory_gb=0"]
    settings += ["--stages=[{unfreeze=1, epochs=6}, {unfreeze=2, epochs=3}]", "--train.checkpoint_seconds=0"]
    errors = io.StringIO()
    code, _ = call("train", *settings, until=r"epoch +4/", errors=errors)
    resume = re.search(r"--resume (.+)$", errors.getvalue(), re.MULTILINE)[1]
    assert code == 130 and resume.startswith("runs") and "'" not in resume
    with without_plots():
        code, said = call("train", "--resume", resume)
    assert code == 0 and "damaged" not in said and "epoch  1/" not in said, said
    (run,) = (tmp_path / "runs").iterdir()
    json.loads((run / "metrics.json").read_bytes())
    assert b"\r" not in (run / "split.csv").read_bytes() + (run / "config.toml").read_bytes()
    assert len(Predictions.load(run / "predictions.npz").ids) == 9
    for script, *arguments in (
        ("predict", "--run", run, images / "disc", "--out", "predictions.csv"),
        ("evaluate", "--run", run, "--path", images),
        ("runs", "--html", "runs.html", "--prune", "--yes"),
    ):
        code, said = call(script, *arguments)
        assert code == 0, f"{script}: {said}"
    assert not list((tmp_path / "cache").glob("features-*")), "nobody has them open any more"
    assert (tmp_path / "cache").exists() and not (run / "checkpoints").exists()
