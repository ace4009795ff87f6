"""Real photographs and real ImageNet weights, where they lie beside the repository, give the numbers they must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from template.config import Backbone
from template.data.images.load import load_image
from template.model.backbones import build_backbone

TRAIN = Path(__file__).parents[1] / "scripts" / "train.py"
CATS, DOGS = range(281, 286), range(151, 269)  # among the thousand classes of ImageNet


def test_our_pixels_and_preprocessing_are_those_that_the_weights_were_trained_on(shared):
    # Our loading, preprocessing and backbone below, the original top of the network above. With colours in another
    # order or on another scale the top would see features that it never learned.
    weights = shared / "keras_home" / "models"
    bottom = build_backbone(
        Backbone(name="mobilenet", alpha=0.75, weights=str(weights / "mobilenet_7_5_224_tf_no_top.h5")), 224
    )
    whole = keras.applications.MobileNet(alpha=0.75, weights=str(weights / "mobilenet_7_5_224_tf.h5"))
    last = bottom.layers[-1].name
    top = keras.Model(whole.get_layer(last).output, whole.output)
    for kind, expected in (("cat", CATS), ("dog", DOGS)):
        files = sorted((shared / "data" / "cats_dogs" / kind).iterdir())[:20]
        pixels = np.stack([load_image(file, 224, "crop") for file in files]).astype(np.float32)
        said = top.predict(bottom.predict(pixels, verbose=0), verbose=0).argmax(axis=1)
        assert np.isin(said, expected).mean() >= 0.8, (kind, said)


@pytest.mark.slow
def test_a_few_hundred_photographs_are_enough(shared, tmp_path):
    line = [sys.executable, str(TRAIN), f"--data.path={shared / 'data' / 'hymenoptera'}", "--data.image_size=144"]
    line += [f"--data.cache={tmp_path / 'cache'}", "--backbone.name=mobilenet", "--backbone.alpha=0.75"]
    line += ["--stages=[{unfreeze=0, epochs=2, learning_rate=3e-3}, {unfreeze=1, epochs=1, learning_rate=3e-4}]"]
    environment = os.environ | {"KERAS_HOME": str(shared / "keras_home")}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (metrics,) = tmp_path.glob("runs/*/metrics.json")
    scores = json.loads(metrics.read_text())
    assert scores["val"]["images"] > 140
    assert scores["val"]["accuracy"]["value"] >= 0.85
    assert scores["test"]["accuracy"]["low"] > scores["test"]["majority_baseline"], (
        "clearly better than always one class"
    )
