"""Batches: every image once an epoch, with its own label, in an order that can be repeated."""

import dataclasses
import gc
import itertools
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from template.config import Augment
from template.data import batches as module
from template.data.array_file import ArrayFile, write
from template.data.augment import POLICIES, augment
from template.data.batches import (
    Mixing,
    inference_batches,
    mix_batch,
    ordered_batches,
    pad_batches,
    shuffled_batch,
    shuffled_batches,
    shuffled_rows,
    steps,
)
from template.data.dataset import (
    ArrayDataset,
    center_zoom,
    channel_statistics,
    concatenate,
    eval_dataset,
    hflip,
    subsample,
    subset,
    train_dataset,
)
from template.data.images.load import zoom_center

CLASSES = 3
PLAIN = Augment(policy="none", hflip=False)


def numbered(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of one colour that is their number, and labels that follow from it."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 3)).copy()
    return pixels, np.arange(n) % CLASSES


def dataset(n: int, rows=None, settings: Augment = PLAIN) -> ArrayDataset:
    pixels, labels = numbered(n)
    return train_dataset(pixels, np.arange(n) if rows is None else rows, labels, settings, seed=0)


def numbers(batches) -> list[list[int]]:
    """Which images are in each batch; every label must be that of its image."""
    found = []
    for inputs, labels in batches.as_numpy_iterator():
        number = inputs[:, 4, 4, 0]
        np.testing.assert_array_equal(labels, number[:, None] % CLASSES == np.arange(CLASSES))
        found.append(number.tolist())
    return found


def shuffled(data: ArrayDataset, batch_size: int = 8, seed: int = 0, epochs: range = range(1)) -> list[list[int]]:
    return numbers(shuffled_batches(data, CLASSES, batch_size, seed, epochs))


@pytest.mark.parametrize(("n", "batch_size"), [(33, 8), (32, 8), (31, 8), (9, 8), (5, 8), (1, 8), (17, 1), (100, 32)])
def test_every_image_is_trained_on_once_an_epoch_in_batches_of_nearly_one_size(n, batch_size):
    """No tail is dropped, and none is much smaller than the others: batch normalisation would suffer from it."""
    for epoch in (0, 3):
        batches = shuffled(dataset(n), batch_size, epochs=range(epoch, epoch + 1))
        assert sorted(sum(batches, [])) == list(range(n))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
        assert len(batches) == steps(dataset(n), batch_size) == -(-n // batch_size)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert shuffled(dataset(50)) == shuffled(dataset(50))
    first, second = shuffled(dataset(50), epochs=range(2))[:7], shuffled(dataset(50), epochs=range(2))[7:]
    assert first != second
    assert first != shuffled(dataset(50), seed=1)
    assert sum(first, []) != list(range(50))


@pytest.mark.parametrize("sampling", ["all", "balanced"])
@pytest.mark.parametrize("mixing", [None, Mixing(mixup=0.4, cutmix=1.0, until=3)], ids=["as they are", "mixed"])
@pytest.mark.parametrize("settings", [PLAIN, Augment(policy="heavy")])
def test_starting_at_an_epoch_gives_the_batches_of_a_longer_run(settings, mixing, sampling):
    """What makes an interrupted run go on to the same bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    data = train_dataset(pixels, np.arange(20), np.repeat(range(CLASSES), [12, 6, 2]), settings, seed=5)
    whole = list(shuffled_batches(data, CLASSES, 8, 5, range(4), mixing, sampling).as_numpy_iterator())
    rest = list(shuffled_batches(data, CLASSES, 8, 5, range(2, 4), mixing, sampling).as_numpy_iterator())
    assert len(whole) == 12 and len(rest) == 6
    for (inputs, labels), (expected_inputs, expected_labels) in zip(rest, whole[6:], strict=True):
        np.testing.assert_array_equal(inputs, expected_inputs)
        np.testing.assert_array_equal(labels, expected_labels)


# Sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[80, 57, 41, 29, 4], [3, 200, 1], [7, 7, 7], [5, 0, 9]], ids=str)
def test_balanced_every_class_comes_as_often_and_its_images_in_turn(counts):
    """Give or take one, in each epoch and over all that came before: no image waits while another comes twice."""
    labels = np.random.default_rng(0).permutation(np.repeat(range(len(counts)), counts))
    n, classes, times = len(labels), np.count_nonzero(counts), np.zeros(len(labels), int)
    for epoch in range(12):
        batches = shuffled_rows(labels, 8, 3, epoch, "balanced")
        assert [len(rows) for _, rows in batches] == [len(b) for b in np.array_split(np.arange(n), -(-n // 8))]
        passes, rows = (np.concatenate(part) for part in zip(*batches, strict=True))
        places = np.bincount(labels[rows], minlength=len(counts))
        assert set(places[np.array(counts) > 0]) <= {n // classes, -(-n // classes)} and places.sum() == n
        now = np.bincount(rows, minlength=n)
        for row in range(n):
            assert sorted(passes[rows == row]) == list(range(times[row], times[row] + now[row])), "each pass once"
        times += now
        for label in np.unique(labels):
            assert np.ptp(now[labels == label]) <= 1 and np.ptp(times[labels == label]) <= 1


def test_without_balance_an_epoch_is_the_permutation_that_it_always_was():
    for epoch in (0, 5):
        expected = np.array_split(np.random.default_rng([3, epoch]).permutation(33), 5)
        for (passes, rows), wanted in zip(shuffled_rows(np.zeros(33, int), 8, 3, epoch), expected, strict=True):
            assert rows.tolist() == wanted.tolist() and set(passes) == {epoch}


def test_a_image_that_comes_again_in_an_epoch_is_varied_as_in_another():
    """As it would be in the epoch with the number of its pass, so that stored views serve too."""
    pixels, labels = noise(20), np.repeat(range(CLASSES), [12, 6, 2])
    data = train_dataset(pixels, np.arange(20), labels, Augment(policy="medium"), seed=5)
    policy, again = dataclasses.replace(POLICIES["medium"], hflip=True), []
    tensors = shuffled_batches(data, CLASSES, 8, 5, range(1, 2), sampling="balanced").as_numpy_iterator()
    for number, (order, found) in enumerate(zip(shuffled_rows(labels, 8, 5, 1, "balanced"), tensors, strict=True)):
        inputs, said = shuffled_batch(data, CLASSES, 8, 5, 1, number, sampling="balanced")
        np.testing.assert_array_equal(found[0], inputs)
        np.testing.assert_array_equal(found[1], said)
        for pass_, row, image, label in zip(*order, inputs, said, strict=True):
            expected = augment(pixels[[row]], policy, 5, int(pass_), np.array([row]))[0]
            np.testing.assert_array_equal(image, expected)
            assert label.tolist() == np.eye(CLASSES)[labels[row]].tolist()
            again += [image.tobytes()] if row == 19 else []
    assert len(again) == len(set(again)) >= 3


def test_augmentation_is_new_in_every_epoch_and_belongs_to_the_image():
    """By its row in the whole data set, so that it stays the same however the data are split or batched."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    rows = np.array([3, 19, 7, 0])
    data = train_dataset(pixels, rows, np.arange(20), Augment(policy="medium"), seed=5)
    policy = dataclasses.replace(POLICIES["medium"], hflip=True)
    read = data.read(2, np.array([2, 0]))
    np.testing.assert_array_equal(read, augment(pixels[[7, 3]], policy, 5, 2, np.array([7, 3])))
    assert not np.array_equal(read, data.read(3, np.array([2, 0])))
    np.testing.assert_array_equal(read, data.read(2, np.array([2, 0])))


@pytest.mark.parametrize(("flip", "policy"), [(True, "light"), (False, "light"), (True, "none")])
def test_images_are_mirrored_only_if_the_settings_say_so(flip, policy):
    pixels = np.zeros((64, 16, 16, 3), np.uint8)
    pixels[:, :, :8] = 200
    data = train_dataset(pixels, np.arange(64), np.zeros(64, int), Augment(policy=policy, hflip=flip), seed=0)
    turned = data.read(0, np.arange(64))[:, 8, 1, 0] < 100  # the bright half is on the right
    assert 16 < turned.sum() < 48 if flip and policy != "none" else not turned.any()


def test_each_setting_of_augmentation_reaches_the_images():
    pixels, rows = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), np.arange(40)

    def read(**settings) -> np.ndarray:
        return train_dataset(pixels, rows, np.zeros(40, int), Augment(hflip=False, **settings), 0).read(0, rows)

    changed = {name: read(policy="none", **{name: 0.5}) for name in ("random_erasing", "blur", "grayscale", "solarize")}
    for name, result in changed.items():
        assert 5 < (result != pixels).any(axis=(1, 2, 3)).sum() < 36, name
    np.testing.assert_array_equal(
        read(policy="heavy", random_erasing=0.3), read(policy="heavy")
    )  # which erases as much
    mild, strong = (np.abs(read(policy="medium", strength=s).astype(int) - pixels).mean() for s in (0.1, 2.0))
    assert mild < 0.7 * strong


def test_a_dataset_reads_its_own_rows_only():
    """Training rows in a shuffled order, out of a data set that holds validation images as well."""
    rows = np.array([29, 3, 14, 8, 21, 0, 17])
    pixels, labels = numbered(30)
    for data in (dataset(30, rows), eval_dataset(pixels, rows, labels)):
        assert len(data) == 7
        assert sorted(sum(shuffled(data, 4), [])) == sorted(rows)
        assert numbers(ordered_batches(data, CLASSES, 4)) == [[29, 3, 14, 8], [21, 0, 17]]


def test_channel_statistics_are_those_of_all_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3)).astype(np.uint8)
    rows = np.array([5, 0, 3])
    mean, variance = channel_statistics(eval_dataset(pixels, rows, np.zeros(7, np.int64)))
    np.testing.assert_allclose(mean, pixels[rows].mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(variance, pixels[rows].var(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 4, 1]), (3, 4, [3])]
)
def test_evaluation_keeps_the_order_and_the_last_batch(n, batch_size, sizes):
    pixels, labels = numbered(n)
    for _ in range(2):
        batches = numbers(ordered_batches(eval_dataset(pixels, np.arange(n), labels), CLASSES, batch_size))
        assert [len(batch) for batch in batches] == sizes
        assert sum(batches, []) == list(range(n))


