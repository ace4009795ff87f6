"""Staged fine-tuning: what may move moves, what must not does not, and a resumed run ends as an uninterrupted one."""

import dataclasses
import gc
import itertools
import math
import re
import shutil
import weakref
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers
from scipy.special import log_softmax
from sklearn.metrics import f1_score
from staged import CLASSES, HEAD, SETTINGS, SIZE, blocks, coloured, context, fresh, load_pretrained, same, train

from template.config import Backbone, ConfigError, Head, Stage, Train
from template.data.array_file import ArrayFile
from template.data.batches import Mixing, shuffled_rows
from template.data.dataset import ArrayDataset
from template.deploy.predictor import save_model
from template.evaluate import metrics
from template.evaluate.calibration import smoothed_losses
from template.evaluate.predictions import Predictions
from template.model.build import build
from template.model.layers import DropBlock
from template.train import callbacks, one_stage
from template.train import checkpoint as checkpoints
from template.train import nonfinite as guard
from template.train import stages as module
from template.train.optimizers import PlateauSchedule
from template.train.select import MONITORED, interpolate, per_image_losses, scores
from template.train.stages import fit, refit


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, shallow) -> Backbone:
    return load_pretrained(tmp_path_factory.mktemp("weights"), stochastic_depth=0.0)


ONE = (Stage(unfreeze=0, epochs=1),)
TWO = (Stage(unfreeze=0, epochs=2),)
"""Epochs of a head alone, where it does not matter what trains; without tracing, which takes longer than they do."""


def test_head_dropout_and_noise_are_active_in_fit_on_stored_activations(
    pretrained, tmp_path, monkeypatch, capsys, eagerly
):
    seen = []
    for kind in (layers.Dropout, layers.GaussianDropout):

        def spy(self, inputs, training=False, original=kind.call):
            seen.append((self.name, bool(training)))
            return original(self, inputs, training=training)

        monkeypatch.setattr(kind, "call", spy)
    head = dataclasses.replace(HEAD, gaussian_dropout=0.5)
    settings = dataclasses.replace(context(pretrained, tmp_path, ONE), blocks=blocks(pretrained, head))
    fit(build(pretrained, head, SIZE, np.ones(CLASSES)), coloured(24, 0), coloured(12, 1), settings, tmp_path)
    assert "cached views" in capsys.readouterr().out
    for name in ("head_dropout", "head_noise"):
        assert (name, True) in seen  # in training
        assert (name, False) in seen  # and in validation


def poisoned(n: int, seed: int, where: Callable[[int, np.ndarray], np.ndarray]) -> ArrayDataset:
    """`coloured` with names, and NaN for the images that `where(epoch, rows)` says."""
    source = coloured(n, seed)

    def read(epoch: int, rows: np.ndarray) -> np.ndarray:
        pixels = source.read(epoch, rows).astype(np.float32)
        pixels[where(epoch, rows)] = np.nan
        return pixels

    return ArrayDataset(read, source.labels, names=[f"image {i}" for i in range(n)])


ALL = (Stage(unfreeze="all", epochs=4, learning_rate=3e-3),)


def test_a_image_that_is_not_finite_stops_training_before_anything_is_saved(pretrained, tmp_path, eagerly):
    bad = poisoned(24, 0, lambda epoch, rows: (rows == 7) & (epoch == 1))
    model = fresh(pretrained)
    with pytest.raises(guard.NonFiniteError, match=r"loss became nan in epoch 2, batch") as error:
        fit(model, bad, coloured(12, 1), context(pretrained, tmp_path, ALL), tmp_path)
    named = re.findall(r"'image (\d+)'", str(error.value))
    assert "7" in named and len(named) == 8, "the batch and no more"
    assert "learning rate" in str(error.value)
    state, saved = checkpoints.read_checkpoint(tmp_path / "checkpoints")
    assert state.epoch == 1
    assert all(np.isfinite(array).all() for arrays in saved.values() for array in arrays)
    best = saved["best"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(model.get_weights(), best, strict=True)), "the best are back"


@pytest.mark.slow
def test_with_balanced_sampling_the_images_of_a_bad_batch_are_named_as_well(pretrained, tmp_path, eagerly):
    """The last image is one of two of its class, and is read for the third time in the first epoch already."""
    bad = poisoned(24, 0, lambda pass_, rows: (rows == 23) & (pass_ == 2))
    bad = dataclasses.replace(bad, labels=np.repeat(range(CLASSES), [18, 4, 2]))
    settings = dataclasses.replace(SETTINGS, sampling="balanced", mixup=0.0, cutmix=0.0)
    with pytest.raises(guard.NonFiniteError, match=r"loss became nan in epoch 1, batch (\d)") as error:
        fit(fresh(pretrained), bad, coloured(12, 1), context(pretrained, tmp_path, ALL, settings), tmp_path)
    number = int(re.search(r"batch (\d)", str(error.value))[1]) - 1
    passes, rows = shuffled_rows(bad.labels, 8, settings.seed, 0, "balanced")[number]
    assert re.findall(r"'image (\d+)'", str(error.value)) == [str(row) for row in rows]
    assert ((rows == 23) & (passes == 2)).any()


