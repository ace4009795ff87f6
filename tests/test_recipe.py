"""What a run leaves behind is true, no test image is learned from, and a killed run ends as a whole one."""

import collections
import contextlib
import csv
import dataclasses
import gc
import hashlib
import io
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import class_folders, without_plots
from PIL import Image
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score

from template import config as configuration
from template import disk, publish, recipe
from template.config import TTA, Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.array_file import ArrayFile
from template.data.dataset import eval_dataset
from template.data.examples import DataError, Examples
from template.data.images.load import load_image
from template.data.load import load_data
from template.deploy.predictor import classify, load_run
from template.deploy.tta import predict_tta
from template.evaluate.calibration import calibrate
from template.evaluate.predictions import Predictions
from template.model.backbones import build_backbone
from template.model_selection.depth import with_stages
from template.train import linear_probe as probe
from template.train.checkpoint import read_checkpoint

CLASSES = ("across", "disc", "upright")
STAGES = (Stage(unfreeze=0, epochs=1, learning_rate=3e-3), Stage(unfreeze=1, epochs=2, learning_rate=3e-3))
SHORT = (Stage(unfreeze=1, epochs=1, learning_rate=3e-3),)


@pytest.fixture(scope="module", autouse=True)
def float32_afterwards():
    """The precision of a run is a setting of the whole process."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module", autouse=True)
def hurry():
    """Fewer strengths of the regression; what they are good for is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(probe, "STRENGTHS", probe.STRENGTHS[::4])
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, shallow) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def images(home) -> Path:
    folder = class_folders(home / "images")
    whole = (folder / "disc" / "00.png").read_bytes()
    (folder / "disc" / "cut-short.png").write_bytes(whole[: len(whole) // 2])
    return folder


def settings(path: Path, stages=SHORT, train: dict | None = None, **data) -> Config:
    """A small network and few steps."""
    how = {"image_size": 32, "val_fraction": 0.25, "test_fraction": 0.25, "cache": str(path.parent / "cache")}
    return Config(
        data=Data(path=str(path), **(how | data)),
        backbone=Backbone(name="tiny", weights="none", stochastic_depth=0.1),
        head=Head(drop_block=0.1, drop_connect=0.1),  # which a saved model does without
        train=Train(**({"batch_size": 8, "refit_on_train_val": "no", "checkpoint_seconds": 0} | (train or {}))),
        tta=TTA(hflip=False),
        stages=stages,
    )


@dataclasses.dataclass
class Run:
    config: Config
    folder: Path
    result: dict
    printed: str

    @property
    def test(self) -> Predictions:
        return Predictions.load(self.folder / "predictions.npz")

    @property
    def val(self) -> Predictions:
        return Predictions.load(self.folder / "predictions_val.npz")

    @property
    def split(self) -> list[dict]:
        with (self.folder / "split.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @property
    def weights(self) -> list[str]:
        """A digest of each array of the saved model."""
        model = keras.saving.load_model(self.folder / "model.keras", compile=False)
        return [hashlib.sha256(array.tobytes()).hexdigest() for array in model.get_weights()]


def train(config: Config, folder: Path) -> Run:
    """A run without tracing, which takes longer than so few steps; test_scripts.py and test_journey.py have others."""
    folder.mkdir(exist_ok=True)
    tf.config.run_functions_eagerly(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
            result = recipe.run(config, folder)
    finally:
        tf.config.run_functions_eagerly(False)
    return Run(config, folder, result, printed.getvalue())


def train_without_plots(config: Config, folder: Path) -> Run:
    """`train` without plots, which nobody looks at."""
    with without_plots():
        return train(config, folder)


@pytest.fixture(scope="module")
def run(home, images) -> Run:
    return train(settings(images, STAGES, {"refit_on_train_val": "yes"}), home / "run")


def test_the_saved_recipe_is_the_configuration(run):
    assert configuration.load(run.folder / "config.toml") == run.config


def test_the_record_names_the_versions_and_the_split(run):
    record = json.loads((run.folder / "run.json").read_text())
    for package in ("tensorflow", "keras", "numpy", "pillow"):
        assert record["environment"][package] == version(package)
    assert record["split_sha256"] == hashlib.sha256((run.folder / "split.csv").read_bytes()).hexdigest()


def test_the_split_lists_every_used_image_once_with_the_hash_of_its_file(run, images):
    used = {f"{kind}/{number:02d}.png" for kind in CLASSES for number in range(12)}
    assert sorted(row["id"] for row in run.split) == sorted(used)
    for row in run.split:
        assert row["sha256"] == hashlib.sha256((images / row["id"]).read_bytes()).hexdigest()
        assert row["label"] == row["id"].partition("/")[0]
    for kind in CLASSES:
        parts = [row["part"] for row in run.split if row["label"] == kind]
        assert {part: parts.count(part) for part in set(parts)} == {"train": 6, "val": 3, "test": 3}


def test_found_is_used_plus_skipped_and_the_broken_file_is_named(run):
    assert "37 found = 36 used + 1 skipped; 18 train, 9 val, 9 test" in run.printed
    assert "skipped 'disc/cut-short.png': PNG is damaged or cut short" in run.printed
    (skipped,) = json.loads((run.folder / "skipped.json").read_text())
    assert skipped["id"] == "disc/cut-short.png"
    assert "disc/cut-short.png" in (run.folder / "report.md").read_text()


def test_classes_are_in_the_order_of_the_logits(run):
    assert tuple(json.loads((run.folder / "classes.json").read_text())) == CLASSES == run.test.class_names


def test_the_history_has_one_row_an_epoch_of_every_stage(run):
    with (run.folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["stage"] for row in rows] == ["1", "2", "2"]
    for row in rows:
        assert np.isfinite([float(row[name]) for name in ("loss", "val_cross_entropy", "val_accuracy")]).all()


def test_predictions_are_of_the_whole_test_part(run):
    expected = [(row["id"], row["label"]) for row in run.split if row["part"] == "test"]
    said = run.test
    assert [(str(i), CLASSES[label]) for i, label in zip(said.ids, said.labels, strict=True)] == expected
    assert [str(i) for i in run.val.ids] == [row["id"] for row in run.split if row["part"] == "val"]


def test_the_saved_model_says_what_the_predictions_say(run, images):
    model = keras.saving.load_model(run.folder / "model.keras", compile=False)
    pixels = np.stack([load_image(images / str(name), 32, "crop") for name in run.test.ids])
    logits = model.predict(pixels.astype(np.float32), verbose=0)
    np.testing.assert_allclose(log_softmax(logits, axis=1), log_softmax(run.test.logits, axis=1), rtol=0, atol=1e-5)


def test_metrics_are_those_of_the_predictions(run):
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics == run.result
    expected = {"test", "val", "choices", "calibration", "slices", "memory_gb", "seconds"}
    expected |= {"audit", "color_baseline", "diagnosis", "learning_curve", "preflight"}
    assert set(metrics) == expected  # and "probe" with pretrained weights
    assert metrics["choices"] == {}, "nothing was `auto`"
    for said, scores in ((run.test, metrics["test"]), (run.val, metrics["val"])):
        truth, guess = said.labels, said.logits.argmax(axis=1)
        assert scores["images"] == 9
        assert scores["accuracy"]["value"] == pytest.approx(accuracy_score(truth, guess))
        assert scores["macro_f1"]["value"] == pytest.approx(f1_score(truth, guess, average="macro"))
        for key in ("accuracy", "macro_f1", "top_k", "cross_entropy"):
            assert {"value", "low", "high"} <= set(scores[key])
            assert scores[key]["low"] <= scores[key]["value"] <= scores[key]["high"]


def test_the_seconds_name_every_phase_and_hold_no_more_than_the_whole(run):
    seconds = dict(run.result["seconds"])
    total = seconds.pop("total")
    training = {"audit", "probe", "diagnosis", "features", "stage 1", "stage 2", "checkpoints", "refit"}
    assert set(seconds) == {"decode", *training, "evaluation", "report"}
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) <= total


@pytest.mark.parametrize(
    "name",
    ["confusion_matrix.png", "learning_curves.png", "prediction_dynamics.png", "calibration.png", "risk_coverage.png"],
)
def test_plots_show_something(run, name):
    with Image.open(run.folder / name) as image:
        assert image.format == "PNG"
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10


def test_the_first_line_of_the_report_is_the_accuracy(run):
    first = (run.folder / "report.md").read_text().splitlines()[0]
    accuracy = accuracy_score(run.test.labels, run.test.predicted)
    assert first.startswith(f"# {100 * accuracy:.1f} %")
    assert "9 test images" in first


def test_the_page_shows_the_number_the_errors_and_what_it_was_made_from(run):
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{100 * accuracy_score(run.test.labels, run.test.predicted):.1f} %" in page
    wrong = run.test.ids[run.test.predicted != run.test.labels]
    assert ("Most confident errors" in page) == bool(len(wrong))
    assert all(str(name) in page for name in run.test.ids), "nine images are all among the least confident"
    assert page.count("data:image/jpeg;base64,") == 2 * (len(wrong) + 9)
    assert json.loads((run.folder / "run.json").read_text())["split_sha256"] in page
    assert len(page) < 5e6 and "disc/cut-short.png" in page


def test_temperature_and_thresholds_are_those_of_validation(run):
    decided = json.loads((run.folder / "calibration.json").read_text())
    expected = calibrate(run.val, None)
    assert decided["temperature"] == expected["temperature"]
    assert decided["reject"]["confidence"] == expected["reject"]["confidence"]
    assert {name: row["threshold"] for name, row in decided["thresholds"].items()} == {
        name: row["threshold"] for name, row in expected["thresholds"].items()
    }
    assert {key: run.result["calibration"][key] for key in decided} == decided


def test_the_report_says_what_holds_it_back_and_what_is_odd_about_the_images(run):
    found, right = run.result["diagnosis"], int((run.test.predicted == run.test.labels).sum())
    assert f"{100 * right / 9:.1f} % [" in found["because"] and found["verdict"].split()[0] in {
        "underfitting",
        "overfitting",
        "neither",
    }
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert found["because"][1:] in page and all(line in page for line in found["try_next"])
    audited = json.loads((run.folder / "audit.json").read_text())
    assert {"classes", "image sizes"} <= {finding["check"] for finding in audited}
    assert [f["message"] for f in run.result["audit"]] == [f["message"] for f in audited if f["severity"] != "info"]
    watched = json.loads((run.folder / "prediction_dynamics.json").read_text())
    assert set(watched["ids"]) <= set(run.val.ids) and len(watched["probability_of_label"]) == 3


@pytest.mark.slow
def test_what_is_odd_about_the_images_is_said_before_training(home, images):
    """The same scene in training and, recoded, in a given test part: the number would be flattered."""
    root = home / "odd"
    shutil.copytree(images, root / "train", ignore=shutil.ignore_patterns("cut-short.png"))
    for number, kind in enumerate(("across", "disc", "upright")):
        (root / "test" / kind).mkdir(parents=True)
        original = Image.open(sorted((root / "train" / kind).iterdir())[0])
        original.resize((40, 40)).save(root / "test" / kind / f"{number}.png")
    config = dataclasses.replace(settings(root, stages=SHORT[:1]), backbone=Backbone(name="tiny", weights="none"))
    done = train_without_plots(config, home / "of odd")
    said, result = done.printed, done.result
    assert "error: Near duplicates" in said and "in more than one of train, val and test" in said
    assert "scripts/audit.py" in said
    assert "near duplicates across parts" in [f["check"] for f in result["audit"] if f["severity"] == "error"]
    assert "in more than one of train, val and test" in (home / "of odd" / "report.html").read_text(encoding="utf-8")


def test_nothing_temporary_is_left(run):
    assert not list(run.folder.rglob(".tmp*"))


@pytest.fixture(scope="module")
def given_parts(home) -> tuple[Path, Path]:
    """Two folders of train/, val/ and test/ with the same names, and other images in test/ alone."""
    one, two = home / "one", home / "two"
    for part, each, seed in (("train", 6, 1), ("val", 3, 2), ("test", 3, 3)):
        class_folders(one / part, each=each, seed=seed)
    shutil.copytree(one, two)
    rng = np.random.default_rng(0)
    for file in two.glob("test/*/*.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return one, two


def all_views(path: Path) -> Config:
    """A refit, and every view of what is predicted, with pixels that are read from the disk."""
    config = settings(path, SHORT, {"refit_on_train_val": "yes"}, memory_gb=0.0)
    return dataclasses.replace(config, tta=TTA(full_image=True, hflip=True, center_zoom=True))


@pytest.fixture(scope="module")
def one(home, given_parts) -> Run:
    return train_without_plots(all_views(given_parts[0]), home / "run-one")


@pytest.fixture(scope="module")
def two(home, given_parts) -> Run:
    return train_without_plots(all_views(given_parts[1]), home / "run-two")


def test_no_test_image_is_learned_from(one, two):
    # Other images in test/ and the same weights, to the last bit: they had no part in them, neither as pixels nor
    # through the order of the batches, the best epoch or the statistics of batch normalisation.
    assert one.test.ids.tolist() == two.test.ids.tolist()
    assert not np.allclose(one.test.logits, two.test.logits), "the test images were not exchanged"
    assert one.weights == two.weights


def test_with_one_seed_there_is_one_result(one, two):
    assert one.val.logits.tobytes() == two.val.logits.tobytes()


@pytest.mark.slow
def test_with_another_seed_there_is_another_result(home, given_parts, one):
    again = all_views(given_parts[0])
    again = dataclasses.replace(again, train=dataclasses.replace(again.train, seed=1, refit_on_train_val="no"))
    other = train_without_plots(again, home / "run-other")
    assert other.test.ids.tolist() == one.test.ids.tolist(), "the seed of the training does not move the split"
    assert not np.allclose(other.val.logits, one.val.logits)


@pytest.mark.slow
def test_a_run_ends_as_if_nothing_had_happened_when_its_images_and_the_cache_go_while_it_trains(
    given_parts, one, tmp_path, monkeypatch
):
    """What was decoded is enough: for the whole view of what is predicted, for slices, galleries and report."""
    path, choose, whole = tmp_path / "images", recipe.choose_stages, one
    shutil.copytree(given_parts[0], path)

    def last_seen(*how):
        path.rename(tmp_path / "an unplugged drive")
        shutil.rmtree(tmp_path / "cache")
        return choose(*how)

    monkeypatch.setattr(recipe, "choose_stages", last_seen)
    done = train_without_plots(all_views(path), tmp_path / "run")
    assert not path.exists() and not list((tmp_path / "cache").glob("pixels-*"))
    assert done.test.logits.tobytes() == whole.test.logits.tobytes()
    assert done.val.logits.tobytes() == whole.val.logits.tobytes()
    assert done.result["slices"] == whole.result["slices"] and done.result["slices"]
    for name in ("audit.json", "report.html"):
        assert (done.folder / name).exists()
    assert (done.folder / "audit.json").read_bytes() == (whole.folder / "audit.json").read_bytes()


def test_pixels_of_another_shape_are_of_the_same_images_or_the_run_stops_with_their_names(images, tmp_path):
    """An image that goes between two decodings would shift every label behind it."""
    path = tmp_path / "images"
    shutil.copytree(images, path)
    _, parts = load_data(settings(path), settings(path).data)
    (path / "across" / "03.png").unlink()
    with pytest.raises(DataError, match=r"'across/03.png': no such file"):
        parts.all_pixels(dataclasses.replace(settings(path).data, resize="stretch"))


@pytest.fixture(scope="module")
def cut(home, images) -> Run:
    """A run that was stopped in the middle of its third epoch, the second of stage 2."""
    path = home / "copy" / "images"
    shutil.copytree(images, path)
    config, folder, batches = settings(path, STAGES, {"refit_on_train_val": "yes"}), home / "cut", []

    def stop(self, batch, logs=None):
        batches.append(batch)
        if len(batches) == 2 * 3 + 2:  # 18 images are 3 batches an epoch
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(keras.callbacks.History, "on_train_batch_end", stop, raising=False)
        train(config, folder)
    return Run(config, folder, {}, "")


def moved(images: Path) -> None:
    (images / "disc" / "03.png").rename(images / "across" / "disc03.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "change"),
    [
        pytest.param(
            "other contents: 'disc/02.png'",
            lambda p: shutil.copy(p / "disc" / "01.png", p / "disc" / "02.png"),
            id="other contents",
        ),
        pytest.param(
            "missing or unreadable: 'upright/07.png'", lambda p: (p / "upright" / "07.png").unlink(), id="one less"
        ),
        pytest.param("new: 'upright/across/00.png'", lambda p: class_folders(p / "upright", each=1, seed=9), id="more"),
        pytest.param("missing or unreadable: 'disc/03.png'", moved, id="another label"),
    ],
)
def test_an_interrupted_run_does_not_go_on_with_other_images(cut, tmp_path, change, named):
    path, before = Path(cut.config.data.path), snapshot(cut.folder)
    shutil.copytree(path, tmp_path / "kept")
    try:
        change(path)
        with pytest.raises(DataError, match="images or their split have changed") as refusal:
            train(cut.config, cut.folder)
        assert named in str(refusal.value) and "Put them back" in str(refusal.value)
    finally:
        shutil.rmtree(path)
        (tmp_path / "kept").rename(path)
    assert snapshot(cut.folder) == before, "the interrupted run must stay as it was"


def test_an_interrupted_run_does_not_go_on_with_settings_that_would_spoil_it(cut):
    before = snapshot(cut.folder)
    other = dataclasses.replace(cut.config, train=dataclasses.replace(cut.config.train, seed=7))
    with pytest.raises(configuration.ConfigError, match=r"train\.seed: 0 -> 7\n.*Start a new one"):
        train(other, cut.folder)
    assert snapshot(cut.folder) == before


def test_a_run_in_use_is_not_started_twice(cut):
    before = snapshot(cut.folder)
    with disk.locked(cut.folder), pytest.raises(disk.DiskError, match="in use by process"):
        train(cut.config, cut.folder)
    assert {k: v for k, v in snapshot(cut.folder).items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(28, "No space left on device"), marks=pytest.mark.slow),
        tf.errors.UnknownError(None, None, "OSError: No space left on device"),
    ],
)
def test_a_disk_that_fills_up_is_told_in_words_and_what_was_saved_is_whole(cut, tmp_path, monkeypatch, error):
    folder = tmp_path / "run"
    shutil.copytree(cut.folder, folder)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(disk.DiskError, match="is full. What was saved before is whole.* Delete old runs") as refusal:
        train(cut.config, folder)
    assert str(folder) in str(refusal.value) and cut.config.data.cache in str(refusal.value)
    assert not list(folder.rglob(".tmp-*"))
    state, arrays = read_checkpoint(folder / "checkpoints")
    assert state.epoch == 2 and arrays["best"], "the best weights so far still load"


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_an_interrupted_run_that_goes_on_ends_as_a_whole_one(cut, run):
    assert not (cut.folder / "metrics.json").exists()
    resumed = train_without_plots(cut.config, cut.folder)
    assert "epoch  3/3" in resumed.printed
    assert "epoch  2/3" not in resumed.printed, "epochs that were done are not done again"
    assert resumed.test.logits.tobytes() == run.test.logits.tobytes()
    assert resumed.weights == run.weights
    assert {k: v for k, v in resumed.result.items() if k not in {"seconds", "memory_gb"}} == {
        k: v for k, v in run.result.items() if k not in {"seconds", "memory_gb"}
    }


def says_that_there_was_no_test_part(done: Run) -> str:
    """Its report."""
    assert done.result["test"] is None
    assert {row["part"] for row in done.split} == {"train", "val"}
    report = (done.folder / "report.md").read_text()
    assert "validation images" in report.splitlines()[0]
    assert "There was no test part" in report
    assert "27 train, 9 val, 0 test" in done.printed
    return report


def test_without_a_test_part_the_report_says_so(home, images):
    done = train_without_plots(settings(images, STAGES[:1], test_fraction=0), home / "no-test")
    assert not re.search(r"\brefit\b", says_that_there_was_no_test_part(done))


def test_a_gallery_is_in_the_order_of_the_confidence_that_it_shows(run):
    """The temperature changes that order, from image to image, and the report shows calibrated confidence."""
    text = (run.folder / "report.md").read_text(encoding="utf-8")
    for title, direction in (("Most confident errors", -1), ("Least confident predictions", 1)):
        _, _, section = text.partition(f"## {title}\n")
        shown = [float(number) for number in re.findall(r"\| ([\d.]+) % \|", section.partition("\n## ")[0])]
        assert shown == sorted(shown, key=lambda number: direction * number)  # noqa: B023
        assert shown or title == "Most confident errors"


@pytest.mark.slow
def test_without_a_test_part_what_is_shown_is_of_the_network_that_was_measured(home, images, run, monkeypatch):
    """The refit learns from those images: its heat maps beside answers from before would be another network's."""
    shown, original, counting = [], publish.figures, []

    def spy(model, pixels, rows, said):
        if len(rows):
            shown.append((model.predict(pixels[rows].astype(np.float32), verbose=0), said.ids))
        return original(model, pixels, rows, said)

    held_out = next(row["id"] for row in run.split if row["part"] == "test")  # by its hash, the first to be held out
    looked_at = load_image(images / held_out, 32, "crop")[None].astype(np.float32)

    def counted(model, *_):
        counting.append(model.predict(looked_at, verbose=0))
        return 20, 27

    monkeypatch.setattr(recipe, "train_accuracy", counted)
    monkeypatch.setattr(publish, "figures", spy)
    config = settings(images, SHORT, {"refit_on_train_val": "yes"}, test_fraction=0)
    done = train_without_plots(config, home / "no-test-refit")
    says_that_there_was_no_test_part(done)
    logits = {str(name): row for name, row in zip(done.test.ids, log_softmax(done.test.logits, axis=1), strict=True)}
    assert shown
    for answers, ids in shown:
        expected = np.array([logits[str(name)] for name in ids])
        np.testing.assert_allclose(log_softmax(answers, axis=1), expected, rtol=0, atol=1e-5)
    saved = keras.saving.load_model(done.folder / "model.keras", compile=False).predict(looked_at, verbose=0)
    np.testing.assert_allclose(log_softmax(counting[0], axis=1), logits[held_out][None], rtol=0, atol=1e-5)
    assert not np.allclose(log_softmax(saved, axis=1), logits[held_out], atol=1e-3), "the refit is what is kept"
    for name in ("report.md", "report.html"):
        assert "before the refit; model.keras has" in (done.folder / name).read_text()


@pytest.mark.slow
def test_a_run_in_mixed_precision_measures_the_float32_network_that_it_saves_and_serves(home, images):
    done = train_without_plots(settings(images, STAGES[:1], {"precision": "mixed_bfloat16"}), home / "mixed")
    keras.config.set_dtype_policy("float32")  # predict.py knows nothing of the run's precision
    config, _, model = load_run(done.folder)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    files = [images / str(name) for name in done.test.ids]
    served = np.stack([probabilities for _, probabilities in classify(model, config, files)])
    np.testing.assert_allclose(served, done.test.probabilities, rtol=0, atol=1e-6)
    logits = done.test.logits
    assert logits.dtype == np.float32
    rounded = tf.cast(tf.cast(logits, tf.bfloat16), tf.float32).numpy()
    assert (rounded != logits).mean() > 0.5, "answers that were bfloat16 all along"


# From pretrained weights, with everything left open


@pytest.fixture(scope="module")
def weights(home) -> Path:
    """A file of random weights, which count as pretrained ones."""
    keras.utils.set_random_seed(3)
    network = build_backbone(Backbone(name="tiny", weights="none"), 32)
    network.save_weights(home / "tiny.weights.h5")
    return home / "tiny.weights.h5"


def left_open(path: Path, weights: Path, **data) -> Config:
    return dataclasses.replace(
        settings(path, stages=(), train={"refit_on_train_val": "auto"}, resize="auto", **data),
        augment=Augment(hflip=False),
        backbone=Backbone(name="tiny", weights=str(weights)),
        head=Head(feature_levels="auto", power_norm="auto"),
        tta=TTA(hflip=True, full_image=True, center_zoom=True),
    )


@pytest.fixture(scope="module")
def probed(home, images, weights) -> Run:
    return train_without_plots(left_open(images, weights), home / "probed")


@pytest.mark.slow
def test_what_was_left_open_is_chosen_by_its_loss_and_written_down(probed):
    chosen, choices = configuration.load(probed.folder / "config.toml"), probed.result["choices"]
    assert set(choices) == {"head.feature_levels", "head.power_norm", "data.resize"}
    assert json.loads((probed.folder / "choices.json").read_text()) == choices
    for key, losses in choices.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(chosen, section), name)
        assert value != "auto"
        assert len(losses) > 1 and all(np.isfinite(list(losses.values())))
        assert losses[str(value)] <= next(iter(losses.values())), "the first option, unless another is better"
        assert f"{key} = {value}: " in probed.printed
    unchanged = {"feature_levels": "auto", "power_norm": "auto"}
    assert dataclasses.replace(chosen.head, **unchanged) == probed.config.head
    assert dataclasses.replace(chosen.data, resize="auto") == probed.config.data
    assert chosen.train == probed.config.train


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(), SHORT], ids=["probe", "stage"])
def test_each_view_of_an_image_passes_through_the_network_once(weights, tmp_path, monkeypatch, stages):
    """Cross-validation, probe, learning curve, stage, refit and all evaluations share what does not change."""
    images = class_folders(tmp_path / "images", size=48)
    for file in images.rglob("*.png"):
        Image.open(file).crop((0, 0, 48, 36)).save(file)  # or the whole of it were the middle square
    config = dataclasses.replace(left_open(images, weights), stages=stages, augment=Augment(hflip=True))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, resize="crop"))
    passes, call = collections.Counter(), keras.Model.__call__

    def counted(model, inputs, *how, **named):
        if tf.is_tensor(inputs) and inputs.shape[1:] == (32, 32, 3):
            passes.update(
                {view.tobytes() for view in inputs.numpy().astype(np.float32)}
            )  # in a batch, what fills it up is no other view
        return call(model, inputs, *how, **named)

    monkeypatch.setattr(keras.Model, "__call__", counted)
    monkeypatch.setattr("template.train.stages.choose", lambda *_: 0)  # not the probe: there is an epoch to repeat
    train_without_plots(config, tmp_path / "run")
    _, parts = load_data(config, config.data)
    # A few more: what was learned, by novelty and by accuracy; Grad-CAM in two galleries.
    for part, most in {"train": 1, "test": 2}.items():
        for view in parts.plain(part, config.data).read(0, np.arange(len(parts.rows(part)))).astype(np.float32):
            times = passes.pop(view.tobytes())
            assert times <= 1 + most
    epochs = 18 + 9 if stages else 0
    assert len(passes) == 3 * 18 + 6 * 9 + 5 * 9 + epochs, "views of train, val and test, and those of an epoch"
    assert set(passes.values()) == {1}


