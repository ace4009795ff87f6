"""A run is served as it was trained: the network in its file, preprocessing included, and nothing of it executed."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import image
from keras.src.saving import object_registration

from template import disk, runs
from template.config import TTA, Backbone, Config, Data, Head, Stage, Train, to_toml
from template.data.examples import DataError
from template.deploy.predictor import inputs_of, load_run, save_model
from template.model.backbones import BACKBONES, build_backbone, standardise
from template.model.blocks import find_blocks
from template.model.build import build
from template.train.losses import training_loss
from template.train.one_stage import compile_for
from template.train.optimizers import create_optimizer, create_schedule
from template.train.penalties import penalise

SIZE = 32
QUICK = ("tiny",)
NARROW = {"mobilenet": {"alpha": 0.25}, "mobilenetv2": {"alpha": 0.35}}
APPS = keras.applications
KERAS = {name.lower(): getattr(APPS, name) for name in dir(APPS) if callable(getattr(APPS, name))}
ALSO = {"efficientnetb0", "efficientnetb1", "efficientnetb2", "efficientnetb3"}  # Keras makes two networks of each
LARGE = {"inceptionv3", "xception"}  # take no images this small: test_every_backbone.py
OURS = ("tiny", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def two_images() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([image(kind, rng, SIZE) for kind in ("across", "disc")]).astype("float32")


@pytest.fixture
def images() -> np.ndarray:
    return two_images()


def run(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(model(images, training=False))


def pretrained(name: str, file: Path) -> Backbone:
    """Settings of a backbone whose weights somebody else trained: a file without preprocessing of ours."""
    keras.utils.set_random_seed(0)
    how = NARROW.get(name, {})
    if name in KERAS.keys() - ALSO:
        network = KERAS[name](include_top=False, weights=None, input_shape=(SIZE, SIZE, 3), **how)
    elif name in OURS:
        network = BACKBONES[name].build(weights=None, input_tensor=keras.Input((SIZE, SIZE, 3)))
    else:  # of which Keras makes two networks, one of them for its own weights
        network = build_backbone(Backbone(name=name, weights="none"), SIZE)
    network.save_weights(file)
    return Backbone(name=name, weights=str(file), **how)


def folder_of(backbone: Backbone, head: Head, folder: Path, classes: int = 3) -> None:
    """What `load_run` reads beside the model."""
    folder.mkdir(exist_ok=True)
    config = Config(data=Data(path="x", image_size=SIZE), backbone=backbone, head=head)
    runs.write_text(folder / "config.toml", to_toml(config))
    runs.write_json(folder / "classes.json", [f"class {number}" for number in range(classes)])


def rewritten(folder: Path, change) -> None:
    """Change the configuration in a model.keras, and let model.json hold the digest of the new file."""
    with zipfile.ZipFile(folder / "model.keras") as whole, zipfile.ZipFile(folder / "other.keras", "w") as other:
        for name in whole.namelist():
            data = whole.read(name)
            if name == "config.json":
                saved = json.loads(data)
                change(saved)
                data = json.dumps(saved).encode()
            other.writestr(name, data)
    (folder / "other.keras").replace(folder / "model.keras")
    saved = json.loads((folder / "model.json").read_text())
    runs.write_json(folder / "model.json", saved | {"file": disk.sha256(folder / "model.keras")})


# Preprocessing


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in BACKBONES if name not in LARGE],
)
def test_a_run_from_pretrained_weights_is_loaded_and_says_the_same(name, tmp_path, images):
    weights = tmp_path / "theirs.weights.h5"
    backbone = pretrained(name, weights)
    model = build(backbone, Head(), SIZE, [1, 2, 3])
    folder_of(backbone, Head(), tmp_path / "run")
    save_model(model, tmp_path / "run")
    weights.unlink()  # what was trained from is not needed any more
    config, classes, loaded = load_run(tmp_path / "run")
    assert config.backbone == backbone and len(classes) == 3
    np.testing.assert_array_equal(run(loaded, images), run(model, images))

    # Given to another run, the file is read with the preprocessing that its weights were trained with.
    again = build_backbone(dataclasses.replace(backbone, weights=str(tmp_path / "run" / "model.keras")), SIZE)
    again = keras.Model(again.inputs[0], again.outputs[0])  # Keras's own builders take a list of one
    features = keras.Model(model.inputs[0], model.get_layer("pool_avg").input)
    np.testing.assert_array_equal(run(again, images), run(features, images))
    (tmp_path / "run" / "model.keras").unlink()  # they are large


def test_a_run_from_scratch_given_to_another_is_standardised_as_it_was(tmp_path, images):
    """Its .keras file says so, and of a .weights.h5 the arrays do."""
    backbone = Backbone(name="tiny", weights="none")
    model = build(backbone, Head(), SIZE, [1, 2, 3])
    base = keras.Model(model.inputs[0], model.get_layer("pool_avg").input)
    standardise(base, np.array([10.0, 90, 200]), np.array([4.0, 900, 25]))
    save_model(model, tmp_path)
    base.save_weights(tmp_path / "tiny.weights.h5")
    folder_of(backbone, Head(), tmp_path)
    np.testing.assert_array_equal(run(load_run(tmp_path)[2], images), run(model, images))
    for file in ("model.keras", "tiny.weights.h5"):
        again = build_backbone(Backbone(name="tiny", weights=str(tmp_path / file)), SIZE)
        again = keras.Model(again.inputs[0], again.outputs[0])
        np.testing.assert_array_equal(run(again, images), run(base, images))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_run_of_the_first_version_is_read(tmp_path, images, precision):
    """Which saved the compiled model as it was: with its optimizer, losses of ours, and mixed precision."""
    backbone = pretrained("tiny", tmp_path / "theirs.weights.h5")
    keras.config.set_dtype_policy(precision)
    try:
        model = build(backbone, Head(feature_levels=2, power_norm=True), SIZE, [1, 2, 3])
    finally:
        keras.config.set_dtype_policy("float32")
    settings, stage = Train(class_weights="balanced", loss="focal"), Stage(schedule="step")
    loss = training_loss(settings, np.array([3, 4, 5]), ("a", "b", "c"))
    compile_for(model, create_optimizer(stage, create_schedule(stage, 10), True, 1), loss)
    folder_of(backbone, Head(feature_levels=2, power_norm=True), tmp_path)
    model.save(tmp_path / "model.keras")
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.dtype} {weight.shape} ".encode() + weight.tobytes())
    saved = {"file": disk.sha256(tmp_path / "model.keras"), "weights": digest.hexdigest()}
    runs.write_json(tmp_path / "model.json", saved)
    np.testing.assert_array_equal(run(load_run(tmp_path)[2], images), run(model, images))


# Without our code

SAVED = {
    "weights-step-drops": {
        "train": {"class_weights": "balanced"}, "stage": {"schedule": "step"}, "backbone": {"stochastic_depth": 0.1},
        "head": {"drop_block": 0.1, "drop_connect": 0.1, "gaussian_dropout": 0.1},
    },
    "focal-exponential-prelu": {
        "train": {"loss": "focal"}, "stage": {"schedule": "exponential"},
        "head": {"hidden": 4, "activation": "prelu", "pooling": "both"},
    },
    "adjusted-plateau-maxout": {
        "train": {"logit_adjustment": 1.0}, "stage": {"schedule": "plateau"},
        "head": {"hidden": 4, "activation": "maxout", "drop_connect": 0.1},
    },
    "smoothed-accumulated-penalised-levels": {
        "train": {"label_smoothing": 0.1, "gradient_accumulation_steps": 2},
        "stage": {"layer_decay": 0.9, "clipnorm": 1.0, "l2": 0.1, "l2_sp": 0.1},
        "head": {"l2": 0.1, "max_norm": 1.0, "feature_levels": 3, "power_norm": True, "pooling": "max"},
    },
    "mixed": {
        "train": {"precision": "mixed_float16", "class_weights": "balanced"},
        "head": {"feature_levels": 2, "power_norm": True, "drop_block": 0.1},
    },
}  # fmt: skip

ELSEWHERE = """
import sys
sys.modules["template"] = None
import keras, numpy as np
for file in sys.argv[2:]:
    model = keras.saving.load_model(file)
    assert not model.compiled and not hasattr(model, "optimizer"), file
    assert all(layer.compute_dtype == "float32" for layer in model._flatten_layers()), file
    np.save(file + ".npy", model(np.load(sys.argv[1]), training=False))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory, shallow) -> tuple[Path, np.ndarray, dict[str, np.ndarray]]:
    """A folder of the runs of SAVED, images, and what each run says of them."""
    tmp_path, images, expected = tmp_path_factory.mktemp("saved"), two_images(), {}
    np.save(tmp_path / "images.npy", images)
    for name, how in SAVED.items():
        backbone = Backbone(name="tiny", weights="none", **how.get("backbone", {}))
        stage, settings = Stage(unfreeze="all", **how.get("stage", {})), Train(**how.get("train", {}))
        keras.config.set_dtype_policy(settings.precision)
        try:
            model = build(backbone, Head(**how.get("head", {})), SIZE, [1, 2, 3])
            penalise(model, stage, find_blocks(model, backbone), [np.asarray(v) for v in model.variables])
            optimizer = create_optimizer(stage, create_schedule(stage, 10), True, settings.gradient_accumulation_steps)
            compile_for(model, optimizer, training_loss(settings, np.array([3, 4, 5]), ("a", "b", "c")))
        finally:
            keras.config.set_dtype_policy("float32")
        (tmp_path / name).mkdir()
        served = save_model(model, tmp_path / name)
        folder_of(backbone, Head(**how.get("head", {})), tmp_path / name)
        expected[name] = run(served, images)
        load_run(tmp_path / name)
        close = 1e-5 if settings.precision == "float32" else 0.1
        np.testing.assert_allclose(expected[name], run(model, images), atol=close, rtol=close, err_msg=name)
        assert model.compiled, "the model itself goes on training"
    return tmp_path, images, expected