@pytest.mark.slow
def test_between_two_checkpoints_the_bad_batch_is_found_by_training_once_more_from_the_last(
    pretrained, tmp_path, eagerly
):
    """Nobody looked at it while it trained; dropout, order and step sizes must come again as they were."""
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=3600, monitor="accuracy")
    bad = poisoned(24, 0, lambda epoch, rows: (rows == 7) & (epoch == 1))
    seen, real = [], guard.first_bad_batch

    def spy(network, epochs, batches, changes):
        seen.append((epochs, [v.numpy() for v in network.optimizer.variables][:1]))
        return real(network, epochs, batches, changes)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(guard.NonFiniteError, match="epoch 2, batch") as error:
        patched.setattr(one_stage, "first_bad_batch", spy)
        fit(fresh(pretrained), bad, coloured(12, 1), context(pretrained, tmp_path, ALL, settings), tmp_path)
    named = re.findall(r"'image (\d+)'", str(error.value))
    order = shuffled_rows(bad.labels, 8, settings.seed, 1)
    assert [str(row) for row in next(rows for _, rows in order if 7 in rows)] == named
    assert seen == [(range(2), [0])], "from the beginning of the stage, before the first step"
    assert not (tmp_path / "checkpoints").exists()


class NotToBeReadYet:
    """Scores of a batch that is still being computed."""

    def __getattribute__(self, name):
        raise AssertionError(f"asked for {name}: a GPU would have to stop for it")

    __getitem__ = __iter__ = __len__ = __contains__ = __getattribute__  # which Python does not look up in an object


@pytest.mark.slow
def test_nobody_asks_for_the_loss_after_a_batch(pretrained, tmp_path, monkeypatch, eagerly):
    """A GPU would have to stop for it."""
    seen, real = [], keras.Model.fit

    def spy(self, *args, callbacks, **how):
        seen.extend(callbacks)
        return real(self, *args, callbacks=callbacks, **how)

    monkeypatch.setattr(keras.Model, "fit", spy)
    settings = dataclasses.replace(SETTINGS, monitor_gradients=True)
    stage = Stage(unfreeze=1, epochs=1, cached_augmentations=1, schedule="plateau")
    _, state = train(pretrained, tmp_path, (stage,), settings)
    plan = [{**state.plan[0], "epochs": 1, "alpha": 1.0}]
    refit(fresh(pretrained), [coloured(24, 0)], plan, context(pretrained, tmp_path, (stage,), settings), tmp_path)
    assert len(seen) > 9
    for callback in seen:
        for name in ("on_batch_end", "on_train_batch_end", "on_batch_begin", "on_train_batch_begin"):
            if getattr(type(callback), name) is not getattr(keras.callbacks.Callback, name):
                assert getattr(callback, "async_safe", False), f"Keras waits for {callback}.{name}"
                getattr(callback, name)(0, NotToBeReadYet())


def test_a_weight_that_is_not_finite_is_never_saved(pretrained, tmp_path, monkeypatch, eagerly):
    """As when the last step of an epoch is too long: the loss of that epoch shows nothing."""
    original = guard.TerminateOnNonFinite.on_epoch_end

    def ruin(self, epoch, logs=None):
        if epoch == 1:
            self.whole.get_layer("logits").bias.assign([np.inf] * CLASSES)
        original(self, epoch, logs)

    monkeypatch.setattr(guard.TerminateOnNonFinite, "on_epoch_end", ruin)
    with pytest.raises(guard.NonFiniteError, match="logits/bias' are not finite after epoch 2"):
        train(pretrained, tmp_path, TWO)
    assert checkpoints.read_checkpoint(tmp_path / "checkpoints")[0].epoch == 1


@pytest.mark.slow
def test_validation_that_gives_no_number_twice_stops_training_and_is_not_saved(
    pretrained, tmp_path, monkeypatch, eagerly
):
    original = callbacks.KeepBest.on_epoch_end
    monkeypatch.setattr(
        callbacks.KeepBest, "on_epoch_end", lambda self, e, logs: original(self, e, logs | {"val_loss": float("inf")})
    )
    with pytest.raises(guard.NonFiniteError, match="not finite in epochs 1 and 2"):
        train(pretrained, tmp_path, TWO)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_network_that_gives_nan_is_not_stored(pretrained, tmp_path, eagerly):
    model = fresh(pretrained)
    model.get_layer("stem").kernel.assign(np.full((3, 3, 3, 32), np.nan))
    with pytest.raises(guard.NonFiniteError, match=r"backbone\.weights"):
        fit(model, coloured(24, 0), coloured(12, 1), context(pretrained, tmp_path), tmp_path)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.slow
def test_an_epoch_without_a_number_neither_stops_the_run_nor_becomes_the_best(
    pretrained, tmp_path, monkeypatch, eagerly
):
    """As when one validation passes through a NaN and the next recovers; the checkpoint must be able to say so."""
    original = callbacks.KeepBest.on_epoch_end

    def one_nan(self, epoch, logs):
        if epoch == 0:
            logs["val_cross_entropy"] = float("nan")
        original(self, epoch, logs)

    monkeypatch.setattr(callbacks.KeepBest, "on_epoch_end", one_nan)
    _, state = train(pretrained, tmp_path, stages=TWO)
    assert [np.isnan(row["val_cross_entropy"]) for row in state.history] == [True, False]
    assert np.isfinite(state.best)
    saved, _ = checkpoints.read_checkpoint(tmp_path / "checkpoints")
    assert len(saved.history) == 2


class Weight(keras.Model):
    """One number, to see which weights KeepBest keeps."""

    stop_training = False

    def __init__(self):
        super().__init__()
        self.number = self.add_weight(shape=(), initializer="zeros")


