"""Images without labels: no test image is among them, strangers are left out, and what does not help is not used."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import image, without_plots
from PIL import Image

from template import config as configuration
from template import recipe
from template.config import Augment, Backbone, Config, ConfigError, Data, Head, Stage, Train
from template.data.examples import DataError, Examples
from template.data.load import Parts, load_data
from template.data.unlabelled import COPY, TWICE, Unlabelled
from template.deploy.predictor import load_run
from template.evaluate.predictions import Predictions
from template.model.backbones import build_backbone
from template.model_selection import unlabelled as module
from template.model_selection.unlabelled import STRANGE, choose_unlabelled
from template.progress import Timer
from template.train import checkpoint as checkpoints
from template.train.features import FeatureCache


def varied(kind: str, rng: np.random.Generator) -> np.ndarray:
    """An `image` before a background of its own, so that no two look like copies: uint8 [48, 48, 3]."""
    background = np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((8, 8, 1)))
    return (0.5 * image(kind, rng, 48) + 0.5 * background).astype(np.uint8)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Class folders in train/ and test/, and images of the same kinds without labels beside them."""
    rng, kinds = np.random.default_rng(0), ("across", "disc", "upright")
    folders = [f"photographs/{part}/{kind}" for part in ("train", "test") for kind in kinds] + ["pool"]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        for number in range(12 if folder == "pool" else 8):
            kind = kinds[number % 3] if folder == "pool" else Path(folder).name
            Image.fromarray(varied(kind, rng)).save(tmp_path / folder / f"{number:02d}.png")
    return tmp_path


def settings(home: Path, **train) -> Config:
    data = {"path": str(home / "photographs"), "unlabelled": str(home / "pool"), "cache": str(home / "cache")}
    return Config(
        data=Data(**data, image_size=32),
        augment=Augment(policy="light", hflip=False),
        backbone=Backbone(name="tiny", weights=str(home / "tiny.weights.h5")),
        head=Head(feature_levels=1),
        train=Train(batch_size=8, **train),
        stages=(),
    )


def loaded(home: Path) -> Parts:
    return load_data(settings(home), settings(home).data)[1]


def test_a_copy_of_a_test_image_is_refused_by_name_however_it_was_saved(photographs):
    assert len(loaded(photographs).unlabelled) == 12
    test = photographs / "photographs" / "test"
    shutil.copy(test / "disc" / "03.png", photographs / "pool" / "renamed.png")
    with Image.open(test / "across" / "01.png") as found:
        (photographs / "pool" / "new").mkdir()
        found.resize((96, 96)).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(photographs / "pool" / "new" / "big.jpg")
    with pytest.raises(DataError) as error:
        loaded(photographs)
    message = str(error.value)
    assert "2 images" in message and "'renamed.png' is 'test/disc/03.png'" in message
    assert "'new/big.jpg' is 'test/across/01.png'" in message and "Move them out" in message


def test_what_is_known_already_and_what_cannot_be_read_is_named_counted_and_left_out(photographs):
    train = photographs / "photographs" / "train"
    shutil.copy(train / "disc" / "03.png", photographs / "pool" / "known.png")
    with Image.open(train / "disc" / "04.png") as found:
        found.resize((64, 64)).save(photographs / "pool" / "known too.bmp")
    shutil.copy(photographs / "pool" / "00.png", photographs / "pool" / "twice.png")
    (photographs / "pool" / "broken.png").write_bytes((photographs / "pool" / "01.png").read_bytes()[:200])
    pool = loaded(photographs).unlabelled
    skipped = dict(pool.examples.skipped)
    assert skipped.pop("known.png") == skipped.pop("known too.bmp") == COPY
    assert skipped.pop("twice.png") == TWICE
    assert list(skipped) == ["broken.png"] and skipped["broken.png"]
    assert pool.examples.ids[pool.rows].tolist() == [f"{number:02d}.png" for number in range(12)]
    images = pool.images(settings(photographs).data)
    assert images.read(0, np.arange(12)).shape == (12, 32, 32, 3) and len(images) == 12


