"""An exported run says what the run says, through its own runtime and without TensorFlow; or it is not kept."""

import csv
import dataclasses
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import call, class_folders
from PIL import Image
from served import ONLY, built

from template import disk, runs
from template.config import TTA, Backbone, Config, Data, to_toml
from template.data.examples import DataError, load_examples
from template.data.images.load import BadImageError, load_image
from template.deploy.runtime import BATCH, Answer, Classifier, Inputs
from template.evaluate import metrics
from template.evaluate.predictions import Predictions

CLASSES, SIZE, TEMPERATURE = ("across", "disc", "upright"), 32, 1.7
NEEDED = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "tf2onnx")),
    reason='needs the extra onnx: pip install -e ".[onnx]"',
)


def finished_run(folder: Path, images: Path, val: int = 12) -> Path:
    """What a finished run leaves, with a network that nobody has trained."""
    import keras

    from template.deploy.novelty import Novelty
    from template.deploy.predictor import save_model, with_features
    from template.model.build import build

    keras.utils.set_random_seed(3)
    backbone, folder = Backbone(name="tiny", weights="none"), folder / "run"
    folder.mkdir()
    tta = TTA(hflip=True, full_image=True, center_zoom=True)
    config = Config(data=Data(path=str(images), image_size=SIZE), backbone=backbone, tta=tta)
    model = build(backbone, config.head, SIZE, [1, 1, 1])
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([60 * kernel, bias])  # or it says a third of everything
    save_model(model, folder)
    runs.write_text(folder / "config.toml", to_toml(config))
    runs.write_json(folder / "classes.json", list(CLASSES))
    examples = load_examples(str(images))
    names = np.array(CLASSES)[examples.labels]
    parts = np.where(np.random.default_rng(0).permutation(len(names)) < val, "val", "train")
    rows = zip(examples.ids, names, parts, strict=True)
    table = "id,sha256,label,part\n" + "".join(f"{name},,{label},{part}\n" for name, label, part in rows)
    runs.write_text(folder / "split.csv", table)
    learned = np.stack([load_image(images / name, SIZE, "crop") for name in examples.ids[parts == "train"]])
    _, features = with_features(model).predict(learned.astype(np.float32), verbose=0)
    Novelty.fit(features, np.arange(len(features))).save(folder)
    held = np.flatnonzero(parts == "val")
    logits = np.eye(3, dtype=np.float32)[examples.labels[held]]
    predictions = Predictions(examples.ids[held], examples.labels[held], logits, CLASSES)
    predictions.save(folder / "predictions_val.npz")
    runs.write_json(folder / "metrics.json", {"test": None, "val": metrics.score(predictions)})
    reject = {"target": 0.95, "confidence": 0.8, "coverage": None, "accuracy": None}
    runs.write_json(
        folder / "calibration.json",
        {"temperature": TEMPERATURE, "reject": reject, "thresholds": {"disc": {"threshold": 0.4}}},
    )
    runs.write_json(folder / "run.json", {"environment": {"keras": "3"}, "split_sha256": "abc"})
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Photographs that are wider than high, so that their crop is not all of them."""
    folder = class_folders(tmp_path_factory.mktemp("photos") / "photos", each=14, size=60)
    for file in folder.rglob("*.png"):
        with Image.open(file) as image:
            image.crop((0, 0, 60, 44)).save(file)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, images, shallow) -> Path:
    """A run that has been exported to ONNX."""
    folder = finished_run(tmp_path_factory.mktemp("export"), images)
    code, said = call("export", "--run", folder, "--format", "onnx")
    assert code == 0, f"{code}\n{said}"
    (folder / "said.txt").write_text(said)
    return folder


@pytest.fixture(scope="module")
def said(run, images) -> dict[str, Answer]:
    """What Keras says of each image, by its path."""
    from template.deploy.novelty import Novelty
    from template.deploy.predictor import classify_with_novelty, load_run

    config, _, model = load_run(run)
    files = sorted(images.rglob("*.png"))
    return {
        str(file): answer
        for file, answer in classify_with_novelty(model, config, files, TEMPERATURE, Novelty.load(run))
    }


@pytest.fixture(scope="module")
def expected(said) -> dict[str, np.ndarray]:
    return {file: answer.probabilities for file, answer in said.items()}


@pytest.mark.slow
@NEEDED
def test_novelty_is_the_same_by_all_ways(run, said, tmp_path):
    """By Keras with NumPy; by the network that TensorFlow serves; by onnxruntime; by a SavedModel."""
    from template.deploy.export.graph import Served, load_saved_model, write_saved_model
    from template.deploy.novelty import Novelty
    from template.deploy.predictor import load_run
    from template.deploy.serve.deployed import open_runs

    strange = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(strange)
    files, wanted = [*map(Path, said)], [answer.novelty for answer in said.values()]
    ways = [open_runs([run], runtime)[0].classifier for runtime in ("keras", "onnx")]
    write_saved_model(Served(load_run(run)[2], TEMPERATURE, True, Novelty.load(run)), tmp_path / "saved", {})
    about = {"class_names": CLASSES, "inputs": dataclasses.asdict(ways[0].inputs), "temperature": TEMPERATURE}
    ways.append(Classifier(load_saved_model(tmp_path / "saved"), about))
    for way in ways:
        *found, last = [answer.novelty for _, answer in way.classify_files([*files, strange])]
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        assert last > 1 and np.mean(np.array(found) > 1) < 0.3 and np.ptp(found) > 0.3


@pytest.fixture(scope="module")
def classifier(run) -> Classifier:
    return Classifier.of_run(run)


# The runtime


def linear(pixels: np.ndarray) -> list[np.ndarray]:
    """A network of one's own: probabilities of an image and of its mirror image, at the temperature."""
    weights = np.linspace(-1, 1, 6 * 6 * 3 * 3).reshape(6 * 6 * 3, 3)
    each = [p / p.sum(axis=1, keepdims=True) for p in (np.exp(view.reshape(len(view), -1) @ weights / 2e2)
            for view in (pixels, pixels[:, :, ::-1]))]  # fmt: skip
    return [tempered(np.mean(each, axis=0)).astype(np.float32)]


