"""What would stop a run is found before it, and a machine that is fine is said to be."""

from importlib import metadata

import h5py
import pytest
from conftest import call

from template import device, disk, doctor, runs


def levels(lines) -> dict[str, str]:
    return {line.name: line.level for line in lines}


@pytest.fixture(autouse=True)
def nothing_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(device, "available_memory", lambda: 8.0 * 2**30)


@pytest.fixture
def planted(monkeypatch):
    """Lets a package have another version, or none."""
    version = metadata.version

    def plant(name: str, other: str | None) -> None:
        def said(asked: str) -> str:
            if asked.lower() != name:
                return version(asked)
            if other is None:
                raise metadata.PackageNotFoundError(name)
            return other

        monkeypatch.setattr(metadata, "version", said)

    return plant


def test_this_machine_is_ready_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = call("doctor")
    assert code == 0 and "FAIL" not in said
    assert said.startswith("ok    Python: 3.") and f"ok    device: {device.summary(device.describe('float32'))}" in said
    assert {path.name for path in tmp_path.iterdir()} <= {"keras"}, "it changes nothing"


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("pillow", "12.0.0", "pillow is installed as 12.0.0; this project wants >=13"),
        ("keras", "3.12.0", "keras is installed as 3.12.0; this project wants <3.16,>=3.15.1"),
        ("scikit-learn", None, "scikit-learn is missing; this project wants >=1.8"),
        ("numpy", "1.20.0", "numpy is installed as 1.20.0; tensorflow wants >=1.26.0"),  # which is nobody's of ours
    ],
)
def test_a_wrong_package_is_named_with_who_wants_what(tmp_path, monkeypatch, planted, name, other, message):
    monkeypatch.chdir(tmp_path)
    planted(name, other)
    code, said = call("doctor")
    assert code == 1
    assert f"FAIL  package: {message}" in said and "pip install -c constraints.txt -e ." in said


def test_a_version_that_works_and_was_not_tested_is_worth_a_word(planted):
    planted("certifi", "2099.1")
    (line,) = doctor.packages()
    assert line.level == "warn" and "certifi 2099.1 (not 20" in line.found


def test_another_python_is_refused(monkeypatch):
    for version, level in (("3.10.9", "FAIL"), ("3.11.0", "ok"), ("3.13.1", "ok"), ("3.14.0", "FAIL")):
        monkeypatch.setattr(doctor.platform, "python_version", lambda version=version: version)
        assert doctor.python().level == level, version


def test_tensorflow_that_cannot_be_imported_and_a_gpu_that_it_overlooks(monkeypatch):
    monkeypatch.setattr(device, "unused_gpu", lambda: "there is a GPU")
    assert [line.level for line in doctor.computing()] == ["ok", "warn"]
    monkeypatch.setattr(runs, "import_tensorflow", lambda: 1 / 0)
    (line,) = doctor.computing()
    assert line.level == "FAIL" and "division by zero" in line.found


@pytest.mark.parametrize(("gib", "level"), [(0.5, "FAIL"), (2, "warn"), (8, "ok"), (float("inf"), "ok")])
def test_memory(monkeypatch, gib, level):
    monkeypatch.setattr(device, "available_memory", lambda: gib * 2**30)
    assert doctor.memory().level == level


@pytest.mark.parametrize(("gib", "level"), [(0.5, "FAIL"), (5, "warn"), (50, "ok")])
def test_a_folder_has_room_and_says_what_it_holds(monkeypatch, tmp_path, gib, level):
    (tmp_path / "cache" / "pixels-1").mkdir(parents=True)
    (tmp_path / "cache" / "pixels-1" / "pixels").write_bytes(bytes(3 * 2**20))
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=gib * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    line = doctor.room("cache", tmp_path / "cache")
    assert line.level == level and "3.0 MiB in" in line.found
    assert doctor.room("runs", tmp_path / "not" / "yet").level == level


def test_a_folder_that_cannot_be_written_to(monkeypatch, tmp_path):
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=20 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    (tmp_path / "file").touch()
    assert doctor.room("runs", tmp_path / "file").level == "FAIL"
    assert doctor.room("runs", tmp_path / "file" / "runs").level == "FAIL"
    assert doctor.room("runs", tmp_path).level == "ok"

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refused)
    line = doctor.room("cache", tmp_path)
    assert line.level == "FAIL" and "--data.cache" in line.found
    assert not list(tmp_path.glob(".tmp*")), "nothing is left behind"


def test_weights_are_listed_and_damaged_ones_named(tmp_path):
    (line,) = doctor.weights(tmp_path / "keras")
    assert line.level == "ok" and "none yet" in line.found
    with h5py.File(tmp_path / "whole.h5", "w"):
        pass
    (tmp_path / "half.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[4:])
    first, second = doctor.weights(tmp_path)
    assert (first.level, second.level) == ("FAIL", "ok")
    assert "half.h5" in first.found and "whole.h5" in second.found and "half.h5" not in second.found
