"""Steps are as long as the schedule says, shorter below, and clipped together; the default is what it always was."""

import dataclasses
import functools
import shutil

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import LayerScale

from template.config import Backbone, Head, Stage, Train
from template.data.dataset import ArrayDataset
from template.model.blocks import find_blocks, freeze
from template.model.build import build
from template.progress import Timer
from template.train import checkpoint as checkpoints
from template.train.features import FeatureCache
from template.train.one_stage import TrainContext, compile_for
from template.train.optimizers import EMA_MOMENTUM, OPTIMIZERS, apply_layer_decay, create_optimizer, create_schedule
from template.train.stages import fit

TINY = Backbone(name="tiny", weights="none")
PEAK = 0.02


def tiny(head: Head = Head(l2=0, dropout=0)) -> keras.Model:  # noqa: B008
    keras.utils.set_random_seed(0)
    return build(TINY, head, 16, np.ones(3))


def rates(name: str, warmup: float = 0.1, steps: int = 100) -> np.ndarray:
    """Step sizes of all steps, and of one more."""
    found = create_schedule(Stage(learning_rate=PEAK, warmup=warmup, schedule=name), steps)
    return np.array([float(found(step)) for step in range(steps + 1)])


def test_the_default_is_adamw_with_warm_up_and_cosine_and_nothing_else():
    expected = keras.optimizers.schedules.CosineDecay(0.0, 90, warmup_target=PEAK, warmup_steps=10)
    stage = Stage(learning_rate=PEAK)
    assert create_schedule(stage, 100).get_config() == expected.get_config()
    adamw = keras.optimizers.AdamW(expected, weight_decay=1e-4, use_ema=True, ema_momentum=EMA_MOMENTUM)
    found = create_optimizer(stage, create_schedule(stage, 100))
    assert found.get_config() | {"name": ""} == adamw.get_config() | {"name": ""}
    assert "update_step" not in vars(found), "nothing is put in the way"
    assert rates("cosine").argmax() == 10
    assert rates("cosine")[[0, 10, 55, 100]] == pytest.approx([0, PEAK, PEAK / 2, 0], abs=1e-6)


@pytest.mark.slow
def test_every_schedule_rises_and_falls_as_it_says():
    for name in ("constant", "step", "exponential", "plateau"):
        np.testing.assert_allclose(rates(name)[:11], PEAK * np.arange(11) / 10, rtol=1e-5, err_msg=name)
        assert rates(name, warmup=0)[0] == pytest.approx(PEAK)
    for name in ("constant", "plateau"):  # nothing has stood still
        np.testing.assert_allclose(rates(name)[10:], PEAK, rtol=1e-6)
    assert rates("step")[[10, 39, 41, 69, 71, 99]] / PEAK == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    falling = rates("exponential")[10:]
    np.testing.assert_allclose(falling[1:] / falling[:-1], 0.01 ** (1 / 90), rtol=1e-4)
    assert falling[-1] == pytest.approx(PEAK / 100, rel=1e-4)
    cycle = rates("one_cycle")
    assert cycle.argmax() == 30 and cycle[0] == pytest.approx(PEAK / 25) and cycle[100] < PEAK / 1e5
    assert (np.diff(cycle[:31]) > 0).all() and (np.diff(cycle[30:]) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["cosine", "constant", "one_cycle", "step", "exponential", "plateau"])
def test_a_stage_of_very_few_steps_has_a_schedule_too(name, steps):
    found = rates(name, steps=steps)
    assert np.isfinite(found).all() and found.max() <= PEAK * 1.0001 and found[:steps].max() > 0


def stepped(stage: Stage, gradients: list[list[float]]) -> np.ndarray:
    """How far a kernel of ones goes in a step with each of these gradients."""
    variable = keras.Variable(np.ones((1, len(gradients[0]))), name="kernel")
    optimizer = create_optimizer(stage, PEAK, averaged=False)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(np.array([gradient], np.float32))])
    return variable.numpy()[0] - 1


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("adamw", [-1, 1]),  # the first step is the sign of the gradient
        ("adam", [-1, 1]),
        ("lion", [-1, 1]),
        ("sgd", [-1.9 * 0.5, 1.9 * 4]),  # Nesterov: the gradient, and 0.9 of the speed it gives
        ("rmsprop", [-(0.1**-0.5), 0.1**-0.5]),
        ("adagrad", [-0.5 / np.sqrt(0.35), 4 / np.sqrt(16.1)]),
    ],
)
def test_every_optimizer_steps_by_its_own_rule_and_shrinks_kernels(name, first):
    stage = Stage(optimizer=name, weight_decay=0.0)
    np.testing.assert_allclose(stepped(stage, [[0.5, -4.0]]), PEAK * np.array(first), rtol=1e-3)
    shrunk = stepped(Stage(optimizer=name, weight_decay=0.5), [[0.0, 0.0]])
    np.testing.assert_allclose(shrunk, 0 if name == "adam" else -0.5 * PEAK, rtol=1e-4)


