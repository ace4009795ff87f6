"""One stage: what it trains and on what, compiled, and the run of its epochs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from .. import progress
from ..config import Stage, Train
from ..data.batches import Mixing, pad_batches, replicas, shuffled_batches, shuffled_rows, steps
from ..data.dataset import ArrayDataset
from ..labels import images_per_class, is_multi
from ..model.blocks import Blocks, boundary, freeze
from ..model.layers import DropBlock
from .batch_norm import trainable_norms, update_bn
from .callbacks import Advance, DropBlockSchedule, ReduceLROnPlateau
from .checkpoint import Arrays, Checkpoint, TrainState
from .features import FeatureCache, cache_frozen
from .losses import training_loss, training_metrics
from .nonfinite import TerminateOnNonFinite, first_bad_batch
from .optimizers import apply_layer_decay, create_optimizer, create_schedule, plateau_schedule
from .penalties import penalise


@dataclass(frozen=True)
class TrainContext:
    """What does not change from stage to stage.

    Args:
        blocks: of the model.
        stages: what to unfreeze, how long and how fast.
        settings: batch size, monitor, patience, seed.
        cache: for activations of frozen blocks.
        pretrained: values of the model's variables before anything trained, which `l2_sp` pulls towards.
        class_names: in the order of the labels, for weights by name.
    """

    blocks: Blocks
    stages: Sequence[Stage]
    settings: Train
    cache: FeatureCache
    pretrained: Sequence[np.ndarray] = ()
    class_names: Sequence[str] = ()


@dataclass(frozen=True)
class CompiledStage:
    """A stage that is ready to train; from `compile_stage`.

    Args:
        model: the whole model.
        network: what trains, compiled: the model, or the part of it above the frozen blocks.
        train: what the network takes, for training.
        val: likewise, for validation; None without.
        stage: its settings.
        context: those of all stages.
        base: arrays at the beginning of the stage, as `Checkpoint` wants them.
    """

    model: keras.Model
    network: keras.Model
    train: ArrayDataset
    val: ArrayDataset | None
    stage: Stage
    context: TrainContext
    base: Arrays

    @property
    def batch_size(self) -> int:
        """Images per training batch."""
        return batch_size(self.stage, self.context.settings)

    @property
    def held_out(self) -> ArrayDataset:
        """`val`, where there must be one."""
        if self.val is None:
            raise ValueError("Expected a stage with images to validate on. Received: one of a refit, without any")
        return self.val

    @property
    def takes_maps(self) -> bool:
        """Whether the network takes images or feature maps, which have an area, and not pooled features."""
        return len(self.network.input_shape) == 4


def batch_size(stage: Stage, settings: Train) -> int:
    """Images per training batch of a stage."""
    return stage.batch_size or settings.batch_size


def compile_stage(
    model: keras.Model,
    stage: Stage,
    train: Sequence[ArrayDataset],
    val: ArrayDataset | None,
    context: TrainContext,
    *,
    averaged: bool = True,
    saved: Mapping[str, list[np.ndarray]] | None = None,
) -> CompiledStage:
    """Freeze a model as a stage wants it, and compile what trains: the tail on cached activations if that pays.

    Args:
        model: the whole model; frozen in place.
        stage: what to do with it.
        train: augmented images, in parts. Steps and class weights are theirs: in a refit there are more.
        val: validation images, or None.
        context: the rest.
        averaged: as in `create_optimizer`.
        saved: arrays of a checkpoint to go on from, or none.
    """
    saved = saved or {}
    trained = freeze(model, context.blocks, stage.unfreeze)
    print(f"  unfreeze {stage.unfreeze!r}: {trained:,} of {model.count_params():,} weights train")
    assign(model.variables, saved.get("model", model.variables))
    views = min(stage.cached_augmentations or stage.epochs, stage.epochs)
    tensor = boundary(model, context.blocks, stage.unfreeze)
    network, inputs, held_out = cache_frozen(
        model, tensor, train, val, views=views, refresh=stage.refresh, cache=context.cache
    )
    penalise(model, stage, context.blocks, context.pretrained)
    compile_network(network, stage, inputs, context, averaged=averaged)
    assign(network.optimizer.variables, saved.get("optimizer", network.optimizer.variables))
    begun = saved.get("begun") or [variable.numpy() for variable in model.variables]
    base = {"begun": begun, "before": saved.get("before") or network.get_weights()}
    return CompiledStage(model, network, inputs, held_out, stage, context, base)


def compile_network(
    network: keras.Model, stage: Stage, train: ArrayDataset, context: TrainContext, *, averaged: bool = True
) -> None:
    """Give what trains in a stage its optimizer, schedule and loss, as new.

    Args:
        network: the model, or the part of it above the frozen blocks.
        stage: what to do with it.
        train: what it takes: steps and class weights are its.
        context: the rest.
        averaged: as in `create_optimizer`.
    """
    settings = context.settings
    rate = create_schedule(stage, stage.epochs * steps(train, batch_size(stage, settings)))
    optimizer = create_optimizer(stage, rate, averaged, settings.gradient_accumulation_steps)
    if stage.layer_decay < 1:
        apply_layer_decay(optimizer, network, stage.layer_decay, context.blocks)
    counts, multi = images_per_class(train.labels, network.output_shape[-1]), is_multi(train.labels)
    compile_for(network, optimizer, training_loss(settings, counts, context.class_names, multi=multi), multi=multi)


def compile_for(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss: keras.losses.Loss | None = None,
    *,
    multi: bool = False,
) -> None:
    """Give the model a new optimizer, a loss, and the scores of training that are logged.

    Args:
        model: to train.
        optimizer: from `create_optimizer`.
        loss: of training only, from `training_loss`; cross-entropy if None. The scores stay plain.
        multi: whether an image may have several labels.
    """
    model.compile(
        optimizer,
        loss=loss or keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=training_metrics(multi=multi),  # padding of the last batch has weight 0
    )
    model.optimizer.build(model.trainable_variables)  # in float16, compile has wrapped it to scale the loss


def assign(variables: Sequence[keras.Variable], values: Sequence) -> None:
    """Put back all variables of a checkpoint, those of dropout's random generators included."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def run_epochs(
    compiled: CompiledStage,
    epochs: range,
    state: TrainState,
    folder: Path,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best: keras.callbacks.Callback | None = None,
) -> None:
    """Train through the epochs with these numbers, writing checkpoints; then take the EMA weights, if any.

    Args:
        compiled: what to train.
        epochs: may be empty.
        state: with the `start` and the `lr_drops` of the stage; saved in the checkpoints.
        folder: for checkpoints.
        callbacks: called before those that change the learning rate, and before the checkpoint is written.
        best: that of them whose `weights` are the best ones, to save them too.

    Raises:
        NonFiniteError: if a loss or weight, or the validation score, became NaN or infinite.
    """
    network, settings = compiled.network, compiled.context.settings
    if epochs:
        clock, seconds = compiled.context.cache.clock, settings.checkpoint_seconds
        checkpoint = Checkpoint(state, folder, compiled.model, compiled.base, clock, best, seconds)
        schedules = _schedule_callbacks(compiled, state)
        mixing = mixing_of(settings, compiled.stage, state.start, maps=compiled.takes_maps)
        batches = functools.partial(_batches, compiled, mixing)
        guard = TerminateOnNonFinite(
            compiled.model, functools.partial(_first_bad_batch, compiled, batches, schedules, checkpoint)
        )
        _fit(compiled, batches(epochs), epochs, [guard, *callbacks, *schedules, checkpoint])
    network.optimizer.finalize_variable_values(network.trainable_variables)


