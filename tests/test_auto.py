"""What the probe chooses is what training images show, and no accident; the head that it leaves is the probe."""

import dataclasses
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import without_plots
from keras import layers
from PIL import Image
from scipy.special import softmax

from template import config as configuration
from template import messages, recipe
from template.config import TTA, Augment, Backbone, Config, Data, Head, Stage, Train
from template.data import load as loading
from template.data.array_file import ArrayFile, Divided
from template.data.dataset import ArrayDataset, eval_dataset
from template.data.decode import decode
from template.data.examples import load_examples
from template.data.images.load import zoom_center
from template.deploy.predictor import classify, load_run
from template.diagnose import baselines
from template.evaluate.predictions import Predictions
from template.model.backbones import build_backbone
from template.model.build import attach
from template.model.layers import strip_training_layers
from template.model_selection import auto as module
from template.model_selection import probes
from template.model_selection.auto import (
    init_head_from_probe,
    init_model,
    probe_features,
    resolve_auto,
    select_levels,
    starts_from_probe,
    without_auto,
)
from template.progress import Timer
from template.suggest import OF_STAGES, settings_without_effect
from template.train import checkpoint as checkpoints
from template.train import linear_probe as probe
from template.train.features import FeatureCache, split_model
from template.train.linear_probe import Probe

SIZE, CLASSES = 32, 3
TINY = Backbone(name="tiny", weights="none")
OPTIONS = ("crop", "pad", "stretch")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, shallow) -> Backbone:
    """A network with weights from a file, as a stand-in for ImageNet's."""
    keras.utils.set_random_seed(0)
    file = tmp_path_factory.mktemp("weights") / "backbone.weights.h5"
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    base([coloured(12, 9).read(0, np.arange(12)).astype("float32")], training=True)
    base.save_weights(file)
    return Backbone(name="tiny", weights=str(file))


@pytest.fixture(autouse=True)
def fewer_strengths(monkeypatch, eagerly):
    """From strongest to weakest as before, in steps of a hundred; each strength is as many regressions.

    Without tracing: a network looks at a few batches, and is gone.
    """
    monkeypatch.setattr(probe, "STRENGTHS", probe.STRENGTHS[::4])


@pytest.fixture(scope="module")
def base(pretrained) -> keras.Model:
    return build_backbone(pretrained, SIZE)


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", 1e9, batch_size=8, clock=Timer())