def tempered(mean: np.ndarray) -> np.ndarray:
    scaled = mean ** (1 / TEMPERATURE)
    return scaled / scaled.sum(axis=1, keepdims=True)


ABOUT = {
    "class_names": ["a", "b", "c"],
    "temperature": TEMPERATURE,
    "inputs": {"image_size": 6, "resize": "crop", "bits": "auto", "max_megapixels": 1.0, "full_image": True,
               "center_zoom": True},
}  # fmt: skip


def test_the_mean_over_views_is_that_of_what_the_network_said_before_the_temperature():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 6, 6, 3)).astype(np.uint8)
    inside = np.stack([linear(pixels[:, view].astype(np.float32))[0].astype(float) for view in range(3)])
    before = inside**TEMPERATURE / (inside**TEMPERATURE).sum(axis=2, keepdims=True)
    found = Classifier(linear, ABOUT).classify(pixels)
    assert np.abs(found - inside[0]).max() > 0.01, "the views differ"
    np.testing.assert_allclose(found, tempered(before.mean(axis=0)), atol=1e-6)
    alone = Classifier(linear, ABOUT).classify(pixels[:, :1])
    np.testing.assert_allclose(alone, inside[0], atol=1e-6)


def test_batches_are_small_and_nothing_gets_lost_between_them():
    sizes = []

    def infer(pixels: np.ndarray) -> list[np.ndarray]:
        assert pixels.dtype == np.float32
        sizes.append(len(pixels))
        return linear(pixels)

    pixels = np.random.default_rng(1).integers(0, 256, (BATCH + 9, 2, 6, 6, 3)).astype(np.uint8)
    found = Classifier(infer, ABOUT).classify(pixels)
    assert max(sizes) <= BATCH and sum(sizes) == 2 * len(pixels)
    np.testing.assert_allclose(found[[40]], Classifier(linear, ABOUT).classify(pixels[[40]]), atol=1e-7)