def test_keep_best_takes_the_best_epoch_ignores_nan_and_stops_when_patience_ends():
    model, state = Weight(), checkpoints.TrainState()
    keep = callbacks.KeepBest(state, "val_cross_entropy", patience=2)
    keep.set_model(model)
    keep.on_train_begin()
    stopped = []
    for epoch, value in enumerate([float("nan"), 0.9, 0.5, 0.6, float("nan"), 0.7]):
        model.number.assign(epoch)
        keep.on_epoch_end(epoch, {"val_cross_entropy": value})
        stopped.append(bool(model.stop_training))
    assert state.best == 0.5
    assert keep.weights[0] == 2
    assert stopped == [False] * 5 + [True], "an epoch without a number does not say that nothing improves"


def test_a_later_stage_that_only_gets_worse_changes_nothing():
    model, state = Weight(), checkpoints.TrainState(best=0.3)
    model.number.assign(7)
    keep = callbacks.KeepBest(state, "val_cross_entropy", patience=9)
    keep.set_model(model)
    keep.on_train_begin()
    model.number.assign(8)
    keep.on_epoch_end(0, {"val_cross_entropy": 0.4})
    assert keep.weights[0] == 7 and state.best == 0.3


def test_accuracy_is_better_when_larger():
    model, state = Weight(), checkpoints.TrainState(best=0.8)
    keep = callbacks.KeepBest(state, "val_accuracy", patience=9)
    keep.set_model(model)
    keep.on_train_begin()
    keep.on_epoch_end(0, {"val_accuracy": 0.9})
    assert state.best == 0.9


def test_interpolation_is_a_straight_line():
    before, after = [np.array([0.0, 4.0])], [np.array([2.0, 0.0])]
    assert interpolate(before, after, 0)[0].tolist() == [0, 4]
    assert interpolate(before, after, 0.25)[0].tolist() == [0.5, 3]
    assert interpolate(before, after, 1)[0].tolist() == [2, 0]


def planned(monkeypatch, choice: int) -> None:
    """Make validation sure of one of: the average, half way to it, the second epoch, before."""
    asked = itertools.count()
    losses = {True: np.zeros(12), False: np.ones(12)}
    monkeypatch.setattr(module, "per_image_losses", lambda *_: losses[next(asked) % 4 == choice])
    original = callbacks.KeepBest.on_epoch_end

    def second_is_best(self, epoch, logs):
        original(self, epoch, {**logs, self.monitor: 0.01 if epoch % 3 == 1 else 0.9})

    monkeypatch.setattr(callbacks.KeepBest, "on_epoch_end", second_is_best)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "unfreeze", "plan"),
    [
        pytest.param(
            0, 0, {"start": 0, "epochs": 3, "averaged": True, "alpha": 1.0, "lr_drops": []}, marks=pytest.mark.slow
        ),
        (1, 1, {"start": 0, "epochs": 3, "averaged": True, "alpha": 0.5, "lr_drops": []}),
        pytest.param(
            2, 0, {"start": 0, "epochs": 2, "averaged": False, "alpha": 1.0, "lr_drops": []}, marks=pytest.mark.slow
        ),
        pytest.param(
            3, 0, {"start": 0, "epochs": 0, "averaged": False, "alpha": 0.0, "lr_drops": []}, marks=pytest.mark.slow
        ),
    ],
    ids=["average", "half way", "best epoch", "before"],
)
def test_a_refit_on_the_same_images_ends_where_fit_did(pretrained, tmp_path, monkeypatch, choice, unfreeze, plan):
    """With nothing added, a refit is the first one over again: same order, schedule, average and share."""
    stages = (Stage(unfreeze=unfreeze, epochs=3, learning_rate=3e-3, cached_augmentations=2),)
    planned(monkeypatch, choice)
    first, state = train(pretrained, tmp_path, stages=stages)
    assert state.plan == [plan]
    again = fresh(pretrained)
    assert same(first, again) == (choice == 3)
    refit(again, [coloured(24, 0)], state.plan, context(pretrained, tmp_path, stages), tmp_path / "again")
    assert same(first, again, atol=1e-6)


SCRATCH = Backbone(name="tiny", weights="none")


@pytest.mark.slow
def test_an_average_from_scratch_has_statistics_of_its_own_in_a_refit_too(shallow, tmp_path, monkeypatch, eagerly):
    """With those of training, which lag behind and are of other weights, it would be worth little."""
    stages = (Stage(unfreeze="all", epochs=2, learning_rate=1e-2, schedule="step"),)
    monkeypatch.setattr(module, "choose", lambda losses, *_: seen.extend(losses) or 0)  # the average
    seen, looked, real = [], [], one_stage.update_bn

    def spy(network, batches):
        stale = network.get_weights()
        real(network, batches)
        looked.append([np.abs(a - b).max() for a, b in zip(stale, network.get_weights(), strict=True)])

    monkeypatch.setattr(one_stage, "update_bn", spy)
    first, state = train(SCRATCH, tmp_path, stages)
    assert state.plan == [{"start": 0, "epochs": 2, "averaged": True, "alpha": 1.0, "lr_drops": []}]
    assert len(looked) == 2 and max(looked[1]) > 0.1, "the average and halfway, not what an epoch trained with"
    again = fresh(SCRATCH)
    refit(again, [coloured(24, 0)], state.plan, context(SCRATCH, tmp_path, stages), tmp_path / "again")
    assert len(looked) == 3 and same(first, again, atol=1e-5)
    assert seen[0].mean() < np.log(CLASSES), "chosen by what it says with them"


