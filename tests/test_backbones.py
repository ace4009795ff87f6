"""Networks of every kind: fed as its weights were trained, divided without loss, saved and loaded without change."""

import contextlib
import dataclasses
import functools
import math
import re
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils

from template.config import Backbone, Head
from template.model import efficientnet_lite
from template.model.backbones import BACKBONES, build_backbone, resized, tiny
from template.model.blocks import block_outputs, boundary, find_blocks, freeze
from template.model.build import attach, build
from template.model.layers import StochasticDepth, renormalise, strip_training_layers
from template.train.features import split_model

SIZE = 64
# Keras has MobileNet's ImageNet weights for other sizes, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:`input_shape` is undefined:UserWarning")
APPS = keras.applications
# The network as Keras makes it for its ImageNet weights, and what Keras feeds it with. Others: test_every_backbone.py.
KERAS = {
    "tiny": (tiny, lambda pixels: pixels / 127.5 - 1),
    "vgg16": (APPS.VGG16, APPS.vgg16.preprocess_input),
    "vgg19": (APPS.VGG19, APPS.vgg19.preprocess_input),
    "resnet50": (APPS.ResNet50, APPS.resnet.preprocess_input),
    "resnet101": (APPS.ResNet101, APPS.resnet.preprocess_input),
    "resnet50v2": (APPS.ResNet50V2, APPS.resnet_v2.preprocess_input),
    "mobilenet": (APPS.MobileNet, APPS.mobilenet.preprocess_input),
    "mobilenetv2": (APPS.MobileNetV2, APPS.mobilenet_v2.preprocess_input),
    "efficientnetb0": (APPS.EfficientNetB0, APPS.efficientnet.preprocess_input),
    **{
        f"efficientnet_lite{variant}": (
            partial(efficientnet_lite.efficientnet_lite, variant=variant),
            lambda pixels: (pixels - 127) / 128,
        )
        for variant in range(3)
    },
    "convnexttiny": (APPS.ConvNeXtTiny, APPS.convnext.preprocess_input),
}
BLOCKS = {
    "tiny": range(1, 4),
    "vgg16": range(1, 6),
    "vgg19": range(1, 6),
    "resnet50": range(2, 6),
    "resnet101": range(2, 6),
    "resnet50v2": range(2, 6),
    "mobilenet": range(1, 14),
    "mobilenetv2": range(1, 17),
    "efficientnetb0": range(1, 8),
    **dict.fromkeys(("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"), range(1, 8)),
    "convnexttiny": range(4),
}
# Last layers of the blocks in the top half, but for the topmost, which ends with the network; lowest first.
HALF = {
    "tiny": ["block2_add"],
    "vgg16": ["block3_pool", "block4_pool"],
    "vgg19": ["block3_pool", "block4_pool"],
    "resnet50": ["conv4_block6_out"],
    "resnet101": ["conv4_block23_out"],
    "resnet50v2": ["conv4_block6_out"],
    "mobilenet": [f"conv_pw_{number}_relu" for number in range(7, 13)],
    "mobilenetv2": [f"block_{n}_{'project_BN' if n in (10, 13) else 'add'}" for n in range(9, 16)],
    "efficientnetb0": ["block4c_add", "block5c_add", "block6d_add"],
    "efficientnet_lite0": ["block4c_add", "block5c_add", "block6d_add"],
    **dict.fromkeys(("efficientnet_lite1", "efficientnet_lite2"), ["block4d_add", "block5d_add", "block6e_add"]),
    "convnexttiny": ["convnext_tiny_downsampling_block_2"],
}


@dataclass
class Built:
    """A classifier that is not as it was initialised, two images, and what it says of them."""

    settings: Backbone
    model: keras.Model
    pixels: np.ndarray
    logits: np.ndarray

    @property
    def backbone(self) -> keras.Model:
        """Pixels to the last feature map, on the same layers."""
        return keras.Model(self.model.input, self.model.get_layer("pool_avg").input)