def test_all_optimizers_are_tried():
    assert set(OPTIMIZERS) == {"adamw", "adam", "lion", "sgd", "rmsprop", "adagrad"}


def both_stepped(stage: Stage, one: list[float], other: list[float]) -> list[np.ndarray]:
    """How far two kernels of zeros go in a step with these gradients."""
    kernels = [keras.Variable(np.zeros((1, 2)), dtype="float32") for _ in range(2)]
    optimizer = create_optimizer(stage, PEAK, averaged=False)
    optimizer.build(kernels)
    optimizer.apply([keras.ops.convert_to_tensor(np.array([gradient], np.float32)) for gradient in (one, other)])
    return [kernel.numpy()[0] for kernel in kernels]


@pytest.mark.parametrize(
    ("clip_by", "clip", "expected"),
    [
        ("global_norm", 6.5, ([1.5, -2.0], [0.0, 6.0])),  # (3, 4, 0, 12) is 13 long
        ("global_norm", 20.0, ([3.0, -4.0], [0.0, 12.0])),
        ("norm", 6.0, ([3.0, -4.0], [0.0, 6.0])),  # one is 5 long, the other 12
        ("norm", 1.0, ([0.6, -0.8], [0.0, 1.0])),
        ("value", 3.5, ([3.0, -3.5], [0.0, 3.5])),
    ],
)
def test_gradients_are_shortened_all_together_or_each_array_or_each_number(clip_by, clip, expected):
    stage = Stage(optimizer="sgd", clipnorm=clip, clip_by=clip_by)
    found = both_stepped(stage, [3.0, -4.0], [0.0, 12.0])
    np.testing.assert_allclose(found, -1.9 * PEAK * np.array(expected), rtol=1e-4)


@pytest.mark.parametrize("clip_by", ["global_norm", "norm", "value"])
def test_a_short_gradient_and_none_at_all_are_left_as_they_are(clip_by):
    free = Stage(optimizer="sgd")
    stage = dataclasses.replace(free, clipnorm=1.0, clip_by=clip_by)
    for gradients in (([0.3, -0.4], [0.1, 0.2]), ([0.0, 0.0], [0.0, 0.0])):
        np.testing.assert_array_equal(both_stepped(stage, *gradients), both_stepped(free, *gradients))


STEEP = Stage(optimizer="sgd", weight_decay=0.0, clipnorm=1e-3)
"""Every gradient of `moved_by` is longer."""


@functools.cache
def moved_by(stage: Stage, precision: str = "float32") -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """How far each weight of a small network goes in one step of training, and how deep its layer lies."""
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(0, 255, (6, 16, 16, 3)).astype(np.float32), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    keras.config.set_dtype_policy(precision)
    try:
        model = tiny()
        blocks, before = find_blocks(model, TINY), {v.path: v.numpy() for v in model.trainable_variables}
        optimizer = create_optimizer(stage, 1.0, averaged=False)
        if stage.layer_decay < 1:
            apply_layer_decay(optimizer, model, stage.layer_decay, blocks)
        compile_for(model, optimizer)
        assert (float(model.optimizer.scale_loss(1.0)) > 1000) == (precision == "mixed_float16")
        model.run_eagerly = True  # compiling takes ten times as long
        model.train_on_batch(images, labels)
    finally:
        keras.config.set_dtype_policy("float32")
    moved = {v.path: v.numpy() - before[v.path] for v in model.trainable_variables}
    return moved, {v.path: blocks.depths[layer.name] for layer in model.layers for v in layer.trainable_variables}


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "mixed_float16"])
def test_clipped_is_the_gradient_of_the_plain_loss_whatever_scales_it(precision):
    moved, _ = moved_by(STEEP, precision)
    length = np.sqrt(sum(np.sum(np.square(step, dtype=np.float64)) for step in moved.values()))
    assert length == pytest.approx(1.9e-3, rel=1e-2)
    moved, _ = moved_by(dataclasses.replace(STEEP, clip_by="norm"), precision)
    lengths = np.array([np.linalg.norm(step.astype(np.float64)) for step in moved.values()])
    assert np.median(lengths) == pytest.approx(1.9e-3, rel=1e-2) and lengths.max() < 1.95e-3


def test_clipped_is_the_gradient_and_lower_blocks_then_step_less():
    plain, depth = moved_by(STEEP)
    slower, _ = moved_by(dataclasses.replace(STEEP, unfreeze="all", layer_decay=0.5))
    for path, step in plain.items():
        rounding = 3e-7  # of weights about 1
        np.testing.assert_allclose(slower[path], 0.5 ** depth[path] * step, rtol=0.02, atol=rounding, err_msg=path)


def test_weight_decay_shrinks_kernels_and_leaves_biases_and_normalisation():
    model = tiny(Head(hidden=4, activation="prelu"))  # whose slopes stay, too
    for path, share in decayed(model).items():
        assert share == pytest.approx(1 - 0.1 * 0.5 if "kernel" in path else 1), path


