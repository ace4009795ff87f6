"""Two runs differ where they differ, and not by luck; and what cannot be compared is refused with the reason."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import call
from scipy.stats import binom

from template.evaluate import intervals
from template.evaluate.compare import NAMES, align, compare, compare_accuracy, holm
from template.evaluate.predictions import Predictions


def predicting(labels, predicted, classes: int = 3) -> Predictions:
    logits = 4 * np.eye(classes, dtype=np.float32)[np.asarray(predicted)]
    names = tuple(f"class{i}" for i in range(classes))
    return Predictions(np.array([f"{i:04d}" for i in range(len(labels))]), np.asarray(labels), logits, names)


def right_on(mask) -> Predictions:
    labels = np.arange(len(mask)) % 3
    return predicting(labels, np.where(mask, labels, (labels + 1) % 3))


def test_mcnemar_worked_by_hand():
    """Only the first right on 1, only the second on 8: p = 2 (C(9,0) + C(9,1)) / 2^9."""
    both = [True] * 20
    first, second = right_on([*both, True] + [False] * 8), right_on([*both, False] + [True] * 8)
    found = compare(first, second)["mcnemar"]
    assert (found["only_first"], found["only_second"]) == (1, 8)
    assert found["p"] == pytest.approx(20 / 512) == pytest.approx(2 * binom.cdf(1, 9, 0.5))


def test_a_run_does_not_differ_from_itself():
    one = right_on(np.random.default_rng(0).random(100) < 0.7)
    found = compare(one, one)
    assert found["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1.0}
    for name in NAMES:
        assert found[name]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_difference_is_paired():
    """Of two that err on nearly the same images the difference is known far better than either score."""
    rng = np.random.default_rng(1)
    mask = rng.random(400) < 0.7
    better = mask.copy()
    better[np.flatnonzero(~mask)[:20]] = True
    found = compare(right_on(mask), right_on(better))["accuracy"]
    assert found["difference"]["value"] == pytest.approx(0.05)
    assert 0.02 < found["difference"]["low"] < found["difference"]["high"] < 0.08
    back = compare(right_on(better), right_on(mask))["accuracy"]["difference"]
    assert back["low"] == pytest.approx(-found["difference"]["high"])


@pytest.fixture(scope="module")
def equals() -> list[dict]:
    """Comparisons of two independent runs of one quality, 60 times, each of fewer bootstrap samples than usual."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intervals, "RESAMPLES", 300)
        return [compare(*equal_runs(seed)) for seed in range(60)]


def equal_runs(seed: int) -> list[Predictions]:
    """Two independent runs of one quality on 200 images."""
    rng = np.random.default_rng(seed)
    labels, ids = rng.integers(3, size=200), np.arange(200).astype(str)
    logits = [(rng.normal(size=(200, 3)) + 1.5 * np.eye(3)[labels]).astype(np.float32) for _ in range(2)]
    return [Predictions(ids, labels, each, ("a", "b", "c")) for each in logits]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_equal_runs_are_found_equal_about_as_often_as_promised(name, equals):
    """The interval of the difference holds zero mostly."""
    held = sum(found[name]["difference"]["low"] <= 0 <= found[name]["difference"]["high"] for found in equals)
    assert held >= 52  # of 60 at 95 %, fewer happen once in 300 times


def test_groups_are_drawn_whole():
    rng = np.random.default_rng(2)
    mask, other = np.repeat(rng.random(20) < 0.6, 20), np.repeat(rng.random(20) < 0.7, 20)
    plain = compare(right_on(mask), right_on(other))["accuracy"]["difference"]
    groups = np.repeat(np.arange(20), 20)
    both = [dataclasses.replace(right_on(m), groups=groups) for m in (mask, other)]
    grouped = compare(*both)["accuracy"]["difference"]
    assert grouped["high"] - grouped["low"] > 2 * (plain["high"] - plain["low"])


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(20), 20)])
def test_the_accuracy_alone_is_compared_as_among_all_scores(groups):
    rng = np.random.default_rng(6)
    masks = [rng.random(400) < share for share in (0.7, 0.8)]
    first, second = (dataclasses.replace(right_on(mask), groups=groups) for mask in masks)
    found, alone = compare(first, second), compare_accuracy(first, second)
    assert alone["mcnemar"] == found["mcnemar"]
    assert alone["difference"] == pytest.approx(found["accuracy"]["difference"])