def run(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(model(inputs, training=False))


def preprocessing(name: str) -> keras.Model:
    """What a row does to pixels before the network."""
    pixels = keras.Input((None, None, 3))
    return keras.Model(pixels, BACKBONES[name].preprocess(pixels))


def enliven(model: keras.Model, pixels: np.ndarray) -> None:
    """Give every bias, scale and statistic a value of its own, as kernels have, and the statistics the images'.

    In a network as it is initialised, they are equal in every copy, some blocks do nothing yet, and the features of
    all images fade to almost the same: a test on it would see no difference.
    """
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1 and "float" in weight.dtype:
            weight.assign(np.asarray(weight) * rng.uniform(0.9, 1.1, weight.shape) + rng.uniform(0, 0.1, weight.shape))
    renormalise(model)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(pixels, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
        variance = np.asarray(layer.moving_variance)
        layer.moving_variance.assign(np.maximum(variance, 0.1 * variance.mean()))  # of two images, some are near 0


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """One image of noise and one of a slope in other colours, RGB 0-255."""
    noise = np.random.default_rng(0).uniform(0, 255, (SIZE, SIZE, 3))
    slope = np.linspace(0, 1, SIZE)[:, None, None] * np.array([255.0, 120.0, 30.0]) * np.ones((1, SIZE, 1))
    return np.stack([noise, slope]).round().astype(np.float32)


QUICK = ("tiny", "vgg16", "mobilenet", "efficientnet_lite0")  # to build; of the others, the main lane sees the blocks


def only(*names: str) -> pytest.MarkDecorator:
    """A test of what is the same for all networks, or takes long: in the main lane on these alone."""
    params = [pytest.param(name, marks=[pytest.mark.slow] * (name not in names)) for name in KERAS]
    return pytest.mark.parametrize("built", params, indirect=True)


PLAIN = ("tiny", "vgg16", "mobilenet")
"""Quick to build, to write and to read, and with everything that layers can be to those who handle them."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in KERAS],
)
def built(request, pixels) -> Built:
    keras.utils.set_random_seed(0)
    settings = Backbone(name=request.param, weights="none")
    model = build(settings, Head(), SIZE, [1, 2, 3])
    enliven(model, pixels)
    kernel = model.get_layer("logits").kernel  # it starts quietly
    kernel.assign(np.random.default_rng(0).normal(0, 0.5, kernel.shape))
    logits = run(model, pixels)
    assert np.abs(logits[0] - logits[1]).max() > 0.01, "these tests need a network that sees a difference"
    return Built(settings, model, pixels, logits)


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory):
    """The model in a file, as a run saves it; removed afterwards, because they are large."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    strip_training_layers(built.model).save(path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def no_download():
    """With weights="imagenet", Keras's builders make their network without fetching or reading the weights."""

    @contextlib.contextmanager
    def patched():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file_utils, "get_file", lambda *_, **__: "nowhere")
            patch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
            patch.setattr(efficientnet_lite, "_load", lambda *_: None)
            yield

    return patched


@pytest.fixture(scope="module")
def downloaded(built, no_download) -> keras.Model:
    """The backbone as it is built for ImageNet weights, with those of `built`."""
    with no_download():
        backbone = build_backbone(dataclasses.replace(built.settings, weights="imagenet"), SIZE)
    layers = [layer for layer in built.backbone.layers if layer.name != "preprocess"]
    backbone.set_weights([np.asarray(weight) for layer in layers for weight in layer.weights])
    renormalise(backbone)
    return backbone


def test_takes_pixels_and_gives_float32_logits(built):
    assert built.model.input_shape == (None, SIZE, SIZE, 3)
    assert built.model.input.dtype == "float32"  # one tensor, not a list of one
    assert built.model.output_shape == (None, 3)
    assert built.logits.dtype == np.float32
    assert np.isfinite(built.logits).all()
    np.testing.assert_array_equal(run(built.model, built.pixels.astype(np.uint8)), built.logits)


def test_is_flat_and_has_no_code_of_its_own_to_load(built):
    model = built.model
    assert type(model).__module__.startswith("keras."), "a plain keras.Model, not a class of ours"
    nested = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    # ConvNeXt's stem and reductions are pairs of layers inside Keras; no block boundary lies within one.
    assert all(built.settings.name == "convnexttiny" and isinstance(layer, keras.Sequential) for layer in nested)
    for layer in strip_training_layers(model)._flatten_layers():  # which is what is saved
        assert not isinstance(layer, keras.layers.Lambda)
        assert type(layer).__module__.startswith("keras."), f"{layer.name} would have to be registered to be loaded"


@only(*PLAIN)
def test_is_fed_as_keras_feeds_its_imagenet_weights(built, downloaded, no_download):
    make, preprocess_input = KERAS[built.settings.name]
    fed = run(preprocessing(built.settings.name), built.pixels)
    np.testing.assert_allclose(fed, preprocess_input(built.pixels.copy()), rtol=1e-5, atol=1e-5)  # it may write into it
    # In two steps, because the last bit of a pixel can grow a thousandfold on its way through a random network.
    with no_download():
        reference = make(weights="imagenet", include_top=False, input_tensor=keras.Input((SIZE, SIZE, 3)))
    reference.set_weights(downloaded.get_weights())
    renormalise(reference)
    expected = run(keras.Model(reference.inputs[0], reference.outputs[0]), fed)
    np.testing.assert_allclose(run(downloaded, built.pixels), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@only(*PLAIN)
def test_is_one_network_with_and_without_the_download(built, downloaded):
    # Keras gives EfficientNet a layer more with weights="imagenet": a run rebuilt without the download would lack it.
    with_download, without = (
        [(type(layer).__name__, layer.get_config().get("scale")) for layer in model.layers]
        for model in (downloaded, built.backbone)
    )
    if built.settings.name in {"efficientnetb0", "convnexttiny"}:  # which bring their own preprocessing
        assert with_download == without
    else:
        below = [[kind for kind, _ in kinds].index("Conv2D") for kinds in (with_download, without)]
        assert with_download[below[0] :] == without[below[1] :]
    if built.settings.name == "efficientnetb0":
        assert [kind for kind, _ in without][1:4] == ["Rescaling", "Normalization", "Rescaling"]


@only(*PLAIN)
def test_for_another_size_it_has_the_same_weights_and_reads_none(built, downloaded):
    pretrained = dataclasses.replace(built.settings, weights="imagenet")  # a download would fail
    same = resized(downloaded, pretrained, SIZE)
    np.testing.assert_array_equal(run(same, built.pixels), run(downloaded, built.pixels))
    smaller = resized(downloaded, pretrained, SIZE - 16)
    assert smaller.input_shape == (None, SIZE - 16, SIZE - 16, 3)
    mine, theirs = (list(find_blocks(network, pretrained).numbers.values()) for network in (smaller, downloaded))
    assert mine == theirs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16", (30 - 103.939, 20 - 116.779, 10 - 123.68)),  # blue, green, red, each without its ImageNet mean
        ("resnet50", (30 - 103.939, 20 - 116.779, 10 - 123.68)),
        ("mobilenet", (10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1)),
        ("tiny", (10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1)),
    ],
)
def test_preprocessing_of_one_colour_by_hand(name, expected):
    colour = np.array([10, 20, 30], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(run(preprocessing(name), colour).ravel(), expected, rtol=1e-5)


def test_blocks_go_up_through_the_network_and_hold_its_weights(built):
    numbers = find_blocks(built.model, built.settings).numbers
    assert list(numbers) == [layer.name for layer in built.model.layers]
    order = [number for number in numbers.values() if number is not None]
    assert order == sorted(order), "blocks must not interleave, or they cannot be cut"
    assert list(numbers.values())[: -len(order)] == [None] * (len(numbers) - len(order)), "None only below the first"
    found = sorted(set(order))
    assert found == list(BLOCKS.get(built.settings.name, range(found[0], found[0] + len(found))))
    assert len(found) == BACKBONES[built.settings.name].blocks >= 3
    weights = {number: 0 for number in {None, *found}}
    for layer in built.model.layers:
        weights[numbers[layer.name]] += layer.count_params()
    assert weights.pop(None) < 0.02 * built.model.count_params(), "what belongs to no block is a stem, and small"
    assert all(weights.values())


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenetv2", pytest.param("efficientnetb0", marks=pytest.mark.slow), "convnexttiny"]
)
def test_blocks_of_a_family_are_found_and_cut_where_they_begin(name):
    """As above and below, but for what takes a network that has seen images."""
    settings = Backbone(name=name, weights="none", stochastic_depth=0.0)
    base = build_backbone(settings, 32)
    blocks = find_blocks(base, settings)
    numbers = [number for number in blocks.numbers.values() if number is not None]
    assert numbers == sorted(numbers) and sorted(set(numbers)) == list(BLOCKS[name])
    outputs = [output._keras_history.operation.name for output in block_outputs(base, blocks)]
    assert outputs[-math.ceil(len(BLOCKS[name]) / 2) : -1] == HALF[name]
    for block in (BLOCKS[name][0], BLOCKS[name][-1]):
        first = next(layer for layer in base.layers if blocks.numbers[layer.name] == block)
        assert boundary(base, blocks, f"block{block}") is first.input


