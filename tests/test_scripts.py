"""The three commands as a person uses them: what they print and write is true, and what is wrong is said plainly."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BENCHMARKS, SCRIPTS, call, class_folders, image, without_plots, without_progress
from PIL import Image

from template import config as configuration
from template import disk, runs
from template.data.images.load import load_image
from template.evaluate.predictions import Predictions

CLASSES = ("across", "disc", "upright")
WARNING = re.compile(r"error: |warning: |  \(python scripts/audit\.py ")
BENCHMARKED = pytest.mark.skipif(not BENCHMARKS.exists(), reason="a project that new_project.py made has no benchmarks")
TINY = ["--backbone.name=tiny", "--backbone.weights=none", "--data.image_size=32", "--train.batch_size=8"]


def command(script: str, *arguments, cwd: Path) -> subprocess.CompletedProcess:
    """A script in a process of its own."""
    line = [sys.executable, str(SCRIPTS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


class Finished:
    """A run that was stopped by Ctrl-C after two epochs, resumed, stopped by SIGTERM, and resumed to its end.

    In a process of its own where it is terminated: importing TensorFlow takes longer than all the rest.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.images = class_folders(home / "my images")
        settings = [f"--data.path={self.images}", f"--data.cache={home / 'cache'}", *TINY]
        settings += ["--data.val_fraction=0.25", "--data.test_fraction=0.25"]
        settings += ["--augment.policy=light", "--train.patience=99", "--train.refit_on_train_val=no"]
        settings += ["--train.checkpoint_seconds=0"]
        settings += ["--tta.hflip=true", "--tta.center_zoom=true", "--tta.full_image=true"]
        settings += ["--stages=[{unfreeze=1, epochs=16, learning_rate=3e-3, cached_augmentations=2}]"]
        errors = io.StringIO()
        with contextlib.chdir(home):
            self.interrupted, _ = call("train", *settings, until=r"epoch +2/", errors=errors)
        self.last_words = errors.getvalue()
        (self.folder,) = (home / "runs").iterdir()
        self.left = sorted(path.name for path in self.folder.iterdir())
        resume = ["--resume", self.folder.relative_to(home), "--train.patience=98"]
        self.terminated, self.terminated_words = self.terminate(resume, epoch=5)
        errors = io.StringIO()
        with contextlib.chdir(home), without_plots():
            code, said = call("train", *resume, errors=errors)
        self.resumed = subprocess.CompletedProcess(resume, code, said, errors.getvalue())

    def terminate(self, arguments: list, epoch: int) -> tuple[int, str]:
        """Exit code of train.py that got SIGTERM after an epoch, and what went to stderr."""
        line = [sys.executable, str(SCRIPTS / "train.py"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(line, cwd=self.home, **pipes) as process:
            for printed in process.stdout:
                if re.search(rf"epoch +{epoch}/", printed):  # by now the one before is saved
                    process.terminate()
                    break
            _, errors = process.communicate(timeout=10)  # more would be too long for those who shut machines down
        return process.returncode, without_progress(errors)

    @property
    def test(self) -> Predictions:
        return Predictions.load(self.folder / "predictions.npz")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    return Finished(tmp_path_factory.mktemp("scripts"))


# train.py


def test_help_lists_every_setting(tmp_path):
    done = command("train", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for line in configuration.describe().splitlines():
        assert line in done.stdout


def test_ctrl_c_prints_the_command_that_goes_on(finished):
    assert (finished.interrupted, finished.terminated) == (130, 143)
    assert "at most one epoch is repeated" in finished.last_words
    assert "Traceback" not in finished.last_words
    *warnings, empty, stopped = finished.terminated_words.splitlines()
    assert all(map(WARNING.match, warnings)) and not empty, "and TensorFlow is silent"
    assert re.fullmatch(r"Stopped\. .* --resume runs/\S+", stopped)
    assert f"--resume runs/{finished.folder.name}" in finished.last_words
    assert "metrics.json" not in finished.left


def test_the_resumed_run_does_the_rest_and_reports(finished):
    warnings = without_progress(finished.resumed.stderr).splitlines()
    assert finished.resumed.returncode == 0
    assert all(map(WARNING.match, warnings))
    assert not re.search(r"epoch +[1-4]/16", finished.resumed.stdout), "done before the interruption"
    assert "goes on with train.patience: 99 -> 98" in finished.resumed.stdout
    with (finished.folder / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(n) for n in range(1, 17)]
    value = json.loads((finished.folder / "metrics.json").read_text())["test"]["accuracy"]["value"]
    assert f"test accuracy {value:.3f} [" in finished.resumed.stdout
    assert value == np.mean(finished.test.labels == finished.test.predicted)


def test_a_finished_run_is_not_resumed(finished):
    before = (finished.folder / "metrics.json").read_bytes()
    code, said = call("train", "--resume", finished.folder)
    assert code == 0, "a loop that resumes until it is done ends"
    assert "is finished" in said and "report.html" in said
    code, said = call("train", "--resume", finished.folder, "--train.patience=3")
    assert code == 2
    assert "is finished" in said and "leave --resume out" in said
    assert (finished.folder / "metrics.json").read_bytes() == before


def test_resuming_needs_a_run_and_takes_no_other_recipe(finished, tmp_path):
    code, said = call("train", "--resume", finished.folder, "--config", finished.folder / "config.toml")
    assert code == 2 and "give no other" in said
    code, said = call("train", "--resume", tmp_path / "nowhere")
    assert code == 2 and "nowhere/config.toml' does not exist" in said


def test_a_resumed_run_lists_what_has_changed_and_refuses_what_would_spoil_it(finished, tmp_path):
    for name in ("config.toml", "begun.toml"):
        shutil.copy(finished.folder / name, tmp_path)
    changes = ["--train.patience=3", "--train.batch_size=4", "--stages.0.learning_rate=0.5"]
    code, said = call("train", "--resume", tmp_path, *changes)
    assert code == 2
    assert "train.batch_size: 8 -> 4" in said and "stages.0.learning_rate: 0.003 -> 0.5" in said
    assert "patience: " not in said, "that is allowed"
    assert (tmp_path / "config.toml").read_bytes() == (finished.folder / "config.toml").read_bytes()
    text = (tmp_path / "config.toml").read_text().replace("batch_size = 8", "batch_size = 9")  # or edited by hand
    (tmp_path / "config.toml").write_text(text)
    code, said = call("train", "--resume", tmp_path)
    assert code == 2 and "train.batch_size: 8 -> 9" in said


def flat(root: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(image("disc", np.random.default_rng(0), 32)).save(root / name)


def single(root: Path) -> None:
    class_folders(root)
    shutil.rmtree(root / "across")
    shutil.rmtree(root / "upright")


def broken(root: Path) -> None:
    for file in class_folders(root, each=5).rglob("*.png"):
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.rmdir(), "does not exist"),
        (flat, "has no class folders, only 2 files. Put the images of each class into a folder of its own."),
        (single, "Expected at least two classes. Received: ['disc']"),
        (broken, "Class 'across' has 0 usable images"),
    ],
)
def test_images_that_cannot_be_trained_on(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    make(tmp_path / "images")
    last_words, _ = call("train", "--data.path=images", *TINY)
    assert isinstance(last_words, str), "Python exits with 1 and prints them"
    assert message in last_words
    assert "no folder is left" in last_words and list((tmp_path / "runs").iterdir()) == []


def test_weights_that_are_missing_leave_no_run_behind(class_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"--data.path={class_folder}", "--data.image_size=32", "--backbone.name=mobilenet"]
    last_words, _ = call("train", *settings, "--backbone.weights=missing.h5")
    assert "expected imagenet, none or a file" in last_words and list((tmp_path / "runs").iterdir()) == []
    last_words, _ = call("train", *settings, "--backbone.weights=none", "--stages.0.unfreeze=block99")
    assert "unfreeze: expected one of ['block1'" in last_words and list((tmp_path / "runs").iterdir()) == []


def test_a_resumed_run_that_is_refused_keeps_its_folder(class_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("train", f"--data.path={class_folder}", *TINY, until="device: ")
    (folder,) = (tmp_path / "runs").iterdir()
    before = sorted(path.name for path in folder.iterdir())
    class_folder.rename(tmp_path / "away")
    last_words, _ = call("train", "--resume", folder)
    assert "does not exist" in last_words and f"to resume: python scripts/train.py --resume {folder}" in last_words
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("script", ["train", "preflight", "find_lr", "show"])
def test_a_weight_for_a_class_that_there_is_not_is_refused_before_a_image_is_decoded(tmp_path, monkeypatch, script):
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "images", each=4)
    code, said = call(script, "--data.path=images", *TINY, "--train.class_weights.disk=2")
    said = code if script == "train" else said
    assert code == 2 or script == "train"
    assert "train.class_weights: expected names of classes. Received: 'disk'. Did you mean 'disc'?" in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("option", "folder"), [("--runs", "runs"), ("--data.cache", "cache")])
def test_a_run_writes_nothing_among_the_images_that_it_reads(tmp_path, monkeypatch, option, folder):
    """It would be a class of the next run, if not of this one."""
    monkeypatch.chdir(class_folders(tmp_path / "images"))
    other = {"--runs": "--data.cache=../cache", "--data.cache": "--runs=../runs"}[option]
    code, said = call("train", "--data.path=.", *TINY, other)
    assert code == 2 and f"images/{folder}' is inside" in said and option in said
    assert sorted(path.name for path in Path().iterdir()) == sorted(CLASSES)


def test_a_run_that_was_stopped_before_it_wrote_anything_can_be_resumed(tmp_path, monkeypatch):
    # Decoding many photographs takes minutes: long enough to press Ctrl-C.
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "images")
    monkeypatch.setattr("template.data.load.decode", stop)
    code, said = call("train", "--data.path=images", *TINY)
    assert code == 130
    folder = Path(re.search(r"--resume (\S+)", said)[1])
    saved = configuration.load(folder / "config.toml")
    assert saved.data.path == str(tmp_path / "images") and saved.data.cache == str(tmp_path / "cache")


