"""Without [[stages]], what is trained follows from the images: the fewer, the less is touched."""

import dataclasses

import numpy as np
import pytest

from template import config as configuration
from template.config import TTA, Augment, Backbone, Config, Data, Evaluate, Head, Stage, Train
from template.data.dataset import ArrayDataset
from template.model.backbones import BACKBONES
from template.model_selection.depth import choose_stages
from template.suggest import OF_STAGES, STEPS, depths, of_probe, refits, settings_without_effect, stages

LEAST, MOST = 8, 40
"""Epochs of a stage."""


def of(images: int, batch_size: int = 32, blocks: int = 13, feature_levels: int = 1, **how: bool) -> tuple[Stage, ...]:
    how = {"pretrained": True, "probed": True} | how
    return stages(images, Train(batch_size=batch_size), blocks, feature_levels, **how)


@pytest.mark.parametrize("feature_levels", [1, 2, 7])
@pytest.mark.parametrize("images", [1, 20, 199])
def test_with_few_images_the_probe_is_the_whole_training(images, feature_levels):
    assert of(images, feature_levels=feature_levels) == ()


@pytest.mark.parametrize("images", [200, 1000, 1999])
def test_with_more_the_top_sixth_is_unfrozen(images):
    (stage,) = of(images, blocks=12)
    assert stage.unfreeze == 2
    assert not stage.only_if_gain, "nothing comes before it that could have gained"


@pytest.mark.parametrize("feature_levels", [2, 7])
def test_far_from_imagenet_half_is_unfrozen_with_longer_steps_if_there_are_a_thousand_images(feature_levels):
    assert of(999, feature_levels=feature_levels) == ()
    for images in (1000, 2000, 100_000):
        near, (far,) = of(images), of(images, feature_levels=feature_levels)
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
@pytest.mark.parametrize("how", [{}, {"feature_levels": 3}, {"probed": False}])
def test_from_scratch_everything_trains_at_once_however_few_images_there_are(images, how):
    (stage,) = of(images, **{"pretrained": False} | how)
    assert stage.unfreeze == "all"
    assert not stage.only_if_gain


@pytest.mark.parametrize("feature_levels", [1, 3])
@pytest.mark.parametrize("images", [1, 199, 200, 999, 1000, 5000])
def test_without_a_probe_the_head_is_trained_before_anything_is_unfrozen(images, feature_levels):
    head, *rest = of(images, feature_levels=feature_levels, probed=False)
    assert head.unfreeze == 0
    assert not head.only_if_gain
    assert tuple(rest) == of(images, feature_levels=feature_levels)


@pytest.mark.parametrize("how", [{}, {"feature_levels": 4}, {"probed": False}, {"pretrained": False}])
@pytest.mark.parametrize("batch_size", [1, 32, 4096])
def test_epochs_lie_within_8_and_40_and_more_images_never_get_more(batch_size, how):
    sizes = [1, 2, 31, 32, 33, 199, 200, 201, 640, 1999, 2000, 2001, 10_000, 10**6, 10**8]
    chosen = [of(images, batch_size, **how) for images in sizes]
    assert all(LEAST <= stage.epochs <= MOST for some in chosen for stage in some)
    firsts = [some[0].epochs for some in chosen if some]
    assert len(firsts) > 5 and firsts == sorted(firsts, reverse=True)


def test_few_images_get_as_many_steps_in_more_epochs():
    steps = np.arange(1, 80)
    total = np.array([of(32 * int(n), pretrained=False)[0].epochs * int(n) for n in steps])
    between = (total > LEAST * steps) & (total < MOST * steps)  # where neither end of the range decides
    assert between.sum() > 20
    steps, total = steps[between], total[between]
    assert (total - steps).max() < total.min(), "a number of steps lies behind all, rounded up to whole epochs"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_has_the_blocks_that_are_to_be_unfrozen(name):
    blocks = BACKBONES[name].blocks
    for images in (200, 1000, 2000):
        for feature_levels in (1, 2):
            assert all(
                1 <= stage.unfreeze <= blocks for stage in of(images, blocks=blocks, feature_levels=feature_levels)
            )
    top, half = (stage.unfreeze for stage in of(2000, blocks=blocks))
    assert top < half, "a stage that unfreezes nothing more would be the first one again"


@pytest.mark.parametrize(
    ("refit_on_train_val", "weights", "images", "expected"),
    [
        ("auto", "imagenet", 100, True),
        ("auto", "imagenet", 4999, True),
        ("auto", "imagenet", 5000, False),
        ("auto", "none", 100, False),
        ("yes", "none", 9999, True),
        ("no", "imagenet", 100, False),
    ],
)
def test_few_images_are_all_learned_from_in_the_end(refit_on_train_val, weights, images, expected):
    config = Config(backbone=Backbone(weights=weights), train=Train(refit_on_train_val=refit_on_train_val))
    assert refits(config, images) is expected


OTHER = {
    "augment": Augment(policy="heavy", strength=2.0, random_erasing=0.1, blur=0.1, grayscale=0.1, solarize=0.1),
    "backbone": Backbone(name="resnet50", stochastic_depth=0.1),
    "head": Head(dropout=0.1, gaussian_dropout=0.1, drop_block=0.1, drop_connect=0.1, l1=0.1, l2=0.1, max_norm=3.0),
    "train": Train(
        gradient_accumulation_steps=2, monitor="accuracy", patience=3, loss="focal", class_weights="balanced",
        label_smoothing=0.1, mixup=0.1, cutmix=0.1, checkpoint_seconds=0, monitor_gradients=True,
    ),
}  # fmt: skip
"""Other than the defaults in everything that a stage alone makes use of; but for what must not be given together."""

