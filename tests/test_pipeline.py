"""Batches: every picture once an epoch, with its own label, in an order that can be repeated."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from template.config import Augment
from template.data.augment import POLICIES, augment
from template.data.pipeline import Source, ordered_batches, plain_source, shuffled_batches, steps, training_source

CLASSES = 3
PLAIN = Augment(policy="none", flip=False)


def numbered(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of one colour that is their number, and labels that follow from it."""
    pixels = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 3)).copy()
    return pixels, np.arange(n) % CLASSES


def source(n: int, rows=None, settings: Augment = PLAIN) -> Source:
    pixels, labels = numbered(n)
    return training_source(pixels, np.arange(n) if rows is None else rows, labels, settings, seed=0)


def numbers(batches) -> list[list[int]]:
    """Which pictures are in each batch; every label must be that of its picture."""
    found = []
    for inputs, labels in batches.as_numpy_iterator():
        number = inputs[:, 4, 4, 0]
        np.testing.assert_array_equal(labels, number[:, None] % CLASSES == np.arange(CLASSES))
        found.append(number.tolist())
    return found


def shuffled(source_: Source, batch_size: int = 8, seed: int = 0, epochs: range = range(1)) -> list[list[int]]:
    return numbers(shuffled_batches(source_, CLASSES, batch_size, seed, epochs))


@pytest.mark.parametrize(("n", "batch_size"), [(33, 8), (32, 8), (31, 8), (9, 8), (5, 8), (1, 8), (17, 1), (100, 32)])
def test_every_picture_is_trained_on_once_an_epoch_in_batches_of_nearly_one_size(n, batch_size):
    """No tail is dropped, and none is much smaller than the others: batch normalisation would suffer from it."""
    for epoch in (0, 3):
        batches = shuffled(source(n), batch_size, epochs=range(epoch, epoch + 1))
        assert sorted(sum(batches, [])) == list(range(n))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
        assert len(batches) == steps(source(n), batch_size) == -(-n // batch_size)


def test_the_order_is_a_function_of_seed_and_epoch():
    assert shuffled(source(50)) == shuffled(source(50))
    first, second = shuffled(source(50), epochs=range(2))[:7], shuffled(source(50), epochs=range(2))[7:]
    assert first != second
    assert first != shuffled(source(50), seed=1)
    assert sum(first, []) != list(range(50))


@pytest.mark.parametrize("settings", [PLAIN, Augment(policy="heavy")])
def test_starting_at_an_epoch_gives_the_batches_of_a_longer_run(settings):
    """What makes an interrupted run go on to the same bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    data = training_source(pixels, np.arange(20), np.arange(20) % CLASSES, settings, seed=5)
    whole = list(shuffled_batches(data, CLASSES, 8, 5, range(4)).as_numpy_iterator())
    rest = list(shuffled_batches(data, CLASSES, 8, 5, range(2, 4)).as_numpy_iterator())
    assert len(whole) == 12 and len(rest) == 6
    for (inputs, labels), (expected_inputs, expected_labels) in zip(rest, whole[6:], strict=True):
        np.testing.assert_array_equal(inputs, expected_inputs)
        np.testing.assert_array_equal(labels, expected_labels)


def test_augmentation_is_new_in_every_epoch_and_belongs_to_the_picture():
    """By its row in the whole data set, so that it stays the same however the data are split or batched."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    rows = np.array([3, 19, 7, 0])
    data = training_source(pixels, rows, np.arange(20), Augment(policy="medium"), seed=5)
    policy = dataclasses.replace(POLICIES["medium"], flip=True)
    read = data.read(2, np.array([2, 0]))
    np.testing.assert_array_equal(read, augment(pixels[[7, 3]], policy, 5, 2, np.array([7, 3])))
    assert not np.array_equal(read, data.read(3, np.array([2, 0])))
    np.testing.assert_array_equal(read, data.read(2, np.array([2, 0])))


@pytest.mark.parametrize(("flip", "policy"), [(True, "light"), (False, "light"), (True, "none")])
def test_pictures_are_mirrored_only_if_the_settings_say_so(flip, policy):
    pixels = np.zeros((64, 16, 16, 3), np.uint8)
    pixels[:, :, :8] = 200
    data = training_source(pixels, np.arange(64), np.zeros(64, int), Augment(policy=policy, flip=flip), seed=0)
    mirrored = data.read(0, np.arange(64))[:, 8, 1, 0] < 100  # the bright half is on the right
    assert 16 < mirrored.sum() < 48 if flip and policy != "none" else not mirrored.any()


def test_a_source_reads_its_own_rows_only():
    """Training rows in a shuffled order, out of a data set that holds validation pictures as well."""
    rows = np.array([29, 3, 14, 8, 21, 0, 17])
    pixels, labels = numbered(30)
    for data in (source(30, rows), plain_source(pixels, rows, labels)):
        assert len(data) == 7
        assert sorted(sum(shuffled(data, 4), [])) == sorted(rows)
        assert numbers(ordered_batches(data, CLASSES, 4)) == [[29, 3, 14, 8], [21, 0, 17]]


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 4, 1]), (3, 4, [3])]
)
def test_evaluation_keeps_the_order_and_the_last_batch(n, batch_size, sizes):
    pixels, labels = numbered(n)
    for _ in range(2):
        batches = numbers(ordered_batches(plain_source(pixels, np.arange(n), labels), CLASSES, batch_size))
        assert [len(batch) for batch in batches] == sizes
        assert sum(batches, []) == list(range(n))


def test_evaluation_of_many_batches_keeps_the_order_though_threads_make_them():
    pixels, labels = numbered(250)
    for _ in range(3):
        batches = numbers(ordered_batches(plain_source(pixels, np.arange(250), labels), CLASSES, 1))
        assert sum(batches, []) == list(range(250))


def test_a_part_without_pictures_has_no_batches():
    """As the test part has if data.test_fraction is 0."""
    pixels, labels = numbered(5)
    empty = plain_source(pixels, np.array([], int), labels)
    assert numbers(ordered_batches(empty, CLASSES, 4)) == []


def test_types_and_shapes_are_known_before_the_first_batch():
    for batches in (shuffled_batches(source(5), CLASSES, 2, 0, range(1)), ordered_batches(source(5), CLASSES, 2)):
        inputs, labels = batches.element_spec
        assert inputs == tf.TensorSpec((None, 8, 8, 3), tf.uint8)
        assert labels == tf.TensorSpec((None, CLASSES), tf.float32)


def test_other_inputs_than_pictures_keep_their_type():
    """Features of a frozen network are float vectors."""
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float16)
    data = Source(lambda epoch, rows: features[rows] + np.float16(epoch), np.arange(6) % CLASSES)
    (inputs, _), *_ = ordered_batches(data, CLASSES, 6).as_numpy_iterator()
    assert inputs.dtype == np.float16
    np.testing.assert_array_equal(inputs, features)


def test_more_classes_than_labels_are_columns_of_zeros():
    data = Source(lambda epoch, rows: np.zeros((len(rows), 1), np.float32), np.array([2, 0]))
    (_, labels), *_ = ordered_batches(data, 4, 2).as_numpy_iterator()
    np.testing.assert_array_equal(labels, [[0, 0, 1, 0], [1, 0, 0, 0]])