def test_views_are_those_that_predict_sees(images):
    file = next(images.rglob("*.png"))
    inputs = Inputs(**{**ABOUT["inputs"], "image_size": 24})
    views, note = inputs.load(file.read_bytes())
    assert inputs.views == ("crop", "stretch", "center_zoom") and views.shape == (3, 24, 24, 3) and note == ""
    np.testing.assert_array_equal(views[0], load_image(file, 24, "crop"))
    np.testing.assert_array_equal(views[1], load_image(file, 24, "stretch"))
    assert dataclasses.replace(inputs, resize="pad").views == ("pad", "center_zoom"), "the whole image is seen already"


# ONNX


@NEEDED
def test_files_bytes_and_arrays_are_answered_as_keras_answers_files(classifier, expected):
    assert len(expected) == 42 and classifier.class_names == CLASSES
    for sources in (
        [Path(file) for file in expected],
        [Path(file).read_bytes() for file in expected],
        [np.asarray(Image.open(file)) for file in expected],
    ):
        found = np.stack([answer.probabilities for _, answer in classifier.classify_files(sources)])
        np.testing.assert_allclose(found, np.stack(list(expected.values())), atol=1e-5)
    assert len(set(found.argmax(axis=1))) > 1 and np.ptp(found.max(axis=1)) > 0.1, "there is something to differ in"


@NEEDED
def test_what_cannot_be_read_has_a_reason_and_its_neighbours_an_answer(classifier, expected):
    file, answer = next(iter(expected.items()))
    contents, tall, notes = Path(file).read_bytes(), io.BytesIO(), []
    Image.new("I;16", (50, 50), 900).save(tall, "PNG")
    sources = [contents[:40], contents, b"", tall.getvalue()]
    found = [result for _, result in classifier.classify_files(sources, lambda source, note: notes.append(note))]
    assert isinstance(found[0], BadImageError) and isinstance(found[2], BadImageError)
    np.testing.assert_allclose(found[1].probabilities, answer, atol=1e-5)
    assert len(notes) == 1 and "bits" in notes[0]


@NEEDED
def test_threads_may_share_a_classifier(classifier, expected):
    pixels = [classifier.inputs.load(Path(file))[0] for file in expected]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: classifier.classify(image[None])[0], pixels * 4))
    np.testing.assert_allclose(found, list(expected.values()) * 4, atol=1e-5)


ALLOWED = {"PIL", "numpy", "onnxruntime", "template"}


