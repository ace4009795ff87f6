"""A wrong setting stops with its key, what was expected, what was received and the nearest key; right ones survive."""

import dataclasses
import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

from template import suggest
from template.config import (
    RENAMED,
    RESIDUAL,
    TTA,
    Augment,
    Backbone,
    Config,
    ConfigError,
    Data,
    Head,
    Stage,
    Train,
    absolute,
    changed,
    describe,
    load,
    pair_up,
    to_toml,
)

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"


THREE_STAGES = "stages=[{unfreeze=0}, {unfreeze=1}, {unfreeze=2}]"


def refusal(overrides=(), recipe=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, overrides if recipe else [THREE_STAGES, *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # not of its type
        ("data.image_size=big", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: 'big'"),
        ("data.image_size=224.0", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: 224.0"),
        ("data.image_size=", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: ''"),
        (
            "data.image_size=[224, 224]",
            "data.image_size: expected auto | whole number >= 16 <= 1024. Received: [224, 224]",
        ),
        ("data.val_fraction=2020-01-01", "data.val_fraction: expected number > 0 < 1. Received: '2020-01-01'"),
        ("data.memory_gb=true", "data.memory_gb: expected number >= 0. Received: True"),
        ("augment.hflip=no", "augment.hflip: expected true | false. Received: 'no'"),
        ("augment.hflip=1", "augment.hflip: expected true | false. Received: 1"),
        ("stages.0.epochs=true", "stages.0.epochs: expected whole number >= 1. Received: True"),
        ("head.feature_levels=all", "head.feature_levels: expected auto | whole number >= 1 <= 16. Received: 'all'"),
        ("head.feature_levels=true", "head.feature_levels: expected auto | whole number >= 1 <= 16. Received: True"),
        ("head.power_norm=1", "head.power_norm: expected auto | true | false. Received: 1"),
        ("head.power_norm=Auto", "head.power_norm: expected auto | true | false. Received: 'Auto'"),
        ("tta.center_zoom=2", "tta.center_zoom: expected auto | true | false. Received: 2"),
        ("stages.0.refresh=auto", "stages.0.refresh: expected whole number >= 0. Received: 'auto'"),
        ("stages.0.unfreeze=true", "stages.0.unfreeze: expected whole number | text. Received: True"),
        ("stages.0.unfreeze=0.5", "stages.0.unfreeze: expected whole number | text. Received: 0.5"),
        # out of its range, the ends of it included
        ("data.image_size=15", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: 15"),
        ("data.image_size=1025", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: 1025"),
        ("head.feature_levels=0", "head.feature_levels: expected auto | whole number >= 1 <= 16. Received: 0"),
        ("head.feature_levels=17", "head.feature_levels: expected auto | whole number >= 1 <= 16. Received: 17"),
        ("stages.1.refresh=-1", "stages.1.refresh: expected whole number >= 0. Received: -1"),
        ("data.val_fraction=0", "data.val_fraction: expected number > 0 < 1. Received: 0"),
        ("data.val_fraction=1.0", "data.val_fraction: expected number > 0 < 1. Received: 1.0"),
        ("data.test_fraction=-0.1", "data.test_fraction: expected number >= 0 < 1. Received: -0.1"),
        ("head.l2=inf", "head.l2: expected number >= 0 <= 10. Received: inf"),
        ("data.memory_gb=inf", "data.memory_gb: expected number >= 0. Received: inf"),
        ("head.l2=nan", "head.l2: expected number >= 0 <= 10. Received: nan"),
        ("head.dropout=1", "head.dropout: expected number >= 0 < 1. Received: 1"),
        ("train.seed=2147483648", "train.seed: expected whole number >= 0 < 2147483648. Received: 2147483648"),
        ("stages.2.learning_rate=0", "stages.2.learning_rate: expected number > 0 <= 10. Received: 0"),
        ("stages.1.epochs=0", "stages.1.epochs: expected whole number >= 1. Received: 0"),
        ("backbone.alpha=0.7", "backbone.alpha: expected 0.25 | 0.35 | 0.5 | 0.75 | 1.0 | 1.3 | 1.4. Received: 0.7"),
        ("augment.policy=hevy", "augment.policy: expected none | light | medium | heavy | random. Received: 'hevy'"),
        ("data.resize=fit", "data.resize: expected auto | crop | pad | stretch. Received: 'fit'"),
        # no such setting
        ("data.imge_size=224", "data.imge_size: no such setting. Did you mean 'data.image_size'?"),
        ("backbon.name=vgg16", "backbon: no such setting. Did you mean 'backbone'?"),
        ("learning_rate=0.1", "learning_rate: no such setting. Did you mean 'stages.0.learning_rate'?"),
        ("train.dropout=0.1", "train.dropout: no such setting. Did you mean 'head.dropout'?"),
        ("stages.2.epoch=3", "stages.2.epoch: no such setting. Did you mean 'stages.2.epochs'?"),
        ("zzz=1", "zzz: no such setting. Sections: data, augment, backbone, head, train, tta, evaluate, stages."),
        ("=1", "no such setting. Sections:"),
        # not where a setting can be
        ("data.path", "Expected section.field=value. Received: 'data.path'"),
        ("data=5", "data: expected an object. Received: 5"),
        ("data.image_size.x=1", "data.image_size: expected auto | whole number >= 16 <= 1024. Received: {'x': 1}"),
        ("data.path.x=1", "data.path: expected text. Received: {'x': 1}"),
        ("stages.4.epochs=1", "stages.4.epochs: stages takes a number from 0 to 3. Received: '4'"),
        ("stages.-1.epochs=1", "stages takes a number from 0 to 3. Received: '-1'"),
        ("stages.².epochs=1", "stages takes a number from 0 to 3. Received: '²'"),
        ("stages.last.epochs=1", "stages takes a number from 0 to 3. Received: 'last'"),
        ("stages=5", "stages: expected"),
        ("augment.strength=0", "augment.strength: expected number > 0 <= 3. Received: 0"),
        ("augment.random_erasing=1", "augment.random_erasing: expected number >= 0 < 1. Received: 1"),
        ("augment.blur=-0.1", "augment.blur: expected number >= 0 < 1. Received: -0.1"),
        ("train.mixup=-0.2", "train.mixup: expected number >= 0 <= 10. Received: -0.2"),
        ("train.cutmix=11", "train.cutmix: expected number >= 0 <= 10. Received: 11"),
        (
            "train.gradient_accumulation_steps=0",
            "train.gradient_accumulation_steps: expected whole number >= 1 <= 256. Received: 0",
        ),
        (
            "train.gradient_accumulation_steps=1.5",
            "train.gradient_accumulation_steps: expected whole number >= 1 <= 256. Received: 1.5",
        ),
        ("train.loss=hinge", "train.loss: expected cross_entropy | focal. Received: 'hinge'"),
        (
            "train.class_weights=auto",
            "train.class_weights: expected none | balanced | effective | table of number > 0 <= 1000. Received: 'auto'",
        ),
        ("train.class_weights=2", "train.class_weights: expected none | balanced | effective | table of number"),
        ("train.class_weights.daisy=0", "train.class_weights.daisy: expected number > 0 <= 1000. Received: 0"),
        ("train.class_weights.3=1001", "train.class_weights.3: expected number > 0 <= 1000. Received: 1001"),
        ("train.class_weights.daisy=inf", "train.class_weights.daisy: expected number > 0 <= 1000. Received: inf"),
        ("train.class_weights.daisy=big", "train.class_weights.daisy: expected number > 0 <= 1000. Received: 'big'"),
        ("train.class_weights.St. Bernard=2", "train.class_weights.St: expected number > 0 <= 1000. Received: {"),
        ("train.logit_adjustment=-1", "train.logit_adjustment: expected number >= 0 <= 5. Received: -1"),
        ("head.max_norm=-1", "head.max_norm: expected number >= 0 <= 100. Received: -1"),
        (
            "head.activation=tanh",
            "head.activation: expected relu | leaky_relu | prelu | gelu | silu | maxout. Received: 'tanh'",
        ),
        ("head.gaussian_dropout=-0.1", "head.gaussian_dropout: expected number >= 0 <= 3. Received: -0.1"),
        ("head.drop_block=1", "head.drop_block: expected number >= 0 < 1. Received: 1"),
        ("head.drop_connect=-0.1", "head.drop_connect: expected number >= 0 < 1. Received: -0.1"),
        ("backbone.stochastic_depth=1", "backbone.stochastic_depth: expected number >= 0 < 1. Received: 1"),
        ("head.gaussian_dropout=nan", "head.gaussian_dropout: expected number >= 0 <= 3. Received: "),
        ("head.activation=gelu", "head: activation is that of the hidden layer, and hidden=0 has none; received gelu."),
        ("stages.1.l2_sp=-1", "stages.1.l2_sp: expected number >= 0 <= 10. Received: -1"),
        ("stages.1.l1=11", "stages.1.l1: expected number >= 0 <= 10. Received: 11"),
        ("stages.1.l2=true", "stages.1.l2: expected number >= 0 <= 10. Received: True"),
        ("stages.1.clipnorm=-1", "stages.1.clipnorm: expected number >= 0 <= 1000. Received: -1"),
        ("stages.1.clip_by=length", "stages.1.clip_by: expected global_norm | norm | value. Received: 'length'"),
        ("stages.0.layer_decay=0", "stages.0.layer_decay: expected number > 0 <= 1. Received: 0"),
        ("stages.0.layer_decay=1.1", "stages.0.layer_decay: expected number > 0 <= 1. Received: 1.1"),
        (
            "stages.0.optimizer=adamax",
            "stages.0.optimizer: expected adamw | adam | sgd | rmsprop | adagrad | lion. Received: 'adamax'",
        ),
        (
            "stages.0.schedule=linear",
            "stages.0.schedule: expected cosine | constant | one_cycle | step | exponential | plateau. "
            "Received: 'linear'",
        ),
        # each right, together wrong
        (
            "backbone={name='vgg16', stochastic_depth=0.2}",
            f"backbone: stochastic_depth drops residual branches of {', '.join(RESIDUAL)}; "
            "vgg16 has none that it could. Received 0.2. Choose one of these, or leave it out",
        ),
        ("backbone={name='efficientnetb0', stochastic_depth=0.2}", "efficientnetb0 has its own, 0.2. Received 0.2"),
        ("backbone.candidates=resnet50", "backbone.candidates: expected list of names. Received: 'resnet50'"),
        ('backbone.candidates=["resnet50", "vgg"]', "backbone.candidates.1: expected tiny | vgg16"),
        ('backbone.candidates=["tiny"]', "and tiny has none; leave it out"),
        ("backbone={name='auto', weights='none'}", "name=auto compares networks with their ImageNet weights"),
        ("train={batch_size=1, mixup=0.2}", "train: mixup and cutmix mix the images of a batch with one another"),
        (
            "augment={policy='none', strength=2}",
            "augment: strength is a factor on what the policy does",
        ),
        ("stages.0.l2=0.1", "stages.0: l2: for unfrozen blocks of the backbone, and unfreeze=0 unfreezes none."),
        ("stages.0.layer_decay=0.5", "stages.0: layer_decay: for unfrozen blocks"),
        (
            "stages.0.clip_by=norm",
            "stages.0: clip_by says what is shortened to clipnorm, and clipnorm=0 shortens nothing;",
        ),
        (
            "train={class_weights='balanced', logit_adjustment=1}",
            "train: class_weights and logit_adjustment each make up for classes of different size, together too much; "
            "received balanced and 1.0. Choose one",
        ),
        (
            "train={sampling='balanced', class_weights={daisy=2}}",
            "train: class_weights and sampling each make up for classes of different size, together too much; "
            "received {'daisy': 2.0} and balanced. Choose one",
        ),
        ("train={sampling='balanced', logit_adjustment=0.5}", "train: logit_adjustment and sampling each make up"),
        ("train.sampling=even", "train.sampling: expected all | balanced. Received: 'even'"),
        ("backbone.name=tiny", "backbone `tiny` has no ImageNet weights; set backbone.weights=none"),
        ("data.test_fraction=0.8", "val_fraction + test_fraction must be below 1"),
        ("stages.0.unfreeze=-1", "stages.0: unfreeze must be 0 or more blocks, a block's name or 'all'; received -1"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_received(override, message):
    said = refusal([override])
    assert message in said
    assert len(said.splitlines()) == 1, "one line, also where several types were tried"


def test_holding_on_to_weights_that_are_random_is_refused():
    said = refusal(["backbone.weights=none", "stages.1.l2_sp=0.1"])
    assert said == "stages.N.l2_sp holds on to pretrained weights; with backbone.weights=none there are none"
    assert load(None, ["stages=[{unfreeze=1, l2_sp=0.1}]"]).stages[0].l2_sp == 0.1


@pytest.mark.parametrize("mixing", ["train.mixup=0.2", "train.cutmix=1"])
def test_a_stage_of_batches_of_one_image_has_nothing_to_mix(mixing):
    said = refusal(["stages.1.batch_size=1", mixing])
    assert said.startswith("train.mixup and train.cutmix mix the images of a batch with one another; received a stage")
    assert load(None, ["stages.0.batch_size=2", mixing]).stages[0].batch_size == 2
    assert load(None, ["stages.0.batch_size=1"]).stages[0].batch_size == 1


def test_a_plateau_without_time_to_see_one_is_refused():
    said = refusal(["train.patience=2", "stages.0.schedule=plateau"])
    assert said.startswith("stages.N.schedule=plateau waits a third of train.patience") and "patience=2" in said
    assert load(None, ["train.patience=3", "stages.0.schedule=plateau"]).stages[0].schedule == "plateau"


def test_patience_stays_where_it_decides_when_the_step_size_falls():
    before = ["stages.0.schedule=plateau"]
    with pytest.raises(ConfigError, match=r"^train.patience: 40 -> 6\n") as error:
        changed(load(None, before), load(None, [*before, "train.patience=6"]))
    assert str(error.value).count("train.patience") == 1, "nor is it named among those that may change"


def test_views_cannot_be_refreshed_where_classes_have_no_epochs_in_common():
    said = refusal(["train.sampling=balanced", "stages.1.refresh=2"])
    assert said.startswith("stages.N.refresh counts epochs, and with train.sampling=balanced each class")


def test_all_wrong_settings_are_listed_at_once():
    said = refusal(["data.image_size=1", "head.l1=-1", "train.sed=3"])
    assert len(said.splitlines()) == 3
    assert all(key in said for key in ("data.image_size", "head.l1", "train.sed"))


def test_a_value_cannot_also_be_a_section():
    assert "data is a single value, not a section" in refusal(["data=5", "data.path=x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "x: no such setting."),
        ("[data]\npath = 3", "data.path: expected text. Received: 3"),
        ("[data]\npath = 'a'\npath = 'b'", "is not valid TOML"),  # YAML would take the second without a word
        ("[data]\npath = 'a'\n[data]\nimage_size = 32", "is not valid TOML"),
        ("[data\n", "is not valid TOML"),
        ("[stages]\nepochs = 3", "stages: expected"),
        ("[[stages]]\nepochs = 3\n[[stages]]\nepohcs = 3", "stages.1.epohcs: no such setting"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, message):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    assert message in refusal(recipe=recipe)


def test_a_wrong_value_in_the_only_stage_is_the_only_complaint(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[stages]]\nepochs = 'three'")
    assert refusal(recipe=recipe) == "stages.0.epochs: expected whole number >= 1. Received: 'three'"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_bytes(b"[data]\npath = '\xe9'"), "not valid TOML"),
    ],
    ids=["missing", "folder", "latin-1"],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path, make, message):
    make(tmp_path / "recipe.toml")
    said = refusal(recipe=tmp_path / "recipe.toml")
    assert message in said
    assert "recipe.toml" in said


def test_a_recipe_beats_the_defaults_and_an_override_beats_the_recipe_and_the_later_one_wins(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[data]\nimage_size = 64\nresize = 'pad'\n[train]\nseed = 5")
    config = load(recipe, ["data.image_size=96", "train.batch_size=8", "data.image_size=128"])
    assert (config.data.image_size, config.data.resize) == (128, "pad")
    assert (config.train.seed, config.train.batch_size) == (5, 8)
    assert config.head == Config().head


def test_one_weight_of_a_table_is_overridden_and_a_word_takes_the_place_of_them_all(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[train.class_weights]\ndaisy = 2.0\n'St. Bernard' = 3")
    assert load(recipe, ["train.class_weights.daisy=5"]).train.class_weights == {"daisy": 5.0, "St. Bernard": 3.0}
    assert load(recipe, ["train.class_weights=none"]).train.class_weights == "none"
    said = refusal(["train.class_weights=none", "train.class_weights.daisy=5"])
    assert said == "train.class_weights.daisy: train.class_weights is a single value, not a section."


def test_overriding_one_stage_leaves_the_others_as_they_were(tmp_path):
    assert load(None, [THREE_STAGES, "stages.1.epochs=2", "stages.3.epochs=5"]).stages == (
        Stage(unfreeze=0),
        Stage(unfreeze=1, epochs=2),
        Stage(unfreeze=2),
        Stage(epochs=5),  # the next number adds a stage
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[[stages]]\nepochs = 3")
    assert load(recipe, ["stages.0.unfreeze=all"]).stages == (Stage(epochs=3, unfreeze="all"),)
    assert load(recipe, ["stages=[{epochs=7}, {}]"]).stages == (Stage(epochs=7), Stage())


@pytest.mark.parametrize(
    ("lines", "stages"), [([], None), (["stages=[]"], ()), (["stages.0.epochs=3"], (Stage(epochs=3),))]
)
def test_no_stages_are_something_else_than_stages_to_be_chosen_and_a_saved_recipe_knows(tmp_path, lines, stages):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(load(None, lines)))
    assert load(recipe).stages == load(None, lines).stages == stages


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("data.path=123", lambda c: c.data.path == "123"),  # text stays text
        ("data.path=a=b.csv", lambda c: c.data.path == "a=b.csv"),
        ("data.path=true", lambda c: c.data.path == "true"),
        ("stages.0.unfreeze=2", lambda c: c.stages[0].unfreeze == 2),
        ("stages.0.unfreeze=conv4", lambda c: c.stages[0].unfreeze == "conv4"),
        ("stages.0.learning_rate=1e-3", lambda c: c.stages[0].learning_rate == 0.001),  # YAML would make it text
        ("data.image_size=auto", lambda c: c.data.image_size == "auto"),
        ('data.image_size="auto"', lambda c: c.data.image_size == "auto"),
        ("data.image_size=288", lambda c: c.data.image_size == 288),
        ("data.resize=auto", lambda c: c.data.resize == "auto"),
        ("head.feature_levels=auto", lambda c: c.head.feature_levels == "auto"),
        ("head.feature_levels=16", lambda c: c.head.feature_levels == 16),
        ("head.power_norm=auto", lambda c: c.head.power_norm == "auto"),
        ("head.power_norm=true", lambda c: c.head.power_norm is True),
        ("stages.0.refresh=3", lambda c: c.stages[0].refresh == 3),
        ("tta.center_zoom=true", lambda c: c.tta.center_zoom is True),
        ("augment.policy=random", lambda c: c.augment.policy == "random"),
        ("backbone.alpha=1", lambda c: c.backbone.alpha == 1.0),
        ("data.memory_gb=4", lambda c: c.data.memory_gb == 4.0),
        ("augment.policy=none", lambda c: c.augment.policy == "none"),
        ("augment.hflip=false", lambda c: c.augment.hflip is False),
        ("train.class_weights=balanced", lambda c: c.train.class_weights == "balanced"),
        ("train.class_weights.red rose=2", lambda c: c.train.class_weights == {"red rose": 2.0}),
        ("train.class_weights.7=0.5", lambda c: c.train.class_weights == {"7": 0.5}),
        (
            'train.class_weights={"St. Bernard" = 2, \'a "b" = c\' = 3}',
            lambda c: c.train.class_weights == {"St. Bernard": 2, 'a "b" = c': 3},
        ),
    ],
)
def test_values_of_the_command_line_get_the_type_of_the_setting(override, read):
    assert read(load(None, [override]))


WORDS = ["plain", "with space", 'quote"s', "back\\slash", "new\nline", "# no comment", "été 🌻", "[a]\nb = 1", ""]


def some_config(rng: np.random.Generator) -> Config:
    """A valid configuration in which every kind of value varies."""
    unfreeze = [0, 3, "all", "conv4"]
    stages = [
        Stage(
            unfreeze=unfreeze[rng.integers(4)],
            warmup=rng.random(),
            learning_rate=float(10 ** rng.uniform(-9, 1)),
            refresh=int(rng.integers(0, 5)),
            optimizer=str(rng.choice(["adamw", "sgd", "lion"])),
            schedule=str(rng.choice(["cosine", "one_cycle", "step"])),
            clipnorm=float(rng.integers(0, 3)),
        )
        for _ in range(rng.integers(1, 5))
    ]
    sizes, levels, roots = ["auto", 16, 224, 1024], ["auto", 1, 16], ["auto", True, False]
    return Config(
        data=Data(
            path=str(rng.choice(WORDS)),
            image_size=sizes[rng.integers(4)],
            resize=str(rng.choice(["auto", "crop", "stretch"])),
            val_fraction=rng.uniform(0.01, 0.5),
            memory_gb=rng.random() * 1e-5,
        ),
        augment=Augment(hflip=bool(rng.integers(2)), policy=str(rng.choice(["none", "light", "heavy", "random"]))),
        backbone=Backbone(alpha=float(rng.choice([0.25, 1.0, 1.4])), weights=str(rng.choice(WORDS))),
        head=Head(
            feature_levels=levels[rng.integers(3)],
            power_norm=roots[rng.integers(3)],
            l1=float(10 ** rng.uniform(-12, 1)),
            hidden=int(rng.integers(0, 8193)),
        ),
        train=Train(
            seed=int(rng.integers(0, 2**31)),
            deterministic=bool(rng.integers(2)),
            class_weights=["none", "effective", {name: float(rng.uniform(0.1, 9)) for name in WORDS}][rng.integers(3)],
        ),
        tta=TTA(hflip=bool(rng.integers(2)), center_zoom=bool(rng.integers(2))),
        stages=tuple(stages),
    )


def test_a_saved_configuration_is_read_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    recipe = tmp_path / "config.toml"
    for config in [Config(), *(some_config(rng) for _ in range(40))]:
        recipe.write_text(to_toml(config), encoding="utf-8")
        assert load(recipe) == config


def test_a_configuration_cannot_be_changed():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.data.image_size = 3


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [
        (["--data.path=a", "--train.seed", "3"], ["data.path=a", "train.seed=3"]),
        (["--data.path", "a b"], ["data.path=a b"]),
        (["--data.path=a=b"], ["data.path=a=b"]),
        (["--data.test_fraction", "-1"], ["data.test_fraction=-1"]),  # refused later, by its range
        (["--data.path="], ["data.path="]),
    ],
)
def test_both_ways_to_write_an_argument(arguments, pairs):
    assert list(pair_up(arguments)) == pairs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "Expected --section.field=value. Received: 'photos'"),
        (["-x"], "Received: '-x'"),
        (["--data.path"], "--data.path needs a value."),
        (["--data.path", "--train.seed=1"], "--data.path needs a value."),
        (["--data.pth"], "Did you mean 'data.path'?"),
    ],
)
def test_arguments_that_are_no_settings(arguments, message):
    with pytest.raises(ConfigError) as caught:
        list(pair_up(arguments))
    assert message in str(caught.value)


def test_help_lists_every_setting_with_its_default_and_meaning():
    lines = describe().splitlines()
    listed = {
        line.split("=")[0].strip(): meaning.strip() for line, meaning in zip(lines[::2], lines[1::2], strict=True)
    }
    expected = set()
    for section, hint in typing.get_type_hints(Config).items():
        fields = dataclasses.fields(Stage if section == "stages" else hint)
        expected |= {f"--{section}{'.0' if section == 'stages' else ''}.{field.name}" for field in fields}
    assert set(listed) == expected
    assert all(len(meaning) > 10 for meaning in listed.values())
    defaults = Config()
    for key, default, kind in (
        ("data.image_size", defaults.data.image_size, "auto | whole number >= 16 <= 1024"),
        ("data.resize", defaults.data.resize, "auto | crop | pad | stretch"),
        ("head.feature_levels", defaults.head.feature_levels, "auto | whole number >= 1 <= 16"),
        ("head.power_norm", defaults.head.power_norm, "auto | true | false"),
        ("stages.0.unfreeze", Stage().unfreeze, "whole number | text"),
        ("data.val_fraction", defaults.data.val_fraction, "number > 0 < 1"),
    ):
        assert f"  --{key}={json.dumps(default)}  ({kind})" in lines


SPY = """
import runpy, sys, time
sys.argv = [sys.argv[1], *sys.argv[2:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {"tensorflow", "keras", "sklearn", "matplotlib", "cv2"} & set(sys.modules)
    print(f"heavy={sorted(heavy)} cpu={time.process_time():.2f}")
"""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.imge_size=224", "data.imge_size: no such setting. Did you mean 'data.image_size'?"),
        ("--train.batch_size=0", "train.batch_size: expected whole number >= 1 <= 4096. Received: 0"),
        ("--config=nowhere.toml", "'nowhere.toml' does not exist"),
    ],
)
def test_training_stops_at_a_wrong_setting_before_it_imports_anything_heavy(tmp_path, argument, message):
    done = subprocess.run(
        [sys.executable, "-c", SPY, str(TRAIN), argument], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "heavy=[]" in done.stdout
    assert float(done.stdout.rpartition("cpu=")[2]) < 2
    assert not list(tmp_path.iterdir())  # no run folder for a run that never began


# Resumed runs


def test_nothing_has_changed_in_an_equal_configuration():
    assert changed(load(None, ["stages.0.epochs=5"]), load(None, ["stages.0.epochs=5"])) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.path=elsewhere", 'data.path: "digits" -> "elsewhere"'),
        ("data.cache=other", 'data.cache: "cache" -> "other"'),
        ("data.memory_gb=1.0", "data.memory_gb: 2.0 -> 1.0"),
        ("train.patience=3", "train.patience: 40 -> 3"),
        ("train.monitor_gradients=true", "train.monitor_gradients: false -> true"),
        ("evaluate.target_accuracy=0.9", "evaluate.target_accuracy: 0.95 -> 0.9"),
    ],
)
def test_what_may_change_is_listed(override, line):
    assert changed(load(), load(None, [override])) == [line]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.image_size=64", "data.image_size: 224 -> 64"),
        ("data.split_seed=1", "data.split_seed: 0 -> 1"),
        ("augment.policy=none", 'augment.policy: "medium" -> "none"'),
        ("backbone.name=vgg16", 'backbone.name: "efficientnet_lite0" -> "vgg16"'),
        ("head.dropout=0.1", "head.dropout: 0.3 -> 0.1"),
        ("train.batch_size=8", "train.batch_size: 32 -> 8"),
        ("train.class_weights.daisy=2", "train.class_weights.daisy: null -> 2.0"),
        ("train.precision=mixed_bfloat16", 'train.precision: "float32" -> "mixed_bfloat16"'),
        ("tta.center_zoom=true", "tta.center_zoom: false -> true"),  # the probe learns from it
        ("stages.0.epochs=7", "stages.0.epochs: 5 -> 7"),  # the schedule of the learning rate would jump
        ("stages.1.epochs=7", "stages.1.epochs: null -> 7"),
    ],
)
def test_what_must_not_change_is_refused_by_name(override, line):
    before = ["stages.0.epochs=5"]
    with pytest.raises(ConfigError) as error:
        changed(load(None, before), load(None, [*before, override, "train.patience=3"]))
    assert line in str(error.value)
    assert "patience: 40" not in str(error.value) and "train.patience" in str(error.value), "only as what may change"


