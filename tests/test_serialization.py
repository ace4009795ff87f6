"""What Keras may write into a file, it can read again: every layer, loss, penalty and schedule of ours."""

import doctest
import importlib
import inspect
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import template
from template.model import layers
from template.model.hub_layer import HubLayer
from template.model.layers import DropBlock, DropConnect, StochasticDepth
from template.train.losses import DistillationLoss, WeightedLoss
from template.train.optimizers import PlateauSchedule, WarmupExponentialDecay
from template.train.penalties import StartingPoint

KINDS = (keras.layers.Layer, keras.losses.Loss, keras.metrics.Metric, keras.regularizers.Regularizer,
         keras.constraints.Constraint, keras.initializers.Initializer, keras.optimizers.Optimizer,
         keras.optimizers.schedules.LearningRateSchedule)  # fmt: skip
PLATEAU = PlateauSchedule(5, 0.2)
PLATEAU.factor.assign(0.1)
OURS = [
    DropBlock(0.2, name="drop"),
    DropConnect(3, 0.4, activation="relu", kernel_regularizer=keras.regularizers.L2(0.1)),
    StochasticDepth(0.3, noise_shape=(None, 1, 1, 1), seed=4),
    WeightedLoss([1.0, 2.0], [0.0, -0.5], focus=2.0, label_smoothing=0.1, reduction="sum"),
    DistillationLoss(2.0, multi=True, reduction="sum"),
    StartingPoint(0.1, 0.2, 0.3, np.float32([[1.0, 2.0]])),
    PLATEAU,
    WarmupExponentialDecay(7, 0.1, 10, 0.5, staircase=True),
]


def test_every_class_that_keras_would_serialise_is_registered_and_tested_here():
    root = Path(template.__file__).parent
    files = [file for room in ("model", "train", "diagnose", "deploy", "data") for file in (root / room).glob("*.py")]
    modules = [importlib.import_module(f"template.{file.parent.name}.{file.stem}") for file in files]
    found = {
        each
        for module in modules
        for _, each in inspect.getmembers(module, inspect.isclass)
        if each.__module__ == module.__name__ and issubclass(each, KINDS)
    }
    assert found == {type(each) for each in OURS} | {HubLayer}  # which is in test_hub.py, as KerasHub may not be here
    assert all(keras.saving.get_registered_name(each) == f"template>{each.__name__}" for each in found)


@pytest.mark.parametrize("ours", OURS, ids=lambda each: type(each).__name__)
def test_what_is_written_is_read_as_it_was(ours):
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(ours)))
    again = keras.saving.deserialize_keras_object(written)
    assert type(again) is type(ours) and again.get_config() == ours.get_config()
    wanted = set(inspect.signature(type(ours).__init__).parameters) - {"self", "args", "kwargs"}
    assert wanted <= set(ours.get_config()), "every argument is written"


def test_what_is_read_computes_what_was_written():
    copies = [keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(each)) for each in OURS]
    labels, logits = np.float32([[1, 0], [0, 1]]), np.float32([[0.3, 2.0], [1.0, -1.0]])
    for ours, copy in zip(OURS, copies, strict=True):
        if isinstance(ours, keras.losses.Loss):
            assert float(ours(labels, logits)) == float(copy(labels, logits)) != 0
        elif isinstance(ours, keras.regularizers.Regularizer):
            assert float(ours(logits)) == float(copy(logits)) != 0
        elif isinstance(ours, keras.optimizers.schedules.LearningRateSchedule):
            assert [float(ours(step)) for step in (3, 30)] == [float(copy(step)) for step in (3, 30)]


def test_the_examples_of_the_layers_are_true():
    found = doctest.testmod(layers, extraglobs={"np": np})
    assert found.attempted >= 5 and not found.failed
