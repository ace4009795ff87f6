"""What `benchmarks/faults.py` measures at length, for some seconds; and it does notice what it looks for."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from template import disk, runs
from template.data import decode as decoding

SPEC = importlib.util.spec_from_file_location("faults_script", Path(__file__).parents[1] / "benchmarks" / "faults.py")
faults = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = faults  # its dataclass looks itself up there
SPEC.loader.exec_module(faults)


def test_damage_to_checkpoints_and_models_is_noticed(tmp_path):
    result = faults.damage(tmp_path, flips=8, cuts=4)
    assert result["wrong"] == []
    assert result["checkpoint, bit flips"] == {"made": 8, "noticed": 8}


def test_damage_that_nobody_looks_for_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "verify", lambda _: None)
    result = faults.damage(tmp_path, flips=6, cuts=1)
    assert any("bit flips" in problem for problem in result["wrong"])


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["every fourth file", "all files"])
def test_interrupted_at_any_step_there_is_the_old_or_the_new(tmp_path, every):
    names = sorted(artifacts := faults._artifacts(tmp_path / "scratch"))[::every]
    result = faults.writers(tmp_path, {name: artifacts[name] for name in names})
    assert result["wrong"] == []
    assert len(result["steps"]) == 8 // every
    assert all(min(counts["crashes"], counts["errors"]) >= 9 for counts in result["steps"].values())


def careless(folder: Path, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.json").open("w") as file:
        file.write(json.dumps([version] * 999))


def test_a_careless_writer_is_caught(tmp_path):
    artifact = faults.Artifact(careless, lambda folder: faults._version(runs.read_json(folder / "metrics.json"), 999))
    wrong = faults.writers(tmp_path, {"careless": artifact})["wrong"]
    assert any("crashes" in problem for problem in wrong) and any("full disks" in problem for problem in wrong)


def test_no_label_shifts_and_no_image_is_in_two_parts(tmp_path):
    result = faults.labels(tmp_path, cases=8)
    assert result["wrong"] == [] and result["images"] > 200
    assert result["refused in words"] < 6


def test_a_label_that_shifts_is_counted(tmp_path, monkeypatch):
    real = decoding.ArrayFile.__getitem__
    monkeypatch.setattr(decoding.ArrayFile, "__getitem__", lambda self, rows: real(self, (rows + 1) % len(self)))
    assert faults.labels(tmp_path, cases=3)["labels shifted"] > 0


def test_copies_are_found_and_nothing_else(tmp_path):
    result = faults.near(tmp_path, photographs=30)
    assert result["wrong"] == []
    assert min(result["recall"].values()) >= 0.95


@pytest.mark.slow  # as above, of generated images
def test_copies_of_photographs_are_found_and_nothing_else(tmp_path, shared):
    result = faults.near(tmp_path, shared / "data" / "flowers", photographs=30)
    assert result["wrong"] == []


def test_mutated_files_give_pixels_or_a_reason(tmp_path):
    result = faults.fuzz(tmp_path, number=700, seconds=20, workers=1)
    assert result["wrong"] == []
    assert result["files"] == result["decoded"] + result["refused"]
    assert result["decoded"] > 100


def test_an_exception_of_another_kind_is_reported(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"not much")

    def broken(*_):
        raise SyntaxError("broken")

    monkeypatch.setattr(faults, "load_image", broken)
    assert "SyntaxError" in faults.fuzz_worker(tmp_path, 3, 10, 0)["wrong"][0]


@pytest.mark.slow
def test_processes_that_share_a_small_cache_and_are_killed_read_no_wrong_byte():
    script = Path(__file__).parents[1] / "benchmarks" / "faults.py"  # a process without TensorFlow, which can be forked
    line = [sys.executable, str(script), "cache", "--workers", "3", "--seconds", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["wrong"] == [] and done.stderr == ""
    assert result["kills"] >= 2 and min(result["arrays compared"].values()) >= 3


def test_the_cost_is_the_part_of_checkpoints(tmp_path):
    runs.write_json(tmp_path / "metrics.json", {"seconds": {"checkpoints": 3.0, "total": 100.0}})
    runs.write_text(tmp_path / "history.csv", "epoch\n1\n2\n")
    assert faults.cost(tmp_path)["share"] == pytest.approx(0.03)
    assert faults.cost(tmp_path)["wrong"] == ["3.0%"]


def test_runs_that_differ_in_one_bit_are_told_apart(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        faults._write_run(tmp_path / name)
        arrays = {"logits": np.ones(3, np.float32)}
        np.savez(tmp_path / name / "predictions.npz", **arrays)
        (tmp_path / name / "history.csv").write_text(f"loss,seconds\n1,{len(name)}\n")
    model = json.loads((tmp_path / "one" / "model.json").read_text())
    (tmp_path / "other" / "model.json").write_text(json.dumps(model))
    for checkpoint in ("00001", "00002"):
        source = tmp_path / "one" / "checkpoints" / checkpoint / "arrays.npz"
        (tmp_path / "other" / "checkpoints" / checkpoint / "arrays.npz").write_bytes(source.read_bytes())
    assert faults._differences(tmp_path / "one", tmp_path / "other") == []
    np.savez(tmp_path / "other" / "predictions.npz", logits=np.nextafter(np.ones(3, np.float32), np.float32(2)))
    (tmp_path / "other" / "history.csv").write_text("loss,seconds\n2,1\n")
    assert faults._differences(tmp_path / "one", tmp_path / "other") == ["predictions differ", "history differs"]


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path):
    result = faults.kills(tmp_path, number=2, wanted=8, workers=2)
    assert result["wrong"] == [] and result["kills"] >= 8
    assert result["most epochs repeated"] <= 1
