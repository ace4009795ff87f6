"""A tree of classes is seen where there is one, is measured at each level, and answered at the level that is sure."""

import dataclasses

import numpy as np
import pytest

from template.evaluate import metrics
from template.evaluate.calibration import calibrate, coarser_answers, confidence_for
from template.evaluate.levels import at_level
from template.evaluate.predictions import Predictions
from template.evaluate.tree import coarser_levels, describe, sure_answer

PETS = ("cat", "dog/husky", "dog/poodle", "dog/terrier", "fish/fresh/carp", "fish/fresh/pike", "fish/salt/cod")


def levels_of(names) -> list[list[tuple[str, list[str]]]]:
    """Of each level, its nodes with their classes."""
    return [
        [(node, [names[i] for i in np.flatnonzero(level.nodes == at)]) for at, node in enumerate(level.names)]
        for level in coarser_levels(names)
    ]


def test_levels_are_what_stands_before_a_slash():
    first, second = levels_of(PETS)
    assert first == [("cat", ["cat"]), ("dog", [*PETS[1:4]]), ("fish", [*PETS[4:]])]
    assert second == [
        ("cat", ["cat"]),
        *((name, [name]) for name in PETS[1:4]),
        ("fish/fresh", [*PETS[4:6]]),
        ("fish/salt", ["fish/salt/cod"]),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "dog"),
        ("and/or", "n/a", "cat"),  # each its own
        ("photos/cat", "photos/dog"),  # one has all
        ("a", "a/b"),
        ("/x", "/y", "//"),
        (),
    ],
)
def test_what_groups_no_classes_is_no_tree(names):
    assert coarser_levels(names) == []
    said = " ".join(describe(names))
    assert "are no tree" in said if any("/" in name for name in names) else said == ""


def test_it_is_said_what_was_recognised():
    assert [*describe(("cat", "dog/husky", "dog/poodle"))] == [
        "class names are a tree: 2 at level 1 above 3 classes; at the first cat (1), dog (2)"
    ]
    assert any("'dog' is also above others ('dog/husky'" in line for line in describe(("cat", "dog", "dog/husky")))


def guess(n: int, seed: int, names=PETS, within: float = 1.0) -> Predictions:
    """Labels drawn from the very probabilities that are predicted; logits of a node's classes differ by `within`."""
    rng = np.random.default_rng(seed)
    level = coarser_levels(names)[0] if coarser_levels(names) else None
    above = rng.normal(scale=4, size=(n, len(level.names)))[:, level.nodes] if level else 0
    logits = above + rng.normal(scale=within, size=(n, len(names)))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Predictions(np.arange(n).astype(str), labels, logits.astype(np.float32), tuple(names))


def test_accuracy_at_a_level_is_of_summed_probabilities():
    given = guess(300, 0)
    scores = metrics.score(given)
    for level, row in zip(coarser_levels(PETS), scores["levels"], strict=True):
        sums = np.stack([given.probabilities[:, level.nodes == at].sum(axis=1) for at in range(len(level.names))], 1)
        right = [sums[i].argmax() == level.nodes[label] for i, label in enumerate(given.labels)]
        assert row["accuracy"]["value"] == np.mean(right)
        assert row["accuracy"]["low"] < np.mean(right) < row["accuracy"]["high"]
        assert row["names"] == list(level.names)
        np.testing.assert_allclose(at_level(given, level).probabilities, sums, atol=1e-6)
    first, second = (row["accuracy"]["value"] for row in scores["levels"])
    assert first > second > scores["accuracy"]["value"]


def test_a_node_may_win_whose_classes_all_lose():
    logits = np.log([[0.4, 0.3, 0.3]]).astype(np.float32)
    given = Predictions(np.array(["1"]), np.array([1]), logits, ("cat", "dog/husky", "dog/poodle"))
    (row,) = metrics.score(given)["levels"]
    assert given.predicted == 0 and row["accuracy"]["value"] == 1


def test_flat_names_are_scored_as_ever():
    given = guess(200, 1, names=("cat", "dog", "and/or"))
    assert "levels" not in metrics.score(given) and "levels" not in calibrate(given, None)


def test_a_level_has_no_label_where_the_image_has_none():
    given = guess(5, 2)
    unknown = dataclasses.replace(given, labels=np.array([-1, 0, 1, -1, 4]))
    assert at_level(unknown, coarser_levels(PETS)[0]).labels.tolist() == [-1, 0, 1, -1, 2]


@pytest.mark.parametrize("accuracy", [0.9, 0.95])
def test_answers_at_all_levels_are_as_right_as_was_promised(accuracy):
    """Of validation images the thresholds, of others the share of right answers; and more are answered than without."""
    val, test = guess(4000, 3), guess(4000, 4)
    confidence = confidence_for(val, accuracy)
    rows = coarser_answers(val, test, accuracy=accuracy, confidence=confidence)
    answers = [sure_answer(p, PETS, confidence, [row["confidence"] for row in rows]) for p in test.probabilities]
    right = [
        answer is not None and (PETS[label] == answer[0] or PETS[label].startswith(f"{answer[0]}/"))
        for answer, label in zip(answers, test.labels, strict=True)
    ]
    answered = np.array([answer is not None for answer in answers])
    assert np.array(right)[answered].mean() == pytest.approx(accuracy, abs=0.02)
    assert not answered.all()
    sure = (test.probabilities.max(axis=1) >= confidence).mean()
    coverage = [row["coverage"]["value"] for row in rows]
    assert answered.mean() == pytest.approx(sure + sum(coverage)) and sum(coverage) > 0.1
    at_first = [answer is not None and answer[0] in {"dog", "fish"} for answer in answers]
    assert np.mean(np.array(right)[at_first]) == pytest.approx(rows[0]["accuracy"]["value"], abs=0.05)


def test_an_answer_is_the_finest_that_is_sure():
    names = ("cat", "dog/husky", "dog/poodle")
    assert sure_answer(np.array([0.1, 0.8, 0.1]), names, 0.7, [0.85]) == ("dog/husky", 0.8)
    assert sure_answer(np.array([0.1, 0.5, 0.4]), names, 0.7, [0.85]) == ("dog", pytest.approx(0.9))
    assert sure_answer(np.array([0.4, 0.3, 0.3]), names, 0.7, [0.85]) is None
    assert sure_answer(np.array([0.1, 0.8, 0.1]), names, None, [0.85]) == ("dog", pytest.approx(0.9))
    assert sure_answer(np.array([0.0, 1.0, 0.0]), names, None, [None]) is None


def test_where_parents_are_as_hard_as_classes_nothing_is_promised():
    """Coin tosses between nodes: no threshold above the classes, and so no answer."""
    names = ("a/x", "a/y", "b/x", "b/y")
    labels = np.random.default_rng(5).integers(4, size=400)
    given = Predictions(np.arange(400).astype(str), labels, np.zeros((400, 4), np.float32), names)
    (row,) = calibrate(given, None)["levels"]
    assert row == {"confidence": None, "coverage": row["coverage"], "accuracy": None}
    assert row["coverage"]["value"] == 0