# predict.py


@pytest.fixture(scope="module")
def odd(finished) -> Path:
    """Files whose names or contents are not what one would wish for."""
    folder, rng = finished.home / "odd", np.random.default_rng(5)
    folder.mkdir()
    names = ["=cmd.png", "+1.png", "@sum.png", "\ttab.png", "with space.png", "new\nline.png", 'comma, "quote".png']
    for name in [*names, os.fsdecode(b"latin-\xe9.png")]:
        with contextlib.suppress(OSError):  # not every file system takes every name
            Image.fromarray(image("disc", rng, 40)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def table(finished, odd) -> list[dict]:
    """What predict.py prints for the odd files, given by name, and for all the training's images."""
    names = [file.name for file in sorted(odd.iterdir())]
    errors = io.StringIO()
    with contextlib.chdir(odd):
        line = ("--run", finished.folder, "--top-k", "2", *names, "missing.jpg", finished.images)
        code, said = call("predict", *line, errors=errors)
    rows = list(csv.DictReader(io.StringIO(said, newline="")))
    strange = [row["path"] for row in rows if row["novelty"] and float(row["novelty"]) > 1]
    unlike = [f"like nothing in training (novelty above 1): {len(strange)}: {', '.join(strange)}"] if strange else []
    aside = without_progress(errors.getvalue()).splitlines()
    assert (code, aside) == ("not found: 'missing.jpg'", unlike), "the other rows are written all the same"
    split = csv.DictReader(io.StringIO((finished.folder / "split.csv").read_text(encoding="utf-8")))
    learned = {str(finished.images / row["id"]) for row in split if row["part"] != "test"}
    assert learned & {row["path"] for row in rows} and not learned & set(strange)
    return rows


def test_there_is_one_row_an_input_in_order(table, finished, odd):
    names = [os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in sorted(odd.iterdir())]
    expected = [*names, "missing.jpg", *map(str, sorted(finished.images.rglob("*.png")))]
    assert [row["path"].removeprefix("'") for row in table] == expected


def test_rows_have_probabilities_or_a_reason(table):
    problems = {row["path"]: row["problem"] for row in table if row["problem"]}
    assert problems == {
        "notes.txt": "text, not an image; remove it",
        "empty.jpg": "the file is empty; copy or download it again",
        "missing.jpg": "no such file (or a broken link); restore or remove it",
    }
    for row in table:
        said = [row["class_1"], row["probability_1"], row["class_2"], row["probability_2"]]
        if row["problem"]:
            assert said == [""] * 4
        else:
            first, second = float(said[1]), float(said[3])
            assert 0 <= second <= first and 0.6 < first + second <= 1  # two of three classes hold two thirds or more
            assert {said[0], said[2]} < set(CLASSES)


def test_a_spreadsheet_runs_no_file_name(table):
    cells = [cell for row in table for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert {"'=cmd.png", "'+1.png", "'@sum.png", "'\ttab.png"} <= set(cells)


def test_predictions_for_the_test_images_are_those_of_the_run(table, finished):
    rows = {row["path"]: row for row in table}
    said = finished.test.scaled(json.loads((finished.folder / "calibration.json").read_text())["temperature"])
    for name, probabilities in zip(said.ids, said.probabilities, strict=True):
        row = rows[str(finished.images / str(name))]
        best = np.argsort(-probabilities)[:2]
        assert [row["class_1"], row["class_2"]] == [CLASSES[i] for i in best]
        assert [float(row["probability_1"]), float(row["probability_2"])] == pytest.approx(
            probabilities[best], abs=1e-5
        )


def test_the_table_is_written_where_it_is_asked_for(finished, odd, tmp_path):
    out = tmp_path / "new folder" / "predictions.csv"
    code, said = call("predict", "--run", finished.folder, "--out", out, odd)
    assert code == 0
    total = len(list(odd.iterdir()))
    assert f"{total} images, {total - 2} classified, 2 could not be read" in said
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "path",
        *(f"{what}_{i}" for i in (1, 2, 3) for what in ("class", "probability")),
        "novelty",
        "problem",
    ]
    assert len(rows) == 1 + total
    assert {len(row) for row in rows} == {len(rows[0])}


@pytest.fixture(scope="module")
def treed(finished) -> Path:
    """The run, as if its classes had been the inner folders flat/across and flat/upright, and round."""
    run = finished.home / "treed"
    shutil.copytree(finished.folder, run)
    runs.write_json(run / "classes.json", ["flat/across", "round", "flat/upright"])
    settings = (run / "config.toml").read_text(encoding="utf-8")
    (run / "config.toml").write_text(
        settings.replace('class_folders = "outer"', 'class_folders = "inner"'), encoding="utf-8"
    )
    return run


@pytest.mark.parametrize("thresholds", [(0.9999, 0.6), pytest.param((None, None), marks=pytest.mark.slow)])
def test_of_a_tree_of_classes_the_finest_sure_name_is_the_answer(finished, treed, tmp_path, thresholds):
    decided = runs.read_json(treed / "calibration.json")
    decided["reject"]["confidence"], decided["levels"] = thresholds[0], [{"confidence": thresholds[1]}]
    runs.write_json(treed / "calibration.json", decided)
    (tmp_path / "no.png").touch()
    _, said = call("predict", "--run", treed, finished.images, tmp_path / "no.png", errors=io.StringIO())
    *rows, unread = csv.DictReader(io.StringIO(said))
    assert (unread["answer"], unread["answer_probability"]) == ("", "") and "empty" in unread["problem"]
    for row in rows:
        each = {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)}
        sums = {"flat": each["flat/across"] + each["flat/upright"], "round": each["round"]}
        best, above = max(each, key=each.get), max(sums, key=sums.get)
        expected = (above, sums[above]) if thresholds[1] and sums[above] >= thresholds[1] else ("", 0.0)
        if thresholds[0] and each[best] >= thresholds[0]:
            expected = best, each[best]
        assert row["answer"] == expected[0]
        assert float(row["answer_probability"] or 0) == pytest.approx(expected[1], abs=3e-6)
    assert any(row["answer"] == "flat" for row in rows) == (thresholds[1] == 0.6)


