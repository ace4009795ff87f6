"""The slow lane: every backbone through every stage, saved, rebuilt, and the same to the fifth decimal.

python -m pytest -m slow
"""

import numpy as np
import pytest

from template import recipe
from template.config import TTA, Augment, Backbone, Config, Data, Head, Stage, Train
from template.data.images.load import load_image
from template.deploy.predictor import load_run
from template.evaluate.predictions import Predictions
from template.model.backbones import BACKBONES

STAGES = (
    Stage(unfreeze=0, epochs=1),
    Stage(unfreeze=2, epochs=2, cached_augmentations=1, refresh=1),
    Stage(unfreeze="all", epochs=1),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_trained_through_every_stage_it_says_the_same_after_reload(name, make_folder, tmp_path):
    config = Config(
        data=Data(path=str(make_folder(each=10, size=64)), image_size=64, cache=str(tmp_path / "cache")),
        augment=Augment(policy="light"),
        backbone=Backbone(name=name, weights="none"),
        head=Head(feature_levels=2, power_norm=True),
        train=Train(batch_size=8, refit_on_train_val="no"),
        stages=STAGES,
        tta=TTA(hflip=False),  # the model itself is asked afterwards
    )
    folder = tmp_path / "run"
    folder.mkdir()
    recipe.run(config, folder)
    _, class_names, model = load_run(folder)
    said = Predictions.load(folder / "predictions.npz")
    images = [load_image(tmp_path / "images" / file, 64, "crop") for file in said.ids]
    logits = model.predict(np.stack(images).astype("float32"), verbose=0)
    assert class_names == said.class_names
    # The run saves the logarithm of probabilities: logits up to a constant an image.
    np.testing.assert_allclose(logits - logits.mean(axis=1, keepdims=True),
                               said.logits - said.logits.mean(axis=1, keepdims=True), atol=1e-5)  # fmt: skip