@pytest.mark.slow
def test_three_batches_for_a_step_train_as_one_of_three_times_the_size_does(pretrained, tmp_path, monkeypatch):
    """A whole stage: what is kept is the moving average, and comes out the same."""
    monkeypatch.setattr(module, "choose", lambda *_: 1)  # validation of so few images might prefer the best epoch
    head, ended = Head(dropout=0.0, l2=0.01), []
    steadfast = dataclasses.replace(pretrained, stochastic_depth=0.0)  # nothing may be drawn by the batch
    steady = {"optimizer": "sgd", "learning_rate": 3.0, "schedule": "constant", "warmup": 0.0}
    stage = Stage(unfreeze=1, epochs=3, cached_augmentations=1, layer_decay=0.5, clipnorm=0.1, l2=1e-3, **steady)
    for batch_size, accumulate in ((24, 1), (8, 3)):
        settings = Train(batch_size=batch_size, gradient_accumulation_steps=accumulate)
        place = dataclasses.replace(context(steadfast, tmp_path, (stage,), settings), blocks=blocks(steadfast, head))
        keras.utils.set_random_seed(0)
        model = build(steadfast, head, SIZE, np.ones(CLASSES))
        before = model.get_weights()
        state = fit(model, coloured(24, 0), coloured(12, 1), place, tmp_path / str(accumulate))
        assert state.plan[0]["averaged"] and state.plan[0]["alpha"]
        ended.append(model.get_weights())
    moved = max(np.abs(new - old).max() for new, old in zip(ended[0], before, strict=True))
    assert moved > 1e-3
    for whole, in_parts in zip(*ended, strict=True):
        np.testing.assert_allclose(in_parts, whole, rtol=0, atol=0.005 * moved)


def test_a_stage_with_batches_of_its_own_trains_as_if_all_had_them(pretrained, tmp_path, eagerly):
    """And two stages may have different ones."""
    first, second = (Stage(unfreeze=0, epochs=2, learning_rate=5e-3), Stage(unfreeze=1, epochs=1, learning_rate=3e-3))
    own = (dataclasses.replace(first, batch_size=6), dataclasses.replace(second, batch_size=6))
    mixed = (dataclasses.replace(first, batch_size=6), second)
    settings = {size: dataclasses.replace(SETTINGS, batch_size=size) for size in (6, 24)}
    ended, states = zip(
        train(pretrained, tmp_path / "all", (first, second), settings[6]),
        train(pretrained, tmp_path / "own", own, settings[24]),
        train(pretrained, tmp_path / "mixed", mixed, settings[24]),
        strict=True,
    )
    assert same(ended[0], ended[1], atol=1e-5)
    assert not same(ended[0], ended[2], atol=1e-4)
    losses = [[row["loss"] for row in state.history] for state in states]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2][:2] == pytest.approx(losses[0][:2], rel=1e-4) and losses[2][2] != pytest.approx(losses[0][2])


def test_a_step_of_more_images_than_there_are_is_refused_before_any_trains(pretrained, tmp_path):
    """An epoch might end without one, and the average of its weights would be that of none."""
    settings = dataclasses.replace(SETTINGS, gradient_accumulation_steps=4)  # 24 images are 3 batches of 8
    with pytest.raises(ConfigError, match=r"train.gradient_accumulation_steps: expected at most 3, .* Received: 4"):
        train(pretrained, tmp_path, settings=settings)
    assert not (tmp_path / "checkpoints").exists() and not (tmp_path / "cache").exists()


STILL = (0.5, 0.4, 0.6, 0.6, 0.3, 0.9)
"""Scores after each epoch: better, better, twice not, better, not."""


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [4, 5], ids=["when it has been decided", "when it has been done"])
def test_the_learning_rate_drops_when_the_score_stops_improving_after_a_resume_and_in_a_refit_too(
    pretrained, tmp_path, monkeypatch, epoch
):
    stages = (
        Stage(
            unfreeze=0,
            epochs=6,
            learning_rate=0.5,
            optimizer="sgd",
            warmup=0.0,
            schedule="plateau",
            cached_augmentations=2,
        ),
    )
    settings = Train(batch_size=8, patience=6, checkpoint_seconds=0)
    monkeypatch.setattr(module, "per_image_losses", lambda *_: np.zeros(12))  # all alike: the average
    keep, save, rates = callbacks.KeepBest.on_epoch_end, checkpoints.Checkpoint.on_epoch_end, []

    def scored(self, epoch, logs):
        keep(self, epoch, {**logs, self.monitor: STILL[epoch]})

    def copy(self, epoch, logs=None):
        save(self, epoch, logs)
        rates.append(float(self.model.optimizer.learning_rate))
        if self.keep:
            shutil.copytree(tmp_path / "whole", tmp_path / f"after {epoch + 1}", dirs_exist_ok=True)

    monkeypatch.setattr(callbacks.KeepBest, "on_epoch_end", scored)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.Checkpoint, "on_epoch_end", copy)
        first, state = train(pretrained, tmp_path / "whole", stages, settings)
        again = fresh(pretrained, settings)
        refit(again, [coloured(24, 0)], state.plan, context(pretrained, tmp_path, stages, settings), tmp_path / "again")
    assert rates == pytest.approx(2 * [0.5, 0.5, 0.5, 0.5, 0.05, 0.05])
    assert [row["learning_rate"] for row in state.history] == pytest.approx(rates[:6])
    assert state.plan == [{"start": 0, "epochs": 6, "averaged": True, "alpha": 1.0, "lr_drops": [4]}]
    assert same(first, again, atol=1e-6)
    resumed, state = train(pretrained, tmp_path / f"after {epoch}", stages, settings)
    assert same(first, resumed) and state.plan[0]["lr_drops"] == [4]