@pytest.mark.parametrize(("n", "batch_size", "size"), [(10, 4, 4), (8, 4, 4), (9, 4, 3), (3, 4, 3), (33, 32, 17)])
def test_for_inference_all_batches_have_one_size_and_what_is_too_much_comes_last(n, batch_size, size):
    """XLA compiles a network for every size of a batch that it meets."""
    pixels, labels = numbered(n)
    batches = inference_batches(eval_dataset(pixels, np.arange(n), labels), batch_size)
    found = [inputs[:, 4, 4, 0].tolist() for (inputs,) in batches.as_numpy_iterator()]
    assert {len(batch) for batch in found} == {size}
    assert sum(found, [])[:n] == list(range(n))
    assert len(found) == -(-n // batch_size), "no more of them than without"


def test_evaluation_of_many_batches_keeps_the_order_though_threads_make_them():
    pixels, labels = numbered(250)
    for _ in range(3):
        batches = numbers(ordered_batches(eval_dataset(pixels, np.arange(250), labels), CLASSES, 1))
        assert sum(batches, []) == list(range(250))


def test_a_part_without_images_has_no_batches():
    """As the test part has if data.test_fraction is 0."""
    pixels, labels = numbered(5)
    empty = eval_dataset(pixels, np.array([], int), labels)
    assert numbers(ordered_batches(empty, CLASSES, 4)) == []
    assert not list(inference_batches(empty, 4))


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_the_order_of_an_epoch_is_worked_out_once(monkeypatch, sampling):
    seen, real = [], module.shuffled_rows
    data = dataset(100)
    expected = [batch for epoch in range(3) for batch in shuffled_rows(data.labels, 4, 5, epoch, sampling)]
    monkeypatch.setattr(module, "shuffled_rows", lambda *args: seen.append(args[3]) or real(*args))
    batches = list(shuffled_batches(data, CLASSES, 4, 5, range(3), None, sampling).as_numpy_iterator())
    assert set(seen) == {0, 1, 2} and len(seen) <= 6, "two threads may begin with one"
    for (_, labels), (_, rows) in zip(batches, expected, strict=True):
        assert labels.argmax(axis=1).tolist() == data.labels[rows].tolist()


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.slow) for n in (33, 31, 32, 5)), 17])
def test_filled_up_batches_have_one_size_and_the_gradient_of_the_smaller_ones(n):
    """XLA compiles a network for every size of a batch."""
    data = ArrayDataset(
        lambda _, rows: np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)[rows], np.arange(n) % 3
    )
    batches = shuffled_batches(data, 3, 8, 0, range(2))
    filled = list(pad_batches(batches, n, 8))
    assert len({len(inputs) for inputs, *_ in filled}) == 1
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model.compile("sgd", loss, weighted_metrics=[keras.metrics.CategoricalAccuracy()])
    for batch, plain in zip(filled, batches, strict=True):
        (losses, gradients), (expected, gradients_) = (_gradient(model, *given) for given in (batch, plain))
        assert losses == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(gradients, gradients_, rtol=1e-5, atol=1e-7)
        assert float(model.test_on_batch(*batch)[1]) == pytest.approx(float(model.test_on_batch(*plain)[1]))


