"""The classifier starts at the shares of the classes, is penalised as told, and trains what it should and no more."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy.special import expit, ndtr, softmax

from template.config import Backbone, ConfigError, Head
from template.model.backbones import build_backbone
from template.model.blocks import block_outputs, boundary, find_blocks, freeze
from template.model.build import GAINS, attach, build, pool_features, power_norm
from template.train.features import split_model

TINY = Backbone(name="tiny", weights="none")
PLAIN = Head(dropout=0.0, l2=0.0)
SIZE = 32


@pytest.fixture
def pixels() -> np.ndarray:
    """Noise in a colour for each image; of noise alone, a network sees eight times almost the same."""
    rng = np.random.default_rng(0)
    return (rng.uniform(0, 1, (8, SIZE, SIZE, 3)) * rng.uniform(30, 255, (8, 1, 1, 3))).astype(np.float32)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def policy():
    """Sets the arithmetic for one test."""
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def run(model: keras.Model, inputs: np.ndarray, training: bool = False) -> np.ndarray:
    return np.asarray(model(inputs, training=training))


@functools.cache
def tiny_backbone() -> tuple[keras.Model, list[np.ndarray]]:
    """The small network, and its weights as they were built."""
    base = build_backbone(TINY, SIZE)
    return base, base.get_weights()


def classifier(head: Head, frequencies) -> keras.Model:
    """As from `build`, but on one backbone, put back as it was: to build it takes longer than most tests of a head."""
    base, weights = tiny_backbone()
    base.trainable = True
    base.set_weights(weights)
    return attach(base, TINY, head, frequencies)


def values(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: np.asarray(weight).copy() for weight in model.weights}


@pytest.mark.parametrize("frequencies", [[0.7, 0.2, 0.1], [35, 10, 5], np.array([1, 1]), [1e-3, 0.999]])
@pytest.mark.parametrize("hidden", [0, 4])
def test_starts_at_the_shares_of_the_classes(frequencies, hidden, pixels):
    model = classifier(Head(hidden=hidden), frequencies)
    logits = model.get_layer("logits")
    logits.kernel.assign(np.zeros(logits.kernel.shape))
    shares = np.asarray(frequencies) / np.sum(frequencies)
    expected = np.broadcast_to(shares, (8, len(shares)))
    np.testing.assert_allclose(softmax(run(model, pixels), axis=1), expected, rtol=1e-5)


def test_a_fresh_classifier_loses_little_more_than_the_entropy_of_the_classes(pixels):
    shares = np.array([0.9, 0.05, 0.05])
    losses = []
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        probabilities = softmax(run(classifier(Head(), shares), pixels), axis=1)
        losses.append(-(np.log(probabilities) * shares).sum(axis=1).mean())
    entropy = -(shares * np.log(shares)).sum()
    assert entropy <= np.mean(losses) < entropy + 0.35 < np.log(3)


def penalty_by_hand(model: keras.Model, head: Head) -> float:
    kernels = [np.asarray(layer.kernel) for layer in model.layers if layer.name in {"logits", "head_hidden"}]
    return sum(head.l1 * np.abs(kernel).sum() + head.l2 * (kernel**2).sum() for kernel in kernels)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(Head(l1=0.0, l2=0.01), id="l2", marks=pytest.mark.slow),
        pytest.param(Head(l1=0.02, l2=0.0), id="l1", marks=pytest.mark.slow),
        pytest.param(Head(l1=0.02, l2=0.01, hidden=5), id="both, hidden"),
    ],
)
def test_penalties_are_in_the_loss_and_survive_saving(head, tmp_path, pixels):
    model = build(TINY, head, SIZE, [1, 2, 3])
    expected = penalty_by_hand(model, head)
    assert expected > 0
    assert len(model.losses) == (2 if head.hidden else 1)
    assert sum(map(float, model.losses)) == pytest.approx(expected, rel=1e-5)

    # Training really minimises it: what fit reports is the cross-entropy and the penalty.
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    targets = np.eye(3, dtype=np.float32)[np.arange(8) % 3]
    plain = -(np.log(softmax(run(model, pixels), axis=1)) * targets).sum(axis=1).mean()
    assert model.evaluate(pixels, targets, verbose=0) == pytest.approx(plain + expected, rel=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    rebuilt = build(TINY, head, SIZE, [1, 1, 1])
    rebuilt.load_weights(tmp_path / "model.keras")
    for again in (loaded, rebuilt):
        assert sum(map(float, again.losses)) == pytest.approx(expected, rel=1e-5)


def test_without_penalties_there_are_none():
    assert classifier(PLAIN, [1, 1]).losses == []


@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
def test_pooling_is_what_it_says(pooling, pixels):
    model = classifier(Head(pooling=pooling, dropout=0.0), [1, 1])
    vector = model.get_layer("logits").input
    features = run(keras.Model(model.input, model.get_layer("top_relu").output), pixels)
    assert features.std() > 0
    parts = {"avg": [features.mean(axis=(1, 2))], "max": [features.max(axis=(1, 2))]}
    expected = np.concatenate(parts["avg"] + parts["max"] if pooling == "both" else parts[pooling], axis=1)
    np.testing.assert_allclose(run(keras.Model(model.input, vector), pixels), expected, rtol=1e-4, atol=1e-5)


def feature_map(model: keras.Model, name: str, pixels: np.ndarray) -> np.ndarray:
    return run(keras.Model(model.input, model.get_layer(name).output), pixels)


BLOCKS = ["block1_add", "block2_add", "top_relu"]  # last layers of tiny's


@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_levels_are_the_pooled_outputs_of_the_top_blocks_lowest_first(count, pooling, pixels):
    model = classifier(Head(feature_levels=count, pooling=pooling, dropout=0.0), [1, 1])
    pools = {"avg": [np.mean], "max": [np.max], "both": [np.mean, np.max]}[pooling]
    maps = [feature_map(model, name, pixels) for name in BLOCKS[-count:]]
    expected = np.concatenate([pool(level, axis=(1, 2)) for level in maps for pool in pools], axis=1)
    vector = model.get_layer("logits").input
    np.testing.assert_allclose(run(keras.Model(model.input, vector), pixels), expected, rtol=1e-4, atol=1e-5)
    shapes = [level.shape[1:] for level in block_outputs(model, find_blocks(model, TINY))[:-1]]
    assert shapes == [(32, 32, 32), (16, 16, 64)], "of a classifier as of a backbone"


@pytest.mark.parametrize("count", [4, 16])
def test_more_levels_than_blocks_are_an_error_that_says_how_many_there_are(count):
    with pytest.raises(
        ConfigError, match=rf"head.feature_levels: tiny has 3 blocks.*Received: {count}\. Choose 1 to 3"
    ):
        build(TINY, Head(feature_levels=count), SIZE, [1, 1])


def test_root_keeps_signs_and_order_and_is_close_to_the_square_root():
    x = np.concatenate([-np.logspace(3, -6, 500), [0], np.logspace(-6, 3, 500)]).astype(np.float32)
    y = np.asarray(power_norm(x))
    assert (np.sign(y) == np.sign(x)).all()
    assert (np.diff(y) > 0).all()
    np.testing.assert_array_equal(y, -y[::-1])
    assert y.dtype == np.float32
    large = x >= 0.1
    np.testing.assert_allclose(y[large], np.sqrt(x[large]), rtol=0.05)
    np.testing.assert_allclose(y[x >= 1], np.sqrt(x[x >= 1]), rtol=0.005)
    small = np.abs(x) < 1e-4
    np.testing.assert_allclose(y[small], 10 * x[small], rtol=0.01)  # smooth at zero, where the square root is not


@pytest.mark.parametrize("count", [1, 2])
def test_root_is_taken_of_the_features_and_of_nothing_else(count, pixels):
    plain = build(TINY, Head(feature_levels=count, dropout=0.0), SIZE, [1, 1])
    rooted = build(TINY, Head(feature_levels=count, power_norm=True, dropout=0.0), SIZE, [1, 1])
    rooted.set_weights(plain.get_weights())
    before, after = (run(keras.Model(m.input, m.get_layer("head_dropout").input), pixels) for m in (plain, rooted))
    np.testing.assert_allclose(after, before / np.sqrt(np.abs(before) + 0.01), rtol=1e-4, atol=1e-6)
    assert (before < 0).any() == (count > 1), "with more levels there are negative features to keep the sign of"


@pytest.mark.parametrize(
    "rooted", [pytest.param(True, id="rooted"), pytest.param(False, id="plain", marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_finite_differences(policy, rooted):
    """What is our own in the network is its root and how levels are pooled: in float64, to seven digits."""
    policy("float64")
    base = build_backbone(TINY, SIZE)
    features = keras.Model(
        base.inputs[0], pool_features(base, TINY, Head(feature_levels=3, power_norm=rooted, pooling="both"))
    )
    rng = np.random.default_rng(0)
    images, weights = rng.uniform(0, 255, (2, SIZE, SIZE, 3)), rng.normal(size=features.output_shape[1:])

    def value() -> tf.Tensor:
        return tf.reduce_sum(features(images, training=False) * weights)

    for kernel in (features.trainable_weights[0], features.trainable_weights[-3]):
        with tf.GradientTape() as tape:
            total = value()
        found, start = tape.gradient(total, kernel.value).numpy(), kernel.numpy()
        for place in zip(*(rng.integers(0, n, 4) for n in start.shape), strict=True):
            step = np.zeros_like(start)
            step[place] = 1e-6
            kernel.assign(start + step)
            above = float(value())
            kernel.assign(start - step)
            assert found[place] == pytest.approx((above - float(value())) / 2e-6, rel=1e-6, abs=1e-7)
            kernel.assign(start)


@pytest.mark.parametrize("unfreeze", [0, 1, 2, 3, "block2", "all"])
@pytest.mark.parametrize(
    "head",
    [Head(feature_levels=2), Head(feature_levels=3, power_norm=True, pooling="both"), Head(power_norm=True)],
    ids=["2", "3, normalised, both", "1, normalised"],
)
def test_with_levels_the_boundary_still_divides_what_is_frozen_from_all_the_rest(head, unfreeze, pixels):
    model = classifier(head, [1, 2])
    freeze(model, find_blocks(model, TINY), unfreeze)
    logits, tensor = run(model, pixels), boundary(model, find_blocks(model, TINY), unfreeze)
    if unfreeze == "all":
        assert tensor is None
        return
    bottom, tail = split_model(model, tensor)
    np.testing.assert_allclose(run(tail, run(bottom, pixels)), logits, atol=1e-5, rtol=0)
    assert bottom.trainable_weights == []
    assert {id(w) for w in tail.trainable_weights} == {id(w) for w in model.trainable_weights} != set()
    if unfreeze:
        numbers = find_blocks(model, TINY).numbers
        lowest = min(
            {1: 3, 2: 2, 3: 1, "block2": 2}[unfreeze], 5 - head.feature_levels if head.feature_levels > 1 else 3
        )
        assert tensor is next(model.get_layer(name).input for name, block in numbers.items() if block == lowest)


@pytest.mark.parametrize("unfreeze", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_training_the_tail_above_several_levels_trains_the_model(unfreeze, pixels):
    head = Head(feature_levels=3, power_norm=True, dropout=0.0)
    model = classifier(head, [1, 1])
    freeze(model, find_blocks(model, TINY), unfreeze)
    bottom, tail = split_model(model, boundary(model, find_blocks(model, TINY), unfreeze))
    before, stored = values(model), run(bottom, pixels)
    train(tail, stored)
    np.testing.assert_allclose(run(model, pixels), run(tail, stored), atol=1e-5)
    moved = {path for path, value in values(model).items() if (value != before[path]).any()}
    kernels = {layer.kernel.path for layer in model.layers if layer.name.startswith(("logits", "block3_conv"))}
    assert "logits/kernel" in moved and (kernels <= moved) == (unfreeze == 1)
    assert all(path.startswith(("logits", "block3", "top")) for path in moved)


def test_a_model_with_levels_and_root_is_saved_and_loaded_unchanged(tmp_path, pixels):
    head = Head(feature_levels=2, power_norm=True, pooling="both", hidden=5)
    model = build(TINY, head, SIZE, [1, 2, 3])
    for weight in model.trainable_weights:
        weight.assign(np.asarray(weight) + np.random.default_rng(0).uniform(0, 0.1, weight.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    rebuilt = build(TINY, head, SIZE, [1, 1, 1])
    rebuilt.load_weights(tmp_path / "model.keras")
    for again in (loaded, rebuilt):
        np.testing.assert_allclose(run(again, pixels), run(model, pixels), atol=1e-5, rtol=0)


def test_several_heads_may_sit_on_one_backbone(pixels):
    """The probe tries some before the run attaches its own."""
    base = build_backbone(TINY, SIZE)
    one = attach(base, TINY, Head(feature_levels=2), [1, 1])
    two = attach(base, TINY, Head(feature_levels=2, power_norm=True), [1, 1, 1])
    assert one.output_shape[1:] == (2,) and two.output_shape[1:] == (3,)
    assert one.get_layer("block3_conv1") is two.get_layer("block3_conv1")
    assert one.get_layer("logits") is not two.get_layer("logits")
    assert run(two, pixels).shape == (8, 3)


def test_hidden_layer_is_relu_between_pooling_and_logits(pixels):
    model = classifier(Head(hidden=7, dropout=0.0), [1, 1])
    hidden, logits, pool = (model.get_layer(name) for name in ("head_hidden", "logits", "pool_avg"))
    pooled = run(keras.Model(model.input, pool.output), pixels)
    relu = np.maximum(0, pooled @ np.asarray(hidden.kernel) + np.asarray(hidden.bias))
    assert relu.shape == (8, 7)
    expected = relu @ np.asarray(logits.kernel) + np.asarray(logits.bias)
    np.testing.assert_allclose(run(model, pixels), expected, rtol=1e-4, atol=1e-5)


NORMAL = np.random.default_rng(0).normal(size=(4000, 96)).astype(np.float32)
ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z < 0, 0.2 * z, z),
    "prelu": lambda z: np.where(z < 0, 0.25 * z, z),
    "gelu": lambda z: z * ndtr(z),
    "silu": lambda z: z * expit(z),
}


def hidden_part(activation: str, **how) -> tuple[keras.Model, keras.Model]:
    """A model, and its hidden layer alone, from features [n, 96]."""
    model = classifier(Head(hidden=50, activation=activation, dropout=0.0, **how), [1, 2])
    return model, keras.Model(model.get_layer("head_dropout").output, model.get_layer("logits").input)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "maxout"])
def test_each_activation_is_its_formula_and_a_fresh_layer_as_loud_as_its_input(activation):
    model, hidden = hidden_part(activation)
    found = run(hidden, NORMAL)
    names = ("head_hidden", "head_hidden_2") if activation == "maxout" else ("head_hidden",)
    linear = [NORMAL @ np.asarray(model.get_layer(name).kernel) for name in names]  # fresh biases are zero
    expected = np.maximum(*linear) if activation == "maxout" else ACTIVATIONS[activation](linear[0])
    assert found.shape == (4000, 50)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert (found**2).mean() == pytest.approx(1, abs=0.1)


def test_the_gains_are_those_of_the_formulas():
    z = np.random.default_rng(0).normal(size=(2, 1_000_000))
    loud = {name: (f(np.sqrt(GAINS[name]) * z[0]) ** 2).mean() for name, f in ACTIVATIONS.items()}
    loud["maxout"] = (z.max(axis=0) ** 2).mean()
    assert loud == pytest.approx(dict.fromkeys(GAINS, 1), rel=0.01)


@pytest.mark.parametrize("activation", ["prelu", pytest.param("maxout", marks=pytest.mark.slow)])
def test_activations_with_weights_of_their_own_are_the_head_penalised_saved_and_loaded(activation, tmp_path, pixels):
    head = Head(hidden=5, activation=activation, l2=0.01, max_norm=3.0)
    model = build(TINY, head, SIZE, [1, 2])
    assert len(model.losses) == (3 if activation == "maxout" else 2)
    extra = {"prelu": 5, "maxout": 96 * 5 + 5}[activation]
    assert freeze(model, find_blocks(model, TINY), 0) == 96 * 5 + 5 + extra + 5 * 2 + 2
    for weight in model.trainable_weights:
        weight.assign(np.asarray(weight) + np.random.default_rng(0).uniform(0, 0.1, weight.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    rebuilt = build(TINY, head, SIZE, [1, 1])
    rebuilt.load_weights(tmp_path / "model.keras")
    for again in (loaded, rebuilt):
        np.testing.assert_allclose(run(again, pixels), run(model, pixels), atol=1e-5, rtol=0)


def test_the_default_begins_with_the_same_bits_as_he_normal():
    base = build_backbone(TINY, SIZE)
    keras.utils.set_random_seed(1)
    kernel = attach(base, TINY, Head(hidden=7, dropout=0.0), [1, 1]).get_layer("head_hidden").kernel
    keras.utils.set_random_seed(1)
    layer = layers.Dense(7, kernel_initializer="he_normal")
    layer.build((None, 96))
    np.testing.assert_array_equal(kernel, layer.kernel)


@pytest.mark.parametrize("hidden", [0, 200])
def test_dropout_works_in_training_and_only_there(hidden, pixels):
    model = classifier(Head(dropout=0.4, hidden=hidden), [1, 1])
    for name in ["head_dropout", "head_hidden_dropout"] if hidden else ["head_dropout"]:
        layer = model.get_layer(name)
        both = keras.Model(model.input, [layer.input, layer.output])
        before, after = map(np.asarray, both(pixels, training=True))
        active = before > 0
        dropped = active & (after == 0)
        assert active.sum() > 300
        assert dropped.sum() / active.sum() == pytest.approx(0.4, abs=0.1)
        np.testing.assert_allclose(after[~dropped], before[~dropped] / 0.6, rtol=1e-5)  # so that the mean stays
        before, after = map(np.asarray, both(pixels, training=False))
        np.testing.assert_array_equal(before, after)
    assert (run(model, pixels) == run(model, pixels)).all()


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_noise_multiplies_the_features_in_training_keeps_their_mean_and_is_off_at_inference(noise):
    model = classifier(Head(gaussian_dropout=noise, dropout=0.0), [1, 1])
    head = keras.Model(model.get_layer("head_dropout").output, model.get_layer("logits").input)
    features = np.tile(np.logspace(-2, 2, 96, dtype=np.float32), (2000, 1))
    factors = run(head, features, training=True) / features
    assert factors.mean() == pytest.approx(1, abs=0.01) and factors.std() == pytest.approx(noise, rel=0.01)
    np.testing.assert_allclose(factors.std(axis=0), noise, rtol=0.15, err_msg="small features as much as large ones")
    np.testing.assert_array_equal(run(head, features), features)


@pytest.mark.slow
def test_without_noise_there_is_no_layer_and_with_it_the_same_weights_and_a_saved_model_loads(tmp_path, pixels):
    noisy, plain = (build(TINY, Head(gaussian_dropout=noise, feature_levels=2), SIZE, [1, 1]) for noise in (0.5, 0.0))
    assert {layer.name for layer in noisy.layers} - {layer.name for layer in plain.layers} == {"head_noise"}
    noisy.save(tmp_path / "model.keras")
    rebuilt = build(TINY, Head(gaussian_dropout=0.5, feature_levels=2), SIZE, [1, 1])
    rebuilt.load_weights(tmp_path / "model.keras")
    plain.set_weights(noisy.get_weights())
    for again in (rebuilt, plain):
        np.testing.assert_array_equal(run(again, pixels), run(noisy, pixels))


@pytest.mark.parametrize(("unfreeze", "feature_levels"), [(0, 1), (0, 2), (1, 2)])
def test_noise_is_above_the_boundary(unfreeze, feature_levels):
    head = Head(gaussian_dropout=0.5, feature_levels=feature_levels)
    model = classifier(head, [1, 1])
    bottom, tail = split_model(model, boundary(model, find_blocks(model, TINY), unfreeze))
    assert "head_noise" in {layer.name for layer in tail.layers} - {layer.name for layer in bottom.layers}


def test_dropping_whole_maps_before_pooling_is_dropping_features_after_it():
    """So there is no setting for it: SpatialDropout2D before the pooling is `head.dropout`."""
    maps = np.random.default_rng(0).uniform(0, 1, (4, 3, 3, 50)).astype(np.float32)
    for pool in (layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D()):
        before = pool(layers.SpatialDropout2D(0.5, seed=1)(maps, training=True))
        after = layers.Dropout(0.5, seed=1)(pool(maps), training=True)
        assert (np.asarray(after) == 0).any()
        np.testing.assert_allclose(before, after, rtol=1e-5)


def test_dropout_is_on_while_fit_trains_the_head_on_a_frozen_network(pixels):
    # A frozen network below must not take its head into inference mode. Without dropout, two passes over one batch at
    # a learning rate of zero would have one loss.
    model = classifier(Head(dropout=0.5, l2=0.0), [1, 1])
    freeze(model, find_blocks(model, Backbone(name="tiny")), 0)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    targets = np.eye(2, dtype=np.float32)[np.arange(8) % 2]
    losses = model.fit(pixels, targets, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("backbone", ["tiny", pytest.param("mobilenet", marks=pytest.mark.slow)])
def test_logits_are_float32_under_mixed_precision(policy, pixels, name, backbone):
    settings = Backbone(name=backbone, alpha=0.25, weights="none")
    exact = build(settings, PLAIN, SIZE, [1, 2])
    policy(name)
    model = build(settings, PLAIN, SIZE, [1, 2])
    model.set_weights(exact.get_weights())
    assert any(layer.compute_dtype == name.removeprefix("mixed_") for layer in model.layers), "it is mixed at all"
    logits = run(model, pixels)
    assert logits.dtype == np.float32
    assert model.get_layer("logits").kernel.dtype == "float32"
    np.testing.assert_allclose(logits, run(exact, pixels), atol=0.05)
    # Pixels are scaled before they are rounded: in bfloat16, 251 to 253 would all be 252.
    assert model.get_layer("preprocess").compute_dtype == "float32"


def train(model: keras.Model, pixels: np.ndarray, epochs: int = 2) -> None:
    # Adam's steps do not depend on the size of the gradient: all that has one moves. Tracing takes longer than these.
    model.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.fit(pixels, np.eye(2, dtype=np.float32)[np.arange(8) % 2], batch_size=4, epochs=epochs, verbose=0)


@pytest.fixture(params=["tiny", pytest.param("mobilenet", marks=pytest.mark.slow)])
def pretrained(request, tmp_path, pixels) -> Backbone:
    """A network whose weights come from a file, and whose batch normalisation has seen images."""
    settings = Backbone(name=request.param, alpha=0.25, weights="none")
    backbone = build_backbone(settings, SIZE)
    for layer in backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of these images at once
    backbone([pixels], training=True)
    backbone.save_weights(tmp_path / "mine.weights.h5")
    return Backbone(name=request.param, alpha=0.25, weights=str(tmp_path / "mine.weights.h5"))


def test_pretrained_batch_norm_stays_as_it_is_while_all_else_trains(pretrained, pixels):
    model = build(pretrained, PLAIN, SIZE, [1, 1])
    trained = freeze(model, find_blocks(model, pretrained), "all")
    before = values(model)
    train(model, pixels)
    after = values(model)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(norms) > 5
    for weight in (weight for layer in norms for weight in layer.weights):  # gamma, beta and both statistics
        assert before[weight.path].tobytes() == after[weight.path].tobytes(), weight.path
    others = [layer for layer in model.layers if layer.weights and layer not in norms and layer.name != "preprocess"]
    for layer in others:
        assert (before[layer.weights[0].path] != after[layer.weights[0].path]).any(), layer.name
    assert trained == sum(before[weight.path].size for layer in others for weight in layer.weights)


def test_with_pretrained_batch_norm_training_and_inference_see_the_same_features(pretrained, pixels):
    # The second of two stages unfreezes what the first has frozen: the statistics must stay in use then too.
    model = build(pretrained, PLAIN, SIZE, [1, 1])
    for unfreeze in (0, 1, "all"):
        freeze(model, find_blocks(model, pretrained), unfreeze)
        np.testing.assert_allclose(run(model, pixels, training=True), run(model, pixels), atol=1e-5)


def test_batch_norm_trains_from_scratch(pixels):
    model = classifier(PLAIN, [1, 1])
    freeze(model, find_blocks(model, TINY), "all")
    before = values(model)
    train(model, pixels)
    after = values(model)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
                assert (before[weight.path] != after[weight.path]).any(), weight.path


@pytest.mark.parametrize(
    ("unfreeze", "settings"),
    [
        pytest.param(0, TINY, id="head, scratch"),
        pytest.param(1, TINY, id="top block, scratch", marks=pytest.mark.slow),
        pytest.param("block2", Backbone(name="tiny", weights="a file"), id="two blocks, pretrained"),
    ],
)
def test_what_is_frozen_does_not_move_and_what_is_not_does(unfreeze, settings, pixels):
    model = classifier(Head(hidden=4, dropout=0.0), [1, 1])
    freeze(model, find_blocks(model, settings), unfreeze)
    before = values(model)
    train(model, pixels)
    after = values(model)
    unfrozen = {0: ("logits", "head_"), 1: ("logits", "head_", "block3", "top_"),
              "block2": ("logits", "head_", "block3", "top_", "block2")}[unfreeze]  # fmt: skip
    for layer in model.layers:
        moves = layer.name.startswith(unfrozen)
        if settings is not TINY and isinstance(layer, layers.BatchNormalization):
            moves = False
        for weight in layer.weights:
            assert (before[weight.path] != after[weight.path]).any() == moves, weight.path


def test_freezing_again_undoes_thawing():
    model = classifier(PLAIN, [1, 1])
    head_only = freeze(model, find_blocks(model, TINY), 0)
    assert head_only == 96 * 2 + 2
    assert freeze(model, find_blocks(model, TINY), "all") > freeze(model, find_blocks(model, TINY), 1) > head_only
    assert freeze(model, find_blocks(model, TINY), 0) == head_only
    # A pretrained network must not keep batch norms that another setting has unfrozen.
    assert freeze(model, find_blocks(model, TINY), "all") > freeze(
        model, find_blocks(model, Backbone(name="tiny", weights="a file")), "all"
    )


@pytest.mark.parametrize("kinds", [["CPU"], ["CPU", "GPU"]])
def test_xla_is_for_the_gpu_whatever_is_cut_from_the_network(kinds, monkeypatch):
    devices = [types.SimpleNamespace(device_type=kind) for kind in kinds]
    found = lambda kind=None: [device for device in devices if kind in {None, device.device_type}]  # noqa: E731
    monkeypatch.setattr(tf.config, "list_physical_devices", found)
    model = build(TINY, PLAIN, SIZE, [1, 1])
    _, tail = split_model(model, boundary(model, find_blocks(model, TINY), 1))
    tail.compile("adam", "mse")
    assert model.jit_compile == tail.jit_compile == ("GPU" in kinds)
