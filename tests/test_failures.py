"""The images to look at first, and what the errors have in common where they have something in common."""

import numpy as np
import pytest

from template.evaluate.failures import folders, least_confident, most_confident_errors, slices
from template.evaluate.predictions import Predictions


def given(probabilities, labels) -> Predictions:
    logits = np.log(np.asarray(probabilities)).astype(np.float32)
    names = tuple(f"class{i}" for i in range(logits.shape[1]))
    return Predictions(np.arange(len(labels)).astype(str), np.asarray(labels), logits, names)


FOUR = given([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.55, 0.45]], [1, 1, 1, 0])


def test_the_most_confident_errors_come_first_and_no_right_answer_is_among_them():
    assert most_confident_errors(FOUR, 9).tolist() == [0, 1]
    assert most_confident_errors(FOUR, 1).tolist() == [0]
    assert most_confident_errors(given([[0.9, 0.1]], [0]), 9).tolist() == []


def test_the_least_sure_come_first_right_or_wrong():
    assert least_confident(FOUR, 3).tolist() == [3, 1, 2]
    assert least_confident(given([[1.0], [1.0]], [0, 0]), 3).tolist() == []
    close = given([[0.5, 0.3, 0.2], [0.02, 0.47, 0.51], [0.4, 0.3, 0.3]], [0, 0, 0])
    assert least_confident(close, 3).tolist() == [2, 0, 1], "by confidence, as the title says, and not by the margin"


def test_a_slice_that_fails_is_found_and_others_are_not():
    rng = np.random.default_rng(0)
    brightness, camera = rng.random(600), rng.choice(["left", "right"], 600)
    wrong = np.where(brightness < 1 / 3, rng.random(600) < 0.4, rng.random(600) < 0.05)
    table = slices(given(np.where(wrong[:, None], [[0.1, 0.9]], [[0.9, 0.1]]), np.zeros(600, int)),
                   {"brightness": brightness, "camera": camera})  # fmt: skip
    assert [(row["fact"], row["images"]) for row in table][:3] == [("brightness", 200)] * 3
    third = wrong[np.argsort(brightness)[:200]]
    assert table[0]["differs"] and table[0]["error"]["value"] == pytest.approx(third.mean())
    assert sum(row["images"] for row in table if row["fact"] == "camera") == 600
    assert not any(row["differs"] for row in table if row["fact"] == "camera")
    assert {row["slice"] for row in table if row["fact"] == "camera"} == {"left", "right"}


def test_what_all_have_in_common_is_no_slice():
    assert slices(FOUR, {"width": np.full(4, 640.0), "camera": np.array(["one"] * 4)}) == []


def test_folders_are_those_above_the_class():
    ids = np.array(["photos/berlin/cat/1.jpg", "photos/rome/cat/1.jpg", "cat/2.jpg", "digits/0001"])
    assert folders(ids).tolist() == ["photos/berlin", "photos/rome", ".", "."]
