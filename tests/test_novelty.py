"""An image that is like nothing in training is noticed, and one that is like it seldom is."""

import keras
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from template.config import Backbone, Config, Data, Head
from template.data.dataset import ArrayDataset
from template.deploy.novelty import FALSE_ALARMS, MOST, Novelty
from template.deploy.predictor import with_features
from template.disk import DamagedError
from template.model.build import build
from template.model_selection.auto import head_inputs
from template.train.features import FeatureCache


def around(center: int, n: int, seed: int, f: int = 32) -> np.ndarray:
    """Features near one direction."""
    return (np.eye(f)[center] + np.random.default_rng(seed).normal(0, 0.1, (n, f))).astype(np.float32)


def test_scores_are_cosine_distances_to_the_nearest_as_a_part_of_the_threshold():
    known, asked = around(0, 50, 0), np.concatenate([around(0, 9, 1), around(3, 9, 2)])
    fitted = Novelty.fit(known, np.arange(50))
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(known).kneighbors(asked)[0][:, 0]
    np.testing.assert_allclose(fitted.score(asked), nearest / fitted.threshold, rtol=5e-3)
    assert (fitted.score(asked)[:9] < 1.5).all() and (fitted.score(asked)[9:] > 3).all()
    assert fitted.score(7 * asked) == pytest.approx(fitted.score(asked), rel=1e-4), "length says nothing"


def test_as_many_of_the_same_kind_are_beyond_the_threshold_as_it_says():
    shares = []
    for seed in range(20):
        drawn = around(0, 400, seed)
        shares.append((Novelty.fit(drawn[:150], np.arange(150)).score(drawn[150:]) > 1).mean())
    assert FALSE_ALARMS / 2 < np.mean(shares) <= FALSE_ALARMS * 1.2


def test_copies_of_an_image_do_not_make_others_strange():
    drawn = around(0, 100, 5)
    twice = np.concatenate([drawn, drawn])
    fitted = Novelty.fit(twice, np.tile(np.arange(100), 2))
    assert fitted.threshold == pytest.approx(Novelty.fit(drawn, np.arange(100)).threshold, rel=0.02)
    assert Novelty.fit(twice, np.arange(200)).threshold < 0.01 * fitted.threshold, "which it would be without clusters"
    with pytest.raises(ValueError, match="at least two clusters"):
        Novelty.fit(drawn, np.zeros(100))


def test_it_is_small_saved_whole_and_damage_is_noticed(tmp_path):
    fitted = Novelty.fit(around(0, MOST + 500, 1, f=8), np.arange(MOST + 500))
    assert fitted.features.shape == (MOST, 8) and fitted.features.dtype == np.float16
    assert Novelty.load(tmp_path) is None, "a run of before has none"
    fitted.save(tmp_path)
    again = Novelty.load(tmp_path)
    assert again.threshold == fitted.threshold and (again.features == fitted.features).all()
    (tmp_path / "novelty.npz").write_bytes((tmp_path / "novelty.npz").read_bytes()[:400])
    with pytest.raises(DamagedError, match="novelty.npz"):
        Novelty.load(tmp_path)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(Head(), marks=pytest.mark.slow),
        Head(hidden=4, activation="maxout", gaussian_dropout=0.1, dropout=0.5),
    ],
)
def test_an_image_is_compared_by_what_its_like_were_kept_by(head, tmp_path):
    """A run keeps features from below a hidden layer; those of a new image must be the same ones."""
    keras.utils.set_random_seed(0)
    backbone = Backbone(name="tiny", weights="none")
    model, images = build(backbone, head, 32, [1, 1]), np.random.default_rng(0).uniform(0, 255, (6, 32, 32, 3))
    config = Config(data=Data(image_size=32), backbone=backbone, head=head, stages=())
    view = ArrayDataset(lambda _, rows: images[rows].astype(np.float32), np.zeros(6, np.int64))
    cache = FeatureCache.of(Config(data=Data(cache=str(tmp_path))))
    kept = Novelty.fit(head_inputs(model, config, [view], cache)[0], np.arange(6))
    _, features = with_features(model).predict(images.astype(np.float32), verbose=0)
    np.testing.assert_allclose(kept.score(features) * kept.threshold, 0, atol=2e-3)