@pytest.mark.slow
def test_a_run_of_inner_folders_is_evaluated_on_inner_folders(finished, treed, tmp_path):
    for old, new in (("across", "flat/across"), ("disc", "round"), ("upright", "flat/upright")):
        shutil.copytree(finished.images / old, tmp_path / "images" / new)
    code, said = call("evaluate", "--run", treed, "--path", tmp_path / "images", "--out", tmp_path / "out")
    scores = runs.read_json(tmp_path / "out" / "metrics.json")
    (level,) = scores["levels"]
    assert code == 0 and level["names"] == ["flat", "round"]
    assert level["accuracy"]["value"] >= scores["accuracy"]["value"]
    assert "accuracy at level 1 of 2 names" in said and "not taken as classes" not in said


def test_what_is_left_out_of_a_folder_is_named(finished, tmp_path):
    source = sorted(finished.images.rglob("*.png"))
    (tmp_path / "in" / "@eaDir").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for place in ("in/1.png", "in/.hidden.png", "in/@eaDir/2.png", "else/3.png"):
        shutil.copy(source[0], tmp_path / place)
    (tmp_path / "in" / "more").symlink_to(tmp_path / "else")
    (tmp_path / "in" / "Thumbs.db").touch()
    code, said = call("predict", "--run", finished.folder, "--out", tmp_path / "p.csv", "--quiet", tmp_path / "in")
    assert code == 0 and "1 images, 1 classified" in said
    assert "4 skipped" in said and ".hidden.png': a hidden file" in said and "1 system files" in said
    assert "@eaDir': a hidden or system folder" in said
    assert "more': a symbolic link to a folder, which is not followed" in said
    errors = io.StringIO()
    _, said = call("predict", "--run", finished.folder, tmp_path / "in", errors=errors)
    assert len(list(csv.reader(io.StringIO(said)))) == 2, "the table, and nothing else"
    assert "4 skipped" in errors.getvalue()


