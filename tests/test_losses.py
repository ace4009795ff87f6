"""The training loss is the formula it claims to be, and validation never sees its weights."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, logit, softmax
from sklearn.utils.class_weight import compute_class_weight

from template.config import Backbone, ConfigError, Head, Stage, Train
from template.data.batches import ordered_batches
from template.data.dataset import ArrayDataset
from template.data.load import check_class_names
from template.model.blocks import find_blocks
from template.model.build import build
from template.progress import Timer
from template.train.features import FeatureCache
from template.train.losses import OVERLAP, DistillationLoss, WeightedLoss, class_weights, training_loss, weight_table
from template.train.one_stage import TrainContext, compile_stage

COUNTS = np.array([100, 20, 5])
ONES, ZEROS = np.ones(3), np.zeros(3)


@pytest.fixture
def some() -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, 3], and labels [n]."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (40, 3)).astype(np.float32), rng.integers(0, 3, 40)


def gradient(loss: keras.losses.Loss, labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    variable = tf.Variable(logits, dtype=tf.float32)
    with tf.GradientTape() as tape:
        value = loss(labels, variable)
    return tape.gradient(value, variable).numpy()


def at_margin(margin: float) -> np.ndarray:
    """Logits of an image of class 0, right by so much, or wrong if negative."""
    return np.array([[margin, 0, 0]], np.float32)


FIRST = np.eye(3)[:1]


def test_smoothing_a_loss_is_smoothing_its_targets(some):
    logits, labels = some
    e, one_hot = 0.2, np.eye(3)[labels]
    by_hand = -((1 - e) * one_hot + e / 3) * log_softmax(logits.astype(float), axis=1)
    for loss in (training_loss(Train(label_smoothing=e), COUNTS), WeightedLoss(ONES, ZEROS, label_smoothing=e)):
        assert float(loss(one_hot, logits)) == pytest.approx(by_hand.sum(axis=1).mean(), rel=1e-5)


def test_a_smoothed_loss_is_least_at_finite_logits():
    loss, e = WeightedLoss(ONES, ZEROS, label_smoothing=0.1), 0.1
    best = np.log((1 - e + e / 3) / (e / 3))
    np.testing.assert_allclose(gradient(loss, FIRST, at_margin(best)), 0, atol=1e-6)
    focal = WeightedLoss(ONES, ZEROS, focus=2.0, label_smoothing=0.1)
    for smoothed in (loss, focal):
        values = [float(smoothed(FIRST, at_margin(margin))) for margin in range(41)]
        assert 0 < np.argmin(values) < 10 and values[40] > values[int(np.argmin(values))] + 0.5
    plain = [float(WeightedLoss(ONES, ZEROS)(FIRST, at_margin(margin))) for margin in range(15)]
    assert (np.diff(plain) < 0).all(), "without smoothing, ever surer is ever better"


def test_balanced_weights_are_those_of_scikit_learn_and_effective_ones_lie_between():
    balanced = class_weights(COUNTS, "balanced")
    labels = np.repeat(range(3), COUNTS)
    np.testing.assert_allclose(balanced, compute_class_weight("balanced", classes=np.arange(3), y=labels))
    effective = class_weights(COUNTS, "effective")
    ratio = (1 - OVERLAP**100) / (1 - OVERLAP**5)
    assert effective[2] / effective[0] == pytest.approx(ratio)
    assert 1 < ratio < balanced[2] / balanced[0] == pytest.approx(20)
    for kind in ("none", "balanced", "effective"):
        assert class_weights(COUNTS, kind)[labels].mean() == pytest.approx(1)
    assert class_weights(COUNTS, "none").tolist() == [1, 1, 1]
    few, many = class_weights([1, 2], "effective"), class_weights([5000, 10000], "effective")
    assert few[0] / few[1] == pytest.approx(2, rel=0.01), "few images show different things"
    assert many[0] / many[1] == pytest.approx(1), "of many the rest is more of the same"


def test_the_table_says_what_every_class_counts():
    lines = weight_table(["ant", "bee", "cat"], COUNTS, "balanced").splitlines()
    assert lines[1:] == ["  ant: 100 images x 0.417", "  bee: 20 images x 2.08", "  cat: 5 images x 8.33"]


def test_weights_by_name_find_their_class_count_beside_a_1_and_have_a_mean_of_1(some):
    logits, labels = some
    names, table = ["ant", "bee", "St. Bernard"], {"St. Bernard": 4.0, "ant": 0.5}
    weights = class_weights(COUNTS, table, names)
    np.testing.assert_allclose(weights / weights[1], [0.5, 1, 4])
    assert weights @ COUNTS / COUNTS.sum() == pytest.approx(1)
    lines = weight_table(names, COUNTS, table).splitlines()
    assert lines[0].startswith("class weights (by name") and lines[3] == f"  St. Bernard: 5 images x {weights[2]:.3g}"
    expected = -(weights[labels] * log_softmax(logits.astype(float), axis=1)[np.arange(40), labels]).mean()
    loss = training_loss(Train(class_weights=table), COUNTS, names)
    assert float(loss(np.eye(3)[labels], logits)) == pytest.approx(expected, rel=1e-5)
    assert class_weights(COUNTS, {}, names).tolist() == [1, 1, 1]


def test_a_weight_for_a_class_that_there_is_not_is_refused_with_those_there_are():
    for fine in ("balanced", {}, {"daisy": 2.0}):
        check_class_names(fine, ["daisy", "rose"])
    with pytest.raises(ConfigError) as error:
        check_class_names({"rose": 1.0, "daisies": 2.0}, ["daisy", "rose"])
    assert str(error.value) == (
        "train.class_weights: expected names of classes. Received: 'daisies'. Did you mean 'daisy'? "
        "The classes are ['daisy', 'rose']."
    )


def test_each_image_counts_as_its_class_does_and_mixed_labels_mix_their_weights(some):
    logits, labels = some
    loss = training_loss(Train(class_weights="balanced"), COUNTS)
    weights, log_p = class_weights(COUNTS, "balanced"), log_softmax(logits.astype(float), axis=1)
    rows = np.arange(len(labels))
    expected = -(weights[labels] * log_p[rows, labels]).mean()
    assert float(loss(np.eye(3)[labels], logits)) == pytest.approx(expected, rel=1e-5)
    others = np.roll(labels, 1)
    mixed = 0.3 * np.eye(3)[labels] + 0.7 * np.eye(3)[others]
    alone = [float(loss(np.eye(3)[one], logits)) for one in (labels, others)]
    assert float(loss(mixed, logits)) == pytest.approx(0.3 * alone[0] + 0.7 * alone[1], rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Train(mixup=0.2),
        Train(cutmix=1.0, label_smoothing=0.1),
        Train(mixup=0.2, loss="focal", label_smoothing=0.1, class_weights="effective"),
        Train(mixup=0.2, logit_adjustment=1.0),
    ],
    ids=["plain", "smoothed", "focal, weighted", "adjusted"],
)
def test_every_loss_of_a_mixed_label_is_the_mean_of_its_losses_by_their_shares(some, settings):
    """Which is how mixup defines it: so it goes with all of them, and weights of classes are mixed too."""
    logits, labels = some
    loss, one, other = training_loss(settings, COUNTS), np.eye(3)[labels], np.eye(3)[np.roll(labels, 1)]
    expected = 0.3 * float(loss(one, logits)) + 0.7 * float(loss(other, logits))
    assert float(loss(0.3 * one + 0.7 * other, logits)) == pytest.approx(expected, rel=1e-5)


def test_focal_is_that_of_keras_where_that_has_a_gradient_and_goes_on_where_it_has_none(some):
    logits, labels = some
    ours = training_loss(Train(loss="focal"), COUNTS)
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, from_logits=True)
    one_hot = np.eye(3)[labels]
    assert float(ours(one_hot, logits)) == pytest.approx(float(theirs(one_hot, logits)), rel=1e-4)
    wrong = at_margin(-20)
    assert not gradient(theirs, FIRST, wrong).any(), "measured: why Keras's own is not used"
    assert gradient(ours, FIRST, wrong)[0, 0] == pytest.approx(-1, rel=0.01)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    known, unknown = ([float(f(FIRST, at_margin(m))) for f in (ours, plain)] for m in (4, -4))
    assert np.divide(*known) < 0.01 and np.divide(*unknown) > 0.9
    assert np.isfinite(gradient(ours, FIRST, at_margin(200))).all()


def test_an_adjusted_network_that_knows_nothing_takes_no_side():
    """By plain cross-entropy it says the shares of the classes; adjusted by 1, that all are equally likely."""
    labels, loss = np.eye(3)[np.repeat(range(3), COUNTS)], training_loss(Train(logit_adjustment=1.0), COUNTS)
    silent = np.zeros((len(labels), 3), np.float32)
    np.testing.assert_allclose(gradient(loss, labels, silent).sum(axis=0), 0, atol=1e-6)
    plain = training_loss(Train(), COUNTS)
    shares = np.log(COUNTS / COUNTS.sum()).astype(np.float32)
    np.testing.assert_allclose(gradient(plain, labels, silent + shares).sum(axis=0), 0, atol=1e-6)
    assert np.abs(gradient(plain, labels, silent).sum(axis=0)).max() > 0.2
    half = training_loss(Train(logit_adjustment=0.5), COUNTS)
    assert float(half(FIRST, at_margin(1))) == pytest.approx(
        -np.log(softmax([1 + 0.5 * shares[0], *(0.5 * shares[1:])])[0])
    )


def test_with_everything_off_the_loss_is_that_of_keras():
    assert type(training_loss(Train(label_smoothing=0.1), COUNTS)) is keras.losses.CategoricalCrossentropy


def test_weights_come_from_the_images_that_are_trained_on_and_never_reach_validation(tmp_path):
    keras.utils.set_random_seed(0)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3)).astype(np.uint8)
    train, val = (ArrayDataset(lambda _, rows: pixels[rows], np.repeat(range(3), n)) for n in ([8, 3, 1], [4, 1, 1]))
    backbone, head, stage = Backbone(name="tiny", weights="none"), Head(), Stage(unfreeze="all")
    settings = Train(batch_size=8, class_weights="balanced", loss="focal", label_smoothing=0.1)
    model, cache = build(backbone, head, 16, [8, 3, 1]), FeatureCache(tmp_path / "cache", 1e9, 8, Timer())
    context = TrainContext(find_blocks(model, backbone), (stage,), settings, cache)
    for parts, counts in (([train], [8, 3, 1]), ([train, val], [12, 4, 2])):  # the second is a refit
        network = compile_stage(model, stage, parts, None, context).network
        np.testing.assert_allclose(network.loss.weights, class_weights(counts, "balanced"), rtol=1e-6)
    said = log_softmax(np.asarray(model(pixels[:6].astype(np.float32), training=False)), axis=1)
    scores = network.evaluate(ordered_batches(val, 3, 8), verbose=0, return_dict=True)
    assert scores["cross_entropy"] == pytest.approx(-said[np.arange(6), val.labels].mean(), rel=1e-4)
    assert scores["loss"] != pytest.approx(scores["cross_entropy"], rel=0.1)
    names, table = ("ant", "bee", "cat"), {"bee": 3.0}
    named = dataclasses.replace(context, settings=Train(class_weights=table), class_names=names)
    by_name = compile_stage(model, stage, [train, val], None, named).network
    np.testing.assert_allclose(by_name.loss.weights, class_weights([12, 4, 2], table, names), rtol=1e-6)


def test_weights_find_their_class_in_another_spelling():
    names = ["cafe\u0301", "Tea"]
    check_class_names({"caf\xe9": 3.0, "tea": 1.0}, names)
    np.testing.assert_allclose(class_weights([5, 5], {"caf\xe9": 3.0, "tea": 1.0}, names), [1.5, 0.5])
    with pytest.raises(ConfigError, match="'coffee'"):
        check_class_names({"coffee": 1.0}, names)


# Distillation ----------------------------------------------------------------------------------------------------


@pytest.fixture
def soft(some) -> np.ndarray:
    """Probabilities of a teacher, float32 [n, 3]."""
    return softmax(np.random.default_rng(1).normal(0, 3, (40, 3)), axis=1).astype(np.float32)


def test_at_temperature_1_a_student_has_the_gradient_of_cross_entropy_with_soft_labels(some, soft):
    logits, _ = some
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(gradient(DistillationLoss(1.0), soft, logits), gradient(plain, soft, logits), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn(soft, temperature):
    loss, said = DistillationLoss(temperature), np.log(soft) + 7
    assert float(loss(soft, said)) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(gradient(loss, soft, said), 0, atol=1e-6)
    assert float(loss(soft, said + np.float32([1, 0, 0]))) > 0.01


def test_by_hand_at_a_temperature_a_student_learns_softened_probabilities(some, soft):
    logits, _ = some
    wanted, said = softmax(np.log(soft) / 3, axis=1), log_softmax(logits / 3.0, axis=1)
    expected = 9 * (wanted * (np.log(wanted) - said)).sum(axis=1).mean()
    loss = training_loss(Train(teachers=("a run",)), COUNTS)
    assert float(loss(soft, logits)) == pytest.approx(expected, rel=1e-4)
    assert float(loss(np.eye(3)[:1], logits[:1])) < np.inf, "also of a teacher that is sure"


def test_of_several_labels_an_image_a_student_learns_each_by_itself(some):
    logits, _ = some
    soft = np.random.default_rng(2).random((40, 3)).astype(np.float32)
    loss = training_loss(Train(teachers=("a run",)), COUNTS, multi=True)
    np.testing.assert_allclose(gradient(loss, soft, logit(soft)), 0, atol=1e-6)
    plain = keras.losses.BinaryCrossentropy(from_logits=True)
    at_1 = DistillationLoss(1.0, multi=True)
    np.testing.assert_allclose(gradient(at_1, soft, logits), gradient(plain, soft, logits), atol=1e-6)