def test_unfreezing_more_trains_more_up_to_all(built):
    model, settings = built.model, built.settings
    numbers = find_blocks(model, settings).numbers
    found = sorted({number for number in numbers.values() if number is not None})
    head = {layer.path for layer in model.get_layer("logits").weights}
    counts = []
    for k in range(len(found) + 1):
        counts.append(freeze(model, find_blocks(model, settings), k))
        assert counts[-1] == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        trained = {weight.path for weight in model.trainable_weights}
        assert head <= trained
        for layer in model.layers:
            unfrozen = layer.name == "logits" or numbers[layer.name] in found[len(found) - k :]
            assert unfrozen or not {weight.path for weight in layer.weights} & trained, (
                f"{layer.name} with {k} unfrozen"
            )
        if k:  # by its name it is the same
            assert freeze(model, find_blocks(model, settings), f"block{found[-k]}") == counts[-1]
            assert find_blocks(model, settings).lowest(k) == found[-k]
    assert (np.diff(counts) > 0).all()
    everything = freeze(model, find_blocks(model, settings), "all")
    model.trainable = True
    assert everything == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert everything >= counts[-1]
    # Of a pretrained network all but batch normalisation; nothing looks for it inside layers, so it must not be there.
    pretrained = Backbone(name=settings.name, weights="imagenet")
    freeze(model, find_blocks(model, pretrained), "all")
    for layer in model.layers:
        inside = [x for x in layer._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
        assert inside in ([], [layer])
        assert not inside or not layer.trainable_weights
        assert inside or len(layer.trainable_weights) == sum(w.trainable for w in layer.weights)


@pytest.mark.parametrize("unknown", ["block99", "conv99", "top", "", "block", "-1", "2", "block²"])
def test_an_unknown_block_is_an_error_that_names_the_blocks(built, unknown):
    found = sorted({n for n in find_blocks(built.model, built.settings).numbers.values() if n is not None})
    with pytest.raises(ValueError) as caught:
        freeze(built.model, find_blocks(built.model, built.settings), unknown)
    message = str(caught.value)
    assert all(f"'block{number}'" in message for number in found)
    assert re.search(rf"0 to {len(found)}, or 'all'. Received: '{unknown}'", message)


def test_cut_at_any_block_the_two_parts_are_the_whole(built):
    blocks = find_blocks(built.model, built.settings)
    tensors = []
    for block in sorted({number for number in blocks.numbers.values() if number is not None}):
        first = next(layer for layer in built.model.layers if blocks.numbers[layer.name] == block)
        assert boundary(built.model, blocks, f"block{block}") is first.input
        tensors.append(first.input)
    # All cuts in one pass: a part is a model of its own, which takes nothing but the tensor that it begins with.
    parts = list(map(keras.Model, [built.model.input, *tensors], [*tensors, built.model.output]))
    np.testing.assert_allclose(functools.reduce(lambda x, part: run(part, x), parts, built.pixels), built.logits,
                               atol=1e-4, rtol=0)  # fmt: skip
    # Nothing of the tail is in the bottom: what is cached below a boundary does not change while the tail trains.
    weights = [id(weight) for part in parts for weight in part.weights]
    assert len(weights) == len(set(weights)) == len(built.model.weights)


@only(*PLAIN)
@pytest.mark.parametrize("weights", ["none", "a file"])  # which differ in the batch normalisation that is not frozen
def test_what_is_frozen_is_the_same_in_training_and_on_stored_activations(built, weights):
    """Whether a stage passes images through the frozen blocks, or finds their activations in the store."""
    model, settings = built.model, dataclasses.replace(built.settings, weights=weights)
    before = [np.asarray(weight) for weight in model.weights]
    blocks = BACKBONES[settings.name].blocks
    for unfreeze in (0, blocks // 2, blocks) if weights == "none" else (blocks // 2,):
        freeze(model, find_blocks(model, settings), unfreeze)
        bottom, _ = split_model(model, boundary(model, find_blocks(model, settings), unfreeze))
        stored, passed = (np.asarray(bottom(built.pixels, training=training)) for training in (False, True))
        np.testing.assert_array_equal(passed, stored, err_msg=f"{settings.name}, {unfreeze} unfrozen")
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value, err_msg=f"{weight.path} moved")


@pytest.mark.slow
@pytest.mark.parametrize("built", ["efficientnetb0"], indirect=True)
def test_efficientnet_drops_branches_where_it_is_unfrozen(built):
    settings, model = Backbone(name="efficientnetb0"), built.model
    drops = [layer for layer in model.layers if isinstance(layer, StochasticDepth)]
    assert len(drops) == 9 and max(layer.rate for layer in drops) == pytest.approx(0.2 * 14 / 16)
    assert not any(type(layer) is keras.layers.Dropout for layer in model.layers if layer.name != "head_dropout")
    freeze(model, find_blocks(model, settings), 2)
    assert {layer.name[5] for layer in drops if layer.trainable} == {"6", "7"} & {layer.name[5] for layer in drops}


@pytest.mark.slow
@only("tiny", "mobilenet")
def test_in_mixed_precision_images_are_prepared_in_float32(built):
    """bfloat16 has no odd numbers above 256, and a mean subtracted in it is another mean."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        backbone = build_backbone(built.settings, SIZE)
    finally:
        keras.config.set_dtype_policy("float32")
    kinds = (keras.layers.Conv2D, keras.Sequential)  # ConvNeXt's first convolution is in a pair of layers
    stem = next(number for number, layer in enumerate(backbone.layers) if isinstance(layer, kinds))
    assert backbone.inputs[0].dtype == "float32"
    assert {layer.compute_dtype for layer in backbone.layers[1:stem]} <= {"float32"}  # the first computes nothing
    assert backbone.layers[stem].compute_dtype == "bfloat16" == backbone.outputs[0].dtype
    served = strip_training_layers(backbone)
    assert {layer.compute_dtype for layer in served._flatten_layers()} == {"float32"}
    assert served.outputs[0].dtype == "float32"
    served.set_weights(built.backbone.get_weights())
    renormalise(served)
    expected = run(built.backbone, built.pixels)
    np.testing.assert_allclose(run(served, built.pixels), expected, rtol=1e-5, atol=1e-5)


def test_the_boundary_of_the_head_and_of_all(built):
    blocks = find_blocks(built.model, built.settings)
    below, pooled = boundary(built.model, blocks, 0), built.model.get_layer("pool_avg").output
    found, expected = keras.Model(built.model.input, [below, pooled])(built.pixels, training=False)
    np.testing.assert_array_equal(found, expected)
    assert boundary(built.model, blocks, "all") is None


def test_levels_are_the_pooled_outputs_of_the_top_blocks_lowest_first(built):
    name = built.settings.name
    head = Head(feature_levels=math.ceil(BACKBONES[name].blocks / 2))
    expected = [*(built.model.get_layer(end).output for end in HALF[name]), built.backbone.output]
    assert len(expected) == head.feature_levels >= 2
    found = block_outputs(built.backbone, find_blocks(built.backbone, built.settings))
    assert len(found) == BACKBONES[name].blocks
    assert all(one is other for one, other in zip(found[-head.feature_levels :], expected, strict=True))
    for k in (2, head.feature_levels):
        model = attach(built.backbone, built.settings, Head(feature_levels=k), [1, 2, 3])
        features = model.get_layer("logits").input
        assert features.shape[1] == sum(level.shape[-1] for level in expected[-k:])
    *maps, features = keras.Model(model.input, [*expected, features])(built.pixels, training=False)
    by_hand = np.concatenate([np.asarray(level).mean(axis=(1, 2)) for level in maps], axis=1)
    np.testing.assert_allclose(features, by_hand, rtol=1e-4, atol=1e-4 * np.abs(by_hand).max())


@only(*PLAIN)
def test_with_the_top_half_as_levels_what_is_frozen_is_below_the_boundary(built):
    blocks = BACKBONES[built.settings.name].blocks
    head = Head(feature_levels=math.ceil(blocks / 2), power_norm=True)
    model = attach(built.backbone, built.settings, head, [1, 2, 3])
    logits = run(model, built.pixels)
    for unfreeze in (1, blocks):
        freeze(model, find_blocks(model, built.settings), unfreeze)
        bottom, tail = split_model(model, boundary(model, find_blocks(model, built.settings), unfreeze))
        np.testing.assert_allclose(run(tail, run(bottom, built.pixels)), logits, atol=1e-5, rtol=1e-5)
        assert bottom.trainable_weights == []
        assert {id(w) for w in tail.trainable_weights} == {id(w) for w in model.trainable_weights}


@only(*PLAIN)
def test_a_saved_model_rebuilt_from_our_code_says_the_same(built, saved):
    again = build(built.settings, Head(), SIZE, [1, 1, 1])
    with zipfile.ZipFile(saved) as archive:  # unpacked, because Keras reads large files in an archive very slowly
        weights = Path(archive.extract("model.weights.h5", saved.parent))
    again.load_weights(weights)
    weights.unlink()
    np.testing.assert_allclose(run(again, built.pixels), built.logits, atol=1e-5, rtol=0)


@only(*PLAIN)
def test_a_saved_model_loads_without_our_code(built, saved):
    again = keras.saving.load_model(saved, safe_mode=True)
    np.testing.assert_allclose(run(again, built.pixels), built.logits, atol=1e-5, rtol=0)