def test_a_saved_run_is_an_inference_model_that_needs_no_code_of_ours(saved, monkeypatch):
    folder, images, expected = saved
    monkeypatch.setattr(object_registration, "GLOBAL_CUSTOM_OBJECTS", {})  # none of ours is registered
    for module in [name for name in sys.modules if name.partition(".")[0] == "template"]:
        monkeypatch.setitem(sys.modules, module, None)  # nor to be imported
    for name, logits in expected.items():
        model = keras.saving.load_model(folder / name / "model.keras")
        assert not model.compiled and not hasattr(model, "optimizer"), name
        assert all(layer.compute_dtype == "float32" for layer in model._flatten_layers()), name
        np.testing.assert_allclose(run(model, images), logits, atol=1e-5, err_msg=name)
        with zipfile.ZipFile(folder / name / "model.keras") as archive:
            assert b"template" not in archive.read("config.json")
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
                assert list(weights) == ["layers", "vars"], "no optimizer"


@pytest.mark.slow  # as above, in a process that has never heard of us
def test_a_saved_run_is_loaded_elsewhere(saved):
    folder, _, expected = saved
    files = [folder / name / "model.keras" for name in SAVED]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, "images.npy", *files], check=True, cwd=folder, env=clean)
    for name, logits in expected.items():
        np.testing.assert_allclose(np.load(folder / name / "model.keras.npy"), logits, atol=1e-5, err_msg=name)