@pytest.mark.parametrize("script", ["predict", "explain", "evaluate"])
def test_what_had_to_be_assumed_to_see_an_image_is_said_with_its_name(finished, tmp_path, script):
    (tmp_path / "in" / "disc").mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    image.save(tmp_path / "in" / "disc" / "stack.tif", save_all=True, append_images=[image.rotate(90)])
    image.save(tmp_path / "in" / "disc" / "plain.png")
    there = ("--path", tmp_path / "in") if script == "evaluate" else (tmp_path / "in",)
    out = tmp_path / ("p.csv" if script == "predict" else "out")
    code, said = call(script, "--run", finished.folder, "--out", out, *there)
    assert code in {0, None}
    (line,) = [line for line in said.splitlines() if "several pages" in line]
    assert "1 images: only the first of several pages is used" in line and "stack.tif'" in line


@pytest.mark.parametrize("script", ["predict", pytest.param("explain", marks=pytest.mark.slow)])
def test_exit_codes_tell_whether_all_that_was_named_was_there(finished, tmp_path, script):
    fine = sorted(finished.images.rglob("*.png"))[0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    run = ("--run", finished.folder, "--out", tmp_path / "out")
    for given, expected in (
        ([tmp_path / "empty"], "none of the files could be read as an image"),
        ([tmp_path / "text.jpg"], "none of the files could be read as an image"),
        ([fine, tmp_path / "gone.jpg"], f"not found: {str(tmp_path / 'gone.jpg')!r}"),
        ([fine, tmp_path / "text.jpg"], 0),
    ):
        assert call(script, *run, *given)[0] == expected
        shutil.rmtree(tmp_path / "out") if (tmp_path / "out").is_dir() else (tmp_path / "out").unlink(missing_ok=True)


def test_a_name_of_255_bytes_is_explained(finished, tmp_path):
    source = sorted(finished.images.rglob("*.png"))[0]
    (tmp_path / "long").mkdir()
    for name in ("x" * 251, "\u732b" * 83 + "yy", "z"):
        shutil.copy(source, tmp_path / "long" / f"{name}.png")
    code, said = call("explain", "--run", finished.folder, "--out", tmp_path / "heat", tmp_path / "long")
    assert code == 0
    assert len(list((tmp_path / "heat").iterdir())) == 3


def exchanged(run: Path) -> None:
    """Another file of the same network, with its digest: what it holds is not what the run had learned."""
    with zipfile.ZipFile(run / "model.keras") as whole, zipfile.ZipFile(run / "other.keras", "w") as other:
        for name in whole.namelist():
            data = io.BytesIO(whole.read(name))
            if name == "model.weights.h5":
                with h5py.File(data, "r+") as file:
                    file["layers/dense/vars/1"][0] += 1e-6
            other.writestr(name, data.getvalue())
    (run / "other.keras").replace(run / "model.keras")
    saved = json.loads((run / "model.json").read_text())
    runs.write_json(run / "model.json", saved | {"file": disk.sha256(run / "model.keras")})


def without(name):
    return lambda run: (run / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.keras"), "does not hold a finished run: it has no model.keras"),
        (without("model.json"), "does not hold a finished run: it has no model.json"),
        (lambda run: (run / "model.keras").write_bytes(b"PK half a file"), "is not the file that the run saved"),
        (lambda run: (run / "model.json").write_text('{"file": 3'), "model.json' is damaged"),
        (lambda run: (run / "classes.json").write_text('["a", "b"]'), "does not hold this run's network"),
        (exchanged, "do not fill its network"),
        (lambda run: (run / "config.toml").write_text("[data]\nside = 3\n"), "data.side: no such setting"),
    ],
)
def test_a_run_that_cannot_be_used_is_named(finished, odd, tmp_path, damage, message):
    run = shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    damage(run)
    for script, arguments in (("predict", [odd]), ("evaluate", ["--path", finished.images])):
        last_words, _ = call(script, "--run", run, *arguments)
        assert isinstance(last_words, str) and message in last_words


