"""Fine-tuning as a list of stages: thaw, train, keep the best, thaw more."""

from collections.abc import Sequence
from pathlib import Path

import keras

from ..config import Backbone, Stage, Train
from ..data.pipeline import Source, ordered_batches, shuffled_batches, steps
from ..model.build import freeze
from .callbacks import Checkpoint, KeepBest, Log, read_checkpoint


def fit(
    model: keras.Model,
    train: Source,
    val: Source,
    *,
    backbone: Backbone,
    stages: Sequence[Stage],
    settings: Train,
    folder: Path,
) -> list[dict]:
    """Train a model through all stages, in place; afterwards it has the weights of the best epoch of all.

    Goes on where an earlier call with the same folder stopped, if it left a checkpoint there.

    Args:
        model: from `build`.
        train: augmented training inputs.
        val: validation inputs, which choose the epoch and end a stage.
        backbone: the settings that the model was built with.
        stages: what to thaw, how long and how fast.
        settings: batch size, monitor, patience, seed.
        folder: for history.csv, tensorboard/ and checkpoints/.

    Returns:
        The history: one row an epoch, over all stages.
    """
    classes = model.output_shape[-1]
    state, arrays = read_checkpoint(folder / "checkpoints")
    validation = ordered_batches(val, classes, settings.batch_size)
    for number, stage in list(enumerate(stages))[state.stage :]:
        title = f"stage {number + 1}/{len(stages)}"
        trained = freeze(model, backbone, stage.unfreeze)
        print(f"{title}: unfreeze {stage.unfreeze!r}, {trained:,} of {model.count_params():,} weights train")
        compile_for(model, stage, stage.epochs * steps(train, settings.batch_size))
        keep = KeepBest(state, f"val_{settings.monitor}", settings.patience, arrays.get("best"))
        if arrays:
            _restore(model, arrays)
            arrays = {}
        else:
            state.start, state.wait = state.epoch, 0
        end = state.start + stage.epochs
        if state.epoch < end and state.wait < settings.patience:
            log = Log(state, folder, title, end, len(train))
            model.fit(
                shuffled_batches(train, classes, settings.batch_size, settings.seed, range(state.epoch, end)),
                initial_epoch=state.epoch,
                epochs=end,
                steps_per_epoch=steps(train, settings.batch_size),
                validation_data=validation,
                callbacks=[keep, log, Checkpoint(state, folder / "checkpoints", keep)],
                shuffle=False,
                verbose=0,
            )
        model.set_weights(keep.weights)
        state.stage = number + 1
    return state.history


def compile_for(model: keras.Model, stage: Stage, total_steps: int) -> None:
    """Give the model a new optimizer for a stage: AdamW, warm-up and cosine, no decay on biases and normalisation."""
    warmup = round(total_steps * stage.warmup)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else stage.learning_rate,
        decay_steps=max(1, total_steps - warmup),
        warmup_target=stage.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=stage.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.CategoricalAccuracy(name="accuracy"),
            keras.metrics.CategoricalCrossentropy(from_logits=True, name="cross_entropy"),  # without penalties
            keras.metrics.F1Score(average="macro", name="macro_f1"),
        ],
    )


def _restore(model: keras.Model, arrays: dict) -> None:
    """Put back all variables of a checkpoint, those of dropout's random generators included."""
    model.optimizer.build(model.trainable_variables)
    for variables, values in ((model.variables, arrays["model"]), (model.optimizer.variables, arrays["optimizer"])):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