def coloured(n: int, seed: int, strength: int = 60, classes: int = CLASSES) -> ArrayDataset:
    """Noise whose mean colour tells the class; with strength 0 it does not."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    pixels = generator.integers(0, 150, (n, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, labels] += np.uint8(strength)
    return ArrayDataset(lambda _, rows: pixels[rows], labels, f"coloured {n} {seed} {strength}")


def config(backbone: Backbone, **sections) -> Config:
    data = {"path": "nowhere", "image_size": SIZE, "resize": "crop"} | sections.pop("data", {})
    return Config(data=Data(**data), backbone=backbone, **sections)


def never(_):
    raise AssertionError("there is nothing to look at")


def test_a_probe_begins_what_is_pretrained_and_has_no_hidden_layer(pretrained):
    assert starts_from_probe(config(pretrained))
    assert not starts_from_probe(config(pretrained, head=Head(hidden=4)))
    assert not starts_from_probe(config(pretrained, train=Train(probe=False)))
    assert not starts_from_probe(config(Backbone(name="tiny", weights="none")))


HEADS = [
    Head(),
    Head(feature_levels=2, power_norm=True),
    Head(feature_levels=2, pooling="both"),
    Head(power_norm=True, pooling="max"),
]


@pytest.mark.parametrize("head", HEADS, ids=["plain", "levels and root", "levels, both pools", "root of the maximum"])
@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_model_says_what_the_probe_says(pretrained, base, cache, head, classes):
    parts, how = [coloured(9, 0, classes=classes), coloured(5, 1, classes=classes)], config(pretrained, head=head)
    model = init_model(base, how, parts, cache)
    pixels = np.concatenate([part.read(0, np.arange(len(part))) for part in parts]).astype("float32")
    said = softmax(np.asarray(model(pixels, training=False)), axis=1)
    features, widths = select_levels(probe_features(base, how, parts, cache), head)
    probe = init_head_from_probe(model, base, how, parts, cache)
    assert features.shape == (2, 14, model.get_layer("logits").kernel.shape[0]) and sum(widths) == features.shape[2]
    np.testing.assert_allclose(said, softmax(features[0] @ probe.kernel + probe.bias, axis=1), atol=2e-3)
    np.testing.assert_array_equal(model.get_layer("logits").kernel, probe.kernel)
    assert (said.argmax(axis=1) == np.concatenate([part.labels for part in parts])).mean() > 0.9
    # and the head sees what the probe saw
    bottom, _ = split_model(model, model.get_layer("logits").input)
    np.testing.assert_allclose(bottom(pixels, training=False), features[0], atol=5e-3, rtol=2e-3)


ALONE = ({"sampling": "balanced"}, {"logit_adjustment": 1}, {"teachers": ("a run",)})
"""Settings of training that do not go with some of the others."""


def test_what_is_said_to_have_no_effect_without_a_stage_has_none(pretrained, base, cache):
    plain = config(pretrained)
    other = {
        "augment": Augment(policy="heavy", strength=2.0, random_erasing=0.1, blur=0.1, grayscale=0.1, solarize=0.1),
        "head": Head(dropout=0.6, gaussian_dropout=0.1, drop_block=0.1, drop_connect=0.1, l1=0.1, l2=0.1, max_norm=3.0),
        "train": Train(
            gradient_accumulation_steps=2, monitor="accuracy", patience=3, loss="focal", class_weights="balanced",
            label_smoothing=0.1, mixup=0.1, cutmix=0.1, checkpoint_seconds=0, monitor_gradients=True,
        ),
    }  # fmt: skip
    given = config(pretrained, **other)
    others = [dataclasses.replace(plain, train=Train(**x)) for x in ALONE]
    assert {key for each in (given, *others) for key in settings_without_effect(each, 14)} == {
        f"{section}.{name}" for section, names in OF_STAGES.items() for name in names if name != "stochastic_depth"
    }
    source = coloured(14, 0)
    pixels = source.read(0, np.arange(14)).astype("float32")
    said = [
        strip_training_layers(init_model(base, how, [source], cache)).predict(pixels, verbose=0)
        for how in (plain, given, *others)
    ]
    for logits in said[1:]:
        np.testing.assert_allclose(logits, said[0], atol=1e-5)


def test_the_features_are_of_the_images_and_their_mirror_images_in_order(pretrained, base, cache):
    parts, how = [coloured(9, 0), coloured(5, 1)], config(pretrained)
    features, widths = probe_features(base, how, parts, cache)
    assert features.dtype == np.float16 and widths == [48, 64], "of the top half, whatever the head"
    pixels = np.concatenate([part.read(0, np.arange(len(part))) for part in parts]).astype("float32")
    both = attach(base, pretrained, Head(feature_levels=2), np.ones(CLASSES))
    bottom, _ = split_model(both, both.get_layer("logits").input)
    for view, seen in enumerate((pixels, pixels[:, :, ::-1])):
        np.testing.assert_allclose(features[view], bottom(seen, training=False), atol=2e-3, rtol=2e-3)
    assert not np.array_equal(features[0], features[1])
    alone, _ = probe_features(base, config(pretrained, augment=Augment(hflip=False)), parts, cache)
    np.testing.assert_array_equal(alone, features[:1])
    closer, _ = probe_features(base, config(pretrained, tta=TTA(center_zoom=True)), parts, cache)
    seen = zoom_center(pixels.astype(np.uint8)).astype("float32")
    np.testing.assert_array_equal(closer[[0, 2]], features)
    np.testing.assert_allclose(closer[1], bottom(seen, training=False), atol=2e-3, rtol=2e-3)
    np.testing.assert_allclose(closer[3], bottom(seen[:, :, ::-1], training=False), atol=2e-3, rtol=2e-3)


def test_a_head_sees_the_top_of_the_features():
    values = np.arange(-6, 6).reshape(1, 2, 6).astype(np.float16)
    for head, expected in (
        (Head(), values[..., 3:]),
        (Head(feature_levels=2), values[..., 1:]),
        (Head(feature_levels=3), values),
    ):
        seen, widths = select_levels((values, [1, 2, 3]), head)
        np.testing.assert_array_equal(seen, expected)
        assert seen.dtype == np.float32 and widths == [1, 2, 3][-head.feature_levels :]
        rooted, _ = select_levels((values, [1, 2, 3]), dataclasses.replace(head, power_norm=True))
        np.testing.assert_allclose(rooted, np.sign(expected) * np.sqrt(np.abs(expected)), atol=0.01)
        assert rooted.dtype == np.float32 and isinstance(rooted, np.ndarray)


@pytest.mark.parametrize(
    "how",
    [
        {
            "data": {"image_size": "auto", "resize": "auto"},
            "head": Head(feature_levels="auto", power_norm="auto", hidden=4),
        },
        {"data": {"image_size": "auto", "resize": "auto"}, "train": Train(probe=False)},
        {
            "data": {"resize": "auto"},
            "head": Head(power_norm="auto"),
            "backbone": Backbone(name="tiny", weights="none"),
        },
    ],
    ids=["hidden layer", "no probe", "from scratch"],
)
def test_without_a_probe_auto_is_the_first_option(pretrained, cache, how, monkeypatch):
    monkeypatch.setattr(module, "build_backbone", lambda settings, size: (settings, size))
    how = config(**({"backbone": pretrained} | how))
    chosen, (_, size), votes = resolve_auto(how, never, cache)
    assert chosen == without_auto(how)
    assert votes == {} and not cache.folder.exists()
    assert not module._auto_settings(chosen)
    assert chosen.data.resize == "crop"
    assert size == chosen.data.image_size == (288 if how.data.image_size == "auto" else SIZE)


def test_without_auto_nothing_is_computed(pretrained, cache):
    how = config(pretrained, head=Head(feature_levels=2, power_norm=True))
    chosen, base, votes = resolve_auto(how, never, cache)
    assert chosen == how and votes == {} and base.input_shape == (None, SIZE, SIZE, 3)
    assert not cache.folder.exists()


def shown(how: dict[str, int]):
    """A `look` at images whose colours tell the class only with some ways to make them square."""
    sources = {option: coloured(30, 3, strength) for option, strength in how.items()}
    return lambda data: sources[data.resize]


@pytest.mark.slow
def test_what_alone_shows_the_class_is_taken(pretrained, cache):
    for option in OPTIONS:
        look = shown({other: 60 * (other == option) for other in OPTIONS})
        chosen, _, votes = resolve_auto(config(pretrained, data={"resize": "auto"}), look, cache)
        assert chosen == config(pretrained, data={"resize": option})
        assert {o for o, loss in votes["data.resize"].items() if loss < 0.5} == {option}


@pytest.mark.parametrize("strength", [pytest.param(0, marks=pytest.mark.slow), 60])
def test_where_nothing_differs_the_first_option_stays(pretrained, cache, strength):
    look = shown(dict.fromkeys(OPTIONS, strength))
    chosen, _, votes = resolve_auto(config(pretrained, data={"resize": "auto"}), look, cache)
    assert chosen.data.resize == "crop"
    assert len(set(votes["data.resize"].values())) == 1


def test_mirror_images_are_of_the_head_and_not_of_what_is_compared(pretrained, cache):
    """They would double the passes of every option."""
    look = shown({option: 10 * number for number, option in enumerate(OPTIONS)})
    how = config(pretrained, data={"resize": "auto"})
    chosen, base, _ = resolve_auto(how, look, cache)
    assert how.augment.flips and cache.clock.counts["features"] == 30 * len(OPTIONS)
    init_model(base, chosen, [look(chosen.data)], cache)
    assert cache.clock.counts["features"] == 30 * len(OPTIONS) + 30, "what was compared is found again"


def measured(losses: np.ndarray) -> tuple[Probe, None]:
    """What `cross_validate` gives for these losses."""
    return Probe(np.zeros((1, 2)), np.zeros(2), 1.0, losses, 0.5, np.zeros((1, 2))), None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((1.0, 0.95, 0.91), "crop"),
        ((1.0, 0.89, 0.88), "pad"),
        ((1.0, 0.89, 0.70), "stretch"),
        ((1.0, 0.95, 0.88), "stretch"),
        ((0.0, 0.0, 0.0), "crop"),
        ((float("nan"),) * 3, "crop"),  # a class of one image cannot be held out
    ],
)
def test_an_option_has_to_be_better_by_a_standard_error_than_the_best_before_it(
    pretrained, cache, monkeypatch, losses, expected
):
    """Each option's own deviation is such that the error of two options' difference is 0.1."""
    noise = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) * 0.2 / np.sqrt(2)
    planned = iter(np.array(losses)[:, None] + noise)
    monkeypatch.setattr(module, "cross_validate", lambda *_: measured(next(planned)))
    chosen, _, votes = resolve_auto(
        config(pretrained, data={"resize": "auto"}), shown(dict.fromkeys(OPTIONS, 0)), cache
    )
    assert chosen.data.resize == expected
    assert votes == ({} if np.isnan(losses[0]) else {"data.resize": dict(zip(OPTIONS, losses, strict=True))})


def test_each_setting_is_chosen_with_the_best_of_those_before_it(pretrained, cache, monkeypatch):
    seen = []
    better = {"feature_levels": 2, "power_norm": False, "image_size": 48, "resize": "pad", "center_zoom": True}
    options = module._auto_settings

    def small(how):
        return [(section, name, (64, 48) if name == "image_size" else all_) for section, name, all_ in options(how)]

    def losses_of(base, trial, source, cache):
        assert base.input_shape[1] == trial.data.image_size == source.read(0, np.arange(1)).shape[1]
        settings = {**vars(trial.head), **vars(trial.data), **vars(trial.tta)}
        seen.append(tuple(settings[name] for name in better))
        return measured(np.full(6, 1.0 - 0.1 * sum(settings[name] == value for name, value in better.items())))

    monkeypatch.setattr(module, "_auto_settings", small)
    monkeypatch.setattr(module, "cross_validate", losses_of)
    open_data, left_open = {"image_size": "auto", "resize": "auto"}, TTA(center_zoom="auto")
    how = config(pretrained, head=Head(feature_levels="auto", power_norm="auto"), data=open_data, tta=left_open)

    def look(data):
        pixels = np.zeros((6, data.image_size, data.image_size, 3), np.uint8)
        return ArrayDataset(lambda _, rows: pixels[rows], np.arange(6) % 3)

    chosen, base, votes = resolve_auto(how, look, cache)
    assert (chosen.head.feature_levels, chosen.head.power_norm, chosen.data.image_size, chosen.data.resize) == (
        2,
        False,
        48,
        "pad",
    )
    assert base.input_shape[1] == 48 and chosen.tta.center_zoom is True
    assert seen == [  # the first option of a setting is what was best before, and is not tried again
        (1, True, 64, "crop", False), (1, True, 48, "crop", False),
        (1, True, 48, "pad", False), (1, True, 48, "stretch", False),
        (2, True, 48, "pad", False),
        (2, False, 48, "pad", False),
        (2, False, 48, "pad", True),
    ]  # fmt: skip
    assert list(votes) == [
        "data.image_size",
        "data.resize",
        "head.feature_levels",
        "head.power_norm",
        "tta.center_zoom",
    ]


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_closer_look_is_taken_where_the_class_is_small_and_in_the_middle(base, pretrained, cache, small):
    """A dot among dots, or all of the image but its middle."""
    generator, labels = np.random.default_rng(0), np.arange(60) % 2
    pixels = generator.integers(90, 160, (60, SIZE, SIZE, 3)).astype(np.uint8)
    if small:  # two bright spots against one that is dim: of other sizes where they are looked at closely
        pixels[labels == 1, 14:18, 14:18] = [250, 30, 30]
        pixels[labels == 0, 14:18, 14:18] = [30, 30, 250]
        edge = generator.integers(0, 255, (60, 1, 1, 3))
        pixels[:, :5], pixels[:, -5:] = edge, edge[:, ::-1]
    else:
        middle = pixels[:, 6:-6, 6:-6].copy()
        pixels[labels == 1] = pixels[labels == 1] // 2
        pixels[:, 6:-6, 6:-6] = middle
    source = ArrayDataset(lambda _, rows: pixels[rows], labels, f"dots {small}")
    chosen, _, votes = resolve_auto(config(pretrained, tta=TTA(center_zoom="auto")), lambda _: source, cache)
    assert chosen.tta.center_zoom is small, votes


@pytest.mark.slow
def test_the_choices_are_a_function_of_the_seed(pretrained, cache):
    def votes(seed: int, before: int) -> dict:
        keras.utils.set_random_seed(before)  # whatever was drawn before
        how = config(pretrained, head=Head(feature_levels="auto"), train=Train(seed=seed))
        return resolve_auto(how, lambda _: coloured(30, 3, 10), cache)[2]

    assert votes(0, before=1) == votes(0, before=2)
    assert votes(1, before=1) != votes(0, before=1)


@pytest.mark.slow
def test_of_many_images_as_many_of_each_class_are_cross_validated(pretrained, cache, monkeypatch):
    voted = []
    original = probes.fit_probe

    def spy(features, labels, *rest, **named):
        voted.append((features[0], labels))
        return original(features, labels, *rest, **named)

    monkeypatch.setattr(probes, "fit_probe", spy)
    monkeypatch.setattr(module, "MAX_CV_IMAGES", 24)
    labels, how = np.array([0] * 80 + [1] * 6 + [2] * 14), config(pretrained)
    pixels = coloured(100, 5).read(0, np.arange(100))
    source, network = ArrayDataset(lambda _, rows: pixels[rows], labels, "a hundred"), build_backbone(pretrained, SIZE)
    losses = module.cross_validate(network, how, source, cache)[0].losses
    all_features = select_levels(probe_features(network, how, [source], cache), how.head)[0][0]
    (features, seen), *_ = voted
    numbers = np.abs(features[:, None] - all_features).max(axis=2).argmin(axis=1)
    assert np.bincount(seen).tolist() == [8, 6, 8] and losses.shape == (22,)
    assert len(set(numbers)) == 22 and (labels[numbers] == seen).all()
    np.testing.assert_allclose(features, all_features[numbers], atol=2e-3, rtol=2e-3)
    monkeypatch.setattr(module, "MAX_CV_IMAGES", 3)
    module.cross_validate(network, how, source, cache)
    assert np.bincount(voted[1][1]).tolist() == [5, 5, 5], "a fold each at least"


@pytest.fixture(scope="module")
def wide_images(tmp_path_factory) -> Path:
    """Images three times as wide as high; what tells the class is at their left edge, which a crop cuts off."""
    root, generator = tmp_path_factory.mktemp("wide") / "images", np.random.default_rng(0)
    for label, kind in enumerate(("blue", "green", "red")):
        (root / kind).mkdir(parents=True)
        for number in range(16):
            pixels = generator.integers(0, 60, (SIZE, 3 * SIZE, 3)).astype(np.uint8)
            pixels[:, : SIZE // 2, 2 - label] += 150
            Image.fromarray(pixels).save(root / kind / f"{number}.png")
    return root


def settings(pretrained, path: Path, cache: Path, **sections) -> Config:
    data = {"path": str(path), "val_fraction": 0.25, "test_fraction": 0.25, "cache": str(cache), "resize": "auto"}
    how = {
        "head": Head(feature_levels="auto", power_norm="auto"),
        "train": Train(batch_size=8, checkpoint_seconds=0),
    } | sections
    return config(pretrained, data=data, **how)


def test_a_crop_that_cuts_off_what_matters_is_not_taken(pretrained, wide_images, cache):
    loaded = load_examples(str(wide_images))

    def look(data: Data) -> ArrayDataset:
        examples, pixels = decode(loaded, data)
        return eval_dataset(pixels, np.arange(len(examples)), examples.labels)

    chosen, _, votes = resolve_auto(settings(pretrained, wide_images, cache.folder), look, cache)
    assert chosen.data.resize in {"pad", "stretch"}
    assert votes["data.resize"]["crop"] > 1 > votes["data.resize"][chosen.data.resize]


class Enough(BaseException):
    """What a test raises when it has seen enough."""


def test_no_image_of_validation_or_test_is_read_to_choose_or_to_begin(pretrained, wide_images, tmp_path, monkeypatch):
    read, parts, divide, start = set(), [], loading.split, recipe.init_model

    def spied(cls: type) -> None:
        of = cls.__getitem__

        def spy(self, rows):
            if self.key.startswith("pixels") and len(self) == len(parts[0]):  # not a part's, whose rows are its own
                read.update(rows.tolist())
            return of(self, rows)

        monkeypatch.setattr(cls, "__getitem__", spy)

    def divided(*args, **kwargs):
        parts.append(divide(*args, **kwargs))
        return parts[0]

    def begun(*args):
        start(*args)
        raise Enough

    for cls in (ArrayFile, Divided):
        spied(cls)
    monkeypatch.setattr(
        recipe, "facts_from_pixels", lambda *_: None
    )  # the audit, which looks at all and chooses nothing
    monkeypatch.setattr(loading, "split", divided)
    monkeypatch.setattr(messages, "print_audit", lambda *_: None)
    monkeypatch.setattr(recipe, "init_model", begun)
    with pytest.raises(Enough):
        recipe.run(settings(pretrained, wide_images, tmp_path / "cache"), tmp_path)
    assert read == set(np.flatnonzero(parts[0].parts == "train")) != set()


def test_no_fold_of_any_probe_parts_a_patient_or_copies_of_an_image(pretrained, wide_images, tmp_path, monkeypatch):
    """Those that choose, that become the head, and of the learning curve; and all that vote are of whole patients."""
    lines = [f"{kind}/{n}.png,{kind},{kind} {n // 2}" for kind in ("blue", "green", "red") for n in range(16)]
    shutil.copytree(wide_images, tmp_path / "grouped")
    shutil.copy(tmp_path / "grouped/red/0.png", tmp_path / "grouped/red/copy.png")
    table = tmp_path / "grouped" / "table.csv"
    table.write_text("\n".join(["path,label,group", *lines, "red/copy.png,red,red 7"]))
    given, parts = {"begin": [], "baselines": []}, []
    divide, original = loading.split, probes.fit_probe

    def spy_of(where):
        def spy(features, labels, *rest, groups=None, **named):
            given[where].append((labels, groups))
            return original(features, labels, *rest, groups=groups, **named)

        return spy

    def divided(*args, **kwargs):
        parts.append(divide(*args, **kwargs))
        return parts[0]

    def fit(*_):
        raise Enough

    monkeypatch.setattr(loading, "split", divided)
    monkeypatch.setattr(recipe, "fit", fit)
    monkeypatch.setattr(probes, "fit_probe", spy_of("begin"))
    monkeypatch.setattr(baselines, "fit_probe", spy_of("baselines"))
    with pytest.raises(Enough):
        data = {"path": str(table), "val_fraction": 0.25, "test_fraction": 0.25, "cache": str(tmp_path / "cache")}
        stages = (Stage(unfreeze=1),)  # or depths would be compared: test_depth.py
        recipe.run(config(pretrained, data=data, head=Head(power_norm="auto"), stages=stages), tmp_path)
    rows = parts[0].parts == "train"
    names = np.array(["red 0" if name == "red 7" else name for name in parts[0].groups[rows]])  # by the copy
    for labels, groups in given["begin"]:
        np.testing.assert_array_equal(labels, parts[0].labels[rows])
        assert len(set(zip(groups, names, strict=True))) == len(set(groups)) == len(set(names)) < rows.sum()
    assert len(given["begin"]) == 3, "power_norm on and off; and the head, which is of mirror images too"
    assert len(given["baselines"]) > 5
    assert all(groups is not None and len(groups) == len(labels) for labels, groups in given["baselines"])


@pytest.mark.slow
def test_a_class_of_one_training_image_cannot_vote_and_stops_nothing(pretrained, wide_images, tmp_path):
    """It cannot be held out, so there is no cross-entropy; that must not end a run that would be good without."""
    for kind, each in {"green": 8, "red": 8, "blue": 3}.items():
        (tmp_path / "few" / kind).mkdir(parents=True)
        for number in range(each):
            shutil.copy(wide_images / kind / f"{number}.png", tmp_path / "few" / kind)
    how = settings(pretrained, tmp_path / "few", tmp_path / "cache", train=Train(batch_size=8, refit_on_train_val="no"))
    with without_plots():
        result = recipe.run(how, tmp_path)
    chosen = configuration.load(tmp_path / "config.toml")
    assert (chosen.head, chosen.data.resize) == (Head(feature_levels=1, power_norm=True), "crop")
    assert (tmp_path / "report.md").exists() and result["test"]["images"] > 0


@pytest.fixture
def small_sizes(monkeypatch):
    """In place of 288 and 224 pixels."""
    options = module._auto_settings
    monkeypatch.setattr(
        module,
        "_auto_settings",
        lambda how: [(s, n, (48, 32) if n == "image_size" else all_) for s, n, all_ in options(how)],
    )


@pytest.fixture
def wins(monkeypatch):
    """Lets an option win or lose, in place of the losses of a probe."""

    def let(size: int) -> None:
        monkeypatch.setattr(
            module, "cross_validate", lambda base, how, *_: measured(np.full(9, float(how.data.image_size != size)))
        )
        monkeypatch.setattr(module, "paired_z", lambda one, other, **_: 2 if one.mean() < other.mean() else 0)

    return let


@pytest.mark.parametrize("size", [48, pytest.param(32, marks=pytest.mark.slow)])
def test_a_network_that_was_chosen_drops_what_it_would_drop_if_nothing_else_had_been_built(
    pretrained, cache, small_sizes, wins, size
):
    # A resumed run builds it alone. The random generators of its branches and dropouts begin where Python's stands.
    wins(size)
    how = config(dataclasses.replace(pretrained, stochastic_depth=0.5), data={"image_size": "auto"})
    given = dataclasses.replace(how, data=dataclasses.replace(how.data, image_size=size))
    networks = []
    for one in (how, given):
        module.set_seed_and_precision(one.train)
        networks.append(resolve_auto(one, lambda _: coloured(9, 1), cache)[1])
    assert networks[0].input_shape[1] == size
    chosen, alone = ([variable.numpy() for variable in network.variables] for network in networks)
    assert len(chosen) > len(networks[0].weights), "random generators are among them"
    for a, b in zip(chosen, alone, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("size", [48, 32])
def test_a_run_that_chose_and_was_resumed_ends_bit_for_bit_as_a_whole_one(
    pretrained, wide_images, tmp_path, monkeypatch, small_sizes, wins, size
):
    """It finds its choices made, and must not miss the random numbers that choosing has used up."""
    wins(size)
    pretrained = dataclasses.replace(pretrained, stochastic_depth=0.5)
    stages = (Stage(unfreeze=1, epochs=2, cached_augmentations=2, learning_rate=3e-3),)
    how = settings(pretrained, wide_images, tmp_path / "cache", stages=stages)
    how = dataclasses.replace(how, data=dataclasses.replace(how.data, image_size="auto"))
    assert how.head.dropout > 0, "its random numbers are what this is about"
    original = checkpoints.Checkpoint.on_epoch_end

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch == 0 and self.folder.name == "checkpoints":
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")  # what kill -9 would have left

    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        whole = recipe.run(how, tmp_path / "whole")
    chosen = configuration.load(tmp_path / "cut" / "config.toml")
    assert chosen.data.image_size == size and chosen != how
    resumed = recipe.run(chosen, tmp_path / "cut")
    config_, names, model = load_run(tmp_path / "whole")
    one, other = (Predictions.load(tmp_path / name / "predictions.npz") for name in ("whole", "cut"))
    for a, b in zip(model.get_weights(), load_run(tmp_path / "cut")[2].get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert one.logits.tobytes() == other.logits.tobytes()
    changing = {"seconds", "memory_gb"}
    assert {k: whole[k] for k in whole if k not in changing} == {k: resumed[k] for k in resumed if k not in changing}
    # And of the files, with its levels and root, it says the same.
    loaded = load_examples(str(wide_images))
    files = [loaded.images[list(loaded.ids).index(name)] for name in one.ids]
    said = np.array([probabilities for _, probabilities in classify(model, config_, files)])
    np.testing.assert_allclose(said, softmax(one.logits, axis=1), atol=1e-5)
    assert names == one.class_names


def fed(model: keras.Model, source: ArrayDataset) -> np.ndarray:
    """What the first convolution receives of each image."""
    network = keras.Model(model.inputs[0], model.get_layer("preprocess").output)
    return np.asarray(network(source.read(0, np.arange(len(source))).astype("float32"), training=False))


@pytest.mark.parametrize("name", ["tiny", "mobilenet"])
def test_from_scratch_training_images_enter_with_mean_0_and_deviation_1(name, cache):
    how = config(Backbone(name=name, alpha=0.25, weights="none"))
    train, other = coloured(13, 1), coloured(9, 2, strength=0)
    model = init_model(build_backbone(how.backbone, SIZE), how, [train], cache)
    seen = fed(model, train)
    np.testing.assert_allclose(seen.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=(0, 1, 2)), 1, atol=1e-5)
    pixels = train.read(0, np.arange(13)).astype("float64")
    by_hand = (other.read(0, np.arange(9)) - pixels.mean(axis=(0, 1, 2))) / pixels.std(axis=(0, 1, 2))
    np.testing.assert_allclose(fed(model, other), by_hand, atol=1e-4)  # with the numbers of training


def test_the_numbers_of_the_input_are_saved_with_the_model_and_with_its_weights(cache, tmp_path):
    train = coloured(13, 1)
    model = init_model(build_backbone(TINY, SIZE), config(TINY), [train], cache)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(fed(keras.models.load_model(tmp_path / "model.keras"), train), fed(model, train))
    backbone = Backbone(name="tiny", weights=str(tmp_path / "model.keras"))
    again = init_model(build_backbone(backbone, SIZE), config(backbone), [coloured(30, 3, strength=100)], cache)
    np.testing.assert_array_equal(fed(again, train), fed(model, train))  # as the weights know it


@pytest.mark.slow
def test_pretrained_weights_keep_the_preprocessing_that_they_were_trained_with(cache, tmp_path):
    network = keras.applications.MobileNet(include_top=False, weights=None, alpha=0.25, input_shape=(SIZE, SIZE, 3))
    network.save_weights(tmp_path / "theirs.weights.h5")
    backbone = Backbone(name="mobilenet", alpha=0.25, weights=str(tmp_path / "theirs.weights.h5"))
    train = coloured(12, 1)
    model = init_model(build_backbone(backbone, SIZE), config(backbone), [train], cache)
    np.testing.assert_allclose(fed(model, train), train.read(0, np.arange(12)) / 127.5 - 1, atol=1e-6)


def test_a_image_all_of_one_colour_can_be_standardised(cache):
    flat = ArrayDataset(lambda _, rows: np.full((len(rows), SIZE, SIZE, 3), 7, np.uint8), np.arange(4) % 2)
    model = init_model(build_backbone(TINY, SIZE), config(TINY), [flat], cache)
    assert np.abs(fed(model, flat)).max() == 0