@NEEDED
def test_predict_needs_no_tensorflow_and_says_the_same(run, images, said, expected, tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    image = tmp_path / "image"
    entry, home = built("runtime", run, image), tmp_path / "home"
    home.mkdir()
    inputs = ["--quiet", "--out", tmp_path / "p.csv", images, tmp_path / "notes.txt"]
    line = [sys.executable, "-c", ONLY, " ".join(ALLOWED), *entry, *inputs]
    env = {"PYTHONPATH": ".", "HOME": str(home)}
    done = subprocess.run(list(map(str, line)), cwd=image / "app", env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert not list(home.iterdir()), "onnxruntime keeps no number of this machine"
    assert "43 images, 42 classified, 1 could not be read" in done.stdout
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*expected, str(tmp_path / "notes.txt")]
    assert rows.pop()["problem"] == "text, not an image; remove it"
    np.testing.assert_allclose(
        [float(row["novelty"]) for row in rows], [answer.novelty for answer in said.values()], atol=2e-3
    )
    for row, answer in zip(rows, expected.values(), strict=True):
        assert [row[f"class_{k}"] for k in (1, 2, 3)] == [CLASSES[i] for i in np.argsort(-answer)]
        np.testing.assert_allclose(
            [float(row[f"probability_{k}"]) for k in (1, 2, 3)], np.sort(answer)[::-1], atol=1e-5
        )


@NEEDED
def test_a_file_that_was_exchanged_or_is_none_of_ours_is_refused(run, tmp_path):
    import onnx

    with pytest.raises(DataError, match="has no ONNX export of precision int8: .*--precision int8"):
        Classifier.of_run(run, "int8")
    copy = shutil.copytree(run, tmp_path / "copy")
    file = copy / "export" / "model.onnx"
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {})
    onnx.save(model, file)
    with pytest.raises(DataError, match="is not the file that was exported"):
        Classifier.of_run(copy)
    with pytest.raises(DataError, match="does not say how images are prepared"):
        Classifier.of_file(file)
    file.write_bytes(b"no network")
    with pytest.raises(DataError, match="cannot be loaded by onnxruntime"):
        Classifier.of_file(file)
    last_words, _ = call("predict", "--run", copy, "--runtime", "onnx", file)
    assert "is not the file that was exported" in last_words
    code, said = call("predict", "--run", copy, "--precision", "int8", file)
    assert code == 2 and "without --runtime onnx" in said
    (copy / "split.csv").unlink()
    last_words, _ = call("export", "--run", copy)
    assert "has no split.csv" in last_words


@NEEDED
def test_the_file_holds_what_is_needed_to_feed_it(run):
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    (pixels,), (probabilities, novelty) = session.get_inputs(), session.get_outputs()
    assert (pixels.name, pixels.shape, pixels.type) == ("pixels", ["batch", SIZE, SIZE, 3], "tensor(float)")
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["batch", 3])
    assert (novelty.name, novelty.shape) == ("novelty", ["batch"])
    saved = session.get_modelmeta().custom_metadata_map
    assert json.loads(saved["class_names"]) == list(CLASSES) and json.loads(saved["temperature"]) == TEMPERATURE
    assert json.loads(saved["inputs"])["resize"] == "crop"
    for batch in (1, 5):
        found, far = session.run(None, {"pixels": np.zeros((batch, SIZE, SIZE, 3), np.float32)})
        assert far.shape == (batch,)
        np.testing.assert_allclose(found.sum(axis=1), np.ones(batch), atol=1e-6)


# The export


@NEEDED
def test_the_table_and_the_card_say_what_was_compared(run, expected):
    card, said = json.loads((run / "export" / "model_card.json").read_text()), (run / "said.txt").read_text()
    keras, onnx = card["artefacts"]
    assert onnx["images"] == 32, "12 of validation, and 20 of training"
    assert onnx["agreement"] == 1 and 0 < onnx["largest_difference"] < 1e-4
    val = Predictions.load(run / "predictions_val.npz")
    answers = {"/".join(Path(file).parts[-2:]): answer.argmax() for file, answer in expected.items()}
    right = np.mean([answers[str(name)] == label for name, label in zip(val.ids, val.labels, strict=True)])
    assert keras["accuracy"]["value"] == onnx["accuracy"]["value"] == pytest.approx(right)
    assert onnx["bytes"] == (run / "export" / "model.onnx").stat().st_size
    assert onnx["sha256"] == disk.sha256(run / "export" / "model.onnx")
    assert "onnx float32" in said and f"{100 * right:.1f} %" in said and "compared on 32 images" in said
    assert card["classes"] == list(CLASSES) and card["images"] == {"train": 30, "val": 12}
    assert card["reject"]["confidence"] == 0.8 and card["scores"]["part"] == "val" and card["data_sha256"] == "abc"
    assert card["views"]["inside"] == ["the image", "its mirror image"] and len(card["views"]["outside"]) == 3
    text = (run / "export" / "model_card.md").read_text()
    for part in ("`across`", "BILINEAR", "not sure", onnx["sha256"], "`disc`: 0.400", "keras 3"):
        assert part in text