@pytest.mark.slow
def test_a_warm_start_says_which_held_out_images_its_weights_have_learned(home, images, run):
    begun = settings(images, stages=(), split_seed=3)
    old = Backbone(name="tiny", weights=str(run.folder / "model.keras"))
    done = train_without_plots(dataclasses.replace(begun, backbone=old, head=Head()), home / "warm")
    learned = {row["sha256"] for row in run.split if row["part"] in {"train", "val"}}
    spoiled = {row["id"] for row in done.split if row["part"] in {"val", "test"} and row["sha256"] in learned}
    assert spoiled
    (finding,) = (f for f in json.loads((done.folder / "audit.json").read_text()) if f["check"] == "warm start")
    assert {name for (name,) in finding["images"]} == spoiled
    assert "error: " in done.printed and "whose weights this run starts from" in done.printed
    assert "whose weights this run starts from" in (done.folder / "report.html").read_text()
    assert "whose weights this run starts from" in (done.folder / "report.md").read_text()


@pytest.mark.slow
def test_mirror_images_that_training_never_sees_are_said(probed, run):
    assert "tta.hflip=true answers by mirror images too" in probed.printed
    assert "mirror images" not in run.printed


@pytest.mark.slow
def test_with_few_images_the_probe_is_reported_as_the_training(probed):
    assert configuration.load(probed.folder / "config.toml").stages == ()
    assert probed.result["probe"] == probed.result["val"]
    phases = {"decode", "audit", "probe", "diagnosis", "features", "refit", "evaluation", "report", "total"}
    assert set(probed.result["seconds"]) == phases
    assert not (probed.folder / "learning_curves.png").exists()
    assert "learning_curves" not in (probed.folder / "report.md").read_text(), "a report of no epochs shows none"