def test_a_folder_that_would_be_a_class_and_one_with_nothing_new_are_refused(photographs):
    inside = dataclasses.replace(settings(photographs).data, unlabelled=str(photographs / "photographs" / "pool"))
    shutil.copytree(photographs / "pool", inside.unlabelled)
    with pytest.raises(DataError, match=r"inside the images.*--data\.unlabelled"):
        load_data(dataclasses.replace(settings(photographs), data=inside), inside)
    shutil.rmtree(inside.unlabelled)
    with pytest.raises(DataError, match="expected a folder"):
        load_data(dataclasses.replace(settings(photographs), data=inside), inside)
    for file in (photographs / "pool").iterdir():
        file.unlink()
    shutil.copy(photographs / "photographs" / "train" / "disc" / "03.png", photographs / "pool" / "known.png")
    with pytest.raises(DataError, match="none of 1 images"):
        loaded(photographs)


@pytest.mark.parametrize("given", [{"backbone.weights": "none"}, {"head.hidden": 64}, {"train.probe": "false"}])
def test_without_a_probe_there_is_nothing_to_teach(given):
    (key, value) = next(iter(given.items()))
    with pytest.raises(ConfigError, match=r"data\.unlabelled teaches the linear probe"):
        configuration.load(None, ["data.unlabelled=pool", f"{key}={value}"])
    assert configuration.load(None, ["data.unlabelled=pool"]).data.unlabelled == "pool"
    configuration.load(None, [f"{key}={value}"])


# What is chosen, by features that are given


def features_of(labels: np.ndarray, rng: np.random.Generator, ways: tuple[float, float]) -> np.ndarray:
    """Noise, with the class in the first direction and something else in the second, each so clear; float16 [n, 8]."""
    other = rng.integers(0, 2, len(labels))
    features = rng.normal(0, 0.3, (len(labels), 8))
    features[:, :2] += np.stack([labels * ways[0], other * ways[1]], axis=1) + 5
    return features.astype(np.float16)


@pytest.fixture
def chosen(monkeypatch, tmp_path, capsys):
    """Chooses for features of images with labels, and without; returns the images that are used, losses, and words."""

    def choose(known: np.ndarray, labels: np.ndarray, pool: np.ndarray):
        given = {len(known): known, len(pool): pool}
        monkeypatch.setattr(module, "probe_features", lambda b, c, sets, cache: (given[len(sets[0])][None], [8]))
        pixels = np.zeros((max(given), 4, 4, 3), np.uint8)
        named = [np.array([f"{place}.png" for place in range(n)]) for n in (len(known), len(pool))]
        nothing = np.zeros(len(pool), np.int64)
        examples = Examples(named[0], [], labels, ("a", "b"), np.full(len(known), "train"))
        others = Examples(named[1], [], nothing, ("",), np.full(len(pool), "unlabelled"))
        found = Unlabelled(others, lambda _: pixels[: len(pool)])
        parts = Parts(examples, lambda *_: pixels[: len(known)], np.arange(len(known)), unlabelled=found)
        parts, losses = choose_unlabelled(None, Config(), parts, FeatureCache(tmp_path, 1e9, 8, Timer()))
        return parts.unlabelled, losses.get("data.unlabelled"), capsys.readouterr().out

    return choose


def test_a_pool_that_shows_the_classes_is_used_and_strangers_in_it_are_left_out(chosen):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    known, pool = features_of(labels, rng, (1.0, 0.0)), features_of(np.arange(60) % 2, rng, (1.0, 0.0))
    pool[40:50] = rng.normal(0, 1, (10, 8)) - 5  # in a direction of their own
    used, losses, words = chosen(known, labels, pool)
    strangers = {name for name, reason in used.examples.skipped if reason == STRANGE}
    assert {f"{number}.png" for number in range(40, 50)} <= strangers and len(strangers) <= 14
    assert len(used) == 60 - len(strangers) and not set(used.examples.ids[used.rows]) & strangers
    assert losses["used"] < losses["not used"]
    assert f"{len(strangers)} of 60 images are like nothing" in words and f"{len(used)} images used" in words


