"""Cross-validation of a whole recipe: no image has a say in its own prediction, and each is counted as one witness."""

import contextlib
import csv
import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import call, class_folders, without_plots

from template import progress, recipe, runs
from template.config import Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.examples import DataError
from template.data.load import Parts, load_data
from template.evaluate.predictions import Predictions
from template.model.backbones import build_backbone
from template.model_selection.auto import probe_features
from template.search.cross_validate import cross_validate, pool_folds, predict_fold, split_into_folds
from template.train import features
from template.train.features import FeatureCache

pytestmark = pytest.mark.usefixtures("eagerly", "shallow")
CLASSES = ("across", "disc", "upright")


@pytest.fixture(scope="module")
def home(tmp_path_factory, shallow) -> Path:
    """Photographs, and a file of weights as a pretrained network has them."""
    folder = tmp_path_factory.mktemp("cross validation")
    class_folders(folder / "images", each=10)
    keras.utils.set_random_seed(0)
    build_backbone(Backbone(name="tiny", weights="none"), 32).save_weights(folder / "tiny.weights.h5")
    return folder


def settings(home: Path, **data) -> Config:
    how = {"image_size": 32, "test_fraction": 0.0, "cache": str(home / "cache")} | data
    return Config(
        data=Data(path=str(home / "images"), **how),
        augment=Augment(policy="light"),
        backbone=Backbone(name="tiny", weights=str(home / "tiny.weights.h5")),
        head=Head(feature_levels=1),
        train=Train(batch_size=8),
        stages=(Stage(unfreeze=1, epochs=1),),
    )


def loaded(config: Config) -> Parts:
    return load_data(config, config.data)[1]


def test_every_image_is_held_out_once_and_learned_from_otherwise(home):
    parts = loaded(settings(home))
    folds = split_into_folds(parts, settings(home).data, folds=5)
    assert len(folds) == 5
    held = np.concatenate([fold.rows("test") for fold in folds])
    assert sorted(held) == list(range(30)), "every image once"
    for fold in folds:
        assert (np.bincount(fold.examples.labels[fold.rows("test")]) == 2).all(), "stratified"
        assert sorted(np.concatenate([fold.rows(part) for part in ("train", "val", "test")])) == list(range(30))
        assert len(fold.rows("val")) == 6, "a fifth of the others, rounded in each class"


def test_repeats_divide_anew(home):
    parts = loaded(settings(home))
    folds = split_into_folds(parts, settings(home).data, folds=2, repeats=3)
    held = [frozenset(fold.rows("test")) for fold in folds]
    assert len(held) == len(set(held)) == 6


def test_a_test_part_and_what_was_left_out_are_in_no_fold(home):
    config = settings(home, test_fraction=0.2)
    parts = loaded(config)
    apart = set(parts.rows("test"))
    folds = split_into_folds(parts, config.data, folds=4)
    assert apart and all((fold.examples.parts[list(apart)] == "").all() for fold in folds)
    assert len(np.concatenate([fold.rows("test") for fold in folds])) == 30 - len(apart)


def test_groups_stay_together(home):
    parts = loaded(settings(home))
    groups = np.arange(30) // 2
    names = np.array([f"camera {group}" for group in groups])
    grouped = dataclasses.replace(parts, groups=groups, examples=dataclasses.replace(parts.examples, groups=names))
    for fold in split_into_folds(grouped, settings(home, val_fraction=0.4).data, folds=3):
        for part in ("train", "val", "test"):
            rows = fold.rows(part)
            assert np.isin(np.flatnonzero(np.isin(groups, groups[rows])), rows).all(), part


def test_a_class_that_cannot_be_held_out_is_refused(home):
    parts = loaded(settings(home))
    one = dataclasses.replace(parts, groups=np.where(parts.examples.labels == 0, 0, 1 + np.arange(30)))
    with pytest.raises(DataError, match="single image or group"):
        split_into_folds(one, settings(home).data, folds=3)


@pytest.mark.slow
def test_the_labels_of_a_fold_change_none_of_its_predictions(home, tmp_path):
    config = settings(home)
    fold = split_into_folds(loaded(config), config.data, folds=3)[0]
    labels, held = fold.examples.labels.copy(), fold.rows("test")
    labels[held] = (labels[held] + 1) % 3
    lying = dataclasses.replace(fold, examples=dataclasses.replace(fold.examples, labels=labels))
    (one, warm, _), (other, as_warm, _) = (
        predict_fold(config, parts, FeatureCache.of(config), tmp_path / name)
        for name, parts in (("true", fold), ("false", lying))
    )
    assert (one.labels != other.labels).all()
    np.testing.assert_array_equal(one.logits, other.logits)
    assert warm == as_warm


def test_folds_share_the_features_of_the_frozen_part(home, tmp_path, monkeypatch):
    config = settings(home, cache=str(tmp_path / "cache"))
    parts, passed = loaded(config), []
    activations = features.activations
    monkeypatch.setattr(features, "activations", lambda f, d, *how: passed.append(len(d)) or activations(f, d, *how))
    base = build_backbone(config.backbone, 32)
    alone = probe_features(base, config, [parts.plain("train", config.data)], FeatureCache.of(config))[0]
    passed.clear()
    for fold in split_into_folds(parts, config.data, folds=3):
        train = fold.plain("train", config.data)
        again, _ = probe_features(base, config, [train], FeatureCache.of(config))
        assert again.shape[1] == len(train)
        both = np.isin(parts.rows("train"), fold.rows("train")), np.isin(fold.rows("train"), parts.rows("train"))
        np.testing.assert_array_equal(again[:, both[1]], alone[:, both[0]])
    assert passed == [30, 30], "each image once a view, for all folds"


