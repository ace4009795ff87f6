"""Staged fine-tuning: what may move moves, what must not does not, and a resumed run ends as an uninterrupted one."""

import keras
import numpy as np
import pytest
from keras import layers

from template.config import Backbone, Head, Stage, Train
from template.data.pipeline import Source
from template.model.backbones import build_backbone
from template.model.build import build
from template.train import callbacks
from template.train.stages import How, between, compile_for, fit, repeat

SIZE, CLASSES = 32, 3
STAGES = (Stage(unfreeze=0, epochs=3, learning_rate=1e-2), Stage(unfreeze=1, epochs=3), Stage(unfreeze="all", epochs=2))
SETTINGS = Train(batch_size=8, patience=5)


def coloured(n: int, seed: int) -> Source:
    """Noise whose mean colour tells the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    pixels = generator.integers(0, 120, (n, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, labels] += 100
    return Source(lambda _, rows: pixels[rows], labels)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A network with weights from a file, as a stand-in for ImageNet's: batch norm statistics are not 0 and 1."""
    file = tmp_path_factory.mktemp("weights") / "backbone.weights.h5"
    base = build_backbone(Backbone(name="tiny", weights="none"), SIZE)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.full(layer.moving_mean.shape, 0.1))
    base.save_weights(file)
    return Backbone(name="tiny", weights=str(file))


def train(backbone, folder, stages=STAGES, settings=SETTINGS):
    keras.utils.set_random_seed(settings.seed)
    model = build(backbone, Head(dropout=0.2), SIZE, np.ones(CLASSES))
    state = fit(model, coloured(24, 0), coloured(12, 1), How(backbone, stages, settings, folder / "cache"), folder)
    return model, state


def test_pretrained_batch_norm_stays_to_the_byte_while_kernels_move(pretrained, tmp_path):
    before = build(pretrained, Head(), SIZE, np.ones(CLASSES))
    after, _ = train(pretrained, tmp_path)
    moved = 0
    for old, new in zip(before.layers, after.layers, strict=True):
        for a, b in zip(old.get_weights(), new.get_weights(), strict=True):
            if isinstance(old, layers.BatchNormalization):
                assert a.tobytes() == b.tobytes(), old.name
            elif isinstance(old, layers.Conv2D) and not np.array_equal(a, b):
                moved += 1
    assert moved > 0


def test_head_dropout_is_active_in_fit(pretrained, tmp_path, monkeypatch):
    seen = []
    original = layers.Dropout.call

    def spy(self, inputs, training=False):
        seen.append((self.name, bool(training)))
        return original(self, inputs, training=training)

    monkeypatch.setattr(layers.Dropout, "call", spy)
    train(pretrained, tmp_path, stages=STAGES[:1])
    assert ("head_dropout", True) in seen  # traced for training
    assert ("head_dropout", False) in seen  # and for validation


def test_it_learns_and_the_history_has_a_row_an_epoch(pretrained, tmp_path):
    model, state = train(pretrained, tmp_path)
    history = state.history
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert {row["stage"] for row in history} == {1, 2, 3}
    # The model returned is at least as good as that of the best epoch, and its score is the recorded one.
    val = coloured(12, 1)
    logits = model.predict(val.read(0, np.arange(12)).astype("float32"), verbose=0)
    loss = keras.losses.sparse_categorical_crossentropy(val.labels, logits, from_logits=True).numpy().mean()
    assert loss == pytest.approx(state.best, abs=1e-4)
    assert loss <= min(row["val_cross_entropy"] for row in history) + 1e-4
    assert (tmp_path / "history.csv").read_text().count("\n") == len(history) + 1
    assert list((tmp_path / "tensorboard").glob("events*"))


class Killed(BaseException):
    """What a test raises in place of kill -9."""


