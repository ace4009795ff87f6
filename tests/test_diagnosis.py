"""The diagnosis names what is wrong where something is, and promises no more than the curve does."""

import numpy as np
import pytest

from template.evaluate.diagnosis import diagnose, disagreement, extrapolate, power_law
from template.evaluate.intervals import wilson_interval
from template.evaluate.predictions import Predictions
from template.suggest import OF_STAGES


@pytest.mark.parametrize(
    ("trained", "held_out", "verdict"),
    [
        ((70, 100), (68, 100), "underfitting"),
        ((85, 100), (70, 100), "underfitting"),  # two sixths of the errors are of things it was shown
        ((100, 100), (70, 100), "overfitting"),
        ((990, 1000), (850, 1000), "overfitting"),
        ((100, 100), (99, 100), "neither underfitting nor overfitting"),
        ((97, 100), (28, 30), "neither underfitting nor overfitting"),  # thirty images cannot tell
        ((200, 200), (23, 24), "neither underfitting nor overfitting"),  # nor can one of twenty-four
    ],
)
def test_the_larger_of_two_evils_is_named(trained, held_out, verdict):
    found = diagnose(trained, wilson_interval(*held_out))
    assert found.verdict == verdict and found.try_next
    assert f"{100 * trained[0] / trained[1]:.1f} % on training images" in found.because


def test_advice_is_of_settings_that_exist():
    from template import config as configuration

    for trained in (70, 100), (100, 100):
        for line in diagnose(trained, wilson_interval(69, 100)).try_next:
            for word in line.replace(",", " ").split():
                if "=" in word:
                    configuration.load(None, ["stages=[{}]", word])


@pytest.mark.parametrize("trained", [(70, 100), (100, 100)])
def test_a_run_without_gradient_steps_is_advised_nothing_that_would_have_no_effect(trained):
    found = diagnose(trained, wilson_interval(69, 100), staged=False)
    text, idle = " ".join(found.try_next), [f"{section}.{name}" for section in OF_STAGES for name in OF_STAGES[section]]
    assert found.verdict in {"underfitting", "overfitting"} and len(found.try_next) > 2
    assert not [key for key in (*idle, "stages.0.weight_decay", "stages.0.epochs") if key in text]


def test_the_interval_of_the_diagnosis_is_that_of_the_headline():
    assert (
        "69.0 % [12.0, 98.0] on held-out images" in diagnose((9, 9), {"value": 0.69, "low": 0.12, "high": 0.98}).because
    )


def test_a_power_law_is_found_again():
    sizes = np.array([25, 50, 100, 200, 250])
    a, b = power_law(sizes, 2.0 * sizes**-0.4)
    assert (a, b) == pytest.approx((2.0, 0.4))
    rng = np.random.default_rng(0)
    noisy = 2.0 * sizes**-0.4 * np.exp(rng.normal(0, 0.05, 5))
    assert power_law(sizes, noisy)[1] == pytest.approx(0.4, abs=0.1)


def test_no_law_promises_that_more_images_do_harm_or_that_no_errors_are_left():
    assert power_law(np.array([10, 20]), np.array([0.2, 0.3]))[1] == 0
    assert power_law(np.array([10, 20]), np.array([0.0, 0.0])) == (0.0, 0.0)
    assert power_law(np.array([10, 20]), np.array([0.2, 0.0])) == (0.0, 0.0)


def test_a_promise_is_what_the_law_says_of_twice_as_many():
    sizes = [25, 50, 100, 200, 400]
    found = extrapolate(sizes, [2.0 * n**-0.5 for n in sizes])
    assert (found["scale"], found["exponent"]) == pytest.approx((2.0, 0.5))
    assert found["twice"] == pytest.approx(2 / 400**0.5 - 2 / 800**0.5)
    assert extrapolate([10, 20], [0.2, 0.3])["twice"] == 0, "never that more images do harm"


def predicting(*predicted: int) -> Predictions:
    ids = np.arange(len(predicted)).astype(str)
    return Predictions(
        ids, np.zeros(len(predicted), np.int64), np.eye(3, dtype=np.float32)[list(predicted)], tuple("abc")
    )


def test_disagreement_is_the_mean_over_pairs():
    found = disagreement([predicting(0, 0, 1, 1), predicting(0, 0, 1, 2)])
    assert found["differ"]["value"] == 0.25 and found["both_wrong"]["value"] == 0.25
    # pairs differ on 1, 2 and 3 of ten images: on two of ten
    a, b, c = predicting(*[0] * 10), predicting(1, *[0] * 9), predicting(0, 1, 1, *[0] * 7)
    assert disagreement([a, b, c])["differ"]["value"] == pytest.approx(0.2)
    assert disagreement([a, a])["differ"]["value"] == 0 and disagreement([a, a])["differ"]["high"] > 0.2
