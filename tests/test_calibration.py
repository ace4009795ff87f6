"""What is fitted is fitted on validation alone, and does what it says on images that it has not seen."""

import numpy as np
import pytest
from scipy.special import log_softmax

from template import runs
from template.evaluate.calibration import (
    calibrate,
    confidence_for,
    independent_counts,
    lower_bound,
    reliability,
    risk_coverage,
    selective_accuracy,
    temperature,
    threshold,
)
from template.evaluate.predictions import Predictions


def honest(n: int, seed: int, classes: int = 3, boast: float = 1.0) -> Predictions:
    """Labels drawn from the very probabilities that are predicted, which are then sharpened by `boast`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, classes))
    gumbel = rng.gumbel(size=(n, classes))  # the largest of logit + Gumbel noise is a draw from the softmax
    names = tuple(f"class{i}" for i in range(classes))
    return Predictions(
        np.arange(n).astype(str), (logits + gumbel).argmax(axis=1), (boast * logits).astype(np.float32), names
    )


@pytest.mark.parametrize("boast", [0.5, 1.0, 2.5])
def test_the_temperature_takes_back_what_was_boasted(boast):
    given = honest(20_000, 0, boast=boast)
    assert temperature(given.logits, given.labels) == pytest.approx(boast, rel=0.05)


def test_the_temperature_is_the_best_of_all_after_what_was_known_before():
    given = honest(300, 1, boast=3.0)
    rows, order = np.arange(300), np.argsort(given.logits, axis=1)
    rival = np.where(order[:, -1] == given.labels, order[:, -2], order[:, -1])

    def loss(t: float) -> float:
        logs = log_softmax(given.logits.astype(float) / t, axis=1)
        return -(301 * logs[rows, given.labels] + logs[rows, rival]).sum() / 302 + np.log(t) ** 2 / 2 / 0.5**2

    found = temperature(given.logits, given.labels)
    assert all(loss(found) <= loss(t) + 1e-6 for t in np.geomspace(0.05, 50, 200))


@pytest.mark.parametrize("boast", [0.4, 3.0])
def test_many_images_speak_for_themselves(boast):
    given = honest(2000, 1, boast=boast)

    def loss(t: float) -> float:
        return -log_softmax(given.logits.astype(float) / t, axis=1)[np.arange(2000), given.labels].mean()

    found = temperature(given.logits, given.labels)
    assert all(loss(found) <= loss(t) + 1e-3 for t in np.geomspace(0.05, 50, 200))


def judged(n: int, seed: int, distance: float, boast: float, wrong: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of three classes at a distance from each other, times `boast`; a part of the labels is drawn by lot."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += distance
    return boast * distance * logits, np.where(rng.random(n) < wrong, rng.integers(3, size=n), labels)


@pytest.mark.parametrize("images", [10, 24, 60])
@pytest.mark.parametrize("sure", [0.75, 0.9999])
def test_a_few_images_all_right_do_not_make_a_network_infallible(images, sure):
    """However the network sees itself, one image in so many may be wrong, and the temperature is not far from 1."""
    labels = np.arange(images) % 3
    logits = np.where(labels[:, None] == np.arange(3), np.log(2 * sure / (1 - sure)), 0.0).astype(np.float32)
    found = temperature(logits, labels)
    assert 0.3 < found < 4
    given = Predictions(labels.astype(str), labels, logits, ("a", "b", "c"))
    assert 1 - given.scaled(found).probabilities.max() > 0.1 / images
    assert calibrate(given, None)["temperature"] == pytest.approx(found, rel=1e-6)  # so sure is it, and not more


@pytest.mark.parametrize("n", [10, 24, 60, 200])
@pytest.mark.parametrize("boast", [0.25, 1.0, 4.0])
def test_a_temperature_of_few_images_costs_little_and_helps_where_there_is_evidence(n, boast):
    """Test cross-entropy against that without temperature, over networks that are 80 to 100 % right, and draws."""
    changes = []
    for distance in (1.5, 2.5, 4.0):
        for wrong in (0.0, 0.04):
            logits, labels = judged(2000, 99, distance, boast, wrong)
            test = Predictions(np.arange(2000).astype(str), labels, logits.astype(np.float32), ("a", "b", "c"))
            cross_entropy = {}
            for draw in range(8):
                t = temperature(*judged(n, draw, distance, boast, wrong))
                cross_entropy[t] = -np.log(test.scaled(t).probabilities[np.arange(2000), labels]).mean()
            plain = -np.log(test.probabilities[np.arange(2000), labels]).mean()
            changes.append([value - plain for value in cross_entropy.values()])
    assert np.max(changes) < 0.2 and np.mean(changes, axis=1).max() < 0.05
    assert np.mean(changes) < {0.25: -0.05, 1.0: 0.0, 4.0: -0.3}[boast]


def test_a_temperature_changes_no_answer():
    given = honest(200, 2)
    np.testing.assert_array_equal(given.scaled(4.2).predicted, given.predicted)
    assert given.scaled(4.2).probabilities.max(axis=1).mean() < given.probabilities.max(axis=1).mean()


def test_reliability_counts_each_image_once_and_tells_boasting_from_honesty():
    for given, sign in ((honest(30_000, 3), 0), (honest(30_000, 3, boast=3.0), 1)):
        bins = reliability(given)
        assert sum(b["images"] for b in bins) == 30_000
        confidences = [b["confidence"] for b in bins]
        assert confidences == sorted(confidences)
        gap = np.average([b["confidence"] - b["accuracy"]["value"] for b in bins], weights=[b["images"] for b in bins])
        assert gap == pytest.approx(0, abs=0.01) if sign == 0 else gap > 0.1


def test_a_threshold_for_a_target_precision_has_the_best_recall_that_keeps_it():
    evidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    positive = np.array([True, True, False, True, False, False])
    assert threshold(evidence, positive, precision=0.55) == pytest.approx(0.75)  # two of two
    assert threshold(evidence, positive, precision=0.43) == pytest.approx(0.55)  # three of four
    assert threshold(evidence, positive, precision=0.26) == pytest.approx(0.2)  # three of six: all
    assert threshold(evidence, positive, precision=0.56) is None, "so few cannot ensure it"
    many, often = np.repeat(evidence, 40), np.repeat(positive, 40)
    assert threshold(many, often, precision=0.98) == pytest.approx(0.75)  # 80 of 80
    assert threshold(many, often, precision=0.7) == pytest.approx(0.55)  # 120 of 160
    assert threshold(evidence, positive) == pytest.approx(0.55)  # F1 = 6/7, the best
    assert threshold(evidence[::-1], ~positive[::-1], precision=0.9) is None
    assert threshold(evidence, np.zeros(6, bool)) is None


def test_equal_evidence_is_answered_alike():
    assert threshold(np.array([0.8, 0.8, 0.2]), np.array([True, False, False]), precision=0.9) is None


def test_coverage_worked_by_hand():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.3, 0.7]]).astype(np.float32)
    given = Predictions(np.arange(4).astype(str), np.array([0, 1, 1, 1]), logits, ("a", "b"))
    confidences, shares, accuracies = risk_coverage(given)
    assert confidences == pytest.approx([0.9, 0.8, 0.7])  # the last two are equally sure, and answered together
    assert shares.tolist() == [0.25, 0.5, 1.0]
    assert accuracies == pytest.approx([1, 1, 0.75])
    assert confidence_for(given, 0.55) == pytest.approx(0.8)  # two of two
    assert confidence_for(given, 0.43) == pytest.approx(0.7)  # three of four
    assert confidence_for(given, 0.56) is None, "so few cannot ensure it"
    often = given.take(np.tile(np.arange(4), 15))
    assert confidence_for(often, 0.95) == pytest.approx(0.8)  # 30 of 30
    assert confidence_for(often, 0.65) == pytest.approx(0.7)  # 45 of 60
    assert confidence_for(often, 1.0) is None, "nothing can ensure that"
    found = selective_accuracy(given, 0.75)
    assert (found["coverage"]["value"], found["accuracy"]["value"]) == (0.5, 1.0)
    assert (
        selective_accuracy(given, 0.99)["accuracy"] is None
        and selective_accuracy(given, 0.99)["coverage"]["value"] == 0
    )
    wrong = Predictions(given.ids, 1 - given.labels, logits, ("a", "b"))
    assert confidence_for(wrong, 0.9) is None


def test_what_is_reached_exactly_is_reached():
    """A target, a precision, and the confidence of an image itself: at least, and not more than."""
    given = honest(40, 3)
    sure = Predictions(given.ids, given.predicted, given.logits, given.class_names)  # all right
    bound = float(lower_bound(np.array(40.0), np.array(40.0)))
    assert confidence_for(sure, bound) is not None and confidence_for(sure, bound + 1e-9) is None
    scores, positive = np.linspace(0.1, 0.9, 9), np.arange(9) > 4
    assert threshold(scores, positive, precision=float(lower_bound(np.float64(4), np.float64(4)))) == pytest.approx(
        0.55
    )
    lowest = float(given.probabilities.max(axis=1).min())
    assert selective_accuracy(given, lowest)["coverage"]["value"] == 1


@pytest.mark.parametrize(("n", "all_right"), [(2, 0.5519), (10, 0.8764), (27, 0.9516), (80, 0.9833)])
def test_the_lower_bound_of_so_many_correct_predictions(n, all_right):
    """By quantiles of the beta distribution worked out elsewhere; a threshold is there only if the bound reaches it."""
    assert lower_bound(n, n) == pytest.approx(all_right, abs=1e-4)
    given = Predictions(np.arange(n).astype(str), np.zeros(n, int), np.tile(np.float32([2, 1]), (n, 1)), ("a", "b"))
    assert confidence_for(given, all_right - 0.001) == pytest.approx(0.731, abs=1e-3)
    assert confidence_for(given, all_right + 0.001) is None


@pytest.mark.parametrize("n", [10, 24, 60, 200, 1000])
def test_the_accuracy_that_is_promised_is_kept(n):
    """Of many thresholds the one that looks best is partly luck, the more so the fewer images there are."""
    kept = []
    for distance in (1.0, 1.5, 2.5, 4.0):
        logits, labels = judged(4000, 99, distance, 1.0, 0.0)
        test = Predictions(np.arange(4000).astype(str), labels, logits.astype(np.float32), ("a", "b", "c"))
        for draw in range(25):
            few, true = judged(n, draw, distance, 1.0, 0.0)
            given = Predictions(np.arange(n).astype(str), true, few.astype(np.float32), ("a", "b", "c"))
            at = confidence_for(given, 0.95)
            kept += [] if at is None else [selective_accuracy(test, at)["accuracy"]["value"]]
    assert len(kept) > 25 if n > 30 else not kept
    assert not kept or (np.mean(kept) > 0.95 and np.mean(np.array(kept) < 0.93) < 0.1)


def test_what_was_chosen_on_validation_holds_on_test_images():
    val, test = honest(4000, 4, boast=2.0), honest(4000, 5, boast=2.0)
    found = calibrate(val, test)
    assert found["temperature"] == pytest.approx(2, rel=0.1)
    assert found["after"]["ece"]["high"] < found["before"]["ece"]["low"]
    assert found["after"]["cross_entropy"]["value"] < found["before"]["cross_entropy"]["value"]
    assert found["reject"]["accuracy"]["value"] == pytest.approx(0.95, abs=0.02)
    assert 0.2 < found["reject"]["coverage"]["value"] < 0.9
    for name, row in found["thresholds"].items():
        label = int(name[-1])
        yes = test.scaled(found["temperature"]).probabilities[:, label] >= row["threshold"]
        assert row["recall"]["value"] == pytest.approx(yes[test.labels == label].mean())
        assert row["precision"]["value"] == pytest.approx((test.labels == label)[yes].mean())


@pytest.mark.slow
def test_a_target_precision_holds_on_test_images():
    val, test = honest(4000, 11), honest(4000, 12)
    best, precise = calibrate(val, test), calibrate(val, test, precision=0.97)
    for name, row in precise["thresholds"].items():
        assert row["precision"]["value"] == pytest.approx(0.97, abs=0.02)
        assert row["precision"]["value"] > best["thresholds"][name]["precision"]["value"]
        assert 0 < row["recall"]["value"] < best["thresholds"][name]["recall"]["value"]


def test_test_images_decide_nothing():
    val = honest(500, 6, boast=2.0)
    one, other = calibrate(val, honest(500, 7)), calibrate(val, honest(500, 8, boast=0.2))
    assert one["temperature"] == other["temperature"]
    assert one["reject"]["confidence"] == other["reject"]["confidence"]
    for name in val.class_names:
        assert one["thresholds"][name]["threshold"] == other["thresholds"][name]["threshold"]
    assert one["before"] != other["before"]


def test_a_temperature_that_may_be_luck_is_not_taken():
    found = calibrate(honest(40, 0), honest(400, 9))
    assert found["temperature"] == 1.0 and found["before"] == found["after"]


def test_without_a_test_part_validation_is_measured():
    val = honest(300, 10)
    assert calibrate(val, None) == calibrate(val, val)


def test_nobody_is_sure_enough(tmp_path):
    """A coin cannot be 95 % right, and a class without validation images has no threshold."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    coin = Predictions(np.arange(400).astype(str), labels, np.zeros((400, 3), np.float32), ("a", "b", "c"))
    found = calibrate(coin, None)
    assert found["reject"] == {"target": 0.95, "confidence": None, "coverage": None, "accuracy": None}
    assert set(found["thresholds"]) == {"a", "b"}
    runs.write_json(tmp_path / "c.json", found)
    assert runs.read_json(tmp_path / "c.json") == found