@pytest.mark.parametrize(
    "has",
    [
        pytest.param((True, False), marks=pytest.mark.slow),
        pytest.param((False, True), marks=pytest.mark.slow),
        (True, "under other names"),
    ],
)
def test_groups_that_one_run_knows_of_hold_for_both(has):
    """Otherwise the two are drawn differently, and images of one patient count as so many patients."""
    rng = np.random.default_rng(2)
    mask = np.repeat(rng.random(20) < 0.6, 20)
    other = mask ^ (rng.random(400) < 0.03)
    groups = np.repeat(np.array([f"patient {i}" for i in range(20)]), 20)
    names = {True: groups, False: None, "under other names": np.array([g[::-1] for g in groups])}
    first, second = (
        dataclasses.replace(right_on(m), groups=names[known]) for m, known in zip((mask, other), has, strict=True)
    )
    both = [dataclasses.replace(right_on(m), groups=groups) for m in (mask, other)]
    assert compare(first, second)["accuracy"] == compare(*both)["accuracy"]
    assert compare(*align([first, second]))["accuracy"]["difference"] == compare(*both)["accuracy"]["difference"]
    spread = compare(first, second)["accuracy"]["difference"]
    assert spread["high"] - spread["low"] < 0.1, "paired"


def test_two_lucky_patients_are_no_evidence():
    """The second is right on all 40 images of two patients more; by chance half of all pairs of patients are."""
    mask = np.zeros(400, bool)
    other = mask.copy()
    other[:40] = True
    groups = np.repeat(np.arange(20), 20)
    assert compare(right_on(mask), right_on(other))["mcnemar"]["p"] < 1e-9
    first, second = right_on(mask), dataclasses.replace(right_on(other), groups=groups)
    assert compare(first, second)["mcnemar"]["p"] == pytest.approx(0.5, abs=0.03)
    alone = dataclasses.replace(second, groups=np.arange(400))
    assert compare(first, alone)["mcnemar"]["p"] == pytest.approx(1e-4)


def test_images_are_matched_by_their_ids():
    one = right_on(np.random.default_rng(3).random(50) < 0.7)
    shuffled = one.take(np.random.default_rng(4).permutation(50))
    again = align([one, shuffled])[1]
    for field in ("ids", "labels", "logits"):
        np.testing.assert_array_equal(getattr(again, field), getattr(one, field))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.take(range(40)), r"Number 2 lacks 10 of 50, such as '0040', and has 0 others"),
        (lambda p: dataclasses.replace(p, ids=np.array([f"x{i}" for i in range(50)])), "lacks 50 of 50"),
        (lambda p: dataclasses.replace(p, class_names=("a", "b", "c")), "Received in number 2"),
        (lambda p: dataclasses.replace(p, labels=(p.labels + (p.ids == "0003")) % 3), "1 images have another label"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    one = right_on(np.ones(50, bool))
    with pytest.raises(ValueError, match=message):
        align([one, change(one)])


def test_several_comparisons_need_stronger_evidence():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_the_script_says_who_is_better_and_when_nobody_is(tmp_path):
    rng = np.random.default_rng(5)
    mask = rng.random(300) < 0.7
    better, other = mask | (rng.random(300) < 0.5), np.roll(mask, 1)
    for name, right in (("one", mask), ("better", better), ("other", other)):
        (tmp_path / name).mkdir()
        right_on(right).save(tmp_path / name / "predictions.npz")
    runs = tmp_path / "one", tmp_path / "better", tmp_path / "other" / "predictions.npz"
    code, said = call("compare", *runs, "--out", tmp_path / "c.json")
    assert code == 0, said
    parts = said.split("\n\n")
    assert "300 images" in parts[0]
    assert "this run is more accurate" in parts[1] and "no significant difference" not in parts[1]
    assert "no significant difference in accuracy" in parts[2]
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["others"][0]["accuracy"]["difference"]["low"] > 0
    assert saved["others"][0]["p_corrected"] < 0.05 < saved["others"][1]["p_corrected"]


def test_the_script_refuses_in_plain_words(tmp_path):
    right_on(np.ones(6, bool)).save(tmp_path / "a.npz")
    right_on(np.ones(9, bool)).save(tmp_path / "b.npz")
    for arguments, message in (
        ([tmp_path / "a.npz", tmp_path / "none"], "holds no predictions"),
        ([tmp_path / "a.npz", tmp_path / "b.npz"], "and has 3 others"),
        ([tmp_path / "a.npz"], "at least two runs"),
    ):
        code, said = call("compare", *arguments)
        assert code and message in f"{code}\n{said}"
