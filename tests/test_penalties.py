"""Penalties reach unfrozen kernels of the backbone and nothing else, pull where they say, and stay out of files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from template import progress, runs
from template.config import Backbone, Config, Data, Head, Stage, Train, to_toml
from template.data.dataset import ArrayDataset
from template.deploy.predictor import load_run, save_model
from template.model.blocks import boundary, find_blocks, freeze
from template.model.build import build
from template.train.features import FeatureCache, split_model
from template.train.one_stage import TrainContext, compile_for
from template.train.optimizers import create_optimizer
from template.train.penalties import penalise
from template.train.stages import fit

TINY = Backbone(name="tiny", weights="none")
PLAIN = Head(l2=0, dropout=0)
RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.uniform(0, 255, (6, 16, 16, 3)).astype(np.float32), np.arange(6) % 3


def tiny(head: Head = PLAIN, unfreeze: int | str = 1) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = build(TINY, head, 16, np.ones(3))
    freeze(model, find_blocks(model, TINY), unfreeze)
    return model


def held(model: keras.Model, stage: Stage) -> list[np.ndarray]:
    """Penalise, holding on to the weights as they are, which are returned."""
    start = [v.numpy() for v in model.variables]
    penalise(model, stage, find_blocks(model, TINY), start)
    return start


def kernels(model: keras.Model, *blocks: str) -> list[keras.Variable]:
    return [v for v in model.variables if v.path.endswith("kernel") and v.path.startswith(blocks)]


def total(model: keras.Model) -> float:
    return float(sum(model.losses))


@pytest.mark.parametrize("unfreeze", [1, "all"])
def test_what_is_penalised_is_what_is_unfrozen_of_the_backbone_also_in_a_tail(unfreeze):
    model = tiny(unfreeze=unfreeze)
    held(model, Stage(unfreeze=unfreeze, l1=0.03, l2=0.2, l2_sp=0.5))
    unfrozen = kernels(model, "block3") if unfreeze == 1 else kernels(model, "block", "stem")
    for kernel in unfrozen:
        kernel.assign_add(np.full(kernel.shape, 0.1, np.float32))
    weights = [kernel.numpy() for kernel in unfrozen]
    expected = sum(0.03 * np.abs(w).sum() + 0.2 * (w**2).sum() + 0.5 * 0.1**2 * w.size for w in weights)
    assert len(weights) == (3 if unfreeze == 1 else 9)
    assert total(model) == pytest.approx(expected, rel=1e-4)
    if unfreeze == 1:
        assert total(split_model(model, boundary(model, find_blocks(model, TINY), 1))[1]) == pytest.approx(
            expected, rel=1e-4
        )
    held(model, Stage(unfreeze=unfreeze))
    assert model.losses == [], "and the next stage begins without"


def test_l2_pulls_to_zero_and_l2_sp_to_the_pretrained_weights():
    """Both from weights that have moved a little: by gradient descent on the penalty alone."""
    for stage, target in ((Stage(unfreeze=1, l2=1.0), 0.0), (Stage(unfreeze=1, l2_sp=1.0), 1.0)):
        model = tiny()
        start = [v.numpy() for v in kernels(model, "block3")]
        held(model, stage)
        made = keras.optimizers.SGD(0.1)
        for kernel in kernels(model, "block3"):
            kernel.assign_add(np.full(kernel.shape, 0.05, np.float32))
        for _ in range(30):
            with tf.GradientTape() as tape:
                penalty = sum(model.losses)
            made.apply(tape.gradient(penalty, kernels(model, "block3")), kernels(model, "block3"))
        for kernel, value in zip(kernels(model, "block3"), start, strict=True):
            np.testing.assert_allclose(kernel.numpy(), target * value, atol=1e-3)


def test_l2_sp_without_the_pretrained_weights_is_an_error_and_not_silently_another_penalty():
    with pytest.raises(ValueError):
        penalise(tiny(), Stage(unfreeze=1, l2_sp=0.1), find_blocks(tiny(), TINY), ())


@pytest.mark.slow
def test_the_penalty_is_logged_apart_falls_in_training_and_the_model_is_saved_and_loaded(tmp_path, eagerly):
    head = Head(l2=1e-3, max_norm=0.5)
    model = tiny(head)
    source = ArrayDataset(lambda _, rows: IMAGES[rows].astype(np.uint8), LABELS)
    stages = (
        Stage(unfreeze=1, epochs=3, optimizer="sgd", learning_rate=0.05, l2=0.05, warmup=0, weight_decay=0.0),
        Stage(unfreeze=1, epochs=1),
    )
    settings, start = Train(batch_size=6), [v.numpy() for v in model.variables]
    how = TrainContext(
        find_blocks(model, TINY), stages, settings, FeatureCache(tmp_path / "cache", 1e9, 6, progress.Timer()), start
    )
    state = fit(model, source, source, how, tmp_path)
    first, second, third, last = (row["penalty"] for row in state.history)
    assert first > 1.01 * second > 1.02 * third, "it moves"
    assert last == pytest.approx(1e-3 * (model.get_layer("logits").kernel.numpy() ** 2).sum(), rel=0.1)
    assert {name for name in state.history[0] if name.startswith("val_")} == {
        "val_accuracy", "val_cross_entropy", "val_calibrated_cross_entropy", "val_macro_f1",
    }, "plain scores alone: a loss of validation would be penalised, smoothed and weighted"  # fmt: skip
    assert "penalty" in (tmp_path / "history.csv").read_text().splitlines()[0]
    data = Data(path="x", image_size=16)
    (tmp_path / "config.toml").write_text(to_toml(Config(data=data, backbone=TINY, head=head, stages=stages)))
    runs.write_json(tmp_path / "classes.json", ["a", "b", "c"])
    save_model(model, tmp_path)
    loaded = load_run(tmp_path)[2]
    np.testing.assert_array_equal(np.asarray(loaded(IMAGES)), np.asarray(model(IMAGES, training=False)))


def test_weights_into_each_unit_of_the_head_are_never_longer_than_max_norm():
    model = tiny(Head(l2=0, dropout=0, hidden=4, max_norm=0.3), unfreeze=0)
    _, tail = split_model(model, model.get_layer("head_dropout").input)
    compile_for(tail, create_optimizer(Stage(optimizer="sgd"), 1.0, averaged=False))
    tail.run_eagerly = True  # to trace it takes longer than a step
    features = RNG.normal(size=(6, *tail.input_shape[1:]))
    for _ in range(3):
        tail.train_on_batch(features, np.eye(3)[LABELS])
        lengths = [np.linalg.norm(model.get_layer(name).kernel, axis=0) for name in ("head_hidden", "logits")]
        assert max(length.max() for length in lengths) <= 0.3 + 1e-5
    assert max(length.max() for length in lengths) > 0.29, "and they would be longer"
