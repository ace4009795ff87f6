"""Stored activations give what the images would have given, and are found again only if nothing has changed."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers, ops

from template.config import Augment, Backbone, Head, Stage
from template.data.array_file import ArrayFile, open_stored, write
from template.data.dataset import ArrayDataset, center_zoom, concatenate, eval_dataset, hflip, train_dataset
from template.model.blocks import boundary, find_blocks, freeze
from template.model.build import build, power_norm
from template.model.inference import fingerprint, inference
from template.progress import Timer
from template.train import features
from template.train.features import FeatureCache, activations, cache_frozen, cached, split_model
from template.train.one_stage import compile_for
from template.train.optimizers import create_optimizer, create_schedule

BACKBONE = Backbone(name="tiny", weights="none")
HEAD = Head(dropout=0)


@pytest.fixture(scope="module")
def model(shallow):
    return build(BACKBONE, HEAD, 32, np.ones(3))


@pytest.fixture(scope="module")
def bottom(model):
    return split_model(model, boundary(model, find_blocks(model, BACKBONE), 1))[0]


@pytest.fixture(scope="module")
def source():
    """Six images that are brighter in every epoch; what they are called, nobody knows."""
    pixels = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3)).astype(np.uint8)
    return ArrayDataset(lambda epoch, rows: pixels[rows] + np.uint8(5 * epoch), np.arange(6) % 3)


@pytest.fixture
def store(tmp_path):
    return FeatureCache(tmp_path / "cache", 1e9, batch_size=4, clock=Timer())


def through(network: keras.Model, source: ArrayDataset, epoch: int, rows: np.ndarray) -> np.ndarray:
    """What the network makes of these rows, without a store."""
    return np.asarray(network(source.read(epoch, rows).astype("float32"), training=False))


def watched(source: ArrayDataset) -> tuple[ArrayDataset, list[int]]:
    """The same source, and a list that gets an epoch for every batch that is read."""
    seen = []

    def read(epoch, rows):
        seen.extend([epoch] * bool(len(rows)))
        return source.read(epoch, rows)

    return dataclasses.replace(source, read=read), seen


def files(store: FeatureCache) -> list:
    return sorted(store.folder.iterdir()) if store.folder.exists() else []


@pytest.mark.parametrize("limit_bytes", [1e9, 0], ids=["memory", "disk"])
def test_each_epoch_reads_the_activations_of_its_view(bottom, source, store, limit_bytes):
    stored = cached(bottom, source, 2, 0, dataclasses.replace(store, limit_bytes=limit_bytes))
    rows = np.array([4, 1])
    for epoch, view in ((0, 0), (1, 1), (2, 0), (5, 1)):
        np.testing.assert_allclose(stored.read(epoch, rows), through(bottom, source, view, rows), atol=2e-3)  # float16
    assert not np.allclose(stored.read(0, rows), stored.read(1, rows))
    assert files(store) == []  # nothing is left behind


@pytest.mark.parametrize(("views", "refresh"), [(2, 2), (2, 3), (3, 2)])
def test_refreshed_every_few_epochs_the_next_views_are_read(bottom, source, store, views, refresh):
    spied, seen = watched(source)
    stored, rows = cached(bottom, spied, views, refresh, store), np.array([5, 0, 2])
    assert set(seen) == set(range(views))
    for epoch in range(3 * refresh):
        view = epoch // refresh * views + epoch % refresh % views
        np.testing.assert_allclose(stored.read(epoch, rows), through(bottom, source, view, rows), atol=2e-3)
    assert set(seen) == set(range(3 * views))
    assert len(seen) == 3 * views * 2, "each view is computed once, in two batches"


def test_soft_labels_are_those_of_the_view_that_is_read(bottom, source, store):
    soft = dataclasses.replace(source, soft_labels=lambda epoch, rows: np.stack([rows, rows * 0 + epoch], axis=1))
    stored = cached(bottom, soft, 2, 3, store)
    for epoch, view in ((0, 0), (1, 1), (2, 0), (3, 2), (5, 2), (7, 5)):
        assert stored.soft_labels(epoch, np.array([4, 1])).tolist() == [[4, view], [1, view]]
    assert cached(bottom, source, 2, 3, store).soft_labels is None


def test_threads_may_ask_across_the_border_of_a_refresh(bottom, source, store):
    """Two threads read ahead: one may already be in the next views while the other still is in those before."""
    spied, seen = watched(source)
    stored, rows = cached(bottom, spied, 2, 3, store), np.arange(6)
    with ThreadPoolExecutor(2) as pool:
        for last, first in ((2, 3), (5, 6)):
            asked = [last, first] * 6
            expected = {last: through(bottom, source, last // 3 * 2, rows), first: None}
            expected[first] = through(bottom, source, first // 3 * 2, rows)
            for epoch, values in zip(asked, pool.map(lambda e: stored.read(e, rows), asked), strict=True):  # noqa: B023
                np.testing.assert_allclose(values, expected[epoch], atol=2e-3)
    assert sorted(seen) == sorted(list(range(6)) * 2), "nothing is thrown away while it is still asked for"


def test_a_run_that_goes_on_after_a_refresh_reads_what_it_would_have_read(bottom, source, store):
    rows = np.arange(6)
    whole, resumed = cached(bottom, source, 2, 3, store), cached(bottom, source, 2, 3, store)
    expected = [whole.read(epoch, rows) for epoch in range(9)]
    for epoch in (7, 8):
        assert resumed.read(epoch, rows).tobytes() == expected[epoch].tobytes()


def test_an_activation_too_large_for_float16_stays_finite(store):
    pixel = keras.Input((1,))
    for factor, expected in ((1e6, 65504), (-1e6, -65504), (-2, -2)):
        network = keras.Model(pixel, layers.Rescaling(factor)(pixel))
        source = ArrayDataset(lambda _, rows: np.ones((len(rows), 1), np.uint8), np.zeros(3, int))
        assert (cached(network, source, 1, 0, store).read(0, np.arange(3)) == expected).all()


def test_activations_that_are_clipped_are_counted_and_said_also_when_they_are_found_again(store, capsys):
    pixel, values = keras.Input((2,)), np.array([[1, 1], [1, 100], [100, 100]], np.uint8)
    network = keras.Model(pixel, layers.Rescaling(1000.0)(pixel))
    source = ArrayDataset(lambda _, rows: values[rows], np.zeros(3, int), key="three")
    for said in ("computed", "found"):
        store.outputs(network, source, range(2))
        printed = capsys.readouterr().out
        assert "6 of 12 activations (2,), in 4 of 6 images, are beyond 65,504" in printed, said
        assert "train.precision" in printed and "backbone.name" in printed
    store.outputs(network, source, range(2), np.float32)
    assert "clipped" not in capsys.readouterr().out


def test_activations_are_in_order_with_the_smaller_last_batch(model, source):
    bottom, _ = split_model(model, boundary(model, find_blocks(model, BACKBONE), 0))
    batches = list(activations(inference(bottom), source, 0, 4))
    assert [len(batch) for batch in batches] == [4, 2]
    np.testing.assert_allclose(np.concatenate(batches), through(bottom, source, 0, np.arange(6)), atol=1e-5)


def test_a_step_on_the_tail_is_a_step_on_the_model(source, store):
    """Same loss, and afterwards the same weights, as training the whole model with the same layers frozen."""
    losses, weights = [], []
    for stored in (True, False):
        keras.utils.set_random_seed(0)
        model = build(BACKBONE, HEAD, 32, np.ones(3))
        kernel = model.get_layer("logits").kernel  # a quiet one hands down gradients that float16 cannot tell from 0
        kernel.assign(np.random.default_rng(0).normal(0, 0.1, kernel.shape))
        freeze(model, find_blocks(model, BACKBONE), 1)
        tensor = boundary(model, find_blocks(model, BACKBONE), 1) if stored else None
        network, inputs, _ = cache_frozen(model, tensor, [source], None, views=1, refresh=0, cache=store)
        stage = Stage(learning_rate=1e-3, warmup=0)
        compile_for(network, create_optimizer(stage, create_schedule(stage, 10), averaged=False))
        network.run_eagerly = True  # to trace it takes longer than a step
        batch = inputs.read(0, np.arange(6)).astype("float32")
        losses.append(float(network.train_on_batch(batch, np.eye(3)[source.labels])[0]))
        weights.append(model.get_weights())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    # Only a sign may differ where a gradient is almost zero: Adam's first step is the sign of the gradient.
    same = [np.isclose(a, b, atol=1e-4).mean() for a, b in zip(*weights, strict=True)]
    assert min(same) > 0.95


def test_what_does_not_fit_is_trained_on_images_and_says_so(model, source, store, capsys):
    tensor, how, rows = (
        boundary(model, find_blocks(model, BACKBONE), 1),
        {"views": 4, "refresh": 0},
        np.array([7, 5, 0]),
    )
    size = int(np.prod(tensor.shape[1:]))
    needed = 2 * (2 * 6 * 4) * size + 4 * 6 * size  # two parts of six in four views, float16; and val, float32
    for boundary_, limit, said in ((tensor, needed - 1, "would take"), (None, 1e9, "nothing is frozen")):
        limited = dataclasses.replace(store, limit_bytes=limit)
        network, inputs, val = cache_frozen(model, boundary_, [source, source], source, **how, cache=limited)
        assert network is model and val is source
        np.testing.assert_array_equal(inputs.read(1, rows), concatenate([source, source]).read(1, rows))
        assert said in capsys.readouterr().out
    enough = dataclasses.replace(store, limit_bytes=needed)
    network, inputs, val = cache_frozen(model, tensor, [source, source], source, **how, cache=enough)
    assert network is not model and network.input_shape == tensor.shape
    for stored, n in ((inputs, 12), (val, 6)):
        assert len(stored) == n and stored.read(0, np.arange(n)).shape == (n, *tensor.shape[1:])


def test_the_activations_of_several_parts_stand_one_after_the_other(model, bottom, source, store):
    darker = ArrayDataset(lambda epoch, rows: source.read(epoch, rows) // 2, source.labels[::-1].copy())
    tensor, rows = boundary(model, find_blocks(model, BACKBONE), 1), np.array([7, 2, 6, 5])
    _, inputs, val = cache_frozen(model, tensor, [source, darker], darker, views=2, refresh=0, cache=store)
    for epoch in (0, 1, 2):
        read = inputs.read(epoch, rows)
        np.testing.assert_allclose(read[[1, 3]], through(bottom, source, epoch % 2, rows[[1, 3]]), atol=2e-3)
        np.testing.assert_allclose(read[[0, 2]], through(bottom, darker, epoch % 2, rows[[0, 2]] - 6), atol=2e-3)
        np.testing.assert_allclose(val.read(epoch, rows - 2), through(bottom, darker, 0, rows - 2), atol=2e-3)
    np.testing.assert_array_equal(inputs.labels, np.concatenate([source.labels, darker.labels]))


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """Ten images with a name, as `decode` gives them."""
    file = tmp_path_factory.mktemp("decoded") / "pixels"
    array = np.random.default_rng(1).integers(0, 255, (10, 32, 32, 3)).astype(np.uint8)
    return ArrayFile(write(file.open("w+b"), [array], array.shape[1:], np.uint8, {}), 1e9, key="pixels-0123")


def augmented(pixels, rows=(0, 1, 2, 3, 4, 5), seed=0, **settings) -> ArrayDataset:
    return train_dataset(pixels, np.array(rows, int), np.arange(10) % 3, Augment(**settings), seed)


def test_the_second_time_nothing_is_computed_and_every_bit_is_the_same(bottom, pixels, store):
    again = dataclasses.replace(store, clock=Timer())  # as tomorrow's run
    first, second = watched(augmented(pixels)), watched(augmented(pixels))
    values = store.outputs(bottom, first[0], range(2, 4))[np.arange(12)]
    assert values.dtype == np.float16 and first[1]
    for view in (0, 1):
        expected = through(bottom, first[0], 2 + view, np.arange(6))
        np.testing.assert_allclose(values[6 * view :][:6], expected, atol=2e-3)
    assert again.outputs(bottom, second[0], range(2, 4))[np.arange(12)].tobytes() == values.tobytes()
    assert second[1] == []
    assert len(files(store)) == 1 and files(store)[0].name.startswith("features-")
    assert store.clock.seconds["features"] > 0 and "features" not in again.clock.seconds


def test_whatever_changes_is_computed_anew(bottom, pixels, store):
    def computes(network=bottom, source=None, epochs=range(2), **how) -> bool:
        spied, seen = watched(augmented(pixels) if source is None else source)
        rows = store.outputs(network, spied, epochs, **how)
        expected = through(network, spied, epochs.start, np.arange(2))
        np.testing.assert_allclose(rows[np.arange(2)], expected, atol=2e-3)
        return len(seen) > 1  # one was for the expectation

    renamed = ArrayFile(open_stored(pixels.path.open("rb")), 1e9, key="pixels-4567")
    plain = eval_dataset(pixels, np.arange(6), np.arange(10) % 3)
    assert computes() and not computes()
    for change in (
        {"epochs": range(3)},
        {"epochs": range(1, 3)},
        {"dtype": np.float32},
        {"source": augmented(pixels, rows=(0, 1, 2, 3, 4, 6))},
        {"source": augmented(pixels, rows=(1, 0, 2, 3, 4, 5))},
        {"source": augmented(pixels, seed=1)},
        {"source": augmented(pixels, policy="light")},
        {"source": augmented(pixels, hflip=False)},
        {"source": augmented(renamed)},
        {"source": plain},
        {"source": hflip(plain)},
        {"source": center_zoom(plain)},
        {"source": concatenate([plain, plain])},
    ):
        assert computes(**change), f"{change} must not be taken for another"
        assert not computes(**change)
    assert not computes(), "and the first is still there"


def test_what_an_earlier_run_computed_is_known_by_its_images_and_seconds(bottom, pixels, store):
    source = eval_dataset(pixels, np.arange(6), np.arange(10) % 3)
    store.outputs(bottom, source, range(2))
    store.outputs(bottom, source, range(2))
    assert list(store.spared.values()) == [(0, 0.0)], "computed here, however often it is found again"
    later = dataclasses.replace(store, spared={})
    later.outputs(bottom, source, range(2))
    ((images, seconds),) = later.spared.values()
    assert images == 2 * len(source) and seconds > 0


def test_a_change_in_any_weight_makes_another_network(bottom):
    seen = {fingerprint(bottom)}
    for weight in bottom.weights:  # the statistics of batch normalisation are among them
        before = weight.numpy()
        changed = np.array(before)
        changed.reshape(-1)[-1] += 1
        weight.assign(changed)
        seen.add(fingerprint(bottom))
        weight.assign(before)
    assert len(seen) == 1 + len(bottom.weights)
    assert fingerprint(bottom) in seen


@pytest.mark.parametrize(
    "name", ["tiny", pytest.param("convnexttiny", marks=pytest.mark.slow)], ids=["flat", "with layers inside layers"]
)
def test_neither_names_nor_what_trains_make_another_network(name):
    settings = Backbone(name=name, weights="none")
    one, other = (build(settings, HEAD, 32, np.ones(3)) for _ in range(2))
    other.set_weights(one.get_weights())
    expected = fingerprint(one)
    assert fingerprint(other) == expected, "built again, layers without a name of ours are called something else"
    freeze(one, find_blocks(one, settings), 1)
    assert fingerprint(one) == expected


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_another_arithmetic_makes_another_network(model, precision):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        mixed = build(BACKBONE, HEAD, 32, np.ones(3))
    finally:
        keras.config.set_dtype_policy(before)
    mixed.set_weights(model.get_weights())
    for unfreeze in (0, 1):
        bottoms = [
            split_model(network, boundary(network, find_blocks(network, BACKBONE), unfreeze))[0]
            for network in (model, mixed)
        ]
        assert fingerprint(bottoms[0]) != fingerprint(bottoms[1])


def test_settings_and_functions_make_another_network():
    x = keras.Input((4,))
    dense = layers.Dense(4)
    y = dense(x)
    outputs = {
        "plain": y,
        "relu": layers.Activation("relu")(y),
        "tanh": layers.Activation("tanh")(y),
        "root": power_norm(y),
        "root twice": power_norm(power_norm(y)),
        "another constant": y * ops.rsqrt(ops.abs(y) + 0.02),
        "two relus": layers.Activation("relu")(layers.Activation("relu")(y)),
        "skips one": layers.Add()([layers.Activation("relu")(y), y]),
        "skips two": layers.Add()([layers.Activation("relu")(y), x]),
    }
    prints = {name: fingerprint(keras.Model(x, output)) for name, output in outputs.items()}
    same = [(a, b) for a in prints for b in prints if a < b and prints[a] == prints[b]]
    assert same == [], "these compute different things and have one name"
    assert fingerprint(keras.Model(x, power_norm(y))) == prints["root"]


@pytest.mark.parametrize("missing", [1, 8, "all"])
def test_a_file_that_was_cut_short_is_computed_again(bottom, pixels, store, missing, monkeypatch):
    monkeypatch.setattr(features, "time", SimpleNamespace(perf_counter=lambda: 0.0))  # how long it took is in the file
    values = store.outputs(bottom, augmented(pixels), range(1))[np.arange(6)]
    (file,) = files(store)
    whole = file.read_bytes()
    file.write_bytes(whole[: 0 if missing == "all" else -missing])
    spied, seen = watched(augmented(pixels))
    assert store.outputs(bottom, spied, range(1))[np.arange(6)].tobytes() == values.tobytes()
    assert seen and file.read_bytes() == whole


def test_what_has_no_name_is_not_kept_but_can_be_read(bottom, source, store):
    for limit in (1e9, 0):
        limited = dataclasses.replace(store, limit_bytes=limit)
        rows = limited.outputs(bottom, source, range(2))
        assert files(store) == []
        np.testing.assert_allclose(rows[np.array([7])], through(bottom, source, 1, np.array([1])), atol=2e-3)


def test_the_oldest_make_room_but_never_the_newest(bottom, pixels, store):
    hours = iter(range(100))

    def kept(seed: int, limit_bytes: float) -> list[bool]:
        """Of the seeds so far, whose activations are still there when those of one more were asked for."""
        limited = dataclasses.replace(store, limit_bytes=limit_bytes)
        rows = limited.outputs(bottom, augmented(pixels, seed=seed), range(1))
        assert len(rows[np.arange(6)]) == 6
        (newest,) = {file.name for file in files(store)} - set(names.values()) or {names.get(seed)}
        names[seed] = newest
        (touched,) = [file for file in files(store) if file.stat().st_mtime > 1e9]
        os.utime(touched, (hour := 3600 * next(hours), hour))  # an hour between each, however fast we are
        return [(store.folder / name).exists() for name in names.values()]

    names = {}
    assert kept(0, 1e9) == [True]
    size = files(store)[0].stat().st_size
    assert kept(1, 2 * size) == [True, True]
    assert kept(0, 2 * size) == [True, True]  # it was there, and now it is younger than the other
    assert kept(2, 2 * size) == [True, False, True]
    assert kept(3, 2 * size) == [False, False, True, True]
    assert kept(4, 0) == [False, False, False, False, True]


def test_pixels_and_other_files_are_not_taken_for_old_activations(bottom, pixels, store):
    store.folder.mkdir()
    (store.folder / "pixels-abc").mkdir()
    (store.folder / "mine.txt").write_text("keep")
    dataclasses.replace(store, limit_bytes=0).outputs(bottom, augmented(pixels), range(1))
    assert {"pixels-abc", "mine.txt"} < {f.name for f in files(store)}


@pytest.mark.parametrize("named", [True, False])
def test_killed_in_the_middle_it_leaves_nothing_to_be_found(bottom, pixels, store, monkeypatch, named):
    source = augmented(pixels) if named else dataclasses.replace(augmented(pixels), key="")
    whole = activations

    def killed(*how):
        yield next(whole(*how))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(features, "activations", killed)
        with pytest.raises(KeyboardInterrupt):
            store.outputs(bottom, source, range(2))
    assert files(store) == []
    rows = store.outputs(bottom, source, range(2))
    np.testing.assert_allclose(rows[np.arange(6)], through(bottom, source, 0, np.arange(6)), atol=2e-3)


def test_a_image_that_cannot_be_read_leaves_nothing_to_be_found(bottom, pixels, store):
    def read(epoch, rows):
        if 5 in rows:
            raise OSError("the cable is out")
        return pixels[rows]

    with pytest.raises(Exception, match="the cable is out"):
        store.outputs(bottom, ArrayDataset(read, np.zeros(6, int), "named"), range(1))
    assert files(store) == []


def test_of_no_images_there_are_no_activations(bottom, pixels, store):
    for _ in range(2):
        rows = store.outputs(bottom, augmented(pixels, rows=()), range(1))
        assert len(rows) == 0 and rows[np.arange(0)].shape == (0, *bottom.output_shape[1:])