# evaluate.py


def test_scoring_a_run_again_takes_no_tensorflow_and_gives_its_numbers(finished):
    spy = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print('heavy', sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    line = [sys.executable, "-c", spy, str(SCRIPTS / "evaluate.py"), "--run", str(finished.folder)]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "heavy []" in said
    test = json.loads((finished.folder / "metrics.json").read_text())["test"]
    value, low, high = (100 * test["accuracy"][key] for key in ("value", "low", "high"))
    assert f"test predictions of {finished.folder}: {test['images']} images" in said
    assert f"{value:.1f} % [{low:.1f}, {high:.1f}]" in said
    for name in ("ROC AUC", "Brier score", "expected calibration error", "Matthews"):
        assert re.search(rf"^ +{name}.*\d\.\d\d\d \[\d", said, re.M), name


def test_several_runs_are_scored_by_the_mean_of_what_they_say(finished, tmp_path):
    other = dataclasses.replace(finished.test, logits=np.roll(finished.test.logits, 1, axis=1))
    other = other.take(np.arange(len(other.ids))[::-1])  # in another order: matched by name
    other.save(tmp_path / "predictions.npz")
    shutil.copy(finished.folder / "metrics.json", tmp_path)
    code, said = call("evaluate", "--run", finished.folder, tmp_path)
    assert code == 0
    mean = finished.test.probabilities + np.roll(finished.test.probabilities, 1, axis=1)
    right = int((mean.argmax(axis=1) == finished.test.labels).sum())
    assert f"{100 * right / len(mean):.1f} %" in said.splitlines()[1]
    finished.test.take(np.arange(2)).save(tmp_path / "predictions.npz")
    last_words, _ = call("evaluate", "--run", finished.folder, tmp_path)
    assert "Expected predictions of the same images" in last_words


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_that_makes_no_sense_is_refused(finished, k):
    last_words, _ = call("evaluate", "--run", finished.folder, "--top-k", k)
    assert last_words == f"Expected k from 1 to 2, one less than there are classes. Received: {k}"


def test_validation_predictions_are_not_called_test_predictions(finished, tmp_path):
    # Of a run without a test part, predictions.npz holds the validation part.
    shutil.copy(finished.folder / "predictions_val.npz", tmp_path / "predictions.npz")
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    runs.write_json(tmp_path / "metrics.json", metrics | {"test": None})
    code, said = call("evaluate", "--run", tmp_path)
    assert code == 0
    assert "validation predictions" in said and "test predictions" not in said


@pytest.mark.slow
def test_a_folder_that_lacks_a_class_is_scored_by_names(finished, tmp_path):
    # Counted from 0 in this folder, disc and upright would be taken for across and disc.
    test = finished.test
    kept = [row for row, name in enumerate(test.ids) if not str(name).startswith("across/")]
    for name in test.ids[kept]:
        (tmp_path / "others" / str(name)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(finished.images / str(name), tmp_path / "others" / str(name))
    code, said = call("evaluate", "--run", finished.folder, "--path", tmp_path / "others", "--out", tmp_path / "out")
    assert code == 0
    assert "no images of ['across']" in said
    again = Predictions.load(tmp_path / "out" / "predictions.npz")
    assert again.class_names == CLASSES
    assert again.ids.tolist() == test.ids[kept].tolist()
    assert again.labels.tolist() == test.labels[kept].tolist()
    np.testing.assert_allclose(again.probabilities, test.probabilities[kept], rtol=0, atol=1e-5)
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    right = np.mean(test.predicted[kept] == test.labels[kept])
    assert scores["accuracy"]["value"] == pytest.approx(right)
    assert f"{100 * right:.1f} %" in said


def test_images_that_a_run_has_seen_are_counted_and_the_others_scored(finished, tmp_path):
    """By contents, under any name; its own report of the training images would be a hundred percent of nothing."""
    new = class_folders(tmp_path / "others" / "photos", each=2, seed=77)
    for row in csv.DictReader((finished.folder / "split.csv").open(newline="", encoding="utf-8")):
        shutil.copy(finished.images / row["id"], new / row["label"] / f"again-{Path(row['id']).name}")
    code, said = call("evaluate", "--run", finished.folder, "--path", new)
    assert code == 0
    assert "has learned from or selected its weights by 27 of these images (18 of its train, 9 of its val part)" in said
    assert "9 are its test images, 6 are new" in said
    assert said.index("warning:") < said.index("top-")
    (folder,) = finished.folder.glob("evaluation-photos-*")
    scores, answers = json.loads((folder / "metrics.json").read_text()), Predictions.load(folder / "predictions.npz")
    seen = scores["seen"]
    assert {name: seen[name] for name in ("train", "val", "test", "new")} == dict(train=18, val=9, test=9, new=6)
    copies = {str(name).replace("/", "/again-") for name in finished.test.ids}
    others = [i for i, name in enumerate(answers.ids) if "again-" not in name or name in copies]
    assert len(others) == 15
    right = np.mean(answers.predicted[others] == answers.labels[others])
    assert seen["accuracy_on_others"]["value"] == pytest.approx(right)
    assert f"images alone: {100 * right:.1f} %" in said.partition("held-out accuracy")[2]
    shutil.rmtree(folder)


@pytest.mark.slow
def test_evaluations_of_two_folders_of_one_name_stay_apart_and_of_one_are_replaced(finished, tmp_path):
    for place, seed in (("a", 5), ("b", 6)):
        class_folders(tmp_path / place / "photos", each=1 + (place == "b"), seed=seed)
        for _ in range(1 + (place == "a")):
            code, said = call("evaluate", "--run", finished.folder, "--path", tmp_path / place / "photos")
            assert code == 0 and "warning:" not in said
    written = sorted(finished.folder.glob("evaluation-photos-*"))
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in written]
    assert sorted(each["images"] for each in scores) == [3, 6] and all(each["seen"]["new"] for each in scores)
    last_words, _ = call("evaluate", "--run", finished.folder, "--path", tmp_path / "a", "--out", written[0])
    assert f"holds the evaluation of {scores[0]['path']!r}" in last_words
    before = (finished.folder / "metrics.json").read_bytes()
    last_words, _ = call("evaluate", "--run", finished.folder, "--path", tmp_path / "a", "--out", finished.folder)
    assert "is the folder of a run" in last_words and (finished.folder / "metrics.json").read_bytes() == before
    for folder in written:
        shutil.rmtree(folder)


def test_a_class_that_the_model_does_not_know_is_refused(finished, tmp_path):
    others = shutil.copytree(finished.images, tmp_path / "others")
    (others / "disc").rename(others / "ring")
    last_words, _ = call("evaluate", "--run", finished.folder, "--path", others)
    assert "not trained on: ['ring']" in last_words
    assert "across" in last_words and "disc" in last_words, "the names that it does know"
    assert not list(finished.folder.glob("evaluation-*"))


def test_a_folder_of_broken_images_has_no_score(finished, tmp_path):
    (tmp_path / "others").mkdir()
    broken(tmp_path / "others")
    last_words, said = call("evaluate", "--run", finished.folder, "--path", tmp_path / "others")
    assert isinstance(last_words, str) and "none of the images could be read" in last_words
    assert "across/00.png" in said


# explain.py


@pytest.mark.parametrize("how", [[], ["--occlusion"]], ids=["grad-cam", "occlusion"])
def test_a_image_is_explained_beside_itself_and_a_broken_one_is_named(finished, odd, tmp_path, how):
    files = [finished.images / str(finished.test.ids[0]), odd / "notes.txt"]
    code, said = call("explain", "--run", finished.folder, *files, "--out", tmp_path / "heat", *how)
    assert code == 0
    (file,) = (tmp_path / "heat").iterdir()
    image = np.asarray(Image.open(file))
    assert image.shape == (32, 64, 3)
    np.testing.assert_array_equal(image[:, :32], load_image(files[0], 32, "crop"))
    assert np.abs(image[:, 32:].astype(int) - image[:, :32]).mean() > 10
    assert f"{str(files[0])!r}: {CLASSES[finished.test.predicted[0]]}" in said
    assert f"{str(files[1])!r}: text, not an image" in said


def test_explain_asks_for_a_folder_where_it_is_given_a_file(tmp_path):
    said = io.StringIO()
    code, _ = call("explain", "--run", "none", "image.jpg", "--out", tmp_path / "heat.png", errors=said)
    assert code == 2 and not list(tmp_path.iterdir())
    assert "--out: expected a folder" in said.getvalue()


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(class_folder):
    answers = (  # without TensorFlow, which has no part in it
        "import runpy, sys, types; import numpy as np; from template import runs; sys.argv = sys.argv[1:]; "
        "model = types.SimpleNamespace(load_run=lambda run: (None, ['a', 'b'], None), "
        "classify_with_novelty=lambda m, c, files, *_: [(file, (np.array([0.5, 0.5]), 0.1)) for file in files]); "
        "sys.modules['template.deploy.predictor'] = model; runs.import_tensorflow = lambda: None; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    line = [sys.executable, "-c", answers, str(SCRIPTS / "predict.py"), "--run", "none", str(class_folder)]
    done = subprocess.run(f"{shlex.join(line)} | true", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    told = subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(told) == 1 + 36 and "0.500000" in told[-1]


# diagnose.py


def test_a_run_is_diagnosed_from_what_it_wrote(finished):
    code, said = call("diagnose", "--run", finished.folder)
    found = json.loads((finished.folder / "metrics.json").read_text())["diagnosis"]
    assert code == 0 and f"{found['verdict']}: {found['because']}" in said
    assert all(line in said for line in found["try_next"]) and "predicted differently" not in said


def test_two_runs_are_held_against_each_other(finished, tmp_path):
    other = shutil.copytree(finished.folder, tmp_path / "other")
    test = finished.test
    logits = test.logits.copy()
    logits[0] = np.roll(logits[0], 1)
    dataclasses.replace(test, logits=logits).take(np.arange(len(test.ids))[::-1]).save(other / "predictions.npz")
    code, said = call("diagnose", "--run", finished.folder, other)
    assert code == 0 and f"{100 / len(test.ids):.1f} % [" in said and "predicted differently" in said
    test.take(np.arange(3)).save(other / "predictions.npz")
    last_words, _ = call("diagnose", "--run", finished.folder, other)
    assert "the same images" in last_words


@pytest.mark.parametrize("script", ["diagnose", "annotate"])
def test_what_is_no_run_is_said_to_be_none(script, tmp_path):
    last_words, _ = call(script, "--run", tmp_path)
    assert "does not hold a finished run" in last_words


# annotate.py


def test_a_person_stops_and_is_compared(finished, tmp_path, monkeypatch):
    from http.server import ThreadingHTTPServer

    run = shutil.copytree(finished.folder, tmp_path / "run")
    names = {
        str(name): finished.test.class_names[k] for name, k in zip(finished.test.ids, finished.test.labels, strict=True)
    }

    def answer_then_stop(server) -> None:
        for row, name in list(enumerate(server.annotations.examples.ids))[:4]:
            server.annotations.annotate(row, names[str(name)])
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", answer_then_stop)
    code, said = call("annotate", "--run", run, "--count", "5", "--port", "0")
    assert code == 0 and "5 images to label: http://127.0.0.1:" in said
    assert "4 images labelled by you" in said and "you          accuracy 100.0 %" in said
    assert len(json.loads((run / "human.json").read_text())) == 4
    assert "1 images to label" in call("annotate", "--run", run, "--count", "5", "--port", "0")[1]


def test_the_images_of_a_run_from_elsewhere_are_where_one_says(finished, tmp_path, monkeypatch):
    from http.server import ThreadingHTTPServer

    run, images = (shutil.copytree(a, tmp_path / b) for a, b in ((finished.folder, "run"), (finished.images, "moved")))
    recipe = (run / "config.toml").read_text().replace(str(finished.images), "/nowhere/images")
    (run / "config.toml").write_text(recipe)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: None)
    last_words, _ = call("annotate", "--run", run, "--port", "0")
    assert "'/nowhere/images' does not exist" in last_words and "--data.path" in last_words
    code, said = call("annotate", "--run", run, "--port", "0", f"--data.path={images}")
    assert code == 0 and "images to label" in said


@pytest.mark.parametrize(
    ("seconds", "words"), [("60", "60 seconds of training and one epoch are"), ("0", "one epoch is")]
)
def test_what_a_signal_may_cost_is_said(monkeypatch, tmp_path, seconds, words):
    def stop(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("template.recipe.run", stop)
    monkeypatch.chdir(tmp_path)
    code, said = call("train", f"--train.checkpoint_seconds={seconds}")
    assert code == 130 and f"at most {words} repeated" in said


@pytest.mark.parametrize("contents", ["", "{", "junk"])
@pytest.mark.parametrize(
    ("script", "name", "rest"),
    [
        ("predict", "calibration.json", ["nothing.jpg", "image.png"]),
        ("predict", "classes.json", ["image.png"]),
        ("evaluate", "metrics.json", []),
        ("evaluate", "predictions.npz", []),
        ("diagnose", "metrics.json", []),
        ("diagnose", "predictions.npz", ["and again"]),
        ("compare", "predictions.npz", ["and again"]),
        ("annotate", "predictions.npz", []),
        ("annotate", "human.json", ["--port=0"]),
    ],
)
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, monkeypatch, script, name, rest, contents):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.copy(finished.images / "disc" / "00.png", "image.png")
    (run / name).write_text(contents)
    rest = [run if text == "and again" else text for text in rest]
    last_words, _ = call(script, *[run] * (script == "compare"), *["--run", run] * (script != "compare"), *rest)
    assert f"{name}' is damaged" in str(last_words)


@pytest.mark.parametrize("script", ["evaluate", "compare"])
def test_a_folder_that_is_no_run_has_no_predictions(script, tmp_path):
    last_words, _ = call(script, *([tmp_path, tmp_path] if script == "compare" else ["--run", tmp_path]))
    assert "holds no predictions" in str(last_words) or "does not hold a finished run" in str(last_words)


# train.py --preflight


def test_what_enters_the_network_is_shown_without_any_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = class_folders(tmp_path / "images")
    line = ["--data.path=images", "--data.image_size=32", "--augment.policy=none", "--head.feature_levels=1"]
    line += ["--stages.0.unfreeze=1", "--stages.0.cached_augmentations=2"]
    code, said = call("show", *line, "--out", "none.png")
    assert code == 0 and "none.png" in said
    with Image.open("none.png") as image:
        shown = np.asarray(image)
    assert shown.shape == (12 * 178, 6 * 164, 3)
    files = [np.asarray(Image.open(file)) for file in sorted(images.rglob("*.png"))]
    for top in range(0, len(shown), 178):
        tiles = [shown[top + 2 : top + 160 : 5, left + 2 : left + 160 : 5] for left in range(0, 6 * 164, 164)]
        assert any(np.array_equal(tiles[0], file) for file in files), "policy none shows the images as they are"
        assert all(np.array_equal(tile, tiles[0]) for tile in tiles)
    code, said = call("show", *line, "--train.mixup=1", "--out", "mixed.png")
    assert code == 0 and "activations of the frozen blocks" in said
    code, said = call("show", "--data.path=images", "--augment.strenth=2")
    assert code == 2 and "Did you mean 'augment.strength'?" in said
    code, said = call("show", "--data.path=nowhere")
    assert code == 2 and "does not exist" in said


def test_a_run_that_fails_its_preflight_trains_nothing(tmp_path, monkeypatch):
    from template.diagnose import preflight
    from template.diagnose.checks import Check

    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "images")
    wrong, grid = Check("a check", False, "0", "1", "Mend it."), Image.new("RGB", (8, 8))
    monkeypatch.setattr(preflight, "inspect", lambda config: ([wrong], {"seconds": 1.0}, {"preflight.png": grid}))
    last_words, said = call("train", "--preflight", "--data.path=images", *TINY)
    assert "Nothing was trained" in last_words and "FAIL  a check: 0 (expected: 1)" in said and "Mend it." in said
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "preflight.png").exists() and not (folder / "history.csv").exists()
    code, said = call("train", "--preflight", "--resume", folder)
    assert code == 2 and "give no other" in said


