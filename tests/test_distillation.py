"""A student learns what its teachers say of the views that it sees, and from none that knows its test images."""

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import class_folders, without_plots
from scipy.special import softmax

from template import config as configuration
from template import disk, recipe, runs
from template.config import TTA, Backbone, Config, Data, Head, Stage, Train
from template.data.examples import DataError
from template.data.lineage import lineage
from template.data.load import load_data
from template.data.split import to_csv
from template.deploy.predictor import save_model
from template.diagnose import preflight
from template.distillation import load_teachers, taught
from template.evaluate.predictions import Predictions
from template.model.backbones import count_blocks
from template.model_selection.depth import cross_validates_depth, with_stages
from template.progress import Timer
from template.train.features import FeatureCache

CLASSES = ("across", "disc", "upright")
BY_BRIGHTNESS, BIAS = np.outer(np.ones(3), [0.02, 0.0, -0.02]), (-6.0, 0.0, 6.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory, shallow) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    class_folders(folder / "images")
    return folder


def settings(home: Path, *teachers: Path, stages=(), **data) -> Config:
    how = {"image_size": 24, "val_fraction": 0.25, "test_fraction": 0.25, "cache": str(home / "cache")}
    names = tuple(map(str, teachers))
    return Config(
        data=Data(path=str(home / "images"), **(how | data)),
        backbone=Backbone(name="tiny", weights="none"),
        train=Train(batch_size=8, refit_on_train_val="yes", teachers=names),
        tta=TTA(hflip=False),
        stages=stages,
    )