def test_paths_mean_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = load(None, ["data.path=photos", "data.cache=~/cache", "backbone.weights=../w.h5"])
    there = absolute(config)
    assert there.data.path == f"{tmp_path}/photos"
    assert there.data.cache == "/home/somebody/cache"
    assert Path(there.backbone.weights).resolve() == tmp_path.parent / "w.h5"
    assert absolute(there) == there
    for name in ("digits", "tfds:mnist"):
        assert absolute(load(None, [f"data.path={name}"])).data.path == name
    for name in ("imagenet", "none"):
        assert absolute(load(None, [f"backbone.weights={name}"])).backbone.weights == name


# Settings of earlier versions


def test_a_saved_recipe_of_an_earlier_version_is_read_with_a_word(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("[train]\nfeature_cache_gb = 2.5\nseed = 3\n")
    config = load(tmp_path / "config.toml", ["train.patience=4"])
    assert config.data.cache_gb == 2.5 and config.train.seed == 3
    said = capsys.readouterr()
    assert (
        "train.feature_cache_gb is called data.cache_gb now" in said.err
    )  # one line, however many and said.out == "", "stdout may be a table"
    (tmp_path / "config.toml").write_text("[data]\ncache_gb = 1.0\n[train]\nfeature_cache_gb = 2.5\n")
    assert load(tmp_path / "config.toml").data.cache_gb == 1.0


def test_every_setting_of_an_earlier_version_is_read_by_its_new_name(tmp_path, capsys):
    (tmp_path / "old.toml").write_text(
        """
        [data]
        resize = "squash"
        [head]
        levels = 2
        root = true
        noise = 0.5
        [train]
        accumulate = 2
        final_fit = "no"
        feature_cache_gb = 2.5
        [evaluate]
        mirror = false
        whole = true
        magnify = true
        wanted_accuracy = 0.9
        wanted_precision = 0.7
        [augment]
        flip = false
        erase = 0.1
        grey = 0.2
        [[stages]]
        unfreeze = 1
        [[stages]]
        unfreeze = 2
        views = 1
        clip = 3.0
        """
    )
    config = load(tmp_path / "old.toml")
    assert (config.data.resize, config.data.cache_gb) == ("stretch", 2.5)
    assert (config.head.feature_levels, config.head.power_norm, config.head.gaussian_dropout) == (2, True, 0.5)
    assert (config.train.gradient_accumulation_steps, config.train.refit_on_train_val) == (2, "no")
    assert config.tta == TTA(hflip=False, full_image=True, center_zoom=True)
    assert (config.evaluate.target_accuracy, config.evaluate.target_precision) == (0.9, 0.7)
    assert config.augment == Augment(hflip=False, random_erasing=0.1, grayscale=0.2)
    assert (config.stages[1].cached_augmentations, config.stages[1].clipnorm) == (1, 3.0)
    assert config.stages[0].clipnorm == 0 and len(config.stages) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(f"{old} is called {new} now" in said for old, new in RENAMED.items())


def test_on_the_command_line_an_old_name_is_taken_with_a_word(tmp_path, capsys):
    (tmp_path / "new.toml").write_text("[[stages]]\n[[stages]]\nclipnorm = 1.0\n[data]\ncache_gb = 1.0\n")
    given = ["stages.1.clip=3", "train.feature_cache_gb=2", "data.resize=squash", "head={levels=2}"]
    config = load(tmp_path / "new.toml", given)
    assert (config.stages[1].clipnorm, config.data.cache_gb, config.data.resize) == (3.0, 2.0, "stretch")
    assert config.head.feature_levels == 2
    said = capsys.readouterr().err
    assert "stages.1.clip is called stages.1.clipnorm now; taken as that" in said
    assert "head.levels is called head.feature_levels now" in said


def test_a_path_that_a_recipe_cannot_hold_is_refused_by_name(tmp_path, monkeypatch):
    """JSON and TOML have no way to write the bytes of a name that is not UTF-8."""
    with pytest.raises(ConfigError, match=r"data\.path: expected a name in UTF-8.*'caf\\udce9'.*Rename it"):
        load(None, ["data.path=caf\udce9"])
    place = tmp_path / "caf\udce9"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(ConfigError, match="UTF-8"):
        absolute(load(None, ["data.path=photos"]))
    assert load(None, ["data.path=\u732b \U0001f98a"]).data.path == "\u732b \U0001f98a"


@pytest.mark.parametrize(
    ("overrides", "mirrors"),
    [
        ([], True),
        (["augment.hflip=false"], False),
        (["augment.policy=none"], False),
        (["augment.hflip=false", "tta.hflip=true"], True),  # as some earlier run was trained
        (["tta.hflip=false"], False),
    ],
)
@pytest.mark.parametrize("recipe", [None, "folder.toml", "scratch.toml"])
def test_answers_are_of_mirror_images_where_training_sees_them(overrides, mirrors, recipe, tmp_path):
    config = load(Path(__file__).parents[1] / "configs" / recipe if recipe else None, overrides)
    assert suggest.uses_hflip(config) == mirrors
    (tmp_path / "saved.toml").write_text(to_toml(config))
    assert suggest.uses_hflip(load(tmp_path / "saved.toml")) == mirrors


@pytest.mark.parametrize(
    ("overrides", "whole"),
    [
        (["stages=[]"], False),
        (["stages=[{unfreeze=1}]"], True),
        (["stages=[{unfreeze=1}]", "data.resize=pad"], False),  # the whole image is seen already
        (["stages=[]", "tta.full_image=true"], True),
        (["stages=[{unfreeze=1}]", "tta.full_image=false"], False),
    ],
)
def test_answers_are_of_the_whole_image_too_where_stages_train(overrides, whole, tmp_path):
    config = load(Path(__file__).parents[1] / "configs" / "folder.toml", overrides)
    assert suggest.uses_full_image(config) == whole
    (tmp_path / "saved.toml").write_text(to_toml(config))
    assert suggest.uses_full_image(load(tmp_path / "saved.toml")) == whole