def test_a_plateau_is_seen_after_the_warm_up_and_an_epoch_without_a_number_is_none():
    state, rate = checkpoints.TrainState(start=3, epoch=3), PlateauSchedule(5, 0.2)
    plateau = callbacks.ReduceLROnPlateau(rate, state, patience=2)
    plateau.set_params({"steps": 2})
    found = []
    for epoch, (wait, nonfinite) in enumerate(
        [(1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (5, 0), (6, 0), (0, 0)], start=3
    ):
        plateau.on_epoch_begin(epoch)
        found.append(float(rate(100)))
        state.wait, state.nonfinite_epochs = wait, nonfinite
        plateau.on_epoch_end(epoch)
    assert state.lr_drops == [7, 10], "not 5, in the warm-up, nor 8 again"
    assert found == pytest.approx([0.2, 0.2, 0.2, 0.2, 0.02, 0.02, 0.02, 0.002])


def test_each_stage_mixes_what_its_input_allows_until_its_last_quarter(pretrained, tmp_path, monkeypatch, capsys):
    """In a refit too: three quarters of the stage as planned, however many of its epochs are repeated."""
    stages = (Stage(unfreeze=0, epochs=2, cached_augmentations=1), Stage(unfreeze=1, epochs=4, cached_augmentations=1))
    plan = [{"start": start, "epochs": 2, "averaged": False, "alpha": 1.0, "lr_drops": []} for start in (0, 2)]
    seen = []
    monkeypatch.setattr(one_stage, "shuffled_batches", lambda *args: seen.append(args[5]))
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: None)
    refit(fresh(pretrained), [coloured(24, 0)], plan, context(pretrained, tmp_path, stages), tmp_path)
    assert seen == [Mixing(0.1, 0.0, until=0 + 1), Mixing(0.1, 0.1, until=2 + 3)]  # the head alone has vectors
    assert capsys.readouterr().out.count("train.cutmix: mixup only") == 1


@pytest.mark.slow
def test_blocks_are_dropped_more_from_epoch_to_epoch_in_a_refit_too_and_never_of_vectors(
    pretrained, tmp_path, monkeypatch, capsys
):
    seen = []

    def epochs_alone(self, *_, callbacks, initial_epoch, epochs, **__):
        """What `fit` does for the callbacks, without a step."""
        for callback in callbacks:
            callback.set_model(self)
        for epoch in range(initial_epoch, epochs):
            for callback in callbacks:
                callback.on_epoch_begin(epoch)
            ramps = [round(float(layer.ramp), 6) for layer in self.layers if isinstance(layer, DropBlock)]
            seen.append((epoch, ramps))
            logs = {"loss": 1.0}
            for callback in callbacks:
                callback.on_epoch_end(epoch, logs)

    monkeypatch.setattr(keras.Model, "fit", epochs_alone)
    stages = (Stage(unfreeze=0, epochs=1, cached_augmentations=1), Stage(unfreeze=1, epochs=4, cached_augmentations=1))
    train(pretrained, tmp_path, stages)
    expected = [(0, []), *((epoch, [epoch / 4] * 2) for epoch in (1, 2, 3, 4))]
    assert seen == expected
    assert capsys.readouterr().out.count("head.drop_block: nothing is dropped in this stage") == 1
    seen.clear()
    plan = [
        {"start": start, "epochs": n, "averaged": False, "alpha": 1.0, "lr_drops": []} for start, n in ((0, 1), (1, 3))
    ]
    refit(fresh(pretrained), [coloured(24, 0)], plan, context(pretrained, tmp_path, stages), tmp_path)
    assert seen == expected[:4], "as planned, though the fourth epoch was not kept"


@pytest.mark.slow
def test_a_refit_passes_over_a_stage_that_was_not_kept(pretrained, tmp_path, monkeypatch, eagerly):
    stages = (Stage(unfreeze=1, epochs=1, learning_rate=1e-2), Stage(unfreeze=0, epochs=1, learning_rate=3e-3))
    monkeypatch.setattr(module, "per_image_losses", lambda *_: np.zeros(12))  # all alike: the average
    plan = [{"start": 0, "epochs": 0, "averaged": False, "alpha": 0.0, "lr_drops": []},
            {"start": 1, "epochs": 1, "averaged": True, "alpha": 1.0, "lr_drops": []}]  # fmt: skip
    expected, again = fresh(pretrained), fresh(pretrained)
    state = checkpoints.TrainState(stage=1, epoch=1, plan=plan[:1])  # as if nothing had come of the first stage
    monkeypatch.setattr(
        module,
        "read_checkpoint",
        lambda place: (state if place.name == "checkpoints" else checkpoints.TrainState(), {}),
    )
    fit(expected, coloured(24, 0), coloured(12, 1), context(pretrained, tmp_path, stages), tmp_path)
    assert state.plan == plan
    refit(again, [coloured(24, 0)], plan, context(pretrained, tmp_path, stages), tmp_path / "again")
    assert same(expected, again, atol=1e-6)


@pytest.mark.slow
def test_a_refit_computes_only_what_the_stages_have_not(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: None)
    stages = (Stage(unfreeze=0, epochs=3, cached_augmentations=2),)
    how = context(pretrained, tmp_path, stages)
    one_stage.compile_stage(fresh(pretrained), stages[0], [coloured(24, 0)], coloured(12, 1), how)
    read = {"old": [], "new": []}

    def watched(name: str, source: ArrayDataset) -> ArrayDataset:
        return dataclasses.replace(source, read=lambda e, rows: read[name].extend(rows) or source.read(e, rows))

    parts = [watched("old", coloured(24, 0)), watched("new", coloured(6, 5))]
    plan = [{"start": 0, "epochs": 2, "averaged": True, "alpha": 1.0, "lr_drops": []}]
    refit(fresh(pretrained), parts, plan, how, tmp_path / "again")
    assert read == {"old": [], "new": [*range(6), *range(6)]}