@NEEDED
@pytest.mark.slow
def test_one_that_says_something_else_than_keras_is_an_error_and_not_kept(run, tmp_path, monkeypatch):
    from template.deploy.export import export

    freeze = export.freeze

    def wrong(served):
        served.temperature = 1.0
        return freeze(served)

    monkeypatch.setattr(export, "freeze", wrong)
    last_words, _ = call("export", "--run", run, "--out", tmp_path / "new")
    assert "onnx float32: says something else than Keras on 32 images" in last_words and "not kept" in last_words
    assert not list(tmp_path.iterdir()), "no file is left, no folder either"


@NEEDED
@pytest.mark.slow
def test_others_are_kept_where_one_cannot_be_made(run, tmp_path, monkeypatch):
    from template.deploy.export import onnx as export_onnx

    conversions, converted = [], export_onnx.converted
    monkeypatch.setattr(export_onnx, "converted", lambda *what: conversions.append(1) or converted(*what))
    monkeypatch.setattr(export_onnx, "_halved", lambda model, exactly: model if exactly else 1 / 0)
    line = ("--precision", "float16", "float32", "--out", tmp_path / "new")
    last_words, said = call("export", "--run", run, *line)
    assert last_words.startswith("onnx float16: tiny cannot be converted: ZeroDivisionError") and "onnx float32" in said
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "model.onnx", "model_card.json", "model_card.md"
    ]  # fmt: skip
    assert len(conversions) == 1, "for all precisions"


@NEEDED
def test_int8_is_calibrated_on_training_images_and_compared_on_validation(run, images):
    from template.config import load
    from template.deploy.export.images import images_of

    val = Predictions.load(run / "predictions_val.npz")
    for most, wanted in ((256, 12), (5, 5)):
        found = images_of(run, load(run / "config.toml"), CLASSES, None, most)
        names = [str(file.relative_to(images)) for file in found.compared]
        assert set(names[:wanted]) <= set(val.ids) and len(names) == 32 and len(found.labels) == wanted
        assert not {str(file.relative_to(images)) for file in found.calibration} & set(val.ids)
        assert [CLASSES[label] for label in found.labels] == [name.partition("/")[0] for name in names[:wanted]]


def test_convolutions_of_one_channel_a_group_become_depthwise_ones_and_say_the_same():
    import keras
    from keras import layers

    from template.deploy.export.graph import with_depthwise

    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, groups=3, name="grouped")(pixels)  # two filters a channel: stays
    x = layers.Conv2D(6, 3, padding="same", groups=6, activation="relu", strides=2, name="one")(x)
    model = keras.Model(pixels, layers.Flatten()(x))
    copy, noise = with_depthwise(model), np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    assert isinstance(copy.get_layer("one"), layers.DepthwiseConv2D) and with_depthwise(copy) is copy
    np.testing.assert_allclose(copy(noise), model(noise), atol=1e-5)
    assert np.ptp(model(noise)) > 0.1


def test_where_memory_is_too_small_it_is_said_before_the_process_is_killed(monkeypatch):
    from types import SimpleNamespace

    from template.deploy.export import graph

    monkeypatch.setattr(graph.device, "available_memory", lambda: 5e9)
    with pytest.raises(MemoryError, match=r"about 7\.0 GB of memory are needed, and 5\.0 GB can be had now\. Close"):
        graph.freeze(SimpleNamespace(model=SimpleNamespace(count_params=lambda: 87_500_000)))  # ConvNeXtBase's