def train_once(compiled: CompiledStage) -> None:
    """Train through all epochs of a stage, without a checkpoint or a look at validation; then take the EMA weights."""
    network, state, epochs = compiled.network, TrainState(), range(compiled.stage.epochs)
    mixing = mixing_of(compiled.context.settings, compiled.stage, 0, maps=compiled.takes_maps)
    _fit(compiled, _batches(compiled, mixing, epochs), epochs, _schedule_callbacks(compiled, state))
    network.optimizer.finalize_variable_values(network.trainable_variables)
    update_statistics(compiled, epochs.stop)


def _fit(
    compiled: CompiledStage, batches: tf.data.Dataset, epochs: range, callbacks: Sequence[keras.callbacks.Callback]
) -> None:
    number = steps(compiled.train, compiled.batch_size)
    with progress.step("training", number * len(epochs), "steps") as step:
        compiled.network.fit(
            batches,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            steps_per_epoch=number,
            callbacks=[*callbacks, Advance(step)],
            shuffle=False,  # it already is
            verbose=0,
        )


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


def update_statistics(compiled: CompiledStage, epochs: int) -> None:
    """Give the weights of a network, which no epoch has trained with, batch-norm statistics of their own.

    Args:
        compiled: after training; left as it is if its statistics are frozen.
        epochs: that are finished; the images are those of the last one.
    """
    if trainable_norms(compiled.network):
        update_bn(compiled.network, _in_order(compiled, None, range(epochs - 1, epochs)))