# Places that cannot be written


@pytest.mark.parametrize(
    ("script", "option", "kind", "rest"),
    [
        ("predict", "--out", "file", ["--run", "RUN", "x.png"]),
        ("evaluate", "--out", "folder", ["--run", "RUN", "--path", "images"]),
        ("explain", "--out", "folder", ["--run", "RUN", "x.png"]),
        ("export", "--out", "folder", ["--run", "RUN"]),
        ("serve", "--collect", "folder", ["--run", "RUN"]),
        ("audit", "--out", "folder", ["images"]),
        ("audit", "--write-csv", "file", ["images"]),
        ("audit", "--data.cache", "folder", ["images", "--labels"]),
        ("compare", "--out", "file", ["RUN", "RUN"]),
        ("runs", "--html", "file", ["RUN"]),
        ("find_lr", "--out", "file", []),
        ("choose_backbone", "--out", "file", []),
        ("show", "--out", "file", []),
        ("preflight", "--out", "folder", []),
        pytest.param("accuracy", "--out", "file", [], marks=BENCHMARKED),
        ("train", "--data.cache", "folder", []),
        ("cross_validate", "--data.cache", "folder", []),
        pytest.param(
            "predict_many",
            "--out",
            "folder",
            ["--run", "RUN", "photos"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("ray") is None, reason='needs the extra ray: pip install -e ".[ray]"'
            ),
        ),
        pytest.param(
            "tune",
            "--data.cache",
            "folder",
            [],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("optuna") is None, reason='needs the extra tune: pip install -e ".[tune]"'
            ),
        ),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, script, option, kind, rest):
    from template import recipe
    from template.data import examples
    from template.data.audit import facts

    def work(*_, **__):
        pytest.fail("the work began")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for module, name in (
        (runs, "import_tensorflow"),
        (examples, "load_examples"),
        (recipe, "run"),
        (facts, "read_facts"),
    ):
        monkeypatch.setattr(module, name, work)
    wrong = {"folder": "file", "file": "folder"}[kind]
    for path, why in ((wrong, f"is a {wrong}"), ("file/below", "is a file"), ("/proc/x/y", "nothing can be made")):
        code, said = call(script, *rest, f"{option}={path}")
        assert code == 2 and "cannot be written" in said and why in said and f"with {option}." in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"], "and no run folder is left"


