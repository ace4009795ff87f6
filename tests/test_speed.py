"""The measurements measure what they say: both contestants do the work they are timed for."""

import importlib.util
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from template import config as configuration
from template.data import dataset
from template.data.examples import load_examples

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("speed_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(result: dict, rounds: int) -> None:
    """Positive finite numbers, and medians that are those of the rounds."""
    turns = np.array(result["rounds"])
    assert turns.shape == (rounds, 2, 2) and np.isfinite(turns).all() and (turns[:, :, 0] > 0).all()
    assert result["ours"] == pytest.approx(np.median(turns[:, 0], axis=0))
    assert result["other"] == pytest.approx(np.median(turns[:, 1], axis=0))
    assert result["ratio"] == pytest.approx(np.median(turns[:, 1] / turns[:, 0], axis=0))
    json.dumps(result, allow_nan=False)


def test_both_kinds_of_augmentation_vary_as_many_images_as_they_are_timed_for(speed, tmp_path, monkeypatch):
    varied, original = {"ours": 0, "other": 0}, dataset.augment

    def ours(images, policy, *rest):
        varied["ours"] += len(images)
        assert not len(images) or policy.random_erasing, "the policy is heavy"
        return original(images, policy, *rest)

    class RandAugment(keras.layers.RandAugment):
        def transform_images(self, images, transformation, training=True):
            def count(batch):
                varied["other"] += len(batch)
                return batch

            assert training and self.num_ops == 2
            images = keras.ops.cast(images, "float32")
            images = tf.ensure_shape(tf.numpy_function(count, [images], "float32"), images.shape)
            return super().transform_images(images, transformation, training)

    monkeypatch.setattr(dataset, "augment", ours)
    monkeypatch.setattr(keras.layers, "RandAugment", RandAugment)
    result = speed.augmentation(tmp_path, images=640, rounds=3, size=16)
    check(result, 3)
    assert varied["ours"] >= 3 * 640 and varied["other"] >= 3 * 64


def test_the_clock_of_an_image_counts_what_it_draws(speed, monkeypatch):
    monkeypatch.setattr(speed, "now", lambda: np.array([float(drawn), 2.0 * drawn]))
    drawn = 0

    def batches():
        nonlocal drawn
        while True:
            drawn += 10  # so that an image takes one second of the false clock, and two of the other
            yield np.zeros(10), np.zeros(10)

    assert speed.an_image(batches(), 25).tolist() == [1, 2]
    assert drawn == 40 + 30, "the first batches are not counted, and batches are drawn until there are enough images"


def test_an_epoch_of_either_kind_sees_every_image(speed, tmp_path, monkeypatch):
    seen, original = [], keras.Model.fit

    def fit(self, batches, **how):
        sizes = [len(labels) for _, labels in batches.take(how["steps_per_epoch"])]
        seen.append((self.inputs[0].shape[1:], sum(sizes)))
        return original(self, batches, **how)

    monkeypatch.setattr(keras.Model, "fit", fit)
    result = speed.tail(tmp_path, images=40, rounds=3, name="tiny", size=32)
    check(result, 3)
    (stored, _), (on_images, _) = seen[:2]
    assert on_images == (32, 32, 3) and stored != on_images
    assert seen == [(stored, 40), (on_images, 40)] * 3, "in turns"
    assert min(result["filling"]) > 0
    _, same_losses = result["claims"]
    assert same_losses["holds"] and same_losses["value"] < 1e-3


def test_with_every_setting_off_and_by_hand_the_same_is_trained_on_the_same_images(speed, tmp_path, monkeypatch):
    seen, original = [], keras.Model.fit

    def fit(self, batches, **how):
        sizes = [len(labels) for _, labels in batches.take(how["steps_per_epoch"])]
        average = self.optimizer.use_ema
        seen.append((self.count_params(), len(self.trainable_weights), sum(sizes), len(self.losses), average))
        return original(self, batches, **how)

    monkeypatch.setattr(keras.Model, "fit", fit)
    check(speed.step(tmp_path, images=40, rounds=3, name="tiny", size=16), 3)
    assert seen == seen[:1] * 6 and seen[0][2:] == (40, 0, True)


def test_the_loss_of_a_step_is_the_same_on_stored_activations(speed, tmp_path):
    backbone = speed.random_weights(configuration.Backbone(name="tiny", weights="none"), 32, tmp_path)
    losses = speed.a_step(backbone, 32, tmp_path)
    np.testing.assert_allclose(losses["ours"], losses["other"], rtol=0, atol=1e-3)
    for before, after in losses.values():
        assert np.isfinite(after) and after < before - 2e-3, "the step does something that could be told apart"


def test_both_passes_are_of_the_same_network_and_only_one_is_folded(speed, tmp_path, monkeypatch, capsys):
    from template.model import inference

    folded, original = [], inference.fold_batch_norm
    monkeypatch.setattr(inference, "fold_batch_norm", lambda network: folded.append(network) or original(network))
    result = speed.passes(tmp_path, images=64, rounds=3, name="mobilenet", size=64)
    check(result, rounds=3)
    assert len(folded) == 1 and result["difference"] < 1e-4
    assert "1e-4: holds" in capsys.readouterr().out


def test_random_weights_keep_the_values_in_range(speed, tmp_path):
    """Else float16 would store zeros only."""
    backbone = speed.random_weights(configuration.Backbone(name="mobilenet", alpha=0.25, weights="none"), 64, tmp_path)
    network = speed.unfrozen(backbone, configuration.Head(), 64, tmp_path)[0]
    values = network.get_layer("pool_avg").output
    features = keras.Model(network.inputs[0], values).predict(
        speed.sample_images(8, 64)[0].astype("float32"), verbose=0
    )
    assert 0.01 < features.std() < 10


def test_written_images_are_no_smaller_than_photographs(speed, tmp_path):
    speed.write_images(tmp_path, 9)
    examples = load_examples(str(tmp_path))
    assert np.bincount(examples.labels).tolist() == [3, 3, 3]
    assert min(file.stat().st_size for file in examples.images) > 2048
    assert len({file.read_bytes() for file in examples.images}) == 9


STAND_IN = """
import csv, json, sys, time
from pathlib import Path
(Path(__file__).parent / "line.json").write_text(json.dumps(sys.argv[1:]))
ballast = b"x" * (300 << 20)
time.sleep(0.3)
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
images = list(Path(given["data.path"]).rglob("*.jpg"))
run = Path(given["runs"]) / "run"
run.mkdir(parents=True)
with (run / "split.csv").open("w") as file:
    csv.writer(file).writerows([["id"], *[[image.name] for image in images]])
(run / "metrics.json").write_text(json.dumps({"seconds": {"decode": 0.1, "features": 0.05, "total": 0.2}}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_is_that_of_the_child_at_its_peak(speed, tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(speed, "TRAIN", script)
    result = speed.memory(tmp_path, images=60, name="tiny", size=32)
    assert [run["images"] for run in result["runs"]] == [6, 60]
    for run in result["runs"]:
        assert 300 / 1024 < run["peak_gib"] < 0.5
        assert np.isfinite(run["seconds"]) and run["seconds"] > 0
    assert np.isfinite(result["growth"]) and result["growth"] > 0
    line = json.loads((tmp_path / "line.json").read_text())
    settings = [pair for pair in configuration.pair_up(line) if not pair.startswith("runs=")]
    config = configuration.load(overrides=settings)  # train.py would take them
    assert config.data.memory_gb == 0.5 and config.data.cache_gb == 8 and config.train.refit_on_train_val == "no"
    assert [(stage.unfreeze, stage.epochs, stage.cached_augmentations) for stage in config.stages] == [(2, 2, 1)]
    assert Path(config.backbone.weights).is_file()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_of_a_real_run(speed, tmp_path):
    result = speed.memory(tmp_path, images=400, name="tiny", size=32)
    assert [run["images"] for run in result["runs"]] == [40, 400]
    for run in result["runs"]:
        assert 0.2 < run["peak_gib"] < 4
        phases = {"import", "decode", "audit", "features", "probe", "stage 1", "checkpoints", "diagnosis", "report"}
        phases |= {"evaluation"}
        assert set(run["phases"]) == {*phases, "total"}
        assert all(run["phases"][name] > 0 for name in phases)
        assert sum(run["phases"][name] for name in phases) <= run["phases"]["total"] < run["seconds"]


def test_a_run_that_fails_is_said_with_its_last_words(speed, tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit('no images today')")
    monkeypatch.setattr(speed, "TRAIN", script)
    with pytest.raises(SystemExit, match="ended with 1. Its last words:\nno images today"):
        speed.trained(tmp_path / "6", configuration.Backbone(name="tiny", weights="none"), 6, 32)


def test_elsewhere_than_on_linux_memory_is_one_plain_error(speed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="expected Linux.*Received: darwin"):
        speed.memory(tmp_path, images=400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tail", "--images", "3"], "--images: expected a number, at least 32. Received: '3'"),
        (["augmentation", "--rounds", "two"], "--rounds: expected a number, at least 3. Received: 'two'"),
        (["memory", "--rounds", "3"], "unrecognized arguments: --rounds 3"),
    ],
)
def test_arguments_out_of_range_are_named(speed, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert message in capsys.readouterr().err


def test_the_result_is_written_with_what_it_depends_on(speed, tmp_path, monkeypatch):
    def tail(scratch, images, rounds, weights):
        assert scratch.is_dir() and (images, rounds, weights) == (64, 3, "imagenet")
        return {"ratio": [7.0, 7.0]}

    out = tmp_path / "speed.json"
    tail.__doc__ = "As if."
    monkeypatch.setattr(speed, "tail", tail)
    line = ["speed.py", "tail", "--images", "64", "--backbone.weights=imagenet", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", line)
    speed.main()
    written = json.loads(out.read_text())
    assert written["part"] == "tail" and written["ratio"] == [7.0, 7.0] and written["environment"]["keras"]
