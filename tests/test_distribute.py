"""Several devices compute what one does: losses, weights, features and predictions, in the same order."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from template import messages
from template.config import Config, ConfigError, Train, load
from template.data import batches
from template.data.batches import inference_batches, pad_batches, shuffled_batches
from template.data.dataset import ArrayDataset
from template.train.distribute import on_all, on_devices

HERE = Path(__file__).parent


@pytest.mark.parametrize("devices", [1, "auto"])
def test_with_one_device_nothing_is_different(devices, capsys):
    with on_devices(Train(devices=devices)):
        assert not tf.distribute.has_strategy()
        assert on_all(len) is len
    assert capsys.readouterr().out == ""
    assert Config().train.devices == 1


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"train.devices: expected auto, or at most 1.*CPU:0.*Received: 3"):
        on_devices(Train(devices=3))
    with pytest.raises(ConfigError, match="train.devices: expected auto | integer"):
        load(None, ["train.devices=0"])


@pytest.mark.parametrize(("gpus", "devices", "said"), [(2, 1, True), (2, "auto", False), (1, 1, False)])
def test_a_gpu_that_has_nothing_to_do_is_named(monkeypatch, capsys, gpus, devices, said):
    found = {"gpus": [{"name": "GPU"}] * gpus, "cores": 2, "memory_gb": None, "precision": "float32", "xla": True}
    monkeypatch.setattr(messages.device, "describe", lambda precision: found)
    messages.print_device(Config(train=Train(devices=devices)))
    assert ("one of 2 GPUs is used; --train.devices=auto" in capsys.readouterr().out) == said


@pytest.fixture
def three(monkeypatch):
    """As with three devices."""
    monkeypatch.setattr(batches, "replicas", lambda: 3)


def rows(n: int) -> ArrayDataset:
    return ArrayDataset(lambda epoch, i: i[:, None].astype(np.float32), np.arange(n) % 2)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 24])
def test_devices_have_equal_parts_of_a_batch_and_each_image_counts_once(three, n):
    taken = []
    plain = shuffled_batches(rows(n), 2, 8, 0, range(1))
    for inputs, _, weights in (x if len(x) == 3 else (*x, tf.ones(len(x[0]))) for x in pad_batches(plain, n, 8)):
        assert len(inputs) % 3 == 0
        # The mean over three parts of their means is that over the images that count.
        real = inputs.numpy()[weights.numpy() > 0]
        assert np.mean(weights.numpy()[:, None] * inputs.numpy()) == pytest.approx(real.mean(), rel=1e-6)
        taken += real[:, 0].tolist()
    assert sorted(taken) == list(range(n))
    asked = np.concatenate([x[0].numpy() for x in inference_batches(rows(n), 8)])
    assert asked[:n, 0].tolist() == list(range(n)) and len(asked) % 3 == 0


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, np.ndarray]:
    """What two_devices.py has computed."""
    folder = tmp_path_factory.mktemp("devices")
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    line = [sys.executable, str(HERE / "two_devices.py"), str(folder), str(folder / "results.npz")]
    done = subprocess.run(line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 devices share each batch: CPU:0, CPU:1" in done.stdout
    with np.load(folder / "results.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.slow
def test_two_devices_train_as_one(found):
    """21 steps: two stages, on cached activations, with EMA, clipping, layer decay, penalties and a constraint."""
    one, two = (found[f"even {devices} history"] for devices in (1, 2))
    assert len(one) == 7 and (one[0] != one[-1]).all()
    np.testing.assert_allclose(two, one, atol=1e-5, rtol=0)
    for name in ("weights", "refit", "gradients"):
        np.testing.assert_allclose(found[f"even 2 {name}"], found[f"even 1 {name}"], atol=1e-5, rtol=0)
    assert np.abs(found["even 1 gradients"]).max() > 1e-3


@pytest.mark.slow
def test_two_devices_train_as_one_on_batches_that_cannot_be_halved(found):
    np.testing.assert_allclose(found["uneven 2 weights"], found["uneven 1 weights"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found["uneven 2 history"][:, 2], found["uneven 1 history"][:, 2], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_predictions_and_features_of_two_devices_are_those_of_one_in_the_same_order(found):
    for devices in (1, 2):
        np.testing.assert_allclose(found[f"even {devices} logits"], found[f"even {devices} plain"], atol=1e-5)
    np.testing.assert_allclose(found["even 2 logits"], found["even 1 logits"], atol=1e-5)
    for n in (8, 5, 1):
        one, two = (found[f"features {devices} features {n}"] for devices in (1, 2))
        assert one.shape == two.shape == (n, 3)
        np.testing.assert_allclose(two, one, atol=1e-5)


@pytest.mark.slow
def test_what_two_devices_train_resumes_to_the_bit_and_on_one_as_well(found):
    for name in ("weights", "logits", "history"):
        assert found[f"resumed 2 {name}"].tobytes() == found[f"even 2 {name}"].tobytes()
        np.testing.assert_allclose(found[f"resumed 1 {name}"], found[f"even 2 {name}"], atol=1e-5, rtol=0)