@pytest.mark.slow
def test_the_predictor_says_what_the_run_said(probed, images):
    """All views that the settings ask for, as the run had averaged them."""
    config, classes, model = load_run(probed.folder)
    assert classes == CLASSES
    files = [images / str(name) for name in probed.test.ids]
    said = np.stack([probabilities for _, probabilities in classify(model, config, files)])
    np.testing.assert_allclose(said, probed.test.probabilities, rtol=0, atol=1e-5)
    softer = np.stack([p for _, p in classify(model, config, files, temperature=2.0)])
    np.testing.assert_allclose(softer, probed.test.scaled(2.0).probabilities, rtol=0, atol=1e-5)
    for views in (TTA(), TTA(hflip=True, center_zoom=True), TTA(hflip=True, full_image=True)):
        fewer = classify(model, dataclasses.replace(config, tta=views), files)
        assert np.abs(np.stack([p for _, p in fewer]) - said).max() > 1e-3, "or a view more would prove nothing"


@pytest.mark.slow
def test_a_run_that_is_resumed_keeps_its_choices(home, probed):
    folder = home / "resumed"
    shutil.copytree(probed.folder, folder)
    (folder / "metrics.json").unlink()
    again = train_without_plots(configuration.load(folder / "config.toml"), folder)
    without_seconds = [
        {k: v for k, v in one.result.items() if k not in {"seconds", "memory_gb"}} for one in (again, probed)
    ]
    assert without_seconds[0] == without_seconds[1]
    assert "cross-validated cross-entropy" not in again.printed, "chosen once"