def test_weight_decay_leaves_the_scales_of_convnext_which_have_no_name():
    scale = LayerScale(0.5, 4)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4)(scale(inputs))
    shares = decayed(keras.Model(inputs, keras.layers.Dense(2, name="logits")(x)))
    assert scale.gamma.name.startswith("variable") and shares[scale.gamma.path] == 1
    assert sum(share < 1 for share in shares.values()) == 2, "the two kernels"


def decayed(model: keras.Model) -> dict[str, float]:
    """What a step without any gradient leaves of weights of ones, by path."""
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    stage = Stage(learning_rate=0.1, warmup=0.0, weight_decay=0.5)
    compile_for(model, create_optimizer(stage, create_schedule(stage, 10)))
    zeros = [np.zeros(variable.shape, np.float32) for variable in model.trainable_variables]
    model.optimizer.apply([keras.ops.convert_to_tensor(z) for z in zeros])
    return {variable.path: float(variable.numpy().mean()) for variable in model.trainable_variables}


def test_depths_count_the_blocks_below_the_head():
    found = find_blocks(tiny(Head(hidden=4)), TINY).depths
    expected = {"logits": 0, "head_hidden": 0, "pool_avg": 0, "top_bn": 1, "block3_conv1": 1, "block2_conv2": 2,
                "block1_bn1": 3, "stem": 4}  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_each_block_steps_a_factor_less_than_the_one_above_it():
    """Measured on a real step of training, weight decay included."""
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(0, 255, (6, 16, 16, 3)).astype(np.float32), np.eye(3)[[0, 1, 2, 0, 1, 2]]
    moved, stage = {}, Stage(optimizer="sgd", weight_decay=0.5)
    for factor in (1.0, 0.5):
        model = tiny()
        freeze(model, find_blocks(model, TINY), "all")
        before = {v.path: v.numpy() for v in model.trainable_variables}
        optimizer = create_optimizer(stage, 0.1, averaged=False)
        if factor < 1:
            apply_layer_decay(optimizer, model, factor, find_blocks(model, TINY))
        compile_for(model, optimizer)
        model.run_eagerly = True
        model.train_on_batch(images, labels)
        moved[factor] = {v.path: np.linalg.norm(v.numpy() - before[v.path]) for v in model.trainable_variables}
    for name, depth in find_blocks(model, TINY).depths.items():
        for variable in model.get_layer(name).trainable_variables:
            ratio = moved[0.5][variable.path] / moved[1.0][variable.path]
            assert ratio == pytest.approx(0.5**depth, rel=0.02), variable.path


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_by", ["global_norm", "norm", "value"])
def test_gradients_of_three_batches_make_one_step_as_their_mean_would(name, clip_by):
    """Its moving average too: Keras's own goes on while the gradients are collected."""
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(7, 3, 2, 2)).astype(np.float32)
    stage = Stage(optimizer=name, weight_decay=0.1, clipnorm=0.5, clip_by=clip_by)

    def end(accumulate: int) -> list[np.ndarray]:
        kernel = keras.Variable(np.ones((2, 2)), dtype="float32", name="kernel")
        optimizer = create_optimizer(stage, 0.1, accumulate=accumulate)
        optimizer.build([kernel])
        for few in batches:
            for gradient in few if accumulate > 1 else [few.mean(axis=0)]:
                optimizer.apply([keras.ops.convert_to_tensor(gradient)])
        last = kernel.numpy()
        optimizer.finalize_variable_values([kernel])
        return [last, kernel.numpy()]

    whole, in_parts = end(1), end(3)
    assert np.abs(whole[1] - whole[0]).min() > 1e-3
    np.testing.assert_allclose(in_parts, whole, atol=1e-6)


OTHER = Stage(
    unfreeze=1, epochs=3, optimizer="sgd", schedule="step", layer_decay=0.5, clipnorm=1.0, l1=1e-4, l2_sp=0.01
)


@pytest.mark.slow
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one_with_other_settings_too(
    tmp_path, monkeypatch, eagerly, shallow
):
    """After an epoch of three batches, when a step takes two: one is waiting."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (12, 16, 16, 3)).astype(np.uint8), np.arange(12) % 3
    source, settings = (
        ArrayDataset(lambda _, rows: pixels[rows], labels),
        Train(batch_size=5, loss="focal", gradient_accumulation_steps=2, checkpoint_seconds=0),
    )
    original = checkpoints.Checkpoint.on_epoch_end

    def copy(self, epoch, logs=None):
        original(self, epoch, logs)
        shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / str(epoch + 1) / "checkpoints")

    def end(folder) -> list[np.ndarray]:
        model = tiny(Head(l2=1e-3))
        start = [variable.numpy() for variable in model.variables]
        how = TrainContext(find_blocks(model, TINY), (OTHER,), settings, FeatureCache(folder, 1e9, 6, Timer()), start)
        fit(model, source, source, how, folder)
        return model.get_weights()

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        whole = end(tmp_path / "whole")
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, end(tmp_path / "1"), strict=True))