def test_a_pool_whose_shape_has_nothing_to_do_with_the_classes_is_not_used(chosen):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    known, pool = features_of(labels, rng, (1.2, 4.0)), features_of(np.arange(80) % 2, rng, (0.0, 4.0))
    used, losses, words = chosen(known, labels, pool)
    assert used is None and losses["used"] > losses["not used"] and "images not used" in words


def test_of_strangers_alone_nothing_is_used(chosen):
    rng = np.random.default_rng(0)
    used, losses, words = chosen(
        features_of(np.arange(10) % 2, rng, (3.0, 0.0)),
        np.arange(10) % 2,
        rng.normal(-5, 1, (20, 8)).astype(np.float16),
    )
    assert used is None and losses is None and "20 of 20" in words


# Whole runs


@pytest.fixture
def weights(photographs, shallow) -> Path:
    keras.utils.set_random_seed(0)
    build_backbone(Backbone(name="tiny", weights="none"), 32).save_weights(photographs / "tiny.weights.h5")
    return photographs


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_a_run_records_what_it_used_and_goes_on_with_nothing_else(weights, capsys, monkeypatch):
    monkeypatch.setattr(module, "CLEARLY_WORSE", -np.inf)
    with without_plots():
        metrics = recipe.run(settings(weights), weights / "run")
    printed = capsys.readouterr().out
    assert (
        "12 found = 12 used + 0 skipped, without labels" in printed
        and "used; out-of-fold cross_entropy loss" in printed
    )
    table = list(csv.DictReader((weights / "run" / "unlabelled.csv").open()))
    assert [row["id"] for row in table] == [f"{number:02d}.png" for number in range(12)]
    assert set(metrics["choices"]["data.unlabelled"]) == {"used", "not used"}
    record = json.loads((weights / "run" / "run.json").read_text())
    assert len(record["unlabelled_sha256"]) == 64
    strangers = json.loads((weights / "run" / "unlabelled_skipped.json").read_text())
    used = 12 - sum(entry["reason"] == STRANGE for entry in strangers)
    assert f"and {used} without labels" in (weights / "run" / "report.md").read_text()
    assert f"linear probe on 24 images and {used} without labels" in printed, "the refit too"
    for change in ("pool", ""):
        parts = load_data(settings(weights), settings(weights).data)[1]
        if change:
            Image.fromarray(varied("disc", np.random.default_rng(9))).save(weights / "pool" / "12.png")
            parts = load_data(settings(weights), settings(weights).data)[1]
        else:
            parts = dataclasses.replace(parts, unlabelled=None)
        with pytest.raises(DataError, match=r"unlabelled\.csv"):
            recipe.refuse_changes(settings(weights), parts, weights / "run")


@pytest.mark.slow
@pytest.mark.parametrize("used", [True, False])
def test_a_run_that_is_resumed_with_images_without_labels_ends_bit_for_bit_as_a_whole_one(weights, monkeypatch, used):
    monkeypatch.setattr(module, "CLEARLY_WORSE", -np.inf if used else np.inf)
    how = dataclasses.replace(settings(weights), stages=(Stage(unfreeze=1, epochs=2, learning_rate=3e-3),))
    how = dataclasses.replace(how, head=Head(feature_levels="auto"))
    original = checkpoints.Checkpoint.on_epoch_end

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch == 0 and self.folder.name == "checkpoints":
            shutil.copytree(weights / "whole", weights / "cut")  # what kill -9 would have left

    (weights / "whole").mkdir()
    with without_plots(), monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        whole = recipe.run(how, weights / "whole")
    with without_plots():
        resumed = recipe.run(configuration.load(weights / "cut" / "config.toml"), weights / "cut")
    for a, b in zip(*(load_run(weights / name)[2].get_weights() for name in ("whole", "cut")), strict=True):
        assert a.tobytes() == b.tobytes()
    one, other = (Predictions.load(weights / name / "predictions.npz") for name in ("whole", "cut"))
    assert one.logits.tobytes() == other.logits.tobytes()
    changing = {"seconds", "memory_gb"}
    assert {k: whole[k] for k in whole if k not in changing} == {k: resumed[k] for k in resumed if k not in changing}
    assert set(resumed["choices"]) == {"head.feature_levels", "data.unlabelled"}
