"""Settings from the data: what a person who has trained many small data sets would begin with."""

import dataclasses
import math

from .config import Config, Stage, Train

STEPS = 160
"""As many steps a stage has at least, if batches of half of `train.batch_size` are small enough for it. In as many
passes half of the blocks learns more in 160 steps than in 80, and in 320 it may go wrong (docs/craft.md)."""


def stages(
    images: int, train: Train, blocks: int, feature_levels: int, *, pretrained: bool, probed: bool
) -> tuple[Stage, ...]:
    """Stages for a recipe that names none, and where cross-validation does not choose.

    Pretrained: the top sixth of the blocks with 200 images and more; from 2,000 also the top half, if that helped. A
    probe that prefers lower levels says that the images are far from ImageNet: it has their features already, and
    unfreezing starts at 1,000 images, from the half. From scratch: everything at once.

    Args:
        images: in the training part.
        train: settings, of which the images a step are looked at.
        blocks: of the backbone.
        feature_levels: of the head.
        pretrained: whether it has weights to be careful with.
        probed: whether the head begins as a linear probe; if not, it is trained first.
    """

    def epochs(wanted_steps: int) -> int:
        return _epochs(wanted_steps, images, train)

    if not pretrained:
        return (Stage(unfreeze="all", epochs=epochs(480), learning_rate=3e-3),)
    half = max(2, math.ceil(blocks / 2))
    plan = [] if probed else [Stage(unfreeze=0, epochs=epochs(240), learning_rate=1e-3)]
    if images >= 1000 and feature_levels > 1:
        plan += [Stage(unfreeze=half, epochs=epochs(240), learning_rate=1e-3)]
    elif images >= 200 and feature_levels == 1:
        plan += [depths(images, train, blocks)[0]]
    if images >= 2000 and feature_levels == 1:
        plan += [Stage(unfreeze=half, epochs=epochs(128), learning_rate=2e-4, only_if_gain=0.1)]
    return tuple(plan)


def depths(images: int, train: Train, blocks: int) -> tuple[Stage, ...]:
    """Stages for cross-validation to choose from, shallow first: the top sixth of the blocks, and half of them.

    Half is for images that are far from ImageNet's, and moves faster. Three quarters take much longer, and led half by
    0.1 standard errors on hand signs.

    Args:
        images: in the training part.
        train: settings, of which the images a step are looked at.
        blocks: of the backbone.
    """
    top, half = max(1, round(blocks / 6)), blocks // 2
    epochs = _epochs(80, images, train)
    enough = images * epochs // (STEPS * train.gradient_accumulation_steps)
    batch_size = min(train.batch_size, max(2, math.ceil(train.batch_size / 2), enough))  # 2: one has none to mix with
    shallow = Stage(unfreeze=top, epochs=epochs, batch_size=batch_size, learning_rate=2e-4)
    # With less warm-up the first steps may undo more of the network than the others mend.
    deep = dataclasses.replace(shallow, unfreeze=half, learning_rate=5e-4, warmup=0.3)
    return (shallow, deep) if half > top else (shallow,)  # of few blocks both are one: the top


def _epochs(wanted_steps: int, images: int, train: Train) -> int:
    """Small data need more passes to move as far: a number of steps, in 8 to 40 epochs."""
    step = train.batch_size * train.gradient_accumulation_steps
    return min(40, max(8, math.ceil(wanted_steps / math.ceil(images / step))))


OF_STAGES = {
    "augment": ("policy", "strength", "random_erasing", "blur", "grayscale", "solarize"),
    "backbone": ("stochastic_depth",),
    "head": ("dropout", "gaussian_dropout", "drop_block", "drop_connect", "l1", "l2", "max_norm"),
    "train": (
        "gradient_accumulation_steps", "monitor", "patience", "loss", "class_weights", "logit_adjustment", "sampling",
        "label_smoothing", "mixup", "cutmix", "teachers", "checkpoint_seconds", "monitor_gradients",
    ),
}  # fmt: skip
"""Settings, by section, of gradient steps; the linear probe, which takes none, is as it is whatever they are."""


def of_probe(config: Config) -> Config:
    """The linear probe alone, and as defaults what it does not know: the same for all recipes of the same probe."""
    changes, kept = {}, {"monitor"} if config.augment.flips else {"monitor", "policy"}  # a probe sees mirror images
    for section, names in OF_STAGES.items():
        now, default = getattr(config, section), getattr(Config(), section)
        fields = {name: getattr(default, name) for name in names if name not in kept}
        changes[section] = dataclasses.replace(now, **fields)
    return dataclasses.replace(config, **changes, stages=())


def settings_without_effect(config: Config, images: int) -> dict[str, str]:
    """Settings that were given, are other than their defaults, and have no effect: by key, why, and what helps.

    Args:
        config: without `auto`, and with the stages that will run.
        images: in the training part.
    """
    found = {}
    if not config.stages:
        why = f"with {images} training images no stage trains; give one, such as --stages.0.unfreeze=1"
        found = {f"{section}.{name}": why for section, names in OF_STAGES.items() for name in names}
        if config.augment.policy == "none":  # nothing is mirrored: the probe sees that
            del found["augment.policy"]
    if not config.backbone.name.startswith("mobilenet"):
        found["backbone.alpha"] = f"{config.backbone.name} has one width; the mobilenet networks have several"
    found["backbone.candidates"] = f"only backbone.name=auto compares networks; this is {config.backbone.name}"
    if config.data.resize != "crop":
        found["tta.full_image"] = f"with data.resize={config.data.resize} the whole image is seen already"

    def value(of: Config, key: str) -> object:
        section, _, name = key.partition(".")
        return getattr(getattr(of, section), name)

    return {key: why for key, why in found.items() if value(config, key) != value(Config(), key)}


def refits(config: Config, images: int) -> bool:
    """Whether a run ends with a fit on training and validation images together; by itself where they are few.

    Args:
        config: of the run.
        images: used, in all parts.
    """
    few = config.backbone.weights != "none" and images < 5000
    return config.train.refit_on_train_val == "yes" or (config.train.refit_on_train_val == "auto" and few)


def uses_hflip(config: Config) -> bool:
    """Whether an answer is the mean over an image and its mirror image; by itself where training sees such."""
    return config.augment.flips if config.tta.hflip == "auto" else config.tta.hflip


def uses_full_image(config: Config) -> bool:
    """Whether an answer is the mean over an image's crop and the whole image; by itself where a stage trains.

    What it brings with stages and without is measured in docs/craft.md.

    Args:
        config: without `auto`, and with the stages that will run.
    """
    wanted = bool(config.stages) if config.tta.full_image == "auto" else config.tta.full_image
    return wanted and config.data.resize == "crop"