@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(pretrained, tmp_path, monkeypatch, epochs):
    whole, uninterrupted = train(pretrained, tmp_path / "whole")
    original = callbacks.Checkpoint.on_epoch_end

    def die(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch + 1 == epochs:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(callbacks.Checkpoint, "on_epoch_end", die)
        with pytest.raises(Killed):
            train(pretrained, tmp_path / "cut")
    resumed, again = train(pretrained, tmp_path / "cut")

    def without_clock(rows):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert without_clock(again.history) == without_clock(uninterrupted.history)
    assert again.plan == uninterrupted.plan
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, pretrained, capsys):
    train(pretrained, tmp_path, stages=STAGES[:1])
    newest = max((tmp_path / "checkpoints").iterdir())
    whole = (newest / "arrays.npz").read_bytes()
    (newest / "arrays.npz").write_bytes(whole[: len(whole) // 2])
    state, arrays = callbacks.read_checkpoint(tmp_path / "checkpoints")
    assert state.epoch == 2 and arrays["model"]
    assert "damaged" in capsys.readouterr().out


def test_an_epoch_without_a_number_neither_stops_the_run_nor_becomes_the_best(pretrained, tmp_path, monkeypatch):
    """As when one validation passes through a NaN and the next recovers; the checkpoint must be able to say so."""
    original = callbacks.KeepBest.on_epoch_end

    def one_nan(self, epoch, logs):
        if epoch == 0:
            logs["val_cross_entropy"] = float("nan")
        original(self, epoch, logs)

    monkeypatch.setattr(callbacks.KeepBest, "on_epoch_end", one_nan)
    _, state = train(pretrained, tmp_path, stages=STAGES[:1])
    assert [np.isnan(row["val_cross_entropy"]) for row in state.history] == [True, False, False]
    assert np.isfinite(state.best)
    saved, _ = callbacks.read_checkpoint(tmp_path / "checkpoints")
    assert len(saved.history) == 3


class Weight(keras.Model):
    """One number, to see which weights KeepBest keeps."""

    stop_training = False

    def __init__(self):
        super().__init__()
        self.number = self.add_weight(shape=(), initializer="zeros")


def test_keep_best_takes_the_best_epoch_ignores_nan_and_stops_when_patience_ends():
    model, state = Weight(), callbacks.State()
    keep = callbacks.KeepBest(state, "val_cross_entropy", patience=2)
    keep.set_model(model)
    keep.on_train_begin()
    stopped = []
    for epoch, value in enumerate([float("nan"), 0.9, 0.5, float("nan"), 0.7]):
        model.number.assign(epoch)
        keep.on_epoch_end(epoch, {"val_cross_entropy": value})
        stopped.append(bool(model.stop_training))
    assert state.best == 0.5
    assert keep.weights[0] == 2
    assert stopped == [False, False, False, False, True]


def test_a_later_stage_that_only_gets_worse_changes_nothing():
    model, state = Weight(), callbacks.State(best=0.3)
    model.number.assign(7)
    keep = callbacks.KeepBest(state, "val_cross_entropy", patience=9)
    keep.set_model(model)
    keep.on_train_begin()
    model.number.assign(8)
    keep.on_epoch_end(0, {"val_cross_entropy": 0.4})
    assert keep.weights[0] == 7 and state.best == 0.3


def test_accuracy_is_better_when_larger():
    model, state = Weight(), callbacks.State(best=0.8)
    keep = callbacks.KeepBest(state, "val_accuracy", patience=9)
    keep.set_model(model)
    keep.on_train_begin()
    keep.on_epoch_end(0, {"val_accuracy": 0.9})
    assert state.best == 0.9


def test_learning_rate_warms_up_to_the_stage_value_and_falls_to_zero():
    model = build(Backbone(name="tiny", weights="none"), Head(), SIZE, np.ones(CLASSES))
    compile_for(model, Stage(learning_rate=0.02, warmup=0.1), total_steps=100, label_smoothing=0)
    schedule = model.optimizer._learning_rate
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates.argmax() == 10
    assert rates[0] == 0 and rates[10] == pytest.approx(0.02) and rates[100] == pytest.approx(0, abs=1e-6)


def test_weight_decay_shrinks_kernels_and_leaves_biases_and_normalisation():
    model = build(Backbone(name="tiny", weights="none"), Head(l2=0), SIZE, np.ones(CLASSES))
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    compile_for(model, Stage(learning_rate=0.1, warmup=0.0, weight_decay=0.5), total_steps=10, label_smoothing=0)
    model.optimizer.build(model.trainable_variables)
    zeros = [np.zeros(variable.shape, np.float32) for variable in model.trainable_variables]
    model.optimizer.apply([keras.ops.convert_to_tensor(z) for z in zeros])
    for variable in model.trainable_variables:
        expected = 1 - 0.1 * 0.5 if "kernel" in variable.path else 1
        assert variable.numpy() == pytest.approx(expected), variable.path


def test_between_is_a_straight_line():
    before, after = [np.array([0.0, 4.0])], [np.array([2.0, 0.0])]
    assert between(before, after, 0)[0].tolist() == [0, 4]
    assert between(before, after, 0.25)[0].tolist() == [0.5, 3]
    assert between(before, after, 1)[0].tolist() == [2, 0]


def test_repeat_on_the_same_pictures_ends_where_fit_did(pretrained, tmp_path):
    """With nothing added, the final fit is the first one over again: same order, schedule, average and share."""
    stages = (Stage(unfreeze=1, epochs=3, learning_rate=3e-3),)
    first, state = train(pretrained, tmp_path, stages=stages)
    assert state.plan[0]["share"] > 0  # it did learn something, or this test would say nothing
    keras.utils.set_random_seed(SETTINGS.seed)
    again = build(pretrained, Head(dropout=0.2), SIZE, np.ones(CLASSES))
    repeat(again, coloured(24, 0), state.plan, How(pretrained, stages, SETTINGS, tmp_path / "cache"))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_stage_is_skipped_when_the_one_before_gained_too_little(pretrained, tmp_path, capsys):
    stages = (Stage(unfreeze=0, epochs=1, learning_rate=1e-9), Stage(unfreeze=1, epochs=1, only_if_gain=0.5))
    _, state = train(pretrained, tmp_path, stages=stages)
    assert [row["stage"] for row in state.history] == [1]
    assert state.plan[1]["share"] == 0
    assert state.stage == 2
    assert "skipped" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_its_loss_is_float32(pretrained, tmp_path, precision):
    keras.config.set_dtype_policy(precision)
    try:
        model, state = train(pretrained, tmp_path, stages=(Stage(unfreeze=1, epochs=4, learning_rate=3e-3),))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("block3_conv1").compute_dtype == precision.removeprefix("mixed_")
    assert model.output.dtype == "float32"
    losses = [row["loss"] for row in state.history]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