def _schedule_callbacks(compiled: CompiledStage, state: TrainState) -> list[keras.callbacks.Callback]:
    """Callbacks that change the rate of DropBlock, and the learning rate on a plateau."""
    stage, callbacks = compiled.stage, []
    if any(isinstance(layer, DropBlock) for layer in compiled.model.layers):
        if not compiled.takes_maps:
            print("  head.drop_block: nothing is dropped in this stage; pooled features have no area")
        callbacks.append(DropBlockSchedule(state.start, stage.epochs))
    if rate := plateau_schedule(compiled.network.optimizer):
        callbacks.append(ReduceLROnPlateau(rate, state, compiled.context.settings.patience // 3))
    return callbacks


def _batches(compiled: CompiledStage, mixing: Mixing, epochs: range) -> tf.data.Dataset:
    """Training batches of these epochs; all of one size where XLA would compile the network for each, or devices share
    them.
    """
    batches = _in_order(compiled, mixing, epochs)
    equal = compiled.network.jit_compile or replicas() > 1
    return pad_batches(batches, len(compiled.train), compiled.batch_size) if equal else batches


def _in_order(compiled: CompiledStage, mixing: Mixing | None, epochs: range) -> tf.data.Dataset:
    settings, classes = compiled.context.settings, compiled.network.output_shape[-1]
    order = (compiled.batch_size, settings.seed, epochs, mixing, settings.sampling)
    return shuffled_batches(compiled.train, classes, *order)


def _first_bad_batch(
    compiled: CompiledStage, batches: functools.partial, schedules: Sequence[keras.callbacks.Callback],
    checkpoint: Checkpoint, epoch: int,
) -> tuple[int, int, Sequence[str]] | None:  # fmt: skip
    """Train again from the last checkpoint: epoch, batch and names of its images, or None if all losses are finite."""
    network = compiled.network
    if checkpoint.last is None:  # it has what training begins with, at least
        return None
    begun, saved = checkpoint.last
    assign(compiled.model.variables, saved["model"])
    assign(network.optimizer.variables, saved["optimizer"])
    found = first_bad_batch(network, range(begun, epoch + 1), lambda e: batches(range(e, e + 1)), schedules)
    return found and (*found, _image_names(compiled, *found))


def _image_names(compiled: CompiledStage, epoch: int, batch: int) -> list[str]:
    """Names of the images of a batch, as far as they are known."""
    train, settings = compiled.train, compiled.context.settings
    order = shuffled_rows(train.labels, compiled.batch_size, settings.seed, epoch, settings.sampling)
    _, rows = order[batch]
    return [train.names[row] for row in rows] if len(train.names) else []