@NEEDED
@pytest.mark.slow
def test_every_format_and_precision_keeps_the_names_of_the_classes(run, tmp_path):
    pytest.importorskip("ai_edge_litert", reason='needs the extra litert: pip install -e ".[litert]"')
    line = ("--format", "onnx", "litert", "savedmodel", "--precision", "float32", "float16", "int8")
    code, said = call("export", "--run", run, *line, "--out", tmp_path / "new")
    assert code == 0 and "savedmodel int8: not made" in said
    card = json.loads((tmp_path / "new" / "model_card.json").read_text())
    assert len(card["artefacts"]) == 1 + 3 + 3 + 1
    for row in card["artefacts"][1:]:
        assert row["agreement"] > 0.9 and row["largest_difference"] < {"int8": 0.3}.get(row["precision"], 0.02)
        assert row["file"] in said or f"{row['format']} {row['precision']}" in said
    sizes = {row["file"]: row["bytes"] for row in card["artefacts"]}
    assert sizes["saved_model"] < 1.8 * sizes["model.onnx"], "the weights once, and the graph"
    for ending in ("onnx", "tflite"):
        assert sizes[f"model.float16.{ending}"] < 0.6 * sizes[f"model.{ending}"]
        assert sizes[f"model.int8.{ending}"] < 0.5 * sizes[f"model.{ending}"]
    with zipfile.ZipFile(tmp_path / "new" / "model.int8.tflite") as archive:
        assert archive.read("labels.txt").decode().split() == list(CLASSES)
    names = tmp_path / "new" / "saved_model" / "assets.extra" / "class_names.json"
    assert json.loads(names.read_text()) == list(CLASSES)
    assert Classifier.of_file(tmp_path / "new" / "model.int8.onnx").class_names == CLASSES


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ({"precision": "float32", "largest_difference": 1e-4, "agreement": 1.0}, True),
        ({"precision": "float32", "largest_difference": 2e-3, "agreement": 1.0}, False),
        ({"precision": "float32", "largest_difference": float("nan"), "agreement": 0.3}, False),
        ({"precision": "float16", "largest_difference": 2e-3, "agreement": 1.0}, True),
        ({"precision": "float16", "largest_difference": 0.1, "agreement": 1.0}, False),
        ({"precision": "float32", "largest_difference": 0.0, "agreement": 1.0, "novelty_difference": 5e-4}, True),
        ({"precision": "int8", "largest_difference": 0.2, "agreement": 0.96}, True),
        ({"precision": "int8", "largest_difference": 0.9, "agreement": 0.56}, False),
        ({"precision": "int8", "largest_difference": float("nan"), "agreement": 1.0}, False),
    ],
)
def test_what_counts_as_saying_the_same(row, kept):
    from template.deploy.export.export import ExportError, check

    if kept:
        check({"images": 32, **row})
    else:
        with pytest.raises(ExportError, match="says something else than Keras"):
            check({"images": 32, **row})


def test_a_folder_of_other_files_is_not_replaced_and_formats_have_their_precisions(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    last_words, _ = call("export", "--run", "RUN", "--out", tmp_path / "mine")
    assert "holds other files than an export" in last_words and (tmp_path / "mine" / "thesis.txt").exists()
    last_words, said = call("export", "--run", "RUN", "--format", "savedmodel", "--precision", "int8")
    assert "savedmodel int8: not made" in said and "nothing to export" in last_words
    last_words, _ = call("export", "--run", tmp_path)
    assert "does not hold a finished run" in last_words


@NEEDED
def test_images_of_a_run_that_are_elsewhere_now_are_found_where_one_says(run, images, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    text = (copy / "config.toml").read_text().replace(str(images), "/nowhere")
    (copy / "config.toml").write_text(text)
    last_words, _ = call("export", "--run", copy)
    assert "'/nowhere' does not exist" in last_words and "--data.path" in last_words
    few = shutil.copytree(images, tmp_path / "few")
    shutil.rmtree(few / "disc")
    last_words, _ = call("export", "--run", copy, "--data.path", few)
    assert "images of the run are missing, such as 'disc/" in last_words
