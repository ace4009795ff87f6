"""Every number equals scikit-learn's or one worked by hand; every interval means what it says."""

import numpy as np
import pytest
import sklearn.metrics
from scipy.special import softmax

from template import runs
from template.evaluate import metrics
from template.evaluate.predictions import Predictions

KEYS = ("accuracy", "top_k", "macro_f1", "cross_entropy")


def make(labels, logits, names=None) -> Predictions:
    logits = np.asarray(logits, np.float32)
    ids = np.array([f"{i:04d}" for i in range(len(logits))])
    names = names or tuple(f"class{i}" for i in range(logits.shape[1]))
    return Predictions(ids, np.asarray(labels, np.int64), logits, tuple(names))


def noisy(n: int, classes: int, signal: float, seed: int = 0) -> Predictions:
    """Unbalanced classes; predictions are right more often the stronger the signal."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = rng.choice(classes, n, p=share)
    return make(labels, rng.normal(size=(n, classes)) + signal * np.eye(classes)[labels])


def saying(labels, predicted, classes) -> Predictions:
    """Predictions that say just these classes."""
    return make(labels, 5 * np.eye(classes)[np.asarray(predicted)])


@pytest.mark.parametrize(
    "given",
    [noisy(300, 10, 1.0), noisy(200, 3, 2.0), noisy(100, 2, 1.0), noisy(40, 30, 0.5), noisy(7, 3, 0.0)],
    ids=["ten", "three", "two", "more-classes-than-seen", "few"],
)
def test_equals_scikit_learn(given):
    classes = range(len(given.class_names))
    found = metrics.score(given)
    y, probabilities, predicted = given.labels, given.probabilities, given.probabilities.argmax(axis=1)
    assert found["images"] == len(y)
    assert found["accuracy"]["value"] == pytest.approx(sklearn.metrics.accuracy_score(y, predicted), abs=1e-12)
    assert found["macro_f1"]["value"] == pytest.approx(sklearn.metrics.f1_score(y, predicted, average="macro"))
    log_loss = sklearn.metrics.log_loss(y, probabilities, labels=list(classes))
    assert found["cross_entropy"]["value"] == pytest.approx(log_loss, rel=1e-6)
    dummy = np.full(len(y), np.bincount(y).argmax())
    assert found["majority"] == pytest.approx(sklearn.metrics.accuracy_score(y, dummy))
    k = found["top_k"]["k"]
    assert k == min(5, len(classes) - 1)
    if len(classes) > 2:
        top_k = sklearn.metrics.top_k_accuracy_score(y, given.logits, k=k, labels=list(classes))
        assert found["top_k"]["value"] == pytest.approx(top_k)
    table = sklearn.metrics.classification_report(
        y, predicted, labels=list(classes), target_names=given.class_names, output_dict=True, zero_division=np.nan
    )
    for name in given.class_names:
        for ours, theirs in [("precision",) * 2, ("recall",) * 2, ("f1", "f1-score"), ("images", "support")]:
            value = found["classes"][name][ours]
            assert (np.nan if value is None else value) == pytest.approx(table[name][theirs], nan_ok=True), name
    counts = sklearn.metrics.confusion_matrix(y, predicted, labels=list(classes))
    assert metrics.confusion_counts(given).tolist() == counts.tolist()


def test_worked_by_hand():
    #                            right  right  a as b  b as a  right
    given = saying(labels=[0, 0, 0, 1, 2], predicted=[0, 0, 1, 0, 2], classes=3)
    found = metrics.score(given)
    assert metrics.confusion_counts(given).tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert found["accuracy"]["value"] == 3 / 5
    assert found["majority"] == 3 / 5
    # F1: class 0 = 4 / 6, class 1 = 0 / 2, class 2 = 2 / 2
    assert found["macro_f1"]["value"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["classes"]["class0"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "images": 3})
    right, wrong = -np.log(np.exp(5) / (np.exp(5) + 2)), -np.log(1 / (np.exp(5) + 2))
    assert found["cross_entropy"]["value"] == pytest.approx((3 * right + 2 * wrong) / 5)


def test_wilson_interval_worked_by_hand():
    # z = 1.95996: centre (0.9 + z^2/20) / (1 + z^2/10) = 0.78898, half width 0.19314 (Wilson 1927, equation for p)
    assert metrics.proportion(9, 10) == pytest.approx({"value": 0.9, "low": 0.59585, "high": 0.98212}, abs=2e-5)
    # Of none and of all, one end is z^2 / (n + z^2) = 0.27753 away: never an interval of no width.
    assert metrics.proportion(0, 10) == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.27753}, abs=1e-5)
    assert metrics.proportion(10, 10) == pytest.approx({"value": 1.0, "low": 0.72247, "high": 1.0}, abs=1e-5)


def test_bootstrap_on_counts_agrees_with_one_on_pictures():
    given = noisy(150, 4, 1.0)
    rng = np.random.default_rng(1)
    drawn = rng.integers(150, size=(20_000, 150))  # the plain way: draw pictures, and score them again
    pair = given.labels * 4 + given.predicted
    counts = np.stack([np.bincount(pair[rows], minlength=16).reshape(4, 4) for rows in drawn])
    scores = metrics.macro_f1(counts)
    found = metrics.score(given)["macro_f1"]
    # The ends of the middle 95 % of 2,000 draws have a Monte-Carlo error of about 0.06 standard deviations.
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.25 * scores.std())
    assert found["low"] < found["value"] < found["high"]


def test_bootstrap_of_the_cross_entropy_has_the_width_that_theory_gives():
    given = noisy(400, 3, 1.0)
    losses = -np.log(softmax(given.logits.astype(float), axis=1)[np.arange(400), given.labels])
    error = losses.std() / np.sqrt(400)  # of the mean; normal by the central limit theorem
    found = metrics.score(given)["cross_entropy"]
    expected = [losses.mean() - 1.96 * error, losses.mean() + 1.96 * error]
    assert [found["low"], found["high"]] == pytest.approx(expected, abs=0.3 * error)


def test_macro_f1_of_many_matrices_is_that_of_each():
    counts = np.random.default_rng(0).integers(0, 3, (20, 3, 3))
    for matrix, value in zip(counts, metrics.macro_f1(counts), strict=True):
        labels, predicted = np.repeat(np.argwhere(matrix >= 0), matrix.ravel(), axis=0).T
        assert value == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))


def test_a_class_never_predicted_counts_as_zero():
    found = metrics.score(saying([0, 0, 1, 1], [0, 0, 0, 0], classes=2))
    assert found["classes"]["class1"] == {"precision": None, "recall": 0.0, "f1": 0.0, "images": 2.0}
    assert found["macro_f1"]["value"] == pytest.approx((4 / 6 + 0) / 2)


def test_a_class_absent_from_pictures_and_predictions_is_left_out():
    found = metrics.score(saying([0, 0, 1, 1], [0, 0, 1, 0], classes=3))
    assert found["classes"]["class2"] == {"precision": None, "recall": None, "f1": None, "images": 0.0}
    assert found["macro_f1"]["value"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_class_absent_but_predicted_counts_as_zero():
    found = metrics.score(saying([0, 0, 1, 1], [0, 0, 1, 2], classes=3))
    assert found["classes"]["class2"] == {"precision": 0.0, "recall": None, "f1": 0.0, "images": 0.0}
    assert found["macro_f1"]["value"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_perfect_predictions():
    found = metrics.score(make(np.arange(60) % 6, 50 * np.eye(6)[np.arange(60) % 6]))
    for key in ("accuracy", "top_k", "macro_f1"):
        assert found[key]["value"] == found[key]["high"] == 1
    assert 0.9 < found["accuracy"]["low"] < 1, "sixty right ones do not prove that none will be wrong"
    assert found["cross_entropy"]["value"] == pytest.approx(0, abs=1e-9)


def test_random_predictions():
    rng = np.random.default_rng(0)
    found = metrics.score(make(rng.integers(10, size=2000), rng.normal(size=(2000, 10))))
    assert found["accuracy"]["low"] < 0.1 < found["accuracy"]["high"]
    assert found["top_k"]["low"] < 0.5 < found["top_k"]["high"]
    assert found["macro_f1"]["value"] == pytest.approx(0.1, abs=0.02)
    know_nothing = metrics.score(make(rng.integers(10, size=2000), np.zeros((2000, 10))))
    assert know_nothing["cross_entropy"]["value"] == pytest.approx(np.log(10))


def test_a_confident_mistake_costs_all_that_it_costs():
    # The probability of the truth is exp(-200), which a clip at 1e-15 would make five times better than it is.
    found = metrics.score(make([0, 1], [[0, 200], [0, 200]]))
    assert found["cross_entropy"]["value"] == pytest.approx(100)


def test_top_k_is_never_below_accuracy_also_where_logits_are_equal():
    found = metrics.score(make([0, 0, 1, 2], np.zeros((4, 3))))  # "of equal ones, the first" is predicted
    assert found["accuracy"]["value"] == 2 / 4
    assert found["top_k"]["value"] == 3 / 4  # the first two classes


def test_order_of_pictures_changes_nothing():
    given = noisy(120, 4, 1.0)
    rows = np.random.default_rng(1).permutation(120)
    before, after = (metrics.score(p) for p in (given, make(given.labels[rows], given.logits[rows])))
    for key in ("accuracy", "top_k", "macro_f1", "classes", "majority"):
        assert before[key] == after[key]
    assert_same_but_for_chance(before["cross_entropy"], after["cross_entropy"])


def test_order_of_classes_changes_nothing():
    given = noisy(120, 4, 1.0)
    order = np.array([2, 0, 3, 1])  # new index -> old index
    names = tuple(given.class_names[i] for i in order)
    before = metrics.score(given)
    after = metrics.score(make(np.argsort(order)[given.labels], given.logits[:, order], names))
    for key in KEYS:
        assert_same_but_for_chance(before[key], after[key])
    assert before["majority"] == after["majority"]
    for name in names:
        assert before["classes"][name] == pytest.approx(after["classes"][name])


def test_new_names_change_the_table_only():
    given = noisy(60, 3, 1.0)
    before, after = (metrics.score(p) for p in (given, make(given.labels, given.logits, ("x", "y", "z"))))
    assert list(after["classes"]) == ["x", "y", "z"]
    assert list(before["classes"].values()) == list(after["classes"].values())
    assert all(before[key] == after[key] for key in before if key != "classes")


def assert_same_but_for_chance(one: dict, other: dict) -> None:
    """Equal values; the ends of bootstrap intervals within a tenth of the width, about 3 Monte-Carlo errors."""
    assert one["value"] == pytest.approx(other["value"], rel=1e-9)
    width = one["high"] - one["low"]
    assert (one["low"], one["high"]) == pytest.approx((other["low"], other["high"]), abs=0.1 * width)


def test_the_same_seed_gives_the_same_intervals_and_another_does_not():
    given = noisy(60, 3, 1.0)
    assert metrics.score(given, seed=1) == metrics.score(given, seed=1)
    assert metrics.score(given, seed=1)["macro_f1"] != metrics.score(given, seed=2)["macro_f1"]


def test_intervals_narrow_with_the_square_root_of_the_number():
    few, many = (metrics.score(noisy(n, 3, 1.0)) for n in (100, 1600))
    for key in KEYS:
        ratio = (few[key]["high"] - few[key]["low"]) / (many[key]["high"] - many[key]["low"])
        assert ratio == pytest.approx(4, rel=0.3), key


def test_a_thousand_classes_fit_into_memory(monkeypatch):
    # All resampled confusion matrices at once would be 2,000 x 1,000 x 1,000 numbers: 16 GB.
    most = 0
    plain = metrics.macro_f1

    def macro_f1(counts):
        nonlocal most
        most = max(most, counts.nbytes)
        return plain(counts)

    monkeypatch.setattr(metrics, "macro_f1", macro_f1)
    monkeypatch.setattr(metrics, "RESAMPLES", 40)
    found = metrics.score(make(np.arange(1000), np.eye(1000)))
    assert found["accuracy"]["value"] == 1
    assert most < 2e8


def test_result_is_json(tmp_path):
    found = metrics.score(saying([0, 0, 1], [0, 0, 0], classes=3))  # with undefined scores
    runs.write_json(tmp_path / "metrics.json", found)
    assert runs.read_json(tmp_path / "metrics.json") == found


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "Received: 0, 0 without"), ([0, -1, 1], "Received: 3, 1 without"), ([-1], "Received: 1, 1 without")],
)
def test_nothing_to_score_is_an_error(labels, message):
    with pytest.raises(ValueError, match=f"at least one picture, all with labels. {message}"):
        metrics.score(make(labels, np.zeros((len(labels), 2))))
