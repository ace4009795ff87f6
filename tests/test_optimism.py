"""The best of many candidates that are all alike has gained nothing; one that is better has."""

import numpy as np

from template.evaluate.optimism import corrected


def noise(candidates: int, n: int, seed: int = 0) -> np.ndarray:
    """Losses of candidates that are equally good, as they would be on infinitely many images."""
    generator = np.random.default_rng(seed)
    return generator.gamma(1.0, 0.5, n) + generator.normal(0, 0.3, (candidates, n))


def test_luck_is_told_from_gain():
    """Over 20 searches: the apparent gain is always above zero, the corrected one is not, and its interval knows."""
    found = [corrected(noise(30, 100, seed), 0, seed=seed) for seed in range(20)]
    assert np.mean([one["apparent_gain"]["value"] for one in found]) > 0.05
    assert abs(np.mean([one["gain"]["value"] for one in found])) < 0.02
    assert np.mean([one["gain"]["low"] <= 0 for one in found]) >= 0.95, "no real gain"
    assert all(one["optimism"] > 0 for one in found)


def test_a_real_gain_is_seen():
    losses = noise(10, 300)
    losses[4] -= 0.3
    found = corrected(losses, 0)
    assert found["best"] == 4 and found["gain"]["low"] > 0
    assert abs(found["gain"]["value"] - found["apparent_gain"]["value"]) < 0.02, "nothing else is ever selected"


def test_without_another_candidate_there_is_no_gain():
    found = corrected(noise(1, 50), 0)
    assert found["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0} and found["optimism"] == 0


def test_images_of_a_group_are_drawn_together():
    """Ten groups of ten equal images are as ten images."""
    few = noise(5, 10)
    alone, together = corrected(few, 0), corrected(np.repeat(few, 10, axis=1), 0, groups=np.repeat(np.arange(10), 10))
    for key in ("value", "low", "high"):
        assert np.isclose(alone["gain"][key], together["gain"][key])


def test_what_selects_may_be_another_loss_than_what_judges():
    losses, errors = noise(3, 200), np.zeros((3, 200))
    losses[2] -= 1
    errors[0, :50] = 1
    found = corrected(errors, 0, by=losses)
    assert found["best"] == 2 and np.isclose(found["apparent_gain"]["value"], 0.25)
