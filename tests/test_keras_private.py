"""Private names of Keras still do what we use them for. If not, train/keras_private.py must change."""

import ast
from pathlib import Path

import keras
import numpy as np
import pytest

import template
from template.train.keras_private import (
    average_after_steps,
    clip_after_sum,
    has_weight_decay,
    schedule_of,
    set_weight_decay_filter,
    variable_index,
)

SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)


def variables(*shapes: tuple[int, ...]) -> list[keras.Variable]:
    return [keras.Variable(np.ones(shape, np.float32)) for shape in shapes]


def step(optimizer: keras.optimizers.Optimizer, gradient: float, of: list[keras.Variable]) -> None:
    optimizer.apply([keras.ops.full(v.shape, gradient) for v in of], of)


def test_only_what_the_filter_says_decays():
    kernel, bias = both = variables((2, 2), (2,))
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5)
    set_weight_decay_filter(optimizer, lambda variable: len(variable.shape) > 1)
    optimizer.build(both)
    assert [has_weight_decay(optimizer, v) for v in both] == [True, False]
    step(optimizer, 0.0, both)
    assert float(kernel[0, 0]) == pytest.approx(1 - 0.1 * 0.5) and float(bias[0]) == 1


@pytest.mark.parametrize(("ours", "expected"), [(True, 0.775), (False, 0.75625)])
def test_the_average_moves_once_a_step_and_by_itself_with_every_batch(ours, expected):
    """Weights 0.9, 0.8, 0.7 after three steps of three batches: the average is 0.9, then 0.85, then 0.775.

    If the second case fails, Keras has mended it: `average_after_steps` can go.
    """
    (weight,) = one = variables((1,))
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=3)
    if ours:
        average_after_steps(optimizer, 3)
    optimizer.build(one)
    for _ in range(9):
        step(optimizer, 1.0, one)
    assert float(weight[0]) == pytest.approx(0.7)
    optimizer.finalize_variable_values(one)
    assert float(weight[0]) == pytest.approx(expected)


def test_on_one_device_the_sum_is_clipped_as_ever():
    """What it does with two is in test_distribute.py."""
    moved = []
    for change in (lambda optimizer: None, clip_after_sum):
        one = variables((2, 2), (2,))
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=0.5)
        change(optimizer)
        optimizer.build(one)
        step(optimizer, 3.0, one)
        moved.append(np.concatenate([1 - np.ravel(v) for v in one]))
    np.testing.assert_array_equal(*moved)
    assert np.linalg.norm(moved[0]) == pytest.approx(0.5)


def test_a_variable_is_known_by_its_number():
    several = variables((1,), (2,), (3,))
    optimizer = keras.optimizers.AdamW()
    optimizer.build(several)
    assert [variable_index(optimizer, v) for v in several] == [0, 1, 2]


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer])
def test_the_schedule_is_found(wrap):
    assert schedule_of(wrap(keras.optimizers.SGD(SCHEDULE))) is SCHEDULE


PUBLIC = {"_replace"}  # of named tuples
OTHERS = {("pools.py", "_actor_id")}  # by which Ray names an actor that died, and its handle keeps it to itself


def test_no_other_module_uses_private_names_of_objects_that_are_not_its_own():
    root, found = Path(template.__file__).parent, []
    for file in (file for room in ("model", "train", "diagnose", "deploy") for file in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if (
                private
                and node.attr not in PUBLIC
                and (file.name, node.attr) not in OTHERS
                and ast.unparse(node.value) not in {"self", "cls", "super()"}
            ):
                found.append((file.name, node.attr))
    assert {name for name, _ in found} == {"keras_private.py"}, found
