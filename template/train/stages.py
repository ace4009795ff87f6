"""Fine-tuning as a list of stages: unfreeze, train, average, keep the best, unfreeze more."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import keras

from .. import disk, progress
from ..config import ConfigError, Train
from ..data.batches import steps
from ..data.dataset import ArrayDataset, subsample
from ..model.blocks import boundary
from .callbacks import KeepBest, Log, Validate, format_scores
from .checkpoint import TrainState, read_checkpoint
from .features import activation_bytes
from .gradients import Gradients
from .nonfinite import NonFiniteError
from .one_stage import TrainContext, batch_size, compile_stage, run_epochs, update_statistics
from .select import candidates, choose, interpolate, per_image_losses, relative_gain, scores

SKIPPED = {"epochs": 0, "averaged": False, "alpha": 0.0}
"""What the plan says of a stage of which nothing was kept."""


def fit(model: keras.Model, train: ArrayDataset, val: ArrayDataset, context: TrainContext, folder: Path) -> TrainState:
    """Train a model through all stages, in place; afterwards it has the weights that are best on validation.

    Goes on where an earlier call with the same folder stopped, if it left a checkpoint there.

    Args:
        model: from `build`; its present weights are the first to beat.
        train: augmented training images.
        val: validation images, which choose weights and end stages.
        context: blocks, stages and settings.
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
    sizes = [batch_size(stage, context.settings) for stage in context.stages]
    batches = steps(train, max(sizes, default=context.settings.batch_size))
    if batches < context.settings.gradient_accumulation_steps:
        raise ConfigError(
            f"train.gradient_accumulation_steps: expected at most {batches}, the batches of an epoch of {len(train)} "
            f"images, so that each epoch makes a step. Received: {context.settings.gradient_accumulation_steps}"
        )
    needed = 3 * checkpoint_bytes(model, context.settings)
    disk.require_space({folder: needed, context.cache.folder: feature_bytes(model, train, val, context)})
    state, saved = read_checkpoint(folder / "checkpoints")
    for number, stage in list(enumerate(context.stages))[state.stage :]:
        if state.gain < stage.only_if_gain:
            title, gain = _title(number, context), f"{state.gain:.0%}"
            print(f"{title}: skipped, the stage before lowered the validation loss by only {gain}")
            state.plan.append({"start": state.epoch, **SKIPPED, "lr_drops": []})
        else:
            with context.cache.clock(f"stage {number + 1}"):
                state.plan.append(_fit_stage(model, train, val, context, state, saved, folder))
            saved = {}
        state.stage = number + 1
    return state


def _fit_stage(
    model: keras.Model,
    train: ArrayDataset,
    val: ArrayDataset,
    context: TrainContext,
    state: TrainState,
    saved: dict,
    folder: Path,
) -> dict:
    """Train the stage that `state` is at, from its beginning or from where `saved` stopped.

    Returns:
        What was kept, for `plan`; the model has these weights.
    """
    settings, stage, title = context.settings, context.stages[state.stage], _title(state.stage, context)
    print(f"{title}: {stage.epochs} epochs at most")
    compiled = compile_stage(model, stage, [train], val, context, saved=saved)
    network, before = compiled.network, compiled.base["before"]
    validate = Validate(state, compiled.held_out, settings.monitor, settings.batch_size)
    if not saved:
        start = scores(validate.logits(network), validate.labels)[validate.column]
        state.begin_stage(start if math.isfinite(start) else None)
    keep = KeepBest(state, validate.column, settings.patience, saved.get("best") or before)
    end = state.start + stage.epochs
    epochs = range(state.epoch, end if state.wait < settings.patience else state.epoch)
    callbacks = [validate, keep, Log(state, folder, title, end, len(train), validate)]
    if settings.monitor_gradients:
        few = subsample(compiled.train, compiled.batch_size)
        callbacks.append(Gradients(few, context.blocks.titles, state.stage + 1, folder))
    try:
        run_epochs(compiled, epochs, state, folder / "checkpoints", callbacks, best=keep)
    except NonFiniteError:
        network.set_weights(keep.weights)
        raise
    update = functools.partial(update_statistics, compiled, state.epoch)
    kept = _choose(network, validate, state, before, keep.weights or before, update)
    print(f"{title}: kept {kept.pop('words')}")
    return {"start": state.start, **kept, "lr_drops": state.lr_drops}