# Files of somebody else's


def relu(saved: dict) -> dict:
    return next(layer for layer in saved["config"]["layers"] if layer["class_name"] == "Activation")


def named(module: str, name: str, config) -> dict:
    return {"module": module, "class_name": name, "registered_name": None, "config": config}


HOSTILE = {
    "a layer with code": lambda saved: relu(saved).update(class_name="Lambda"),
    "a layer that reads files": lambda saved: relu(saved).update(class_name="TFSMLayer"),
    "a function": lambda saved: relu(saved)["config"].update(
        activation=named("builtins", "function", "keras.utils.get_file")
    ),
    "code": lambda saved: relu(saved)["config"].update(
        activation={"class_name": "__lambda__", "config": {"value": ""}}
    ),
    "a module of theirs": lambda saved: relu(saved).update(module="theirs", registered_name="theirs>Activation"),
    "a module within": lambda saved: relu(saved)["config"].update(activation=named("theirs", "ReLU", {})),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_nothing_in_a_file_is_executed_even_if_its_digest_is_right(tmp_path, monkeypatch, change):
    backbone = Backbone(name="tiny", weights="none")
    folder_of(backbone, Head(), tmp_path / "run")
    save_model(build(backbone, Head(), SIZE, [1, 2, 3]), tmp_path / "run")
    rewritten(tmp_path / "run", lambda saved: None)
    load_run(tmp_path / "run")  # it is not the rewriting that is refused
    rewritten(tmp_path / "run", change)
    (tmp_path / "theirs.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it is not built at all"))
    with pytest.raises(DataError, match="does not hold this run's network: it names "):
        load_run(tmp_path / "run")
    assert "theirs" not in sys.modules


def test_another_size_or_number_of_classes_than_written_beside_is_refused(tmp_path):
    backbone = Backbone(name="tiny", weights="none")
    folder_of(backbone, Head(), tmp_path, classes=2)
    save_model(build(backbone, Head(), SIZE, [1, 2, 3]), tmp_path)
    with pytest.raises(DataError, match=r"32 x 32 pixels .* and 2 classes .* Received: .*None, 3"):
        load_run(tmp_path)
    folder_of(backbone, Head(), tmp_path)
    load_run(tmp_path)


@pytest.mark.parametrize(("stages", "views"), [((), ("crop",)), ((Stage(unfreeze=1),), ("crop", "stretch"))])
def test_a_network_of_which_no_stage_trained_anything_is_not_asked_about_whole_images(stages, views):
    tta = TTA(full_image="auto", center_zoom=False)
    assert inputs_of(Config(data=Data(image_size=SIZE), tta=tta, stages=stages)).views == views