def _gradient(model, inputs, labels, weights=None):
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, labels, model(inputs, training=True), weights)
    return float(loss), np.concatenate([np.ravel(x) for x in tape.gradient(loss, model.trainable_variables)])


def test_types_and_shapes_are_known_before_the_first_batch():
    for batches in (shuffled_batches(dataset(5), CLASSES, 2, 0, range(1)), ordered_batches(dataset(5), CLASSES, 2)):
        inputs, labels = batches.element_spec
        assert inputs == tf.TensorSpec((None, 8, 8, 3), tf.uint8)
        assert labels == tf.TensorSpec((None, CLASSES), tf.float32)


def test_other_inputs_than_images_keep_their_type():
    """Features of a frozen network are float vectors."""
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float16)
    data = ArrayDataset(lambda epoch, rows: features[rows] + np.float16(epoch), np.arange(6) % CLASSES)
    (inputs, _), *_ = ordered_batches(data, CLASSES, 6).as_numpy_iterator()
    assert inputs.dtype == np.float16
    np.testing.assert_array_equal(inputs, features)


def test_more_classes_than_labels_are_columns_of_zeros():
    data = ArrayDataset(lambda epoch, rows: np.zeros((len(rows), 1), np.float32), np.array([2, 0]))
    (_, labels), *_ = ordered_batches(data, 4, 2).as_numpy_iterator()
    np.testing.assert_array_equal(labels, [[0, 0, 1, 0], [1, 0, 0, 0]])


