"""Cross-validation chooses how deep to fine-tune: by images that no fold has learned, and only if it clearly pays."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from template.config import Augment, Backbone, Config, Data, Stage, Train
from template.data.dataset import ArrayDataset
from template.disk import DiskError
from template.model.backbones import build_backbone
from template.model.blocks import find_blocks
from template.model_selection import depth as module
from template.model_selection.auto import init_model
from template.model_selection.depth import choose_depth, choose_stages
from template.progress import Timer
from template.train.features import FeatureCache
from template.train.one_stage import TrainContext

SIZE, N = 20, 30
TOP, HALF = STAGES = tuple(Stage(unfreeze=number, epochs=2) for number in (1, 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory, shallow) -> keras.Model:
    """A network whose activations are normalised, as those of a pretrained one are."""
    keras.utils.set_random_seed(0)
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
    base(coloured().read(0, np.arange(N)).astype("float32"), training=True)
    return base


@pytest.fixture(autouse=True)
def two_depths(monkeypatch):
    monkeypatch.setattr(module.suggest, "depths", lambda *_: STAGES)
    monkeypatch.setattr(module, "ENOUGH_IMAGES", N)


def coloured() -> ArrayDataset:
    """Noise whose mean colour tells the class, but not well. Images of one group have the same label."""
    generator = np.random.default_rng(0)
    labels = np.arange(N) % 3
    pixels = generator.integers(0, 150, (N, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(N), :, :, labels] += generator.integers(0, 4, N).astype(np.uint8)[:, None, None]
    return ArrayDataset(lambda _, rows: pixels[rows], labels, "coloured", groups=np.arange(N) % 15)


def images(config: Config) -> tuple[ArrayDataset, ArrayDataset]:
    """Those of `coloured` at the size of a configuration, and the same in place of augmented ones."""
    dataset, size = coloured(), config.data.image_size
    smaller = dataclasses.replace(dataset, read=lambda e, rows: dataset.read(e, rows)[:, :size, :size], key=f"{size}")
    return smaller, smaller


CONFIG = Config(
    data=Data(path="nowhere", image_size=SIZE, resize="crop"),
    backbone=Backbone(name="tiny", weights="a file"),
    augment=Augment(hflip=False),
)


@pytest.fixture(scope="module")
def begun(base, tmp_path_factory) -> tuple[keras.Model, FeatureCache]:
    """A model whose head is the probe, and what was computed for it."""
    cache = FeatureCache(tmp_path_factory.mktemp("cache"), 1e9, batch_size=8, clock=Timer())
    return init_model(base, CONFIG, [coloured()], cache), cache


@pytest.fixture
def chosen(base, begun):
    """Chooses for `coloured`, and returns what was chosen, and the losses; the model is as it was."""
    model, cache = begun

    def choose(function=choose_depth, levels=1, augment=CONFIG.augment, **train):
        head = dataclasses.replace(CONFIG.head, feature_levels=levels)
        config = dataclasses.replace(CONFIG, head=head, augment=augment, train=Train(**train))
        before, initial = model.get_weights(), [variable.numpy() for variable in model.variables]
        context = TrainContext(find_blocks(model, CONFIG.backbone), (), config.train, cache, initial, ("a", "b", "c"))
        result = function(model, base, config, images, context)
        for old, new in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        return result

    return choose


@pytest.fixture
def trained(monkeypatch):
    """Sets how good the logits are with which each depth predicts, and returns what was trained and predicted."""
    seen = []

    def quality(*of_depths: float):
        def train_once(compiled):
            seen.append((compiled.stage.unfreeze, compiled.train.groups, []))

        def predict(compiled, rows):
            labels = compiled.val.labels[rows]
            seen[-1][2].append(compiled.val.groups[rows])
            right = np.eye(3)[labels] * of_depths[compiled.stage.unfreeze - 1]
            return (right + np.random.default_rng(1).normal(0, 1, right.shape)).astype(np.float32)

        monkeypatch.setattr(module, "train_once", train_once)
        monkeypatch.setattr(module, "_predict", predict)
        return seen

    return quality


KEY = f"blocks to unfreeze, at {SIZE} pixels"


def test_half_of_the_network_is_unfrozen_where_that_pays_and_the_top_is_not_tried(chosen, trained):
    seen = trained(9.0, 9.0)
    stages, compared = chosen()
    assert stages == (HALF,) and {unfrozen for unfrozen, *_ in seen} == {2}
    assert list(compared[KEY]) == ["0", "2"] and compared[KEY]["2"] < compared[KEY]["0"]


def test_the_top_is_tried_where_half_does_not_pay(chosen, trained):
    seen = trained(9.0, -3.0)
    stages, compared = chosen()
    assert stages == (TOP,) and list(compared[KEY]) == ["0", "2", "1"]
    assert compared[KEY]["1"] < compared[KEY]["0"] < compared[KEY]["2"]
    assert [unfrozen for unfrozen, *_ in seen] == [2, 1], "of what loses or wins by much a fold says enough"


@pytest.mark.parametrize(
    ("enough", "z", "raced"),
    [
        (N + 1, -0.8, [2]),  # it must lead by 0.5: given up; of fewer images the top is not tried
        (N + 1, -0.4, [2, 2]),  # after a fold it may still lead in the end
        (N + 1, 0.4, [2, 2, 2]),
        (N + 1, 1.2, [2, 2]),  # won
        (N, -1.4, [2, 1]),  # the top must not be behind by 0.5
        (N, -0.9, [2, 1, 1, 1]),
        (N, 0.4, [2, 2, 2, 1, 1]),
    ],
)
def test_what_is_decided_is_not_trained_again(chosen, trained, monkeypatch, enough, z, raced):
    seen = trained(1.0, 1.0)
    monkeypatch.setattr(module, "ENOUGH_IMAGES", enough)
    monkeypatch.setattr(module, "paired_z", lambda *_, **__: z)
    chosen()
    assert [unfrozen for unfrozen, *_ in seen] == raced


def test_with_images_enough_the_top_may_have_won_after_a_fold(chosen, trained, monkeypatch):
    """It needs no lead; half, which needs one, has not won by then."""
    seen = trained(1.0, 1.0)
    monkeypatch.setattr(module, "paired_z", lambda *_, **__: 0.8 if seen[-1][0] == 1 else -0.8)
    assert chosen()[0] == (TOP,) and [unfrozen for unfrozen, *_ in seen] == [2, 1]


def test_with_images_without_labels_each_fold_races_from_the_probe_that_they_taught(chosen, monkeypatch):
    """By the labels of that fold alone; the other depth is not worth its time here."""
    taught, raced, original = [], [], module.self_train

    def teach(features, labels, pool, *how):
        taught.append(original(features, labels, pool, *how))
        assert (len(labels), pool.shape[1]) == (N * 2 // 3, N)
        return taught[-1]

    monkeypatch.setattr(module, "self_train", teach)
    monkeypatch.setattr(module, "_race", lambda compiled, heads, *_: raced.append(heads) or (1.0, 9.0))
    stages, _ = chosen(lambda *how: choose_depth(*how, unlabelled=lambda _: coloured()))
    assert stages == (HALF,) and len(taught) == 3
    for probe, (kernel, bias) in zip(taught, raced[0], strict=True):
        assert kernel is probe.kernel and bias is probe.bias


def test_the_probe_stays_where_nothing_pays(chosen, trained):
    trained(-3.0, -3.0)
    assert chosen()[0] == ()


@pytest.mark.parametrize(("half", "top", "kept"), [(0.6, 9.0, (HALF,)), (0.4, 0.6, (TOP,)), (0.4, 0.4, ())])
def test_the_deepest_that_leads_by_more_than_half_a_standard_error_is_unfrozen(chosen, monkeypatch, half, top, kept):
    asked = []
    monkeypatch.setattr(
        module, "_against_probe", lambda *how: asked.append(how[-1]) or ((half, top)[len(asked) - 1], {})
    )
    assert chosen(levels=2)[0] == kept  # far from ImageNet, where the top needs a lead, too
    assert set(asked) == {0.5}, "what races knows it, to give up early"


@pytest.mark.parametrize(("levels", "needed"), [(1, [0.5, -0.5]), (2, [0.5, 0.5])])
def test_with_images_enough_the_top_needs_no_lead_unless_they_are_far_from_imagenet(
    chosen, monkeypatch, levels, needed
):
    asked = []
    monkeypatch.setattr(module, "_against_probe", lambda *how: asked.append(how[-1]) or (-2.0, {}))
    assert chosen(levels=levels)[0] == () and asked == needed


@pytest.mark.parametrize(("enough", "z", "kept"), [(N, -0.4, True), (N, -0.6, False), (N + 1, -0.4, False)])
def test_with_images_enough_the_top_is_kept_unless_it_is_clearly_worse(chosen, trained, monkeypatch, enough, z, kept):
    seen = trained(1.0, 1.0)
    monkeypatch.setattr(module, "ENOUGH_IMAGES", enough)
    monkeypatch.setattr(module, "paired_z", lambda *_, **__: z)
    assert chosen()[0] == STAGES[: int(kept)]
    assert {unfrozen for unfrozen, *_ in seen} == ({1, 2} if enough == N else {2})


@pytest.mark.parametrize(
    ("augment", "half", "said"),
    [
        (Augment(hflip=True), 9.0, True),
        (Augment(hflip=True), -3.0, False),  # the probe hardly minds
        (Augment(hflip=False), 9.0, False),
        (Augment(hflip=True, policy="none"), 9.0, False),
    ],
)
def test_who_fine_tunes_half_of_the_network_is_told_what_mirror_images_may_cost(
    chosen, trained, capsys, augment, half, said
):
    trained(9.0, half)
    chosen(augment=augment)
    assert ("train with --augment.hflip=false" in capsys.readouterr().out) == said


@pytest.mark.slow
def test_half_races_on_small_images_with_the_same_weights_and_the_top_on_those_of_the_run(
    chosen, trained, monkeypatch, base
):
    trained(9.0, -3.0)
    monkeypatch.setattr(module, "SMALL", 16)
    raced, real, resized = [], module._race, module.resized

    def numbered(*how) -> keras.Model:
        """As Keras names layers that have no name of their own: by how many there were before."""
        copy = resized(*how)
        copy.get_layer("stem").name = "stem_2"
        return copy

    monkeypatch.setattr(module, "resized", numbered)
    monkeypatch.setattr(module, "_race", lambda compiled, *how: raced.append(compiled) or real(compiled, *how))
    stages, compared = chosen()
    assert stages == (TOP,)
    assert list(compared) == ["blocks to unfreeze, at 16 pixels", KEY]
    assert [list(losses) for losses in compared.values()] == [["0", "2"], ["0", "1"]]
    half, top = raced
    assert half.model.input_shape == (None, 16, 16, 3) and top.model.input_shape == (None, SIZE, SIZE, 3)
    for mine, others in zip(base.get_weights(), half.model.get_weights()[:-2], strict=True):  # but for the head
        np.testing.assert_array_equal(mine, others)


@pytest.mark.slow
def test_a_network_that_diverges_loses(chosen, monkeypatch, capsys):
    def train_once(compiled):
        compiled.model.get_layer("logits").bias.assign([np.nan] * 3)

    monkeypatch.setattr(module, "train_once", train_once)
    stages, compared = chosen()
    assert stages == () and compared[KEY].keys() == {"0"}
    assert "-inf standard errors: not taken" in capsys.readouterr().out


def test_no_fold_has_learned_what_it_judges(chosen, trained):
    seen = trained(0.9, 0.9)
    chosen()
    assert len(seen) > 1
    for _, learned, (judged,) in seen:
        assert not set(learned) & set(judged), "images of one group are in both"


def test_a_fold_learns_as_long_from_fewer_images_as_the_stage_from_all(chosen, trained, monkeypatch):
    trained(0.9, 0.9)
    passes, predict_as = [], module.train_once

    def train_once(compiled):
        predict_as(compiled)
        passes.append((compiled.stage.epochs, len(compiled.train)))

    monkeypatch.setattr(module, "train_once", train_once)
    chosen()
    assert passes and all(passed == (HALF.epochs * 3 / 2, N * 2 / 3) for passed in passes)


def test_each_fold_begins_from_its_own_probe_and_the_pretrained_weights(chosen, monkeypatch, base):
    starts, kernels = [], []

    def train_once(compiled):
        starts.append([value.copy() for value in compiled.model.get_weights()])
        kernels.append(starts[-1][-2])
        for variable in compiled.model.trainable_variables:
            variable.assign(variable + 1.0)
        for variable in compiled.network.optimizer.variables:
            assert not np.any(variable.numpy()) or "learning_rate" in variable.path, variable.path
            variable.assign(variable + 1)

    monkeypatch.setattr(module, "train_once", train_once)
    monkeypatch.setattr(module, "paired_z", lambda *_, **__: 0.6)
    chosen()
    starts, kernels = starts[:3], kernels[:3]  # of the first depth
    for start in starts[1:]:
        for old, new in zip(starts[0][:-2], start[:-2], strict=True):
            np.testing.assert_array_equal(old, new)
    assert not any(np.array_equal(kernels[0], kernel) for kernel in kernels[1:])


def test_real_training_of_a_fold_ends_with_weights_that_predict_what_it_says(chosen, monkeypatch):
    monkeypatch.setattr(module, "paired_z", lambda *_, **__: 0.6)
    said = []
    real = module._predict
    monkeypatch.setattr(module, "_predict", lambda *how: said.append(real(*how)) or said[-1])
    _, compared = chosen(class_weights={"b": 2.0})
    assert len(said) >= 3 and sum(map(len, said[:3])) == N
    assert all(np.isfinite(each).all() for each in said) and all(map(np.isfinite, compared[KEY].values()))


def test_without_room_for_the_activations_nothing_is_trained(chosen, trained, monkeypatch, begun):
    seen, asked = trained(8.0, 8.0), []

    def require_space(needed):
        asked.append(needed)
        raise DiskError("no room")

    monkeypatch.setattr(module.disk, "require_space", require_space)
    monkeypatch.setattr(FeatureCache, "size_bytes", lambda _: 0)
    with pytest.raises(DiskError):
        chosen()
    # Three augmented views, of as many epochs, in float16 and one in float32, below the second block.
    assert asked == [{begun[1].folder: N * (3 * 2 + 4) * SIZE * SIZE * 32}] and not seen


def test_a_recipe_with_stages_keeps_them_and_one_without_any_too(chosen, trained):
    seen = trained(8.0, 8.0)

    def given(stages):
        return lambda model, base, config, *rest: choose_stages(
            model, base, dataclasses.replace(config, stages=stages), *rest
        )

    for stages in ((), (TOP,)):
        config, compared = chosen(given(stages))
        assert config.stages == stages and compared == {}
    assert not seen
    config, compared = chosen(choose_stages)
    assert len(config.stages) == 1 and config.stages[0] in STAGES
    assert list(compared) == [KEY] and seen


def test_many_images_are_not_cross_validated(chosen, trained, monkeypatch, capsys):
    seen = trained(8.0, 8.0)
    monkeypatch.setattr(module, "MAX_CV_IMAGES", N)
    config, compared = chosen(choose_stages)
    assert config.stages == () and compared == {} and not seen
    assert "stages from the number of images: none" in capsys.readouterr().out


def test_a_class_of_one_image_is_said_and_the_probe_stays(chosen, monkeypatch, capsys):
    monkeypatch.setattr(module, "folds", lambda *_, **__: [])
    assert chosen() == ((), {})
    assert "a class has one training image" in capsys.readouterr().out