def test_without_stages_there_is_nothing_to_do(pretrained, tmp_path):
    model, again = fresh(pretrained), fresh(pretrained)
    nothing = context(pretrained, tmp_path, stages=())
    state = fit(model, coloured(24, 0), coloured(12, 1), nothing, tmp_path / "run")
    refit(model, [coloured(24, 0), coloured(12, 1)], state.plan, nothing, tmp_path / "again")
    assert same(model, again)
    assert (state.plan, state.history, state.epoch) == ([], [], 0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_no_cached_activations_are_alive_when_fit_and_refit_are_done(pretrained, tmp_path):
    """TensorFlow never lets go of a function that it was given; every stage would leave its gigabytes."""
    made, original = [], ArrayFile.__init__

    def watched(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(weakref.ref(self))

    def alive() -> int:
        gc.collect()
        return sum(reference() is not None for reference in made)

    stages = (Stage(unfreeze=1, epochs=2, cached_augmentations=1, refresh=1),)
    sources = [dataclasses.replace(coloured(24, 0), key=""), coloured(12, 1)]  # of one, the file is gone too
    settings, model = context(pretrained, tmp_path, stages), fresh(pretrained)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ArrayFile, "__init__", watched)
        state = fit(model, *sources, settings, tmp_path)
        assert len(made) == 3  # of two views and validation
        assert alive() == 0
        state.plan[0].update(epochs=2, averaged=True, alpha=1.0)
        refit(model, sources, state.plan, settings, tmp_path / "again")
        assert len(made) == 3 + 2 * 2
        assert alive() == 0


def logits_of(wrong, n: int = 100, sure: float = 3.0) -> np.ndarray:
    """Of `n` images of class 0 and 1 in turn, with these told wrong."""
    labels = np.arange(n) % 2
    said = np.where(np.isin(np.arange(n), list(wrong)), 1 - labels, labels)
    return sure * np.eye(2)[said]


class Stub:
    """A network of one weight, of which it is planned what it says on validation with each of its values."""

    def __init__(self, says: dict[float, np.ndarray], n: int = 100):
        self.says, self.labels, self.weights = says, np.arange(n) % 2, [np.array(1.0)]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights

    def predict(self, *_, **__):
        return self.says[float(self.weights[0])]


BEFORE, HALFWAY, AVERAGE, BEST = 0.0, 0.5, 1.0, 2.0


def chosen(
    says: dict[float, np.ndarray], monitor: str = "accuracy", groups: np.ndarray | None = None
) -> tuple[float, dict, checkpoints.TrainState]:
    """The weight that is left, what is kept for a refit, and the state."""
    network = Stub(says)
    state = checkpoints.TrainState(start=5, epoch=9, best_epoch=7 if BEST in says else None)
    before, best = [np.array(BEFORE)], [np.array(BEST)]
    held_out = ArrayDataset(lambda _, rows: np.zeros((len(rows), 1), np.float32), network.labels, groups=groups)
    validate = callbacks.Validate(state, held_out, monitor, 8)
    kept = module._choose(network, validate, state, before, best, lambda: None)
    assert kept.pop("words")
    return float(network.weights[0]), kept, state


MONITORS = ["accuracy", "macro_f1", "cross_entropy"]


@pytest.mark.parametrize("monitor", MONITORS)
def test_an_average_that_is_clearly_worse_than_before_is_rejected(monitor):
    says = {BEFORE: logits_of(range(10)), HALFWAY: logits_of(range(40)), AVERAGE: logits_of(range(50))}
    left, kept, state = chosen(says, monitor)
    assert left == BEFORE
    assert kept == {"epochs": 0, "averaged": False, "alpha": 0.0}
    assert state.gain == 0


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize(
    ("better", "errors"), [(BEFORE, 1), (HALFWAY, 1), (BEST, 3)], ids=["before", "halfway", "best epoch"]
)
@pytest.mark.parametrize(("mended", "broken"), [(0, 0), (3, 2), (9, 5), (10, 2), (12, 0), (30, 0), (2, 9)])
def test_only_what_is_better_by_some_standard_errors_replaces_the_average(monitor, better, errors, mended, broken):
    """It mends some of the images that the average gets wrong, and breaks others."""
    average, other = set(range(40)), set(range(mended, 40)) | set(range(60, 60 + broken))
    says = dict.fromkeys([BEFORE, HALFWAY, AVERAGE, BEST], logits_of(average)) | {better: logits_of(other)}
    losses = [per_image_losses(logits_of(wrong), np.arange(100) % 2, monitor) for wrong in (average, other)]
    differences = losses[0] - losses[1]
    sure = differences.mean() > errors * differences.std() / 10
    left, kept, state = chosen(says, monitor)
    assert left == (better if sure else AVERAGE)
    expected = {BEFORE: (0, False, 0.0), BEST: (2, False, 1.0), HALFWAY: (4, True, 0.5), AVERAGE: (4, True, 1.0)}[left]
    assert (kept["epochs"], kept["averaged"], kept["alpha"]) == expected
    assert state.best == pytest.approx(scores(says[left], np.arange(100) % 2)[MONITORED[monitor]])


def test_images_of_one_patient_do_not_make_an_epoch_surely_better():
    """It mends twelve images: of as many patients that is no accident, of one it may be."""
    says = dict.fromkeys([BEFORE, HALFWAY, AVERAGE], logits_of(range(12))) | {BEST: logits_of([])}
    assert chosen(says)[0] == chosen(says, groups=np.arange(100))[0] == BEST
    assert chosen(says, groups=np.arange(100) // 12)[0] == AVERAGE


def test_halfway_is_taken_where_it_is_clearly_better():
    wrong = {BEFORE: range(40), HALFWAY: range(10), AVERAGE: range(12)}
    left, kept, state = chosen({key: logits_of(value) for key, value in wrong.items()})
    assert left == HALFWAY and kept == {"epochs": 4, "averaged": True, "alpha": 0.5}
    assert state.best == pytest.approx(0.9)
    assert state.gain == pytest.approx(1 - 10 / 40)
    wrong[AVERAGE] = range(9, 20)  # one image more, but others
    left, kept, state = chosen({key: logits_of(value) for key, value in wrong.items()})
    assert left == AVERAGE and kept == {"epochs": 4, "averaged": True, "alpha": 1.0}


def test_one_that_is_only_surer_of_itself_is_not_better():
    """Plain cross-entropy would choose the best epoch, by far."""
    wrong = range(30)
    says = dict.fromkeys([BEFORE, HALFWAY, AVERAGE], logits_of(wrong, sure=9.0)) | {BEST: logits_of(wrong, sure=1.0)}
    plain = {key: scores(logits, np.arange(100) % 2)["val_cross_entropy"] for key, logits in says.items()}
    assert plain[BEST] < 0.3 * plain[AVERAGE]
    assert chosen(says, "cross_entropy")[0] == AVERAGE


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_never_win(monitor, value):
    broken, bad, good = logits_of(()), logits_of(range(60)), logits_of(range(20))
    broken[3, 1] = value
    for says, expected in (
        ({BEFORE: bad, HALFWAY: broken, AVERAGE: broken}, BEFORE),
        ({BEFORE: broken, HALFWAY: broken, AVERAGE: broken, BEST: bad}, BEST),
        ({BEFORE: broken, HALFWAY: broken, AVERAGE: bad, BEST: broken}, AVERAGE),
        ({BEFORE: broken, HALFWAY: bad, AVERAGE: broken, BEST: broken}, HALFWAY),
        ({BEFORE: good, HALFWAY: broken, AVERAGE: broken, BEST: bad}, BEFORE),
    ):
        left, _, state = chosen(says, monitor)
        assert left == expected
        assert math.isfinite(state.best) and 0 <= state.gain <= 1


def blurred(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know as much as they say, and labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (n, CLASSES))
    chances = np.exp(log_softmax(logits, axis=1))
    return logits, (generator.random((n, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, CLASSES - 1)


@pytest.mark.parametrize("factor", [10, 3, 0.3, 0.1])
def test_how_sure_a_network_is_of_itself_does_not_count(factor):
    logits, labels = blurred()
    expected = per_image_losses(logits, labels, "cross_entropy")
    np.testing.assert_allclose(per_image_losses(factor * logits, labels, "cross_entropy"), expected, atol=1e-3)


def test_the_loss_of_a_image_is_its_cross_entropy_at_the_best_temperature():
    logits, labels = blurred()
    losses = per_image_losses(logits.astype(np.float32), labels, "cross_entropy")
    assert losses.shape == (400,) and losses.dtype == np.float64
    by_hand = [smoothed_losses(logits, labels, temperature=t) for t in np.linspace(0.5, 2, 301)]
    best = min(by_hand, key=np.mean)
    np.testing.assert_allclose(losses, best, atol=0.01)
    assert losses.mean() <= best.mean() + 1e-9 < -np.log(1 / CLASSES)
    biased = logits + 3 * np.eye(CLASSES)[0]  # a temperature mends no bias
    assert per_image_losses(biased, labels, "cross_entropy").mean() > losses.mean() + 0.05


@pytest.mark.parametrize("images", [6, 30])
def test_of_networks_that_are_always_right_the_clearer_one_is_better(images):
    """With few images, all right, the best temperature would be zero, and every loss with it."""
    labels, generator = np.arange(images) % 3, np.random.default_rng(0)
    clear = 4 * np.eye(3)[labels] + generator.normal(0, 0.1, (images, 3))
    vague = clear - np.eye(3)[labels] * generator.uniform(0, 3.5, (images, 1))
    assert (clear.argmax(axis=1) == labels).all() and (vague.argmax(axis=1) == labels).all()
    better, worse = (per_image_losses(factor * vague, labels, "cross_entropy") for factor in (1, 7))
    np.testing.assert_allclose(better, worse, atol=1e-3)
    better = per_image_losses(clear, labels, "cross_entropy")
    assert 0.1 / images < better.mean() < worse.mean()


def test_the_loss_of_an_image_is_whether_it_is_wrong_or_its_influence_on_macro_f1():
    labels = np.array([0, 0, 0, 0, 2, 2])  # no image of class 1
    logits = np.eye(3)[[0, 0, 0, 1, 2, 0]]
    assert per_image_losses(logits, labels, "accuracy").tolist() == [0, 0, 0, 1, 0, 1]
    losses = per_image_losses(logits, labels, "macro_f1")
    assert losses.mean() == pytest.approx(1 - f1_score(labels, logits.argmax(axis=1), average="macro"))
    assert losses[5] > losses[3] > losses[0], "an error in a rare class counts more"
    # What F1 would be with one image more of a kind, to first order.
    many = [np.repeat(values, 1000, axis=0) for values in (labels, logits)]
    for i in range(6):
        more = [np.append(values, [of[i]], axis=0) for values, of in zip(many, (labels, logits), strict=True)]
        moved = 6001 * (per_image_losses(more[1], more[0], "macro_f1").mean() - losses.mean())
        assert moved == pytest.approx(losses[i] - losses.mean(), abs=0.01)


def test_scores_are_those_of_scikit_learn_and_of_the_report():
    """Also where a class neither occurs nor is predicted: one notion of macro F1."""
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 4, 50), generator.normal(size=(50, 5))
    logits[:, 4] = -9
    found, said = scores(logits, labels), Predictions(np.arange(50).astype(str), labels, logits, tuple("abcde"))
    assert found["val_macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(axis=1), average="macro"))
    for name in ("accuracy", "macro_f1", "cross_entropy"):
        assert found[f"val_{name}"] == pytest.approx(metrics.score(said)[name]["value"], abs=1e-6)
    assert found["val_calibrated_cross_entropy"] == per_image_losses(logits, labels, "cross_entropy").mean()


@pytest.mark.parametrize(
    "monitor", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("accuracy", "macro_f1")), "cross_entropy"]
)
def test_there_is_one_notion_of_best(pretrained, tmp_path, monkeypatch, capsys, monitor):
    """What patience waits for, the best epoch, the choice at the end and the printed line: one number."""
    stages = (Stage(unfreeze=0, epochs=4, learning_rate=0.1),)
    monkeypatch.setattr(module, "per_image_losses", lambda logits, labels, m: seen.append(logits) or losses(logits))
    seen, losses = [], lambda logits: per_image_losses(logits, coloured(12, 1).labels, monitor)
    _, state = train(pretrained, tmp_path, stages, dataclasses.replace(SETTINGS, monitor=monitor))
    said = capsys.readouterr().out
    sign = -1 if monitor == "cross_entropy" else 1
    column = [row[MONITORED[monitor]] for row in state.history]
    name = MONITORED[monitor].replace("_", " ")
    assert all(f"{name} {value:.3f}" in said for value in column)
    starred = [" * " in line for line in said.splitlines() if "epoch" in line and "images/s" in line]
    best, expected = losses(seen[-1]).mean(), []  # of the weights from before, with which the stage began
    best = best if sign < 0 else 1 - best
    for value in column:
        expected.append(sign * (value - best) > 0)
        best = max(best, value, key=lambda score: sign * score)
    assert starred == expected
    if any(expected):  # the third candidate is the best epoch, as it was logged
        loss = losses(seen[2]).mean()
        assert (loss if sign < 0 else 1 - loss) == pytest.approx(best, abs=1e-5)
    assert f"{name} {state.best:.3f} " in said.splitlines()[-1]


@pytest.mark.slow
def test_an_epoch_predicts_validation_once_and_evaluates_nothing(pretrained, tmp_path, monkeypatch, eagerly):
    count = dict.fromkeys(("predict", "evaluate", "predict_on_batch"), 0)

    def counted(name: str, real: Callable) -> Callable:
        return lambda *args, **how: count.update({name: count[name] + 1}) or real(*args, **how)

    for name in count:
        monkeypatch.setattr(keras.Model, name, counted(name, getattr(keras.Model, name)))
    train(pretrained, tmp_path, TWO)
    candidates = 4 if count["predict"] == 7 else 3  # whether an epoch was better than before
    assert count == {"predict": 1 + 2 + candidates, "evaluate": 0, "predict_on_batch": 0}


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["accuracy", "macro_f1"])
def test_other_scores_can_choose_too(pretrained, tmp_path, monitor):
    stages = (Stage(unfreeze=0, epochs=6, learning_rate=0.1),)
    settings = dataclasses.replace(SETTINGS, monitor=monitor)
    model, state = train(pretrained, tmp_path, stages, settings)
    val = coloured(12, 1)
    said = model.predict(val.read(0, np.arange(12)).astype("float32"), verbose=0).argmax(axis=1)
    hits = said == val.labels
    f1 = [2 * hits[val.labels == k].sum() / ((val.labels == k).sum() + (said == k).sum()) for k in range(CLASSES)]
    assert state.best == pytest.approx(hits.mean() if monitor == "accuracy" else np.mean(f1))
    assert hits.mean() > 0.5 and state.gain > 0


def test_a_stage_is_skipped_when_the_one_before_gained_too_little(pretrained, tmp_path, capsys, eagerly):
    stages = (Stage(unfreeze=0, epochs=1, learning_rate=1e-9), Stage(unfreeze=1, epochs=1, only_if_gain=0.5))
    _, state = train(pretrained, tmp_path, stages=stages)
    assert [row["stage"] for row in state.history] == [1]
    assert state.plan[1]["alpha"] == 0
    assert state.stage == 2
    assert "skipped" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_and_its_loss_is_float32(pretrained, tmp_path, precision):
    keras.config.set_dtype_policy(precision)
    try:
        stage = Stage(unfreeze=1, epochs=4, learning_rate=3e-3, schedule="plateau", clipnorm=1.0, layer_decay=0.9)
        model, state = train(
            pretrained, tmp_path, (stage,), dataclasses.replace(SETTINGS, gradient_accumulation_steps=2)
        )
        save_model(model, tmp_path)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("block3_conv1").compute_dtype == precision.removeprefix("mixed_")
    assert model.output.dtype == "float32"
    losses = [row["loss"] for row in state.history]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