def teacher(folder: Path, config: Config, kernel: np.ndarray, bias=(0, 0, 0), classes=CLASSES) -> Path:
    """A finished run whose logits are linear in the mean colour of images of 16 pixels a side."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=16))
    inputs = keras.Input((16, 16, 3))
    logits = keras.layers.Dense(3, name="logits")
    model = keras.Model(inputs, logits(keras.layers.GlobalAveragePooling2D()(inputs)))
    logits.set_weights([kernel, np.array(bias)])
    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        _, parts = load_data(config, config.data)
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    runs.write_text(folder / "split.csv", to_csv(parts.examples))
    runs.write_json(folder / "classes.json", classes)
    save_model(model, folder)
    return folder


@pytest.fixture(scope="module")
def bright(home) -> Path:
    """Says by how bright an image is, of what class it is."""
    return teacher(home / "bright", settings(home), BY_BRIGHTNESS, BIAS)


@pytest.fixture(scope="module")
def one_sided(home) -> Path:
    """Says that everything is a disc."""
    return teacher(home / "one_sided", settings(home), np.zeros((3, 3)), bias=(0, 2, 0))


def test_soft_labels_are_the_mean_probabilities_of_the_teachers_for_the_view_that_the_student_sees(
    home, bright, one_sided
):
    config = settings(home, bright, one_sided)
    _, parts = load_data(config, config.data)
    cache = FeatureCache(home / "logits", 1e9, 8, Timer())
    images = taught(parts, "train", config, load_teachers(config, parts.examples), cache)
    student = parts.augmented("train", config)
    rows = np.array([7, 0, 3])
    for epoch in (0, 3, 1):
        colour = student.read(epoch, rows).astype(float).mean(axis=(1, 2))
        np.testing.assert_array_equal(images.read(epoch, rows), student.read(epoch, rows))
        expected = softmax(colour @ BY_BRIGHTNESS + BIAS, axis=1) / 2
        expected += softmax([0, 2, 0]) / 2
        # At 16 pixels a side the same view has nearly the mean colour that it has at 24.
        np.testing.assert_allclose(images.soft_labels(epoch, rows), expected, atol=0.02)
    assert np.ptp([images.soft_labels(epoch, rows) for epoch in range(4)], axis=0).max() > 0.02, "views differ"


def test_without_teachers_images_are_as_they_were(home):
    config = settings(home)
    _, parts = load_data(config, config.data)
    assert taught(parts, "train", config, (), FeatureCache(home / "none", 1e9, 8, Timer())).soft_labels is None


@pytest.fixture(scope="module")
def student(home, one_sided) -> Path:
    """What was told that everything is a disc."""
    stages = (Stage(unfreeze=1, epochs=10, learning_rate=3e-2),)
    with without_plots(), contextlib.redirect_stdout(io.StringIO()):
        (home / "student").mkdir()
        recipe.run(settings(home, one_sided, stages=stages), home / "student")
    return home / "student"


def test_what_teachers_say_is_learned_in_place_of_the_labels_in_stages_and_refit(student):
    said = Predictions.load(student / "predictions.npz")
    assert len(set(said.labels)) == 3 and set(said.predicted) == {1}
    np.testing.assert_allclose(said.probabilities.mean(axis=0), softmax([0, 2, 0]), atol=0.1)
    assert set(Predictions.load(student / "predictions_val.npz").predicted) == {1}


def test_a_run_records_its_teachers_and_says_that_it_has_them(student, one_sided):
    record = json.loads((student / "run.json").read_text())
    assert record["teachers"] == {str(one_sided): disk.sha256(one_sided / "model.keras")}
    assert "taught by 1 other run" in (student / "report.md").read_text()
    assert lineage(student) == [student, one_sided]


def test_a_teacher_that_knows_test_images_is_refused_with_their_names(home, bright):
    config = settings(home, bright, split_seed=1)
    _, parts = load_data(config, config.data)
    _, of_teacher = load_data(settings(home), settings(home).data)
    learned = set(of_teacher.examples.ids[of_teacher.examples.parts != "test"])
    shared = sorted(learned & set(parts.examples.ids[parts.examples.parts == "test"]))
    with pytest.raises(DataError, match=f"by {len(shared)} of the test images") as error:
        load_teachers(config, parts.examples)
    assert repr(str(shared[0])) in str(error.value) and "data.split_seed" in str(error.value)


def test_what_is_no_run_or_has_other_classes_teaches_nothing(home, tmp_path):
    _, parts = load_data(settings(home), settings(home).data)
    for folder, words in ((tmp_path, "does not hold a finished run"), (tmp_path / "no", "does not hold")):
        with pytest.raises(DataError, match=f"train.teachers: .*{words}"):
            load_teachers(settings(home, folder), parts.examples)
    with pytest.raises(DataError, match="train.teachers: "):
        preflight.Begun.of(settings(home, tmp_path), Timer())
    other = teacher(tmp_path / "other", settings(home), np.zeros((3, 3)), classes=("across", "disc", "up"))
    with pytest.raises(DataError, match="expected a run of the classes .*'upright'.*'up'"):
        load_teachers(settings(home, other), parts.examples)


def test_one_teacher_needs_no_brackets_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = configuration.load(None, ["train.teachers=runs/a"])
    assert one.train.teachers == ("runs/a",)
    two = configuration.load(None, ['train.teachers=["runs/a", "runs/b"]'])
    assert configuration.absolute(two).train.teachers == (str(tmp_path / "runs/a"), str(tmp_path / "runs/b"))
    with pytest.raises(configuration.ConfigError, match=r"train.teachers: expected list of names. Received: 3"):
        configuration.load(None, ["train.teachers=3"])


@pytest.mark.parametrize(
    "setting", ["loss=focal", "class_weights=balanced", "logit_adjustment=1.0", "label_smoothing=0.1"]
)
def test_what_is_done_to_labels_does_not_go_with_teachers(setting):
    with pytest.raises(configuration.ConfigError, match=f"{setting.partition('=')[0]}: for labels of images"):
        configuration.load(None, ["train.teachers=runs/a", f"train.{setting}"])


def test_a_student_is_unfrozen_as_deep_as_its_deepest_teacher_without_a_race(tmp_path):
    def run(name: str, *unfreeze: int | str, **backbone) -> str:
        stages = tuple(Stage(unfreeze=each) for each in unfreeze)
        of_teacher = Config(backbone=Backbone(**({"name": "efficientnet_lite0"} | backbone)), stages=stages)
        runs.write_text(tmp_path / name / "config.toml", configuration.to_toml(of_teacher))
        return str(tmp_path / name)

    def unfrozen(*teachers: str, **more) -> list:
        student = Config(
            backbone=Backbone(name="mobilenet"), data=Data(image_size=224), train=Train(teachers=teachers), **more
        )
        assert not cross_validates_depth(student, 100)
        return [stage.unfreeze for stage in with_stages(student, 100).stages]

    none, top, half = run("none"), run("top", 1), run("half", 1, 3)
    assert count_blocks("efficientnet_lite0") == 7 and count_blocks("mobilenet") == 13
    assert (unfrozen(none), unfrozen(top), unfrozen(half), unfrozen(run("all", "all"))) == ([], [2], [6], [6])
    assert unfrozen(none, half, top) == [6] and unfrozen(run("head", 0)) == []
    assert unfrozen(half, head=Head(hidden=8)) == [0], "no probe: the head must learn first"
    with pytest.raises(configuration.ConfigError, match="train.teachers: .*nowhere' does not hold a finished run"):
        unfrozen(str(tmp_path / "nowhere"))
