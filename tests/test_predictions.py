"""Predictions keep images, labels and logits together, in order, and refuse what does not fit together."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

from template.evaluate.predictions import Predictions, average, predict


def some(n: int = 5, classes: int = 3, **changes) -> Predictions:
    rng = np.random.default_rng(0)
    values = {
        "ids": np.array([f"köln/{i}|é.png" for i in range(n)]),
        "labels": np.arange(n) % (classes + 1) - 1,  # -1, unknown, included
        "logits": rng.normal(size=(n, classes)).astype(np.float32),
        "class_names": tuple(f"class {i} 犬" for i in range(classes)),
    }
    return Predictions(**values | changes)


@pytest.mark.parametrize("n", [5, 1, 0])
def test_save_and_load_lose_nothing(tmp_path, n):
    before = some(n)
    before.save(tmp_path / "predictions.npz")
    after = Predictions.load(tmp_path / "predictions.npz")
    assert after.ids.tolist() == before.ids.tolist()
    assert after.labels.tolist() == before.labels.tolist()
    assert after.logits.dtype == np.float32
    assert after.logits.tobytes() == before.logits.tobytes()
    assert after.class_names == before.class_names
    assert all(type(name) is str for name in after.class_names), "numpy strings do not go into JSON dictionaries alike"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_a_file_with_python_objects_in_it_is_refused(tmp_path):
    # Loading such an array would run whatever the file says.
    np.savez(tmp_path / "evil.npz", ids=np.array([{"a": 1}], dtype=object), labels=[0], logits=[[0.0]], class_names="a")
    with pytest.raises(ValueError, match="allow_pickle"):
        Predictions.load(tmp_path / "evil.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": np.array(["a"] * 4)},
        {"labels": np.zeros(6, np.int64)},
        {"labels": np.zeros((5, 1), np.int64)},
        {"logits": np.zeros((4, 3), np.float32)},
        {"logits": np.zeros((5, 2), np.float32)},
        {"logits": np.zeros(5, np.float32)},
        {"class_names": ("a", "b")},
    ],
    ids="-".join,
)
def test_lengths_that_disagree_are_refused_with_both_shapes(changes):
    with pytest.raises(ValueError, match=r"Expected logits .* and labels .* Received: logits .*, labels"):
        some(**changes)


@pytest.mark.parametrize("label", [-2, 3])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match=f"Expected labels from -1 to 2. Received: .*{label}"):
        some(labels=np.array([0, 1, label, 2, 0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_naming_the_first_image(bad):
    logits = np.zeros((5, 3), np.float32)
    logits[3, 1] = logits[4, 0] = bad
    with pytest.raises(ValueError, match=r"2 images are not finite, the first: 'köln/3\|é.png'"):
        some(logits=logits)


def test_probabilities_are_the_softmax_also_of_large_logits():
    logits = np.array([[0, np.log(3)], [1000, 1000], [-1000, 1000]], np.float32)  # exp(1000) overflows
    found = some(3, 2, logits=logits, labels=np.zeros(3, np.int64)).probabilities
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5], [0, 1]], atol=1e-7)
    random = some(50, 7, labels=np.zeros(50, np.int64))
    np.testing.assert_allclose(np.log(random.probabilities), log_softmax(random.logits.astype(float), axis=1))
    np.testing.assert_allclose(random.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_predicted_is_the_largest_logit_and_of_equal_ones_the_first():
    logits = np.array([[1, 3, 2], [2, 2, 1], [0, 0, 0]], np.float32)
    assert some(3, logits=logits, labels=np.zeros(3, np.int64)).predicted.tolist() == [1, 0, 0]


def test_average_is_the_mean_of_the_probabilities():
    one, other = some(), some(logits=np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32))
    found = average([one, other])
    np.testing.assert_allclose(found.probabilities, (one.probabilities + other.probabilities) / 2, rtol=1e-5)
    np.testing.assert_allclose(average([one]).probabilities, one.probabilities, rtol=1e-5)
    assert (found.ids == one.ids).all()
    assert (found.labels == one.labels).all()
    assert found.class_names == one.class_names
    assert found.logits.dtype == np.float32


@pytest.mark.parametrize("changes", [{"ids": some().ids[::-1]}, {"class_names": ("c", "b", "a")}], ids=["ids", "names"])
def test_predictions_of_other_images_or_classes_are_not_averaged(changes):
    with pytest.raises(ValueError, match="same images and classes, in the same order"):
        average([some(), some(**changes)])


@pytest.fixture(scope="module")
def colour_means() -> keras.Model:
    """The logits of an image are the means of its colours, so that each row tells which image it is of."""
    pixels = keras.Input((4, 4, 3))
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (8, 4), (3, 4), (1, 4)])
def test_predict_keeps_the_order_and_the_smaller_last_batch(colour_means, n, batch):
    wanted = np.random.default_rng(1).uniform(0, 255, (n, 3)).astype(np.float32)
    pixels = np.broadcast_to(wanted[:, None, None], (n, 4, 4, 3))
    labels = np.arange(n) % 3
    # Labels ride along in the batches; predict must not take them for inputs or weights.
    batches = tf.data.Dataset.from_tensor_slices((pixels, np.eye(3, dtype=np.float32)[labels])).batch(batch)
    found = predict(colour_means, batches, [f"p{i}" for i in range(n)], labels, ["r", "g", "b"])
    np.testing.assert_allclose(found.logits, wanted, rtol=1e-5)
    assert found.logits.dtype == np.float32
    assert found.ids.tolist() == [f"p{i}" for i in range(n)]
    assert found.labels.tolist() == labels.tolist()
    assert found.class_names == ("r", "g", "b")


def test_predict_of_no_images_is_no_predictions(colour_means):
    # A run without a test part.
    batches = tf.data.Dataset.from_tensor_slices(np.zeros((0, 4, 4, 3), np.float32)).batch(4)
    found = predict(colour_means, batches, [], np.zeros(0), ["r", "g", "b"])
    assert found.logits.shape == (0, 3)


def test_a_pipeline_that_drops_its_last_batch_does_not_go_unnoticed(colour_means):
    batches = tf.data.Dataset.from_tensor_slices(np.zeros((10, 4, 4, 3), np.float32)).batch(4, drop_remainder=True)
    with pytest.raises(ValueError, match=r"Expected logits \(10, 3\).* Received: logits \(8, 3\)"):
        predict(colour_means, batches, [str(i) for i in range(10)], np.zeros(10), ["r", "g", "b"])