def test_missing_folders_on_the_way_are_made(finished, tmp_path):
    out = tmp_path / "new" / "and newer" / "compared.json"
    code, _ = call("compare", finished.folder, finished.folder, "--out", out)
    assert code == 0 and out.is_file()


@pytest.mark.slow
def test_a_run_of_another_machine_is_evaluated_with_a_cache_of_this_one(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "copied"
    shutil.copytree(finished.folder, run)
    text = re.sub(r"(?m)^cache = .*", 'cache = "/proc/home/alice/cache"', (run / "config.toml").read_text())
    (run / "config.toml").write_text(text)
    few = class_folders(tmp_path / "few", each=1)
    code, said = call("evaluate", "--run", run, "--path", few)
    assert code == 0 and "'/proc/home/alice/cache' cannot be written to here: 'cache' is used (--data.cache)" in said
    code, said = call("evaluate", "--run", run, "--path", few, "--data.cache", tmp_path / "mine")
    assert code == 0 and "is used" not in said
    assert list((tmp_path / "cache").glob("pixels-*")) and list((tmp_path / "mine").glob("pixels-*"))
    code, said = call("evaluate", "--run", run, "--path", few, "--data.cache=/proc/x")
    assert "'/proc/x' cannot be written" in str(code)


@BENCHMARKED
def test_a_file_of_another_kind_is_not_taken_for_a_benchmark_to_add_to(tmp_path):
    (tmp_path / "mine.json").write_text("no JSON")
    code, _ = call("accuracy", "--out", tmp_path / "mine.json", "--data.path=digits")
    assert "no file of this script" in str(code) and (tmp_path / "mine.json").read_text() == "no JSON"
