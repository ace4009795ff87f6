"""Without [[stages]], what is trained follows from the pictures: the fewer, the less is touched."""

import numpy as np
import pytest

from template.config import Backbone, Config, Stage, Train
from template.model.backbones import BACKBONES
from template.suggest import refits, stages

LEAST, MOST = 8, 40
"""Epochs of a stage."""


def of(images: int, batch_size: int = 32, blocks: int = 13, levels: int = 1, **how: bool) -> tuple[Stage, ...]:
    return stages(images, batch_size, blocks, levels, **({"pretrained": True, "probed": True} | how))


@pytest.mark.parametrize("levels", [1, 2, 7])
@pytest.mark.parametrize("images", [1, 20, 199])
def test_with_few_pictures_the_probe_is_the_whole_training(images, levels):
    assert of(images, levels=levels) == ()


@pytest.mark.parametrize("images", [200, 1000, 1999])
def test_with_more_the_top_sixth_is_thawed(images):
    (stage,) = of(images, blocks=12)
    assert stage.unfreeze == 2
    assert not stage.only_if_gain, "nothing comes before it that could have gained"


@pytest.mark.parametrize("levels", [2, 7])
def test_far_from_imagenet_half_is_thawed_with_longer_steps_if_there_are_a_thousand_pictures(levels):
    assert of(999, levels=levels) == ()
    for images in (1000, 2000, 100_000):
        near, (far,) = of(images), of(images, levels=levels)
        assert far.unfreeze == 7  # of 13
        assert not far.only_if_gain
        assert far.learning_rate > 2 * near[0].learning_rate
        assert far.epochs >= near[0].epochs


@pytest.mark.parametrize("images", [2000, 100_000])
def test_with_thousands_half_follows_if_the_top_helped(images):
    first, deeper = of(images)
    assert (first.unfreeze, deeper.unfreeze) == (2, 7)
    assert not first.only_if_gain
    assert 0 < deeper.only_if_gain < 1


@pytest.mark.parametrize("images", [1, 199, 200, 5000])
@pytest.mark.parametrize("how", [{}, {"levels": 3}, {"probed": False}])
def test_from_scratch_everything_trains_at_once_however_few_pictures_there_are(images, how):
    (stage,) = of(images, **{"pretrained": False} | how)
    assert stage.unfreeze == "all"
    assert not stage.only_if_gain


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("images", [1, 199, 200, 999, 1000, 5000])
def test_without_a_probe_the_head_is_trained_before_anything_is_thawed(images, levels):
    head, *rest = of(images, levels=levels, probed=False)
    assert head.unfreeze == 0
    assert not head.only_if_gain
    assert tuple(rest) == of(images, levels=levels)


@pytest.mark.parametrize("how", [{}, {"levels": 4}, {"probed": False}, {"pretrained": False}])
@pytest.mark.parametrize("batch_size", [1, 32, 4096])
def test_epochs_lie_within_8_and_40_and_more_pictures_never_get_more(batch_size, how):
    sizes = [1, 2, 31, 32, 33, 199, 200, 201, 640, 1999, 2000, 2001, 10_000, 10**6, 10**8]
    chosen = [of(images, batch_size, **how) for images in sizes]
    assert all(LEAST <= stage.epochs <= MOST for some in chosen for stage in some)
    firsts = [some[0].epochs for some in chosen if some]
    assert len(firsts) > 5 and firsts == sorted(firsts, reverse=True)


def test_few_pictures_get_as_many_steps_in_more_epochs():
    steps = np.arange(1, 80)
    total = np.array([of(32 * int(n), pretrained=False)[0].epochs * int(n) for n in steps])
    between = (total > LEAST * steps) & (total < MOST * steps)  # where neither end of the range decides
    assert between.sum() > 20
    steps, total = steps[between], total[between]
    assert (total - steps).max() < total.min(), "a number of steps lies behind all, rounded up to whole epochs"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_has_the_blocks_that_are_to_be_thawed(name):
    blocks = BACKBONES[name].blocks
    for images in (200, 1000, 2000):
        for levels in (1, 2):
            assert all(1 <= stage.unfreeze <= blocks for stage in of(images, blocks=blocks, levels=levels))
    top, half = (stage.unfreeze for stage in of(2000, blocks=blocks))
    assert top < half, "a stage that thaws nothing more would be the first one again"


@pytest.mark.parametrize(
    ("final_fit", "weights", "images", "expected"),
    [
        ("auto", "imagenet", 100, True),
        ("auto", "imagenet", 4999, True),
        ("auto", "imagenet", 5000, False),
        ("auto", "none", 100, False),
        ("yes", "none", 9999, True),
        ("no", "imagenet", 100, False),
    ],
)
def test_few_pictures_are_all_learned_from_in_the_end(final_fit, weights, images, expected):
    config = Config(backbone=Backbone(weights=weights), train=Train(final_fit=final_fit))
    assert refits(config, images) is expected