@pytest.mark.parametrize(("groups", "enough"), [(None, True), (np.arange(60), True), (np.arange(60) // 15, False)])
def test_images_of_four_patients_ensure_no_more_than_four_images(groups, enough):
    """Sixty images, all right: for 95 % it takes 27 independent ones, and those of one patient count as one."""
    labels = np.arange(60) % 2
    logits = np.where(labels[:, None] == np.arange(2), np.linspace(2, 5, 60)[:, None], 0.0).astype(np.float32)
    given = Predictions(np.arange(60).astype(str), labels, logits, ("a", "b"), groups)
    found = calibrate(given, given, accuracy=0.95, precision=0.9)
    assert (found["reject"]["confidence"] is not None) == enough
    assert bool(found["thresholds"]) == enough


def test_what_the_reject_option_did_is_an_interval_of_groups():
    labels = np.arange(60) % 2
    logits = np.where(labels[:, None] == np.arange(2), 3.0, 0.0).astype(np.float32)
    given = Predictions(np.arange(60).astype(str), labels, logits, ("a", "b"), np.arange(60) // 15)
    assert selective_accuracy(given, 0.9)["accuracy"]["low"] == pytest.approx(0.5101, abs=1e-4)
    assert reliability(given)[0]["accuracy"]["low"] == pytest.approx(0.5101, abs=1e-4)


def test_independent_counts_worked_by_hand():
    evidence, at = np.array([0.9, 0.8, 0.8, 0.5]), np.array([0.5, 0.8, 0.9, 0.95])
    assert independent_counts(evidence, at).tolist() == [4, 3, 1, 0]
    assert independent_counts(evidence, at, groups=np.array(["a", "a", "b", "c"])).tolist() == [3, 2, 1, 0]
