"""The convex first stage: the right penalty, no leak between views, and groups of features that are treated alike."""

import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from threadpoolctl import threadpool_limits

from template.evaluate.intervals import paired_z
from template.train import linear_probe as module
from template.train.linear_probe import Probe, fit_probe, folds


@pytest.fixture(autouse=True)
def every_second_strength(monkeypatch):
    """From strongest to weakest as before, in steps of ten; each strength is as many regressions."""
    monkeypatch.setattr(module, "STRENGTHS", module.STRENGTHS[::2])


def clouds(n: int, classes: int, signal: float, seed: int = 0, width: int = 20):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = generator.normal(size=(classes, width)) * signal
    return (centres[labels] + generator.normal(size=(n, width)) + 5).astype(np.float32), labels


def probabilities(probe: Probe, features: np.ndarray) -> np.ndarray:
    return softmax(features @ probe.kernel.astype(float) + probe.bias, axis=-1)


def by_scikit_learn(views: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities of the first view, by a regression on all views as they are, but for their mean and scale."""
    mean = views[0].mean(axis=0)
    scaled = (views - mean) / np.sqrt(np.mean((views[0] - mean) ** 2))
    reference = LogisticRegression(C=strength / len(views), tol=1e-7, max_iter=5000)
    reference.fit(np.concatenate(scaled), np.tile(labels, len(views)))
    return reference.predict_proba(scaled[0])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(
    ("n", "width", "views"), [(120, 20, 1), (24, 200, 1), (24, 200, 2), (24, 40, 2)],
    ids=["many images", "more features than images", "than views", "than images, but not than views"],
)  # fmt: skip
def test_it_is_the_regression_of_scikit_learn_in_the_units_of_the_features(classes, n, width, views):
    features, labels = clouds(n, classes, 0.4, width=width)
    noise = np.random.default_rng(1).normal(0, 0.3, (views, n, width))
    noise[0] = 0
    seen = (features + noise).astype(np.float32)
    probe = fit_probe(seen, labels, classes, seed=0)
    assert probe.kernel.shape == (width, classes) and probe.bias.shape == (classes,)
    assert probe.kernel.dtype == probe.bias.dtype == np.float32
    expected = by_scikit_learn(seen.astype(float), labels, probe.strength)
    assert np.abs(expected - 1 / classes).mean() > 0.02, "a test on guesses would say nothing"
    np.testing.assert_allclose(probabilities(probe, features), expected, atol=0.01)


@pytest.mark.parametrize(("n", "classes", "views", "signal"), [(60, 3, 2, 0.3), (45, 15, 1, 1.0), (40, 2, 1, 0.4)])
@pytest.mark.parametrize("width", [10, 100])
def test_strength_losses_and_accuracy_are_those_of_scikit_learn_on_the_whole_grid(n, classes, views, signal, width):
    features, labels = clouds(n, classes, signal * (20 / width) ** 0.5, width=width)
    seen = features + np.random.default_rng(1).normal(0, 0.5, (views, n, width)).astype(np.float32)
    probe = fit_probe(seen, labels, classes, seed=0, most_repeats=1)
    with threadpool_limits(1, "blas"):
        losses, accuracies = grid_by_scikit_learn(seen.astype(float), labels, folds(labels, classes, 0))
    best = int(np.argmin(losses))
    assert probe.strength == module.STRENGTHS[best]
    assert probe.cross_entropy == pytest.approx(losses[best], abs=2e-3)
    assert probe.accuracy == pytest.approx(accuracies[best], abs=0.01)


def grid_by_scikit_learn(views: np.ndarray, labels: np.ndarray, divisions: list) -> tuple[list[float], list[float]]:
    """Out-of-fold loss and accuracy at each strength, nothing spared and each fit from zero until nothing moves."""
    mean = views[0].mean(axis=0)
    scaled = (views - mean) / np.sqrt(np.mean((views[0] - mean) ** 2))
    losses, accuracies = [], []
    for strength in module.STRENGTHS:
        judged = []
        for inside, outside in divisions:
            model = LogisticRegression(C=strength / len(views), tol=1e-7, max_iter=5000)
            model.fit(np.concatenate(scaled[:, inside]), np.tile(labels[inside], len(views)))
            said = np.mean([model.predict_proba(view[outside]) for view in scaled], axis=0)
            right = said[np.arange(len(outside)), labels[outside]]
            judged.append(np.stack([-np.log(right), said.argmax(axis=1) == labels[outside]]))
        loss, accuracy = np.concatenate(judged, axis=1).mean(axis=1)
        losses.append(loss), accuracies.append(accuracy)
    return losses, accuracies


def test_nothing_warns_of_many_classes_of_few_images_or_of_features_that_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for signal, width in ((3.0, 100), (0.0, 5)):
            features, labels = clouds(80, 40, signal, width=width)
            fit_probe(features[None], labels, 40, seed=0)
        for nothing in (np.zeros((1, 12, 4), np.float32), np.ones((2, 12, 40), np.float32)):
            probe = fit_probe(nothing, np.arange(12) % 3, 3, seed=0)
            assert probe.cross_entropy == pytest.approx(np.log(3), abs=1e-3)


@pytest.mark.parametrize("low", range(10))
def test_the_strength_is_found_wherever_the_losses_are_lowest_and_few_are_asked(low):
    asked = []
    found = module._lowest(lambda number: asked.append(number) or abs(number - low), 10)
    assert found == low and len(set(asked)) <= 3 + abs(low - 5)


def test_dot_products_of_rows_say_the_same_as_the_rows(monkeypatch):
    features, labels = clouds(30, 3, 0.4, width=150)
    seen = np.stack([features, features[:, ::-1]])
    in_dots = fit_probe(seen, labels, 3, seed=0)
    init = module.Regression.__init__
    monkeypatch.setattr(
        module.Regression, "__init__", lambda self, *given: init(self, *given) or setattr(self, "products", None)
    )
    in_rows = fit_probe(seen, labels, 3, seed=0)
    assert in_dots.strength == in_rows.strength and in_dots.accuracy == in_rows.accuracy
    assert in_dots.cross_entropy == pytest.approx(in_rows.cross_entropy, abs=1e-3)
    np.testing.assert_allclose(probabilities(in_dots, features), probabilities(in_rows, features), atol=1e-3)


def test_the_units_of_a_group_of_features_change_nothing():
    features, labels = clouds(60, 3, 0.3, width=30)
    plain, widths = fit_probe(features[None], labels, 3, seed=0, widths=[10, 20]), [10, 20]
    for columns, units in ((slice(10, 30), 1000), (slice(0, 10), 1000), (slice(0, 10), 1e-3)):
        scaled = features.copy()
        scaled[:, columns] *= units
        probe = fit_probe(scaled[None], labels, 3, seed=0, widths=widths)
        assert probe.strength == plain.strength
        assert probe.cross_entropy == pytest.approx(plain.cross_entropy, abs=1e-3)
        np.testing.assert_allclose(probabilities(probe, scaled), probabilities(plain, features), atol=2e-3)
        together = fit_probe(scaled[None], labels, 3, seed=0)
        assert np.abs(probabilities(together, scaled) - probabilities(plain, features)).max() > 0.05


def test_the_width_of_a_group_of_features_changes_nothing():
    """A block of 190 units counts as much as one of 10: here they say the same, each nineteen times."""
    features, labels = clouds(60, 3, 0.3, width=20)
    wide = np.concatenate([np.tile(features[:, :10], 19), features[:, 10:]], axis=1)
    probe = fit_probe(features[None], labels, 3, seed=0, widths=[10, 10])
    again = fit_probe(wide[None], labels, 3, seed=0, widths=[190, 10])
    assert probe.strength >= 10 * module.STRENGTHS[0], "or the other could not be a tenth of it"
    assert again.strength == pytest.approx(probe.strength / 10)  # ten times the features, all of variance one
    np.testing.assert_allclose(probabilities(again, wide), probabilities(probe, features), atol=5e-3)


def test_one_group_is_what_no_groups_are():
    features, labels = clouds(60, 3, 0.5)
    one, none = fit_probe(features[None], labels, 3, seed=0, widths=[20]), fit_probe(features[None], labels, 3, seed=0)
    np.testing.assert_array_equal(one.kernel, none.kernel)


def test_a_feature_or_a_group_that_is_always_the_same_does_no_harm():
    features, labels = clouds(60, 3, 2.0)
    constant = np.concatenate([features, np.full((60, 5), 7, np.float32)], axis=1)
    for widths in (None, [20, 5]):
        probe = fit_probe(constant[None], labels, 3, seed=0, widths=widths)
        assert np.isfinite(probe.kernel).all() and np.isfinite(probe.bias).all()
        assert (probabilities(probe, constant).argmax(axis=1) == labels).mean() > 0.9


def test_noise_is_penalised_hard_and_signal_is_not():
    noise = fit_probe(clouds(60, 3, 0.0)[0][None], np.arange(60) % 3, 3, seed=0)
    signal = fit_probe(clouds(60, 3, 3.0)[0][None], np.arange(60) % 3, 3, seed=0)
    assert noise.strength < signal.strength
    assert noise.cross_entropy == pytest.approx(np.log(3), abs=0.02)  # as good as saying nothing
    assert signal.cross_entropy < 0.1 and signal.accuracy == 1


@pytest.mark.parametrize("width", [20, 400], ids=["few features", "enough to memorise each image"])
def test_the_cross_validated_accuracy_is_honest_about_noise_with_mirrored_views(width):
    """A view of a held-out image in the training folds would make noise look learnable."""
    noise, labels = clouds(90, 3, 0.0, width=width)
    views = np.stack([noise, noise + np.float32(0.01)])
    probe = fit_probe(views, labels, 3, seed=0)
    assert abs(probe.accuracy - 1 / 3) < 0.17  # 3 standard deviations of 90 guesses
    assert probe.cross_entropy > np.log(3) - 0.05
    assert (probabilities(probe, noise).argmax(axis=1) == labels).mean() > (0.9 if width == 400 else 0.4)


@pytest.mark.parametrize("width", [3, 100])
def test_what_held_out_images_are_said_to_be_does_not_depend_on_their_labels(monkeypatch, width):
    """With the other of two labels on all of them, in every view, their probabilities are the same."""
    monkeypatch.setattr(module, "STRENGTHS", np.array([0.1]))
    features, labels = clouds(40, 2, 0.3, width=width)
    halves = np.arange(20), np.arange(20, 40)
    monkeypatch.setattr(module, "folds", lambda *_: [halves, halves[::-1]])
    views = np.stack([features, features + np.float32(0.01)])
    before = fit_probe(views, labels, 2, seed=0).losses[halves[1]]
    labels[halves[1]] = 1 - labels[halves[1]]
    after = fit_probe(views, labels, 2, seed=0).losses[halves[1]]
    assert np.abs(np.exp(-before) - 0.5).mean() > 0.05, "guesses would not know of labels anyway"
    np.testing.assert_allclose(np.exp(-before) + np.exp(-after), 1, atol=1e-5)


@pytest.mark.parametrize(("n", "repeats"), [(60, 5), (300, 4), (600, 2), (1000, 1), (1200, 1)])
def test_few_images_are_divided_several_times_and_each_counts_once(monkeypatch, n, repeats):
    """A probe that knows nothing loses log 2 on every image, however often it was held out."""
    monkeypatch.setattr(module, "STRENGTHS", np.array([1e-4]))
    fits, solve = [], module.minimize
    monkeypatch.setattr(module, "minimize", lambda gram, y, *given: fits.append(len(y)) or solve(gram, y, *given))
    probe = fit_probe(np.zeros((1, n, 2), np.float32), np.arange(n) % 2, 2, seed=0)
    assert fits == [n * 4 // 5] * (5 * repeats) + [n]
    np.testing.assert_allclose(probe.losses, np.full(n, np.log(2)), atol=1e-6)
    assert probe.cross_entropy == pytest.approx(np.log(2)) and 0 <= probe.accuracy <= 1


@pytest.mark.parametrize(
    ("losses", "rivals", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0], [2.0, 4.0, 2.0, 4.0], 4.0),  # 2 less, deviation 1, so error 1/2
        ([2.0, 4.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], -4.0),
        ([0.0, 2.0], [2.0, 0.0], 0.0),
        ([1.0, 2.0], [2.0, 3.0], np.inf),
        ([1.0, 2.0], [1.0, 2.0], np.nan),
        ([1.0, 2.0], [np.nan, 0.0], np.inf),
        ([np.nan, 0.0], [1.0, 2.0], -np.inf),
        ([np.nan, 0.0], [np.nan, 2.0], -np.inf),
    ],
)
def test_the_lead_is_counted_in_standard_errors_of_the_difference(losses, rivals, expected):
    assert paired_z(np.array(losses), np.array(rivals)) == pytest.approx(expected, nan_ok=True)


def test_the_probabilities_judged_are_the_mean_of_those_of_the_views():
    features, labels = clouds(90, 3, 1.5)
    nonsense = np.random.default_rng(3).normal(5, 1, features.shape).astype(np.float32)
    alone = fit_probe(features[None], labels, 3, seed=0)
    both = fit_probe(np.stack([features, nonsense]), labels, 3, seed=0)
    assert both.cross_entropy > alone.cross_entropy + 0.1
    same = fit_probe(np.stack([features, features]), labels, 3, seed=0)
    assert same.cross_entropy == pytest.approx(alone.cross_entropy, abs=1e-6)


def test_a_class_of_one_image_can_still_be_fitted():
    features, labels = clouds(9, 2, 3.0)
    labels = np.array([0] * 8 + [1])
    probe = fit_probe(features[None], labels, 2, seed=0)
    assert np.isfinite(probe.kernel).all() and np.isnan(probe.accuracy) and np.isnan(probe.cross_entropy)


def patients(n: int, each: int, width: int = 200, classes: int = 2):
    """Features that know the patient and nothing of the class; all images of a patient have one label."""
    generator, who = np.random.default_rng(0), np.arange(n) // each
    features = generator.normal(size=(n // each, width))[who] + generator.normal(0, 0.1, (n, width))
    return features.astype(np.float32), who % classes, who


def test_features_that_know_the_patient_are_not_judged_on_images_of_patients_that_they_know():
    features, labels, who = patients(160, 8)
    fooled, honest = fit_probe(features[None], labels, 2, 0), fit_probe(features[None], labels, 2, 0, groups=who)
    assert fooled.accuracy == 1.0 and fooled.cross_entropy < 0.1
    assert abs(honest.accuracy - 0.5) < 0.23  # 2 standard deviations of 20 patients
    assert honest.cross_entropy > np.log(2) - 0.05
    assert honest.strength < fooled.strength, "what is memorised is worth nothing"


def test_without_groups_nothing_is_another_bit_for_bit():
    features, labels = clouds(60, 3, 0.3)
    alone, named = (fit_probe(features[None], labels, 3, 0, groups=g) for g in (None, np.arange(60)[::-1]))
    assert alone.kernel.tobytes() == named.kernel.tobytes() and alone.losses.tobytes() == named.losses.tobytes()
    divide = RepeatedStratifiedKFold(n_splits=5, n_repeats=5, random_state=7)
    for found, expected in zip(folds(labels, 3, 7, 5), divide.split(labels, labels), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("each", "classes"), [(2, 2), (7, 3), (12, 2)])
def test_no_fold_parts_a_group_and_every_image_is_judged_as_often(each, classes):
    _, labels, who = patients(each * 24, each, classes=classes)
    divisions = folds(labels, classes, 0, 3, who)
    assert divisions
    for inside, outside in divisions:
        assert not set(who[inside]) & set(who[outside])
        assert set(labels[inside]) == set(range(classes))
    judged = np.bincount(np.concatenate([outside for _, outside in divisions]), minlength=len(labels))
    assert (judged == judged[0]).all() and judged[0] in {1, 2, 3}
    again, other = folds(labels, classes, 0, 3, who), folds(labels, classes, 9, 3, who)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(divisions, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(divisions, other, strict=True))


def test_a_class_of_one_group_can_still_be_fitted_and_is_judged_by_nobody():
    features, labels, who = patients(60, 10)
    who[labels == 1] = 99
    probe = fit_probe(features[None], labels, 2, 0, groups=who)
    assert np.isfinite(probe.kernel).all() and np.isnan(probe.accuracy) and np.isnan(probe.losses).all()


def test_images_of_a_group_are_one_witness():
    generator = np.random.default_rng(0)
    less, groups = np.repeat(generator.normal(0.3, 1, 20), 10), np.repeat(np.arange(20), 10)
    alone = paired_z(-less, np.zeros(200))
    assert paired_z(-less, np.zeros(200), groups=groups) == pytest.approx(alone / np.sqrt(10))
    assert paired_z(-less, np.zeros(200), groups=np.arange(200)) == pytest.approx(alone)
    assert paired_z(np.zeros(4), np.ones(4), groups=np.array([0, 0, 1, 1])) == np.inf


def test_views_do_not_change_the_weight_of_a_image():
    features, labels = clouds(120, 3, 0.7)
    once, twice = (fit_probe(np.stack([features] * views), labels, 3, seed=0) for views in (1, 2))
    np.testing.assert_allclose(once.kernel, twice.kernel, atol=0.01)


def test_it_is_a_function_of_the_features_and_the_seed():
    features, labels = clouds(45, 3, 0.3)
    one, same, other = (fit_probe(features[None], labels, 3, seed=seed) for seed in (0, 0, 1))
    assert one.kernel.tobytes() == same.kernel.tobytes() and one.cross_entropy == same.cross_entropy
    assert other.cross_entropy != one.cross_entropy  # other folds