# Views and joined parts ------------------------------------------------------------------------------------------


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def test_views_are_of_the_images_that_the_dataset_gives_in_that_epoch():
    data = train_dataset(noise(9), np.arange(9), np.arange(9) % CLASSES, Augment(policy="medium"), seed=5)
    chosen = np.array([7, 2, 2])
    images = data.read(3, chosen)
    np.testing.assert_array_equal(hflip(data).read(3, chosen), np.flip(images, axis=2))
    np.testing.assert_array_equal(center_zoom(data).read(3, chosen), zoom_center(images))
    np.testing.assert_array_equal(hflip(center_zoom(data)).read(3, chosen), np.flip(zoom_center(images), axis=2))
    for view in (hflip(data), center_zoom(data), hflip(center_zoom(data))):
        np.testing.assert_array_equal(view.labels, data.labels)
        ((inputs, _),) = ordered_batches(view, CLASSES, 9).as_numpy_iterator()
        np.testing.assert_array_equal(inputs, view.read(0, np.arange(9)))


def test_concatenated_datasets_read_as_one():
    """In any order, across the seams, in every epoch; also where one of them is empty."""
    parts = [noise(5, seed=1), noise(0), noise(7, seed=2), noise(1, seed=3)]
    labels = np.random.default_rng(4).integers(0, CLASSES, 13)
    starts = np.cumsum([0, 5, 0, 7])

    def dataset_of(part: np.ndarray, start: int) -> ArrayDataset:
        return ArrayDataset(lambda epoch, rows: part[rows] + np.uint8(epoch), labels[start : start + len(part)])

    whole, pixels = concatenate(list(map(dataset_of, parts, starts))), np.concatenate(parts)
    assert len(whole) == 13
    np.testing.assert_array_equal(whole.labels, labels)
    rng = np.random.default_rng(5)
    for rows in (np.arange(13), rng.permutation(13), np.array([12, 4, 5, 5, 0]), np.array([2]), np.array([], int)):
        for epoch in (0, 3):
            read = whole.read(epoch, rows)
            assert read.dtype == np.uint8
            np.testing.assert_array_equal(read, pixels[rows] + np.uint8(epoch))
    batches = list(shuffled_batches(whole, CLASSES, 4, 0, range(1)).as_numpy_iterator())
    alone = list(
        shuffled_batches(ArrayDataset(lambda _, i: pixels[i], labels), CLASSES, 4, 0, range(1)).as_numpy_iterator()
    )
    for one, other in zip(batches, alone, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def by_row_and_epoch(first: int):
    """Soft labels that say whose and when they are; rows are counted from the first."""
    return lambda epoch, rows: np.stack([rows + first, rows * 0 + epoch, rows * 0], axis=1).astype(np.float32)


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_soft_labels_take_the_place_of_labels_row_by_row_and_view_by_view(sampling):
    halves = [dataset(9, np.arange(4)), dataset(9, np.arange(4, 9))]
    parts = [dataclasses.replace(each, soft_labels=by_row_and_epoch(n)) for each, n in zip(halves, (0, 4), strict=True)]
    whole = concatenate(parts)
    order = shuffled_rows(whole.labels, 4, 5, 2, sampling)
    for number, (passes, rows) in enumerate(order):
        inputs, said = shuffled_batch(whole, CLASSES, 4, 5, 2, number, sampling=sampling)
        np.testing.assert_array_equal(said[:, 0], rows)
        np.testing.assert_array_equal(said[:, 1], passes)
        np.testing.assert_array_equal(inputs[:, 0, 0, 0], rows)
    some = subset(whole, np.array([8, 2]))
    assert some.soft_labels(3, np.array([1, 0])).tolist() == [[2, 3, 0], [8, 3, 0]]
    assert concatenate([parts[0], halves[1]]).soft_labels is None
    mixed = shuffled_batch(whole, CLASSES, 9, 5, 0, 0, mixing=Mixing(mixup=0.4, until=1))
    pixels = mixed[0][:, 0, 0, 0]
    np.testing.assert_allclose(mixed[1][:, 0], pixels, atol=0.5)  # pixels are whole numbers


def test_joined_augmented_parts_vary_as_they_would_alone():
    pixels, labels = noise(20), np.arange(20) % CLASSES
    rows = np.random.default_rng(0).permutation(20)
    parts = [train_dataset(pixels, some, labels, Augment(), seed=5) for some in (rows[:13], rows[13:])]
    whole = train_dataset(pixels, rows, labels, Augment(), seed=5)
    np.testing.assert_array_equal(concatenate(parts).read(2, np.arange(20)), whole.read(2, np.arange(20)))


# Mixing ----------------------------------------------------------------------------------------------------------


def black_or_white(n: int, dtype: type, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of 0 and 200 in turn, and their labels: how much of an input is white is what its label must say."""
    labels = np.arange(n) % 2
    return (200 * labels).reshape(-1, *[1] * len(shape)) * np.ones((n, *shape), dtype), np.eye(2, dtype=np.float32)[
        labels
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.4, 1.0)], ids=["up", "cut", "both"])
def test_mixed_labels_are_the_shares_of_the_pixels(mixing, dtype):
    inputs, labels = black_or_white(16, dtype, 14, 10, 3)
    inputs, kept, shares, cuts = inputs.astype(dtype), (inputs.copy(), labels.copy()), [], 0
    for number in range(60):
        images, said = mix_batch(inputs, labels, mixing, 0, 0, number)
        assert images.dtype == dtype and said.dtype == np.float32 and images.shape == inputs.shape
        cut = bool(np.isin(images, [0, 200]).all() and (np.ptp(images, axis=(1, 2, 3)) > 0).any())
        np.testing.assert_allclose(said.sum(axis=1), 1, atol=1e-6)
        # Blended values are rounded to their type; of a cut image every pixel is one or the other.
        atol = 1e-6 if cut else 0.6 / 200
        np.testing.assert_allclose(images.mean(axis=(1, 2, 3), dtype=float) / 200, said[:, 1], atol=atol)
        cuts += cut
        shares.append(said[:, 1])
    assert cuts == 0 if not mixing.cutmix else cuts > 45 if not mixing.mixup else 15 < cuts < 45
    assert len(np.unique(np.round(shares, 3))) > 40  # all sorts
    np.testing.assert_array_equal(inputs, kept[0])
    np.testing.assert_array_equal(labels, kept[1])


def test_a_blend_is_of_two_inputs_of_the_batch_by_one_share():
    """Of features, which have no area, as of images."""
    inputs = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    blend, shares = mix_batch(inputs, np.eye(6, dtype=np.float32), Mixing(mixup=1.0), 3, 4, 5)
    np.testing.assert_allclose(blend, shares @ inputs, atol=1e-5)
    assert len(np.unique(np.round(shares[shares > 0], 5))) <= 3  # the share, what is left of 1, and 1
    assert (np.diag(shares) >= 0.5).all()


def test_a_rectangle_comes_from_the_same_place_of_another_map():
    maps = np.random.default_rng(0).normal(size=(8, 7, 5, 4)).astype(np.float16)
    found = set()
    for number in range(40):
        out, shares = mix_batch(maps, np.eye(8, dtype=np.float32), Mixing(cutmix=1.0), 0, 0, number)
        for one, own, share in zip(out, maps, shares, strict=True):
            foreign = (one != own).any(axis=2)
            if foreign.any():
                (other,) = np.flatnonzero(
                    (share > 0) & (np.arange(8) != np.flatnonzero((maps == own).all((1, 2, 3)))[0])
                )
                np.testing.assert_array_equal(one[foreign], maps[other][foreign])
                assert share[other] == pytest.approx(foreign.sum() / 35, abs=1e-6)
                rows, columns = np.nonzero(foreign)
                assert foreign.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # all of a rectangle
                found.add((rows.min(), columns.min(), rows.max(), columns.max()))
    assert len(found) > 15  # of many sizes, in many places


@pytest.mark.parametrize("other", [(2, 2, 0), (1, 3, 0), (1, 2, 1)], ids=["seed", "epoch", "batch"])
def test_a_batch_is_mixed_by_seed_epoch_and_number(other):
    inputs, labels = noise(8), np.eye(8, dtype=np.float32)
    for mixing in (Mixing(mixup=1.0), Mixing(cutmix=1.0)):
        one, two, again = (mix_batch(inputs, labels, mixing, *how) for how in ((1, 2, 0), other, (1, 2, 0)))
        assert not np.array_equal(one[1], two[1])
        np.testing.assert_array_equal(one[0], again[0])
        np.testing.assert_array_equal(one[1], again[1])


def test_images_are_mixed_until_the_epoch_that_was_said_and_never_in_evaluation():
    data = dataset(16)
    plain, short = (
        list(shuffled_batches(data, CLASSES, 8, 0, range(3), mixing).as_numpy_iterator())
        for mixing in (None, Mixing(mixup=1.0, until=2))
    )
    for number, (expected, found) in enumerate(zip(plain, short, strict=True)):
        for a, b in zip(expected, found, strict=True):
            assert np.array_equal(a, b) == (number >= 4)
    off = shuffled_batches(data, CLASSES, 8, 0, range(3), Mixing(until=3)).as_numpy_iterator()
    for expected, found in zip(plain, off, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])
    assert sum(numbers(ordered_batches(data, CLASSES, 8)), []) == list(range(16))


# Keys, by which a cache knows what was read ----------------------------------------------------------------------


@pytest.fixture
def known(tmp_path):
    """Makes `ArrayFile` of pixels under a key, as `decode` does, in memory or in a file."""

    def make(pixels: np.ndarray, key: str, memory_bytes: float = 1e9) -> ArrayFile:
        return ArrayFile(
            write((tmp_path / key).open("w+b"), [pixels], pixels.shape[1:], np.uint8, {}), memory_bytes, key
        )

    return make


def test_sources_with_one_key_read_the_same_and_what_reads_otherwise_has_another_key(known):
    labels, rows, some = np.arange(20) % CLASSES, np.arange(12), Augment(policy="light", hflip=False)
    one, two = known(noise(20), "one"), known(noise(20, seed=1), "two")

    def varied(pixels=one, rows=rows, settings=some, seed=5) -> ArrayDataset:
        return train_dataset(pixels, rows, labels, settings, seed)

    plain = eval_dataset(one, rows, labels)
    datasets = {
        "as it is": plain,
        "other pixels, as they are": eval_dataset(two, rows, labels),
        "other rows, as they are": eval_dataset(one, rows[::-1], labels),
        "fewer rows": eval_dataset(one, rows[:11], labels),
        "varied": varied(),
        "other pixels": varied(pixels=two),
        "other rows": varied(rows=np.roll(rows, 1)),
        "other seed": varied(seed=6),
        "other policy": varied(settings=Augment(policy="medium", hflip=False)),
        "flip": varied(settings=Augment(policy="light", hflip=True)),
        "mirrored": hflip(plain),
        "magnified": center_zoom(plain),
        "mirrored and magnified": hflip(center_zoom(plain)),
        "varied, mirrored": hflip(varied()),
        "varied, magnified": center_zoom(varied()),
        "joined": concatenate([plain, varied()]),
        "joined the other way": concatenate([varied(), plain]),
        "joined, one mirrored": concatenate([plain, hflip(varied())]),
    }
    again = {  # made anew from equal parts
        "as it is": eval_dataset(known(noise(20), "one", memory_bytes=0), rows.copy(), labels),
        "varied": varied(pixels=known(noise(20), "one", memory_bytes=0), rows=rows.astype(np.int32)),
        "mirrored": hflip(eval_dataset(one, rows, labels)),
        "magnified": center_zoom(eval_dataset(one, rows, labels)),
        "joined": concatenate([eval_dataset(one, rows, labels), varied()]),
    }

    def reads(dataset: ArrayDataset) -> list[bytes]:
        return [dataset.read(epoch, np.arange(len(dataset))).tobytes() for epoch in (0, 1)]

    assert all(dataset.key for dataset in datasets.values())
    assert len({dataset.key for dataset in datasets.values()}) == len(datasets)
    for first, second in itertools.combinations(datasets.values(), 2):
        assert reads(first) != reads(second), "or this test would prove nothing"
    for name, dataset in again.items():
        assert dataset.key == datasets[name].key
        assert reads(dataset) == reads(datasets[name])


def test_some_rows_of_a_dataset_are_those_rows_under_a_name_of_their_own(known):
    labels, rows = np.arange(20) % CLASSES, np.arange(5, 17)
    dataset = train_dataset(known(noise(20), "one"), rows, labels, Augment(), 0)
    few = subset(dataset, np.array([7, 2, 3]))
    np.testing.assert_array_equal(few.labels, labels[[12, 7, 8]])
    for epoch in (0, 3):
        np.testing.assert_array_equal(few.read(epoch, np.array([2, 0])), dataset.read(epoch, np.array([3, 7])))
    others = [
        dataset,
        subset(dataset, np.array([2, 7, 3])),
        subset(dataset, np.array([7, 2])),
        subset(hflip(dataset), [7, 2]),
    ]
    assert len({one.key for one in (few, *others)}) == 5 and few.key == subset(dataset, [7, 2, 3]).key
    assert subset(dataset, np.arange(12)) is dataset
    assert subset(eval_dataset(noise(20), rows, labels), np.array([1])).key == ""


def test_groups_travel_with_their_rows(known):
    pixels, labels, groups, rows = (
        known(noise(20), "one"),
        np.arange(20) % CLASSES,
        np.arange(20) // 3,
        np.arange(5, 17),
    )
    dataset = eval_dataset(pixels, rows, labels, groups)
    for view in (dataset, hflip(dataset), center_zoom(dataset), concatenate([dataset])):
        np.testing.assert_array_equal(view.groups, groups[rows])
    np.testing.assert_array_equal(subset(hflip(dataset), np.array([7, 2])).groups, groups[[12, 7]])
    np.testing.assert_array_equal(subsample(dataset, 3).groups, groups[[5, 10, 16]])
    np.testing.assert_array_equal(concatenate([dataset, subset(dataset, np.array([0]))]).groups, groups[[*rows, 5]])
    without = eval_dataset(pixels, rows, labels)
    assert (
        without.groups is None
        and concatenate([dataset, without]).groups is None
        and subset(without, [1]).groups is None
    )


def test_what_has_no_name_gets_no_key(known):
    """Pixels in an array, or a function of somebody's own: a cache could not tell them from others."""
    labels, rows = np.arange(20) % CLASSES, np.arange(12)
    nameless = [eval_dataset(noise(20), rows, labels), train_dataset(noise(20), rows, labels, Augment(), 0)]
    nameless.append(ArrayDataset(lambda epoch, i: noise(20)[i], labels))
    for data in nameless:
        assert data.key == hflip(data).key == center_zoom(data).key == ""
        assert concatenate([eval_dataset(known(noise(20), "one"), rows, labels), data]).key == ""


# Memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_gc():
    """All that is there already is no rubbish, and not looked at again: that would take half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held(kind: str, n: int = 48) -> tuple[tf.data.Dataset, weakref.ref]:
    """A data set, and whether the pixels that it reads from are still there."""
    pixels, labels = numbered(n)
    data = ArrayDataset(lambda _, rows: pixels[rows], labels)
    if kind == "shuffled":
        return shuffled_batches(data, CLASSES, 8, 0, range(3)), weakref.ref(pixels)
    return ordered_batches(data, CLASSES, 8), weakref.ref(pixels)


@pytest.mark.parametrize("kind", ["shuffled", "ordered"])
@pytest.mark.parametrize("read", [0, 2, None], ids=["not at all", "a little", "to the end"])
def test_a_data_set_that_is_no_longer_used_lets_go_of_its_pixels(kind, read, capfd, quick_gc):
    batches, pixels = held(kind)
    list(itertools.islice(iter(batches), read))
    gc.collect()
    assert pixels() is not None
    del batches
    gc.collect()
    assert pixels() is None, "TensorFlow holds functions for ever; with them it would hold every run's activations"
    time.sleep(0.05)
    assert capfd.readouterr().err == "", "what was read ahead ends without a word"


@pytest.mark.parametrize("kind", ["shuffled", "ordered"])
@pytest.mark.parametrize(
    "use",
    [
        iter,
        lambda batches: batches.as_numpy_iterator(),
        lambda batches: batches.prefetch(1),
        lambda batches: batches.take(6).repeat(2),
        lambda batches: tf.data.Dataset.zip((batches, batches)),
        lambda batches: iter(batches.concatenate(batches)),
    ],
    ids=["iterator", "numpy", "prefetch", "take", "zip", "concatenate"],
)
def test_what_is_made_from_a_data_set_keeps_its_pixels(kind, use, quick_gc):
    batches, pixels = held(kind)
    made = use(batches)
    del batches
    gc.collect()
    count = 0
    for _ in made:
        gc.collect()
        count += 1
    assert count >= 6
    assert pixels() is not None
    del made, _
    gc.collect()
    assert pixels() is None


def test_after_fit_evaluate_and_predict_the_pixels_can_go_and_the_model_stay(quick_gc):
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", "mse")
    for _ in range(2):
        (training, first), (validation, second) = held("shuffled"), held("ordered")
        model.fit(training, epochs=3, steps_per_epoch=6, validation_data=validation, shuffle=False, verbose=0)
        model.evaluate(validation, verbose=0)
        assert model.predict(validation, verbose=0).shape == (48, CLASSES)
        gc.collect()
        assert first() is not None and second() is not None
        del training, validation
        gc.collect()
        assert first() is None and second() is None