def alive() -> int:
    """Large arrays that somebody still holds."""
    gc.collect()
    return sum(isinstance(thing, ArrayFile) for thing in gc.get_objects())


@pytest.mark.slow
def test_a_second_run_finds_the_features_of_the_first_below_home_too(home, images, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(home / "user"))
    monkeypatch.chdir(home)
    config = dataclasses.replace(
        settings(images, SHORT, {"refit_on_train_val": "yes"}, cache="~/cache"),
        backbone=Backbone(name="tiny", weights=str(weights)),
    )
    before = alive()
    first, second = train(config, home / "first"), train(config, home / "second")
    assert alive() <= before, "pixels and activations go with their run"
    assert "features" in first.result["seconds"]
    assert "features" not in second.result["seconds"], "all of them were found"
    assert second.test.logits.tobytes() == first.test.logits.tobytes()
    assert second.weights == first.weights
    assert list((home / "user" / "cache").glob("features-*")) and not (home / "~").exists()


@pytest.mark.slow  # in test_auto.py too
def test_a_class_of_one_training_image_leaves_nothing_to_vote_with(home, weights, tmp_path):
    """It cannot be held out, so no option can be judged: the first of each is taken."""
    folder = class_folders(tmp_path / "images")
    for number in range(3, 12):
        (folder / "disc" / f"{number:02d}.png").unlink()
    done = train_without_plots(left_open(folder, weights), tmp_path / "run")
    chosen = configuration.load(done.folder / "config.toml")
    assert (chosen.head.feature_levels, chosen.data.resize) == (1, "crop")
    json.loads((done.folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_stages_are_taken_from_the_number_of_images_only_where_the_recipe_names_none(images, weights):
    config = dataclasses.replace(left_open(images, weights), head=Head(), stages=None)
    assert [stage.unfreeze for stage in with_stages(config, 100).stages] == [1], "the first that races"
    assert [stage.unfreeze for stage in with_stages(config, 2000).stages] == [1, 2]
    hidden = dataclasses.replace(config, head=Head(hidden=8))
    assert [stage.unfreeze for stage in with_stages(hidden, 100).stages] == [0], "no probe: the head must learn"
    scratch = dataclasses.replace(config, backbone=Backbone(name="tiny", weights="none"))
    assert [stage.unfreeze for stage in with_stages(scratch, 100).stages] == ["all"]
    named = dataclasses.replace(config, stages=SHORT)
    assert with_stages(named, 100) == named


def test_images_without_a_group_are_not_one_group_together():
    class Model:
        layers = ()
        predict = staticmethod(lambda batches, verbose, callbacks: np.zeros((4, 2), np.float32))

    ids = np.array(["a", "b", "c", "d"])
    digests = np.char.add("of ", ids)
    labels, groups = np.array([0, 1, 0, 1]), np.array(["patient", "patient", "", ""])
    examples = Examples(ids, [b""] * 4, labels, ("cat", "dog"), np.array([""] * 4), groups, digests)
    views = [eval_dataset(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), labels)]
    said = predict_tta(Model(), examples, views, Config())
    assert said.groups[0] == said.groups[1] and len(set(said.groups)) == 3