def test_augmented_images_are_those_of_a_run_without_folds(home):
    config = settings(home)
    parts = loaded(config)
    fold = split_into_folds(parts, config.data, folds=3)[1]
    alone = dataclasses.replace(fold, pool=None)
    rows = np.arange(4)
    for epoch in (0, 3):
        one, other = (each.augmented("train", config).read(epoch, rows) for each in (fold, alone))
        np.testing.assert_array_equal(one, other)


def predictions(ids: list[str], logits: list[list[float]]) -> Predictions:
    return Predictions(np.array(ids), np.zeros(len(ids), np.int64), np.array(logits, np.float32), ("a", "b"))


def test_each_fold_is_calibrated_by_its_own_temperature():
    folds = [(predictions(["x"], [[2, 0]]), 2.0), (predictions(["y"], [[3, 0]]), 1.0)]
    np.testing.assert_allclose(pool_folds(folds).logits, [[1, 0], [3, 0]])
    np.testing.assert_allclose(pool_folds(folds, calibrated=False).logits, [[2, 0], [3, 0]])
    assert pool_folds(folds).groups is None


def test_predictions_of_one_image_are_one_witness():
    folds = [(predictions(["x", "y"], [[2, 0], [0, 1]]), 1.0), (predictions(["y", "x"], [[0, 1], [2, 0]]), 1.0)]
    pooled = pool_folds(folds)
    assert len(set(pooled.ids)) == 4 and pooled.groups.tolist() == ["x", "y", "y", "x"]
    assert np.mean(pooled.predicted == pooled.labels) == 0.5, "the mean of the two, and not of their probabilities"


@pytest.fixture(scope="module")
def finished(home) -> tuple[Path, dict]:
    """A cross-validation whose second fold was cut off, and which went on."""
    folder, config, begun = home / "finished", dataclasses.replace(settings(home), stages=()), []
    runs.write_text(folder / "config.toml", recipe.configuration.to_toml(config))

    def dies(*arguments):
        begun.append(arguments)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return fit_and_predict(*arguments)

    fit_and_predict = recipe.fit_and_predict
    with without_plots(), pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "fit_and_predict", dies)
        with contextlib.suppress(KeyboardInterrupt):
            cross_validate(config, folder, 3, 1, progress.Timer())
        assert sorted(path.name for path in folder.glob("fold-*")) == ["fold-01", "fold-02"]
        assert not (folder / "cross_validation.json").exists()
        scores = cross_validate(config, folder, 3, 1, progress.Timer())
    assert len(begun) == 4, "the first fold was kept"
    return folder, scores


@pytest.mark.slow
def test_the_report_is_of_all_images_out_of_fold(finished, home):
    folder, scores = finished
    pooled = Predictions.load(folder / "predictions.npz")
    assert sorted(pooled.ids) == sorted(f"{kind}/{n:02d}.png" for kind in CLASSES for n in range(10))
    assert scores["images"] == 30 and scores["accuracy"]["value"] == np.mean(pooled.predicted == pooled.labels)
    assert sum(fold["images"] for fold in scores["each"]) == 30
    with (folder / "folds.csv").open(newline="") as table:
        held = {row["id"]: row["part"] for row in csv.DictReader(table)}
    for number in (1, 2, 3):
        place = folder / f"fold-{number:02d}"
        mine, val = Predictions.load(place / "predictions.npz"), json.loads((place / "fold.json").read_text())
        assert {held[name] for name in mine.ids} == {place.name}
        where = [list(pooled.ids).index(name) for name in mine.ids]
        np.testing.assert_allclose(pooled.logits[where], mine.logits / val["temperature"], rtol=1e-6)
        with (place / "split.csv").open(newline="") as table:
            parts = {row["id"]: row["part"] for row in csv.DictReader(table)}
        assert {name for name, part in parts.items() if part == "test"} == set(mine.ids)
    text = (folder / "report.md").read_text()
    assert "cross-validated accuracy, 30 predictions of 30 images" in text and "| fold |" in text


@pytest.mark.slow
def test_other_images_do_not_go_on(finished, home, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    shutil.copytree(home / "images", tmp_path / "images")
    (tmp_path / "images" / "disc" / "00.png").unlink()
    config = settings(home)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "images")))
    with pytest.raises(DataError, match="have changed since(.|\n)*missing or unreadable: 'disc/00.png'"):
        cross_validate(config, folder, 3, 1, progress.Timer())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--folds", "1"], "--folds of 2 or more"),
        (["--head.droput=0.5"], "Did you mean 'head.dropout'?"),
        (["--data.path=nowhere"], "does not exist"),
        (["--resume", "nowhere"], "nowhere/folds.json"),
    ],
)
def test_what_cannot_be_is_said(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = call("cross_validate", *line)
    assert code not in {0, None} and words in said + str(code)
    assert not list(tmp_path.glob("runs/*")), "and no folder is left"
