"""Fine-tuning as a list of stages: unfreeze, train, average, keep the best, unfreeze more."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import disk
from ..config import ConfigError, Stage, Train
from ..data.batches import Mixing, of_one_size, shuffled_batches, shuffled_rows, steps
from ..data.dataset import ArrayDataset, subsample
from ..model.blocks import Blocks, boundary, freeze
from ..model.layers import DropBlock
from .batch_norm import trainable_norms, update_bn
from .callbacks import DropBlockSchedule, KeepBest, Log, ReduceLROnPlateau, Validate, format_scores
from .checkpoint import Checkpoint, TrainState, read_checkpoint
from .features import FeatureCache, cache_frozen
from .gradients import Gradients
from .losses import training_loss
from .nonfinite import NonFiniteError, TerminateOnNonFinite, first_bad_batch
from .optimizers import apply_layer_decay, optimizer, plateau_schedule, schedule
from .penalties import penalise
from .select import candidates, choose, interpolate, per_image_losses, relative_gain, scores


@dataclass(frozen=True)
class TrainContext:
    """What does not change from stage to stage.

    Args:
        blocks: of the model.
        stages: what to unfreeze, how long and how fast.
        settings: batch size, monitor, patience, seed.
        store: for activations of frozen blocks.
        pretrained: values of the model's variables before anything trained, to which `l2_sp` holds on.
        class_names: in the order of the labels, for weights by name.
    """

    blocks: Blocks
    stages: Sequence[Stage]
    settings: Train
    store: FeatureCache
    pretrained: Sequence[np.ndarray] = ()
    class_names: Sequence[str] = ()


def fit(model: keras.Model, train: ArrayDataset, val: ArrayDataset, how: TrainContext, folder: Path) -> TrainState:
    """Train a model through all stages, in place; afterwards it has the weights that validation liked best.

    Goes on where an earlier call with the same folder stopped, if it left a checkpoint there.

    Args:
        model: from `build`; its present weights are the first to beat.
        train: augmented training inputs.
        val: validation inputs, which choose weights and end stages.
        how: blocks, stages and settings.
        folder: for history.csv, tensorboard/ and checkpoints/.

    Returns:
        Where the training stands at the end: its `history`, and in `plan` what repeats it without validation.

    Raises:
        ConfigError: if a step has more batches than an epoch.
        DiskError: if there is no room for three checkpoints and the activations of all stages.
        DamagedError: if it was interrupted, and none of its checkpoints is whole.
        NonFiniteError: if a loss, weight or validation score became NaN or infinite. The model then has the best
            weights so far, and the last checkpoint is from before.
    """
    batches = steps(train, how.settings.batch_size)
    if batches < how.settings.gradient_accumulation_steps:
        raise ConfigError(
            f"train.gradient_accumulation_steps: expected at most {batches}, the batches of an epoch of {len(train)} "
            f"images, so that each epoch makes a step. Received: {how.settings.gradient_accumulation_steps}"
        )
    needed = 3 * _checkpoint_bytes(model, how.settings)
    disk.require_space({folder: needed, how.store.folder: _feature_bytes(model, train, val, how)})
    state, saved = read_checkpoint(folder / "checkpoints")
    for number, stage in list(enumerate(how.stages))[state.stage :]:
        title = f"stage {number + 1}/{len(how.stages)}"
        if state.gain < stage.only_if_gain:
            print(f"{title}: skipped, the stage before lowered the loss by {state.gain:.0%} only")
            state.plan.append({"start": state.epoch, "epochs": 0, "averaged": False, "share": 0.0, "drops": []})
        else:
            with how.store.clock(f"stage {number + 1}"):
                state.plan.append(_fit_stage(model, train, val, how, state, saved, folder))
            saved = {}
        state.stage = number + 1
    return state


def _fit_stage(
    model: keras.Model,
    train: ArrayDataset,
    val: ArrayDataset,
    how: TrainContext,
    state: TrainState,
    saved: dict,
    folder: Path,
) -> dict:
    """Train the stage that `state` is at, from its beginning or from where `saved` stopped.

    Returns:
        What was kept, for `plan`; the model has these weights.
    """
    settings, stage, title = how.settings, how.stages[state.stage], f"stage {state.stage + 1}/{len(how.stages)}"
    trained = freeze(model, how.blocks, stage.unfreeze)
    print(f"{title}: unfreeze {stage.unfreeze!r}, {trained:,} of {model.count_params():,} weights train")
    assign(model.variables, saved.get("model", model.variables))
    network, inputs, held_out = compile_stage(model, stage, [train], val, how)
    assign(network.optimizer.variables, saved.get("optimizer", network.optimizer.variables))
    validate = Validate(state, held_out, settings.monitor, settings.batch_size)
    if not saved:
        state.start, state.wait, state.best_epoch, state.drops = state.epoch, 0, None, []
        start = scores(validate.logits(network), validate.labels)[validate.column]
        state.best = start if math.isfinite(start) else None
    base = _base(model, network, saved)
    before = base["before"]
    keep = KeepBest(state, validate.column, settings.patience, saved.get("best") or before)
    end = state.start + stage.epochs
    if state.epoch < end and state.wait < settings.patience:
        log = Log(state, folder, title, end, len(train), validate)
        timed = how.store.clock, keep, settings.checkpoint_seconds
        checkpoint = Checkpoint(state, folder / "checkpoints", model, base, *timed)
        changes = _schedule_callbacks(model, network, stage, how, state.start, state.drops, state)
        mixing = mixing_of(settings, stage, state.start, maps=len(network.input_shape) == 4)
        guard = _nonfinite_guard(model, inputs, settings, mixing, changes, checkpoint)
        after = [guard, validate, keep, log, *changes]
        if settings.monitor_gradients:
            after.append(Gradients(subsample(inputs, settings.batch_size), how.blocks.titles, state.stage + 1, folder))
        after.append(checkpoint)
        try:
            _run_epochs(network, inputs, settings, range(state.epoch, end), mixing, after)
        except NonFiniteError:
            network.set_weights(keep.weights)
            raise
    network.optimizer.finalize_variable_values(network.trainable_variables)  # to the moving average
    settle = functools.partial(_settle, network, inputs, settings, state.epoch)
    chosen = _choose(network, validate, state, before, keep.weights, settle)
    print(f"{title}: kept {chosen.pop('words')}")
    return {"start": state.start, **chosen, "drops": state.drops}


def refit(
    model: keras.Model, train: Sequence[ArrayDataset], plan: Sequence[dict], how: TrainContext, folder: Path
) -> None:
    """Train a fresh model as `fit` did, for as many epochs and with the same averages, but without validation.

    So the images that made the choices are learned from too: with few images that is worth more than knowing the
    best epoch exactly. Goes on where an earlier call with the same folder stopped.

    Args:
        model: as `fit` received it.
        train: augmented inputs, in parts: the training images and those of validation.
        plan: from `fit`: `start`, `epochs`, `averaged`, `share` and `drops` of each stage.
        how: as in `fit`.
        folder: for final/, which holds its checkpoints.

    Raises:
        DamagedError: if it was interrupted, and none of its checkpoints is whole.
        NonFiniteError: if a loss or weight became NaN or infinite.
    """
    images = sum(map(len, train))
    state, saved = read_checkpoint(folder / "final")
    for number, (stage, done) in list(enumerate(zip(how.stages, plan, strict=True)))[state.stage :]:
        if done["share"]:
            print(f"again on all {images} images: stage {number + 1}, {done['epochs']} epochs")
            freeze(model, how.blocks, stage.unfreeze)
            assign(model.variables, saved.get("model", model.variables))
            # The schedule stays that of the whole stage: each epoch has the step size that it had the first time.
            network, inputs, _ = compile_stage(model, stage, train, None, how, done["averaged"])
            assign(network.optimizer.variables, saved.get("optimizer", network.optimizer.variables))
            base = _base(model, network, saved)
            epochs = range(max(state.epoch, done["start"]), done["start"] + done["epochs"])
            if epochs:
                timed = how.store.clock, None, how.settings.checkpoint_seconds
                checkpoint = Checkpoint(state, folder / "final", model, base, *timed)
                again = _schedule_callbacks(model, network, stage, how, done["start"], done["drops"])
                mixing = mixing_of(how.settings, stage, done["start"], maps=len(network.input_shape) == 4)
                guard = _nonfinite_guard(model, inputs, how.settings, mixing, again, checkpoint)
                after = [guard, *again, checkpoint]
                _run_epochs(network, inputs, how.settings, epochs, mixing, after)
            network.optimizer.finalize_variable_values(network.trainable_variables)  # to the moving average
            network.set_weights(interpolate(base["before"], network.get_weights(), done["share"]))
            if done["averaged"]:
                _settle(network, inputs, how.settings, done["start"] + done["epochs"])
            saved = {}
        state.stage = number + 1


def _base(model: keras.Model, network: keras.Model, saved: dict) -> dict[str, list[np.ndarray]]:
    """What a stage began with, as `Checkpoint` wants it: now, or where the saved one did."""
    begun = saved.get("begun") or [variable.numpy() for variable in model.variables]
    return {"begun": begun, "before": saved.get("before") or network.get_weights()}


def _nonfinite_guard(
    model: keras.Model, inputs: ArrayDataset, settings: Train, mixing: Mixing,
    changes: Sequence[keras.callbacks.Callback], checkpoint: Checkpoint,
) -> TerminateOnNonFinite:  # fmt: skip
    """What stops a training that is no number, and finds the batch by training once more from the last checkpoint."""

    def find(epoch: int) -> tuple[int, int, Sequence[str]] | None:
        network, (begun, saved) = checkpoint.model, checkpoint.last
        assign(model.variables, saved["model"])
        assign(network.optimizer.variables, saved["optimizer"])
        epochs, batches = range(begun, epoch + 1), functools.partial(_batches, network, inputs, settings, mixing)
        found = first_bad_batch(network, epochs, lambda e: batches(range(e, e + 1)), changes)
        return found and (*found, names(*found))

    def names(epoch: int, batch: int) -> list[str]:
        order = shuffled_rows(inputs.labels, settings.batch_size, settings.seed, epoch, settings.sampling)
        _, rows = order[batch]
        return [inputs.names[row] for row in rows] if len(inputs.names) else []

    return TerminateOnNonFinite(model, find)


def _checkpoint_bytes(model: keras.Model, settings: Train) -> int:
    """At most: the weights; twice their gradients and once their average in the optimizer; the best; and those of the
    beginning, of the whole and of what trains. Where gradients are accumulated, those too.
    """
    return (7 + (settings.gradient_accumulation_steps > 1)) * 4 * model.count_params()


def _feature_bytes(model: keras.Model, train: ArrayDataset, val: ArrayDataset, how: TrainContext) -> int:
    """Bytes that the activations of all stages will take beside what the store holds already, at most."""
    needed = 0
    for stage in how.stages:
        tensor = boundary(model, how.blocks, stage.unfreeze)
        views = min(stage.cached_augmentations or stage.epochs, stage.epochs)
        if tensor is not None:
            size = 2 * (len(train) * views + len(val)) * math.prod(tensor.shape[1:])
            needed += size if size <= how.store.limit_bytes else 0
    return max(0, min(needed, how.store.limit_bytes - how.store.size_bytes()))


def compile_stage(
    model: keras.Model,
    stage: Stage,
    train: Sequence[ArrayDataset],
    val: ArrayDataset | None,
    how: TrainContext,
    averaged: bool = True,
) -> tuple[keras.Model, ArrayDataset, ArrayDataset | None]:
    """What a stage trains, compiled, and on what: the tail on stored activations if that pays, else all on images.

    Args:
        model: the whole, frozen as the stage wants it.
        stage: what to do with it.
        train: augmented images, in parts. Steps and class weights are theirs: in a final fit there are more.
        val: validation images, or None.
        how: the rest.
        averaged: as in `optimizer`.
    """
    settings = how.settings
    views = min(stage.cached_augmentations or stage.epochs, stage.epochs)
    tensor = boundary(model, how.blocks, stage.unfreeze)
    network, inputs, held_out = cache_frozen(
        model, tensor, train, val, views=views, refresh=stage.refresh, store=how.store
    )
    penalise(model, stage, how.blocks, how.pretrained)
    rate = schedule(stage, stage.epochs * steps(inputs, settings.batch_size))
    made = optimizer(stage, rate, averaged, settings.gradient_accumulation_steps)
    if stage.layer_decay < 1:
        apply_layer_decay(made, network, stage.layer_decay, how.blocks)
    counts = np.bincount(inputs.labels, minlength=model.output_shape[-1])
    compile_for(network, made, training_loss(settings, counts, how.class_names))
    return network, inputs, held_out


def compile_for(model: keras.Model, made: keras.optimizers.Optimizer, loss: keras.losses.Loss | None = None) -> None:
    """Give the model a new optimizer, a loss, and the scores of training that are logged.

    Args:
        model: to train.
        made: from `optimizer`.
        loss: of training only, from `training_loss`; cross-entropy if None. The scores stay plain.
    """
    model.compile(
        made,
        loss=loss or keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=[  # what only fills up a batch weighs nothing
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.CategoricalCrossentropy(from_logits=True, name="cross_entropy"),  # plain
        ],
    )
    model.optimizer.build(model.trainable_variables)  # in float16, compile has wrapped it to scale the loss


def assign(variables: Sequence[keras.Variable], values: Sequence) -> None:
    """Put back all variables of a checkpoint, those of dropout's random generators included."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def mixing_of(settings: Train, stage: Stage, start: int, *, maps: bool) -> Mixing:
    """What the settings ask for in a stage that begins at this epoch, and its input allows.

    The last quarter of the epochs (at least one) sees images as they are, as validation does.

    Args:
        settings: alphas of mixup and cutmix.
        stage: its epochs.
        start: number of its first epoch.
        maps: whether what trains takes images or maps, which have an area to cut, and not pooled features.
    """
    if settings.cutmix and not maps:
        instead = "mixup only" if settings.mixup else "nothing is mixed in this stage"
        print(f"  train.cutmix: {instead}; pooled features have no area to cut")
    return Mixing(settings.mixup, settings.cutmix if maps else 0.0, until=start + stage.epochs * 3 // 4)


def _schedule_callbacks(
    model: keras.Model, network: keras.Model, stage: Stage, how: TrainContext, start: int, drops: list[int],
    state: TrainState | None = None,
) -> list[keras.callbacks.Callback]:  # fmt: skip
    """What changes the rate of DropBlock and, on a plateau, the step size in a stage that began at this epoch.

    Given `state`, it decides when the step size drops; without, it repeats `drops`.
    """
    drops_blocks = any(isinstance(layer, DropBlock) for layer in model.layers)
    if drops_blocks and len(network.input_shape) != 4:
        print("  head.drop_block: nothing is dropped in this stage; pooled features have no area")
    changes = [DropBlockSchedule(start, stage.epochs)] if drops_blocks else []
    if rate := plateau_schedule(network.optimizer):
        changes.append(ReduceLROnPlateau(rate, drops, how.settings.patience // 3, state))
    return changes


def _run_epochs(
    network: keras.Model,
    train: ArrayDataset,
    settings: Train,
    epochs: range,
    mixing: Mixing,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Run `fit` over the epochs with these numbers."""
    network.fit(
        _batches(network, train, settings, mixing, epochs),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=steps(train, settings.batch_size),
        callbacks=list(callbacks),
        shuffle=False,  # it already is
        verbose=0,
    )


def _batches(
    network: keras.Model, train: ArrayDataset, settings: Train, mixing: Mixing | None, epochs: range
) -> tf.data.Dataset:
    """Training batches of these epochs; all of one size where XLA would compile the network for each."""
    how = (mixing, settings.sampling)
    batches = shuffled_batches(train, network.output_shape[-1], settings.batch_size, settings.seed, epochs, *how)
    return of_one_size(batches, len(train), settings.batch_size) if network.jit_compile else batches


def _settle(network: keras.Model, inputs: ArrayDataset, settings: Train, epochs: int) -> None:
    """Give the weights of a network, which no epoch has trained with, batch-norm statistics of their own.

    Args:
        network: after training; left as it is if its statistics are frozen.
        inputs: of training; those of the last epoch are looked at.
        settings: batch size, seed and sampling.
        epochs: that are finished.
    """
    if not trainable_norms(network):
        return
    order = (settings.batch_size, settings.seed, range(epochs - 1, epochs), None, settings.sampling)
    update_bn(network, shuffled_batches(inputs, network.output_shape[-1], *order))


def _choose(
    network: keras.Model, validate: Validate, state: TrainState, before: list, best: list, settle: Callable[[], None]
) -> dict:
    """Leave in the network the weights that validation likes best of `candidates`, and say which.

    `settle` is done with those that no epoch has trained with, before they are looked at.
    """
    tried = candidates(
        before,
        network.get_weights(),
        None if state.best_epoch is None else (state.best_epoch - state.start, best),
        state.epoch - state.start,
    )
    logits, weights = [], []
    for candidate in tried:
        network.set_weights(candidate.weights)
        if candidate.averaged:
            settle()
        weights.append(network.get_weights())
        logits.append(validate.logits(network))
    losses = [per_image_losses(each, validate.labels, validate.monitor) for each in logits]
    winner = choose(losses, [candidate.errors for candidate in tried], validate.held_out.groups)
    kept, found = tried[winner], scores(logits[winner], validate.labels)
    network.set_weights(weights[winner])
    state.best, state.gain = found[validate.column], relative_gain(losses[-1], losses[winner])
    before_it = scores(logits[-1], validate.labels)[validate.column]
    words = f"{kept.words}: {format_scores(found, validate.column)} (before {before_it:.3f})"
    return {"epochs": kept.epochs, "averaged": kept.averaged, "share": kept.share, "words": words}
