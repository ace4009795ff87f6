"""Every check passes on what is in order, and fails on the fault that it is there for."""

import json
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from template import progress
from template.config import Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.batches import Mixing, shuffled_batches, shuffled_rows
from template.data.dataset import ArrayDataset, eval_dataset, train_dataset
from template.diagnose import baselines, checks, grids, preflight
from template.model.backbones import build_backbone
from template.model.blocks import boundary, find_blocks, freeze
from template.model.build import build

SIZE, CLASSES = 32, 3
SCRIPT = Path(__file__).parent.parent / "scripts" / "preflight.py"
TINY = Backbone(name="tiny", weights="none")


def coloured(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose mean colour tells the class."""
    generator, labels = np.random.default_rng(seed), np.arange(n) % CLASSES
    pixels = generator.integers(0, 150, (n, SIZE, SIZE, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, labels] += 80
    return pixels, labels


@pytest.fixture(scope="module", autouse=True)
def fewer_layers(shallow):
    """What is checked here is any network."""


@pytest.fixture(scope="module")
def train() -> ArrayDataset:
    pixels, labels = coloured(60, 0)
    return eval_dataset(pixels, np.arange(60), labels)


@pytest.fixture(scope="module")
def val() -> ArrayDataset:
    pixels, labels = coloured(30, 1)
    return eval_dataset(pixels, np.arange(30), labels)


@pytest.fixture
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return build(TINY, Head(), SIZE, [1] * CLASSES)


def like(source: ArrayDataset, change: Callable) -> ArrayDataset:
    return ArrayDataset(lambda epoch, rows: change(source.read(epoch, rows)), source.labels)


def test_pixels_enter_as_they_should_and_the_grid_shows_them_with_their_labels():
    pixels, labels = coloured(60, 0)
    source = train_dataset(pixels, np.arange(60), labels, Augment(policy="light"), seed=0)
    check, image = checks.input_grid(source, ("red", "green", "blue"), Train(batch_size=16), Mixing())
    assert check.passed and image.size == (8 * 164, 2 * 178)
    wrong = (lambda x: (x / 255).astype(np.float32)), (lambda x: x.astype(np.float32) - 127)
    scaled, centred = (checks.input_grid(like(source, how), ("r", "g", "b"), Train(), Mixing())[0] for how in wrong)
    assert not scaled.passed and not centred.passed


def test_the_grid_is_of_the_very_pixels_and_labels(monkeypatch):
    pixels, labels = coloured(12, 0)
    source = train_dataset(pixels, np.arange(12), labels, Augment(policy="none"), seed=0)
    seen = {}
    monkeypatch.setattr(checks, "grid", lambda images, names: seen.update(images=images, names=names))
    checks.input_grid(source, ("red", "green", "blue"), Train(batch_size=12), Mixing())
    for image, name in zip(seen["images"], seen["names"], strict=True):
        (row,) = np.flatnonzero((pixels == image).all(axis=(1, 2, 3)))
        assert name == ("red", "green", "blue")[labels[row]]


def tile(image: Image.Image, row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a tile of a grid of images of 32 pixels, and of the words below it."""
    top, left = row * 178, column * 164
    cut = np.asarray(image)[top : top + 178, left : left + 160]
    return cut[2:160:5, 2::5], cut[160:]


@pytest.mark.parametrize("sampling", ["all", "balanced"])
def test_each_image_is_shown_as_it_is_and_as_the_batches_of_each_epoch_have_it(monkeypatch, sampling):
    pixels, labels = coloured(24, 0)
    labels, names = np.sort(labels), ("red", "green", "blue")
    plain = eval_dataset(pixels, np.arange(24), labels)
    augmented = train_dataset(pixels, np.arange(24), labels, Augment(policy="medium"), seed=0)
    mixing, settings = Mixing(mixup=1.0, cutmix=1.0, until=2), Train(batch_size=8, sampling=sampling)
    said, draw = [], grids.grid
    monkeypatch.setattr(
        grids, "grid", lambda images, names, columns: said.extend(names) or draw(images, names, columns)
    )
    drawn = grids.epochs_grid(plain, augmented, names, settings, mixing, 3)
    assert drawn.size == (4 * 164, 12 * 178)
    rows = [0, 2, 4, 7, 8, 10, 12, 15, 16, 18, 20, 23]
    batches = list(shuffled_batches(augmented, 3, 8, 0, range(3), mixing, sampling).as_numpy_iterator())
    order = [batch for epoch in range(3) for batch in shuffled_rows(labels, 8, 0, epoch, sampling)]
    for line, row in enumerate(rows):
        np.testing.assert_array_equal(tile(drawn, line, 0)[0], pixels[row])
        assert said[4 * line] == names[labels[row]]
        times = [
            (number, images[i], given[i])
            for number, ((_, members), (images, given)) in enumerate(zip(order, batches, strict=True))
            for i in np.flatnonzero(members == row)
        ]
        assert len(times) == 3, "classes of equal size: once an epoch, balanced or not"
        for column, (number, image, label) in enumerate(times, start=1):
            np.testing.assert_array_equal(tile(drawn, line, column)[0], image)
            words = said[4 * line + column].split()
            assert words[:2] == ["epoch", f"{number // 3 + 1}:"]
            if len(words) > 3:
                shares = dict(zip(words[2::2], map(float, words[3::2]), strict=True))
                assert shares == {names[i]: round(float(label[i]), 2) for i in np.flatnonzero(label >= 0.005)}
                assert list(shares.values()) == sorted(shares.values(), reverse=True) and number < 6, "then not mixed"
            else:
                assert label[names.index(words[2])] > 0.99
    assert sum(len(words.split()) > 3 for words in said) > 8


def test_a_image_that_comes_twice_in_an_epoch_is_shown_twice_and_one_that_does_not_is_left_white():
    pixels, labels = coloured(24, 0)[0], np.repeat(range(3), [20, 3, 1])
    data = eval_dataset(pixels, np.arange(24), labels)
    image = grids.epochs_grid(data, data, ("a", "b", "c"), Train(batch_size=8, sampling="balanced"), Mixing(), 2)
    lines = {row: line for line, row in enumerate([0, 6, 12, 19, 20, 21, 22, 23])}
    for row, line in lines.items():
        for column in (1, 2):
            (shown, words), times = tile(image, line, column), 0
            for epoch in (0, 1):
                order = shuffled_rows(labels, 8, 0, epoch, "balanced")
                times += sum(int((members == row).sum()) for _, members in order)
            if column <= times:
                np.testing.assert_array_equal(shown, pixels[row])
            assert (shown == 255).all() == (column > times) == (words == 255).all()


def test_a_label_says_its_shares():
    names = ("red", "green", "blue")
    assert grids.label_text(np.array([0, 1, 0]), names) == "green"
    assert grids.label_text(np.array([0.3, 0, 0.7]), names) == "blue 0.70 red 0.30"
    assert grids.label_text(np.array([0.999, 0.001, 0]), names) == "red"


def test_preflight_shows_mixed_images_as_they_are_trained_on():
    pixels, labels = coloured(12, 0)
    source = train_dataset(pixels, np.arange(12), labels, Augment(policy="none"), seed=0)
    mixing = Mixing(mixup=1.0, until=1)
    _, drawn = checks.input_grid(source, ("red", "green", "blue"), Train(batch_size=12), mixing)
    images, _ = next(shuffled_batches(source, 3, 12, 0, range(1), mixing).as_numpy_iterator())
    for number, image in enumerate(images):
        np.testing.assert_array_equal(tile(drawn, number // 8, number % 8)[0], image)


def test_an_untrained_head_knows_the_frequencies_and_a_loud_one_is_found(model, train):
    check = checks.loss_at_init(model, train)
    assert check.passed and float(check.found) == pytest.approx(np.log(3), rel=0.05)
    uneven = ArrayDataset(train.read, np.where(np.arange(60) < 50, 0, train.labels))
    assert not checks.loss_at_init(model, uneven).passed, "biases for other frequencies"
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.random.default_rng(0).normal(0, 3, kernel.shape))
    assert not checks.loss_at_init(model, train).passed


def trained(train: ArrayDataset) -> keras.Model:
    """A linear classifier of the mean colour."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x))
    model.get_layer("logits").set_weights([np.eye(3, dtype=np.float32) / 20, np.zeros(3, np.float32)])
    return model


def test_a_network_that_does_not_look_is_found(train, val):
    model = trained(train)
    assert checks.depends_on_input(model, val).passed
    model.get_layer("logits").kernel.assign(np.zeros((3, 3)))
    assert not checks.depends_on_input(model, val).passed


def test_a_few_images_are_memorised_unless_they_are_all_the_same(train):
    names, model = ("red", "green", "blue"), build(TINY, Head(dropout=0, l2=0), SIZE, [1] * CLASSES)
    given = find_blocks(model, Backbone(name="tiny", weights="given.h5"))
    freeze(model, given, 1)
    check, image = checks.overfit_small_batch(model, boundary(model, given, 1), train, names)
    assert check.passed and "9 of 9 right" in check.found and image.size == (8 * 164, 2 * 178)
    grey = like(train, lambda x: np.full_like(x, 127))
    model = build(TINY, Head(dropout=0, l2=0), SIZE, [1] * CLASSES)
    check, _ = checks.overfit_small_batch(model, None, grey, names, steps=30)
    assert not check.passed and "3 of 9 right" in check.found


@pytest.mark.slow
def test_what_is_frozen_is_not_asked_to_learn(train):
    """The tail alone memorises them; with nothing that trains, nothing is learned."""
    names, given = ("red", "green", "blue"), Backbone(name="tiny", weights="given.h5")
    model = build(TINY, Head(dropout=0, l2=0), SIZE, [1] * CLASSES)
    freeze(model, find_blocks(model, given), 1)
    tensor = boundary(model, find_blocks(model, given), 1)
    before = model.layers[3].get_weights()
    assert checks.overfit_small_batch(model, tensor, train, names)[0].passed
    assert all(np.array_equal(a, b) for a, b in zip(before, model.layers[3].get_weights(), strict=True))
    for layer in model.layers:
        layer.trainable = False
    model.get_layer("logits").kernel.assign(np.zeros(model.get_layer("logits").kernel.shape))
    assert not checks.overfit_small_batch(model, tensor, train, names, steps=10)[0].passed


def test_a_image_that_depends_on_its_neighbours_is_found(model, train):
    assert checks.no_batch_leakage(model, train).passed, "from scratch it is asked at inference"
    weights = Backbone(name="tiny", weights="given.h5")
    freeze(model, find_blocks(model, weights), 2)
    assert checks.no_batch_leakage(model, train).passed
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(inputs)
    mixed = layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0, keepdims=True))(pooled)
    wrong = keras.Model(inputs, layers.Dense(CLASSES, name="logits")(mixed))
    assert not checks.no_batch_leakage(wrong, train).passed
    blind = layers.Lambda(lambda x: x * 0)(pooled)
    assert not checks.no_batch_leakage(keras.Model(inputs, layers.Dense(3, name="logits")(blind)), train).passed


def test_statistics_that_move_although_frozen_are_found(model, train, eagerly):
    freeze(model, find_blocks(model, Backbone(name="tiny", weights="given.h5")), 2)
    assert checks.frozen_unchanged(model, train, CLASSES, pretrained=True).passed
    for layer in model.layers:
        layer.trainable = True  # batch normalisation trains: its statistics, which no optimizer knows, move
    check = checks.frozen_unchanged(model, train, CLASSES, pretrained=True)
    assert not check.passed and "block" in check.advice
    assert checks.frozen_unchanged(model, train, CLASSES, pretrained=False).passed, "from scratch they shall move"


def test_half_precision_of_the_output_is_found(model):
    assert checks.float32_logits(model).passed
    inputs = keras.Input((4,))
    half = keras.Model(inputs, layers.Dense(3, dtype="mixed_float16", name="logits")(inputs))
    assert not checks.float32_logits(half).passed


def test_pixels_that_differ_by_one_are_found(train):
    pixels = train.read(0, np.arange(4))
    assert checks.train_serve_parity(pixels, pixels.copy()).passed
    other = pixels.copy()
    other[2, 3, 4, 1] += 1
    assert not checks.train_serve_parity(pixels, other).passed


@pytest.mark.parametrize("apart", [0, 9], ids=["one cloud", "classes far apart"])
def test_labels_by_lot_are_guessed_unless_the_parts_share_images(apart):
    for seed in range(1 if apart else 3):
        rng = np.random.default_rng(seed)
        clouds = apart * rng.integers(0, 2, (240, 1))
        features = (rng.normal(size=(240, 300)) + clouds).astype(np.float32)
        digests = [str(number) for number in range(240)]
        lots = checks.random_labels(digests, CLASSES, seed)
        assert checks.random_label_accuracy(features[:160], lots[:160], features[160:], lots[160:]).passed
        shared = np.arange(120, 200)  # half of these are among the first 160
        leaking = checks.random_label_accuracy(features[:160], lots[:160], features[shared], lots[shared])
        assert not leaking.passed and "split.csv" in leaking.advice


def test_the_lot_is_the_contents_alone():
    lots = checks.random_labels(["a", "b", "a"] + [str(n) for n in range(300)], CLASSES, seed=0)
    assert lots[0] == lots[2] and np.bincount(lots, minlength=CLASSES).min() > 70
    assert not np.array_equal(
        lots, checks.random_labels(["a", "b", "a"] + [str(n) for n in range(300)], CLASSES, seed=1)
    )


def test_a_full_disk_is_found(tmp_path):
    assert checks.disk_space(tmp_path / "not" / "there" / "yet", 1000).passed
    check = checks.disk_space(tmp_path, 1e18)
    assert not check.passed and "data.cache" in check.advice


def test_too_little_memory_is_found(monkeypatch):
    monkeypatch.setattr(checks.device, "available_memory", lambda: 2.0 * 2**30)
    assert checks.memory(2**30).passed
    check = checks.memory(3 * 2**30)
    assert not check.passed and "2.0 GiB" in check.found and "3.0 GiB" in check.expected
    monkeypatch.setattr(checks.device, "available_memory", lambda: float("inf"))
    assert checks.memory(1e15).passed, "where the system does not say, nothing is asked"


def test_the_disk_that_a_run_needs_is_that_of_its_images_and_not_the_limit_of_the_cache(
    make_folder, tmp_path, monkeypatch
):
    folder, asked = str(make_folder(each=20)), []
    monkeypatch.setattr(checks, "disk_space", lambda folder, needed: asked.append(needed))

    def needed(epochs: int, gb: float = 8.0) -> tuple[float, int]:
        data = Data(path=folder, image_size=SIZE, cache=str(tmp_path / f"cache {gb}"), cache_gb=gb)
        config = Config(data=data, backbone=TINY, stages=(Stage(unfreeze=1, epochs=epochs),))
        begun = preflight.Begun.of(config, progress.Timer())
        model = begun.model()
        preflight._machine(begun, model, decoded=0)
        activations = boundary(model, find_blocks(model, TINY), 1).shape[1:]
        return asked[-1], 2 * len(begun.train) * int(np.prod(activations))

    (two, view), (four, _), (none, _) = needed(2), needed(4), needed(4, gb=0.0001)
    assert four - two == 2 * view and two < 2**27
    assert four - none > 4 * view, "what does not fit is not cached"


def run(*arguments) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code, out.getvalue(), err.getvalue()


@pytest.mark.slow  # a preflight of pretrained weights is in test_journey.py, with what is asserted here
@pytest.mark.parametrize("pretrained", [True, False], ids=["pretrained", "from scratch"])
def test_the_script_passes_what_is_in_order(make_folder, tmp_path, monkeypatch, pretrained):
    monkeypatch.setattr(baselines, "STEPS", 3)
    keras.utils.set_random_seed(0)
    build_backbone(TINY, SIZE).save_weights(tmp_path / "tiny.weights.h5")
    settings = [f"--data.path={make_folder(each=20)}", "--data.image_size=32", f"--data.cache={tmp_path / 'cache'}"]
    settings += ["--backbone.name=tiny", f"--backbone.weights={tmp_path / 'tiny.weights.h5' if pretrained else 'none'}"]
    settings += ["--data.cache_gb=0.1", "--augment.hflip=false"]
    code, said, _ = run(*settings, "--out", tmp_path / "out")
    saved = json.loads((tmp_path / "out/preflight.json").read_text())
    failed = [check["name"] for check in saved["checks"] if not check["passed"]]
    assert not failed and code == 0 and "FAIL" not in said
    assert len(saved["checks"]) == (11 if pretrained else 9)
    assert {
        "validation accuracy of the majority class",
        "seconds of the run without its report, about",
    } <= set(saved["numbers"])
    with Image.open(tmp_path / "out/preflight.png") as image:
        assert image.width == 8 * 164 and np.asarray(image).std() > 20


def test_what_cannot_be_used_is_said_plainly(tmp_path):
    code, _, said = run("--data.path=" + str(tmp_path / "nowhere"))
    assert code == 2 and "does not exist" in said
    code, _, said = run("--data.pth=x")
    assert code == 2 and "Did you mean 'data.path'?" in said