USED = {
    "data": set(Data.__pydantic_fields__),
    "augment": {"hflip"},
    "backbone": {"name", "candidates", "weights", "alpha"},
    "head": {"feature_levels", "pooling", "power_norm", "hidden", "activation"},  # hidden: then a stage trains
    "train": {"batch_size", "precision", "seed", "probe", "refit_on_train_val", "deterministic", "track", "devices"},
    "tta": set(TTA.__pydantic_fields__),
    "evaluate": set(Evaluate.__pydantic_fields__),
}
"""What a run of the probe alone makes use of."""


def test_every_setting_is_used_by_a_run_of_the_probe_alone_or_said_to_have_no_effect():
    for section, kind in {"data": Data, "augment": Augment, "backbone": Backbone, "head": Head, "train": Train,
                          "tta": TTA, "evaluate": Evaluate}.items():  # fmt: skip
        of_stages = set(OF_STAGES.get(section, ()))
        assert of_stages.isdisjoint(USED[section])
        assert of_stages | USED[section] == set(kind.__pydantic_fields__), "a new setting: is it used without a stage?"
    sections = {name for name in Config.__pydantic_fields__ if name != "stages"}
    assert sections == set(USED)


@pytest.mark.parametrize(("section", "name"), [(s, n) for s, names in OF_STAGES.items() for n in names])
def test_what_has_no_effect_is_said_if_it_was_given_and_only_then(section, name):
    changes = {"logit_adjustment": 1.0, "sampling": "balanced", "teachers": "runs/a"}
    given = configuration.load(overrides=["backbone.name=resnet50", f"{section}.{name}={changes[name]}"]
                               if name in changes else ["backbone.name=resnet50"])  # fmt: skip
    if name not in changes:
        other = dataclasses.replace(getattr(given, section), **{name: getattr(OTHER[section], name)})
        given = dataclasses.replace(given, **{section: other})
    assert set(settings_without_effect(given, 60)) == {f"{section}.{name}"}
    assert "60 training images" in settings_without_effect(given, 60)[f"{section}.{name}"]
    assert not settings_without_effect(dataclasses.replace(given, stages=(Stage(),)), 60)
    assert not settings_without_effect(Config(), 60)


def test_no_augmentation_is_seen_by_the_probe_for_nothing_is_mirrored():
    assert not settings_without_effect(Config(augment=Augment(policy="none")), 60)


def test_what_goes_with_another_setting_is_said_with_stages_too():
    backbone = Backbone(alpha=0.5, candidates=("vgg16",))
    given = Config(backbone=backbone, data=Data(resize="pad"), tta=TTA(full_image=True), stages=(Stage(),))
    assert set(settings_without_effect(given, 900)) == {"backbone.alpha", "backbone.candidates", "tta.full_image"}
    assert not settings_without_effect(
        dataclasses.replace(given, backbone=Backbone(name="mobilenet", alpha=0.5), data=Data()), 900
    )


def test_a_run_says_so_before_it_starts(capsys):
    given = dataclasses.replace(Config(**OTHER), data=Data(resize="stretch"), stages=())

    def choose(config: Config, images: int) -> None:
        dataset = ArrayDataset(never, np.zeros(images, np.int64))
        assert choose_stages(None, None, config, lambda _: (dataset, dataset), None) == (config, {})

    choose(given, 60)
    said = capsys.readouterr().out
    assert "train.loss has no effect: with 60 training images no stage trains" in said
    assert len([line for line in said.splitlines() if "has no effect" in line]) == sum(
        len(names) for names in OF_STAGES.values()
    ) - len({"logit_adjustment", "sampling", "teachers"})
    choose(dataclasses.replace(given, stages=(Stage(),)), 900)
    assert "has no effect" not in capsys.readouterr().out


def never(*_):
    raise AssertionError("there is nothing to look at")


@pytest.mark.parametrize(("blocks", "numbers"), [(1, [1]), (3, [1]), (4, [1, 2]), (7, [1, 3]), (13, [2, 6])])
def test_depths_are_a_sixth_and_half_of_the_blocks(blocks, numbers):
    found = depths(200, Train(), blocks)
    assert [stage.unfreeze for stage in found] == numbers
    assert {stage.epochs for stage in found} == {12}
    assert [stage.learning_rate for stage in found] == [2e-4, 5e-4][: len(numbers)]
    assert [stage.warmup for stage in found] == [0.1, 0.3][: len(numbers)], "what moves more begins more slowly"


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 32, 128])
@pytest.mark.parametrize("images", [40, 160, 500, 1000, 2000, 5000])
def test_the_fewer_images_the_smaller_their_batches_down_to_half(images, batch_size, accumulated):
    """As many passes make more steps."""
    settings = Train(batch_size=batch_size, gradient_accumulation_steps=accumulated)
    stage = depths(images, settings, 7)[0]
    smallest = min(batch_size, max(2, -(-batch_size // 2)))
    assert smallest <= stage.batch_size <= batch_size
    steps = images * stage.epochs / (stage.batch_size * accumulated)
    assert steps >= STEPS or stage.batch_size == smallest
    larger = depths(2 * images, settings, 7)[0]
    assert larger.batch_size >= stage.batch_size or larger.epochs < stage.epochs


def test_recipes_of_the_same_probe_are_known_as_such():
    """What stages alone look at makes no other probe; what it sees, and the score that judges it, does."""

    def probe(*settings: str) -> Config:
        return of_probe(configuration.load(None, settings))

    stage = ("stages.0.epochs=3", "augment.policy=heavy", "head.dropout=0.5", "train.label_smoothing=0.1")
    assert probe(*stage) == probe() and probe().stages == ()
    for other in ("augment.policy=none", "augment.hflip=false", "head.feature_levels=2", "train.monitor=accuracy"):
        assert probe(other) != probe(), other