def refit(
    model: keras.Model, train: Sequence[ArrayDataset], plan: Sequence[dict], context: TrainContext, folder: Path
) -> None:
    """Train a fresh model as `fit` did, for as many epochs and with the same averages, but without validation.

    So the images that made the choices are learned from too: with few images that is worth more than knowing the
    best epoch exactly. Goes on where an earlier call with the same folder stopped.

    Args:
        model: as `fit` received it.
        train: augmented images, in parts: those of training and those of validation.
        plan: from `fit`: `start`, `epochs`, `averaged`, `alpha` and `lr_drops` of each stage.
        context: as in `fit`.
        folder: for final/, which holds its checkpoints.

    Raises:
        DamagedError: if it was interrupted, and none of its checkpoints is whole.
        NonFiniteError: if a loss or weight became NaN or infinite.
    """
    state, saved = read_checkpoint(folder / "final")
    for number, (stage, kept) in list(enumerate(zip(context.stages, plan, strict=True)))[state.stage :]:
        if kept["alpha"]:
            print(f"refit on {sum(map(len, train))} images, {_title(number, context)}: {kept['epochs']} epochs")
            # The schedule stays that of the whole stage: each epoch has the learning rate that it had the first time.
            compiled = compile_stage(model, stage, train, None, context, averaged=kept["averaged"], saved=saved)
            state.start, state.lr_drops = kept["start"], list(kept["lr_drops"])
            end = kept["start"] + kept["epochs"]
            run_epochs(compiled, range(max(state.epoch, kept["start"]), end), state, folder / "final")
            after = compiled.network.get_weights()
            compiled.network.set_weights(interpolate(compiled.base["before"], after, kept["alpha"]))
            if kept["averaged"]:
                update_statistics(compiled, end)
            saved = {}
        state.stage = number + 1


def _title(number: int, context: TrainContext) -> str:
    return f"stage {number + 1}/{len(context.stages)}"


def checkpoint_bytes(model: keras.Model, settings: Train) -> int:
    """At most: the weights; twice their gradients and once their average in the optimizer; the best; and those of the
    beginning, of the whole and of what trains. Where gradients are accumulated, those too.
    """
    return (7 + (settings.gradient_accumulation_steps > 1)) * 4 * model.count_params()


def feature_bytes(model: keras.Model, train: ArrayDataset, val: ArrayDataset, context: TrainContext) -> float:
    """Bytes that the activations of all stages will take beside what is cached already, at most."""
    needed = 0
    for stage in context.stages:
        tensor = boundary(model, context.blocks, stage.unfreeze)
        views = min(stage.cached_augmentations or stage.epochs, stage.epochs)
        if tensor is not None:
            size = activation_bytes(tensor, train.cached_images * views, val.cached_images)
            needed += size if size <= context.cache.limit_bytes else 0
    return max(0, min(needed, context.cache.limit_bytes - context.cache.size_bytes()))


def _choose(
    network: keras.Model,
    validate: Validate,
    state: TrainState,
    before: list,
    best: list,
    update: Callable[[], None],
) -> dict:
    """Leave in the network those of the `candidates` that are best on validation, and return which.

    `update` gives weights that no epoch has trained with batch-norm statistics of their own.
    """
    tried = candidates(
        before,
        network.get_weights(),
        None if state.best_epoch is None else (state.best_epoch - state.start, best),
        state.epoch - state.start,
    )
    logits, weights = [], []
    for candidate in progress.track(tried, "choosing weights", len(tried), "candidates"):
        network.set_weights(candidate.weights)
        if candidate.averaged:
            update()
        weights.append(network.get_weights())
        logits.append(validate.logits(network))
    losses = [per_image_losses(each, validate.labels, validate.monitor) for each in logits]
    winner = choose(losses, [candidate.errors for candidate in tried], validate.held_out.groups)
    kept, found = tried[winner], scores(logits[winner], validate.labels)
    network.set_weights(weights[winner])
    state.best, state.gain = found[validate.column], relative_gain(losses[-1], losses[winner])
    before_it = scores(logits[-1], validate.labels)[validate.column]
    words = f"{kept.words}: {format_scores(found, validate.column)} (before {before_it:.3f})"
    return {"epochs": kept.epochs, "averaged": kept.averaged, "alpha": kept.alpha, "words": words}
