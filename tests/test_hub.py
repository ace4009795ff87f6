"""Backbones of KerasHub: flat, in blocks, fed as their preset says, saved and loaded again.

Presets are random networks of a few thousand weights, saved as KerasHub saves them.
"""

import functools
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import call
from keras import layers, ops
from test_predictor import folder_of, rewritten

from template import config as configuration
from template.config import Backbone, Config, ConfigError, Head
from template.data.examples import DataError
from template.deploy.explain import grad_cam
from template.deploy.predictor import load_run, save_model
from template.model import hub, hub_layer
from template.model.at_hand import candidates, label
from template.model.backbones import build_backbone, count_blocks
from template.model.blocks import block_outputs, boundary, find_blocks, freeze
from template.model.build import attach, build
from template.model.hub_layer import HubLayer
from template.model.inference import fingerprint
from template.model.layers import strip_training_layers
from template.model.weights import WeightsError

SIZE = 32  # of images, as in test_predictor
INSTALL = r'pip install -c constraints\.txt -e "\.\[hub\]"'
VIT = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 8, "image_shape": (SIZE, SIZE, 3)}
DINO = VIT | {"intermediate_dim": 16, "drop_path_rate": 0.2}
STAGES = {"stackwise_num_filters": [64, 16, 16], "stackwise_num_blocks": [1, 2, 1], "stackwise_num_strides": [1, 2, 2]}
MAPS = {"image_shape": (None, None, 3)}
PRESETS = {
    "ViT": VIT | {"mlp_dim": 16, "dropout_rate": 0.2, "attention_dropout": 0.2},
    "DeiT": VIT | {"intermediate_dim": 16, "dropout_rate": 0.2},
    "DINOV2": DINO | {"num_register_tokens": 1, "position_embedding_shape": (SIZE, SIZE, 3)},
    "DINOV3": DINO | {"num_register_tokens": 1},
    "SwinTransformer": {
        "image_shape": (SIZE, SIZE, 3), "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4,
        "drop_path": 0.4,
    },
    "ResNet": STAGES | MAPS | {
        "input_conv_filters": [8, 64], "input_conv_kernel_sizes": [3, 3], "block_type": "basic_block_vd",
        "use_pre_activation": False,
    },
    "HGNetV2": MAPS | {
        "depths": [1, 1], "embedding_size": 8, "hidden_sizes": [8, 16], "stem_channels": [3, 8, 8],
        "hidden_act": "relu", "use_learnable_affine_block": True, "apply_downsample": [False, True],
        "stackwise_stage_filters": [(8, 4, 8, 1, 2, 3), (8, 4, 16, 1, 2, 3)],
        "use_lightweight_conv_block": [False, True],
    },
    "MiT": {
        "layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [4, 2],
        "max_drop_path_rate": 0.4, "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2],
        "image_shape": (SIZE, SIZE, 3), "hidden_dims": [8, 16],
    },
}  # fmt: skip
BLOCKS = {"DeiT": 1, "HGNetV2": 2, "MiT": 2}  # DeiT's encoder cannot be taken apart
TOKENS = ("ViT", "DeiT", "DINOV2", "DINOV3", "SwinTransformer")
CLASS_TOKEN = TOKENS[:-1]
SCALE, OFFSET = [0.01, 0.02, 0.03], [-1.0, -2.0, -3.0]


def run(network: keras.Model, images: np.ndarray, training: bool = False) -> np.ndarray:
    return np.asarray(network(images, training=training))


def pixels(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, size, size, 3)).astype(np.float32)


@functools.cache
def save_preset(kind: str, folder: Path) -> Path:
    keras_hub = pytest.importorskip("keras_hub", reason='needs KerasHub: pip install -e ".[hub]"')
    keras.utils.set_random_seed(0)
    network = getattr(keras_hub.models, f"{kind}Backbone")(**PRESETS[kind])
    rng = np.random.default_rng(0)
    for weight in network.weights:  # so that none is zero, or one, as layer scale and normalisation begin
        weight.assign(np.abs(weight) + rng.uniform(0.1, 0.5, weight.shape) * np.sign(rng.normal(size=weight.shape)) ** 2
                      if "variance" in weight.path else weight + rng.normal(0, 0.3, weight.shape))  # fmt: skip
    network.save_to_preset(folder / kind)
    converter = getattr(keras_hub.layers, f"{kind}ImageConverter")(scale=SCALE, offset=OFFSET)
    converter.save_to_preset(folder / kind)
    return folder / kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("presets")


SLOW = {"DeiT", "HGNetV2", "MiT"}


@pytest.fixture(
    scope="module", params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in PRESETS]
)
def built(request, folder) -> SimpleNamespace:
    """A classifier of a preset of each family."""
    settings = Backbone(name=f"hub:{save_preset(request.param, folder)}")
    base = build_backbone(settings, SIZE)
    model = attach(base, settings, Head(), [1, 2, 3])
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    return SimpleNamespace(kind=request.param, settings=settings, base=base, model=model, preset=folder / request.param)


# Of every family


def test_it_is_what_kerashub_computes_on_images_prepared_as_its_preset_says(built):
    keras_hub = pytest.importorskip("keras_hub")
    prepared = pixels() * np.float32(SCALE) + np.float32(OFFSET)
    original = keras_hub.models.Backbone.from_preset(str(built.preset))
    expected = original(prepared, training=False)
    expected = np.asarray(expected["stage2"] if built.kind == "HGNetV2" else expected)
    found = run(built.base, pixels())
    assert np.ptp(expected, axis=0).max() > 1e-2, "images differ"
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    assert len({layer.name for layer in built.base.layers}) == len(built.base.layers)
    assert not any(isinstance(layer, keras.Model) for layer in built.base.layers), "flat"


def test_features_are_what_its_own_classifier_looks_at(built):
    out = run(built.base, pixels())
    by_hand = out[:, 0] if built.kind in CLASS_TOKEN else out.mean(axis=tuple(range(1, out.ndim - 1)))
    features = keras.Model(built.model.inputs[0], built.model.get_layer("head_dropout").input)
    np.testing.assert_allclose(run(features, pixels()), by_hand, rtol=1e-5, atol=1e-5)


def test_blocks_can_be_unfrozen_and_cut_at(built):
    model, blocks = built.model, find_blocks(built.model, built.settings)
    order = [number for number in blocks.numbers.values() if number is not None]
    assert order == sorted(order) and list(blocks.numbers.values())[-len(order) :] == order
    assert blocks.order == list(range(1, BLOCKS.get(built.kind, 3) + 1)) and count_blocks(built.settings.name) == len(
        blocks.order
    )
    counts = [freeze(model, blocks, unfreeze) for unfreeze in range(len(blocks.order) + 1)]
    assert counts == sorted(set(counts))
    trained = {id(weight) for weight in model.trainable_weights}
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert not trained & {id(weight) for norm in norms for weight in norm.weights}, "they keep what they have learned"
    inside = [part for layer in model.layers for part in layer._flatten_layers(include_self=False)]
    assert not any(isinstance(part, layers.BatchNormalization) for part in inside), "nothing would freeze it there"
    tensors = [boundary(model, blocks, f"block{number}") for number in blocks.order]
    parts = list(map(keras.Model, [model.inputs[0], *tensors], [*tensors, model.outputs[0]]))
    whole = functools.reduce(lambda inputs, part: run(part, inputs), parts, pixels())
    np.testing.assert_allclose(whole, run(model, pixels()), atol=1e-4)
    weights = [id(weight) for part in parts for weight in part.weights]
    assert len(weights) == len(set(weights)) == len(model.weights), "no part has a weight of another"
    assert all(None not in tensor.shape[1:] for tensor in [*tensors, *block_outputs(built.base, blocks)])


def test_what_is_frozen_is_the_same_in_training_and_drops_only_where_it_trains(built):
    blocks = find_blocks(built.model, built.settings)
    for number in blocks.order:
        freeze(built.model, blocks, f"block{number}")
        bottom = keras.Model(built.model.inputs[0], boundary(built.model, blocks, f"block{number}"))
        np.testing.assert_array_equal(run(bottom, pixels(), training=True), run(bottom, pixels()))
    freeze(built.model, blocks, "all")
    drops = built.kind not in {"ResNet", "HGNetV2"}
    assert (np.abs(run(built.base, pixels(), training=True) - run(built.base, pixels())).max() > 1e-3) == drops


def test_a_run_is_loaded_with_what_it_has_learned(built, tmp_path):
    model, settings = build(built.settings, Head(), SIZE, [1, 2, 3]), built.settings
    freeze(model, find_blocks(model, settings), "all")
    model.compile(keras.optimizers.SGD(0.05), "mse")
    before = [np.asarray(weight) for weight in model.weights]
    model.fit(pixels(), np.eye(3, dtype=np.float32), epochs=1, verbose=0)
    moved = {w.path for w, was in zip(model.weights, before, strict=True) if not np.array_equal(w, was)}
    assert any("stem" in path or "embed" in path for path in moved) or built.kind in {"ResNet", "HGNetV2"}
    folder_of(settings, Head(), tmp_path)
    saved = save_model(model, tmp_path)
    _, _, loaded = load_run(tmp_path)
    np.testing.assert_array_equal(run(loaded, pixels()), run(saved, pixels()))
    np.testing.assert_allclose(run(saved, pixels()), run(model, pixels()), atol=1e-5)
    # What another run starts from.
    again = build_backbone(Backbone(name=settings.name, weights=str(tmp_path / "model.keras")), SIZE)
    features = keras.Model(loaded.inputs[0], loaded.get_layer("pool_avg").input)
    top = keras.Model(again.inputs[0], attach(again, settings, Head(), [1, 1]).get_layer("pool_avg").input)
    np.testing.assert_array_equal(run(top, pixels()), run(features, pixels()))


def test_built_again_it_is_found_again_in_the_cache(built):
    layers.Dense(3)  # names count on
    again = build_backbone(built.settings, SIZE)
    assert fingerprint(again) == fingerprint(build_backbone(built.settings, SIZE))
    assert [layer.name for layer in again.layers[1:]] == [layer.name for layer in built.base.layers[1:]]


def test_other_sizes_and_random_weights(built):
    assert np.isfinite(run(build_backbone(built.settings, 2 * SIZE), pixels(2 * SIZE))).all()
    random = build_backbone(Backbone(name=built.settings.name, weights="none"), SIZE)
    assert np.abs(run(random, pixels()) - run(built.base, pixels())).max() > 1e-2


def test_grad_cam_has_a_map_of_the_image(built):
    heat = grad_cam(built.model, pixels(), np.array([0, 1, 2]))
    assert heat.shape == (3, SIZE, SIZE) and heat.max() == 1 and heat.std() > 0.01


def test_in_mixed_precision_images_are_prepared_in_float32_and_the_run_is_served_in_it(built):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        base = build_backbone(built.settings, SIZE)
        served = strip_training_layers(base)
    finally:
        keras.config.set_dtype_policy("float32")
    assert base.get_layer("preprocess").compute_dtype == "float32" and base.outputs[0].dtype == "bfloat16"
    assert served.outputs[0].dtype == "float32"
    expected = run(built.base, pixels())
    np.testing.assert_allclose(run(served, pixels()), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


# Some


@pytest.mark.parametrize("kind", ["ViT", "DINOV2"])
def test_position_embeddings_are_interpolated_as_kerashub_does_for_dinov2(kind, folder):
    keras_hub = pytest.importorskip("keras_hub", reason='needs KerasHub: pip install -e ".[hub]"')
    preset = save_preset(kind, folder)
    network = build_backbone(Backbone(name=f"hub:{preset}"), 48)
    if kind == "DINOV2":
        original = keras_hub.models.Backbone.from_preset(str(preset), image_shape=(48, 48, 3))
        expected = np.asarray(original.embeddings.interpolated_position_embeddings)[0]
        found = next(w for w in network.weights if w.path.endswith("interpolated_position_embeddings"))[0]
        assert expected.shape == (37, 8)
    else:
        resize = keras_hub.src.models.dinov2.dinov2_layers.DINOV2Embedding._interpolate_position_embeddings
        (own,) = (w for w in keras_hub.models.Backbone.from_preset(str(preset)).weights if "position" in w.path)
        expected = np.asarray(resize(own[None], 8, (SIZE, SIZE), (48, 48)))[0]
        (found,) = (w for w in network.weights if "position" in w.path)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_run_with_a_preset_in_a_folder_from_images_to_predictions(folder, make_folder, tmp_path, monkeypatch):
    save_preset("ViT", folder)
    images = make_folder(each=10, size=SIZE)
    monkeypatch.chdir(folder)
    line = [f"--data.path={images}", f"--data.image_size={SIZE}", "--train.batch_size=8", "--backbone.name=hub:./ViT"]
    line += ["--stages.0.unfreeze=1", "--stages.0.epochs=1", "--head.feature_levels=2", "--head.pooling=both"]
    code, printed = call("train", *line, "--tta.center_zoom=false", "--runs", tmp_path / "runs")
    assert code == 0, printed
    (finished,) = (tmp_path / "runs").iterdir()
    assert finished.name.endswith("-ViT") and f'"hub:{folder / "ViT"}"' in (finished / "config.toml").read_text()
    monkeypatch.chdir(tmp_path)
    code, printed = call("predict", "--run", finished, images / "disc" / "00.png")
    assert code == 0 and "disc" in printed
    monkeypatch.setattr(hub_layer, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=INSTALL):
        load_run(finished)


def test_candidates_of_kerashub_are_compared_with_others(folder, make_folder, monkeypatch):
    save_preset("ViT", folder)
    save_preset("SwinTransformer", folder)
    images = make_folder(each=10, size=SIZE)
    monkeypatch.chdir(folder)
    line = [f"--data.path={images}", f"--data.image_size={SIZE}", "--head.feature_levels=1", "--tta.center_zoom=false"]
    named = '--backbone.candidates=["hub:./ViT", "hub:./SwinTransformer"]'
    code, printed = call("choose_backbone", *line, named, "--out", "plot.png")
    assert code == 0 and "\nViT " in printed and "\nSwinTransformer " in printed and "backbone.name=hub:./" in printed


def test_a_text_model_is_refused_in_words(tmp_path):
    keras_hub = pytest.importorskip("keras_hub", reason='needs KerasHub: pip install -e ".[hub]"')
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=4
    )
    bert.save_to_preset(tmp_path / "bert")
    with pytest.raises(ConfigError, match="bert is a BertBackbone. Expected an image backbone"):
        build_backbone(Backbone(name=f"hub:{tmp_path / 'bert'}"), SIZE)


@pytest.mark.parametrize(
    "kind", ["bert.bert_tokenizer.BertTokenizer", "vit.vit_backbone.ViTBackbone", "vit.vit_layers.keras", "vit.no"]
)
def test_no_other_class_of_kerashub_is_made_from_a_file(kind):
    pytest.importorskip("keras_hub", reason='needs KerasHub: pip install -e ".[hub]"')
    with pytest.raises((ValueError, AttributeError, ModuleNotFoundError)):
        HubLayer(f"keras_hub.src.models.{kind}", {"vocabulary": "/etc/hostname"})


# Without KerasHub


def test_without_kerashub_a_network_and_a_run_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_layer, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=INSTALL):
        build_backbone(Backbone(name="hub:dinov2_small"), SIZE)
    tiny = Backbone(name="tiny", weights="none")
    folder_of(tiny, Head(), tmp_path)
    save_model(build(tiny, Head(), SIZE, [1, 2, 3]), tmp_path)

    def change(saved: dict) -> None:
        layer = next(layer for layer in saved["config"]["layers"] if layer["class_name"] == "Dense")
        layer |= {"module": "elsewhere", "class_name": "HubLayer", "registered_name": "template>HubLayer"}

    rewritten(tmp_path, change)
    with pytest.raises(DataError, match=f"cannot be loaded here. .*{INSTALL}"):
        load_run(tmp_path)


@pytest.mark.parametrize("kind", ["os.system", "keras.layers.Lambda", "subprocess.Popen", "keras_hub.utils.x"])
def test_nothing_but_layers_of_kerashub_is_made_from_a_file(kind):
    with pytest.raises(ValueError, match="expected a layer of a backbone of KerasHub"):
        HubLayer(kind, {"args": "echo"})


@pytest.fixture
def without_presets(monkeypatch) -> Callable[[Exception], None]:
    """A KerasHub that fails to get any preset."""

    def fail(error: Exception) -> None:
        def loader(preset: str):
            raise error

        utils = SimpleNamespace(preset_utils=SimpleNamespace(get_preset_loader=loader))
        known = SimpleNamespace(presets=dict.fromkeys(["dinov2_small", "dinov2_base", "vit_large"]))
        package = SimpleNamespace(src=SimpleNamespace(utils=utils), models=SimpleNamespace(Backbone=known))
        monkeypatch.setattr(hub, "import_keras_hub", lambda: package)

    return fail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dinov2_smal", "no preset of this name. Names like it: dinov2_small"),
        ("qqq", "no preset of this name. Names like it: none"),
        ("./nowhere", "expected a folder that KerasHub's `save_to_preset` has made"),
        ("dinov2_base", r'from_preset\("dinov2_base"\).save_to_preset\("preset"\)(.|\n)*backbone.name=hub:./preset'),
        ("hf://timm/resnet18.a1_in1k", r'from_preset\("hf://timm/resnet18.a1_in1k"\)'),
    ],
)
def test_what_to_do_about_a_preset_that_cannot_be_read(without_presets, name, message):
    without_presets(ConnectionError("no route"))
    with pytest.raises(WeightsError, match=message) as caught:
        build_backbone(Backbone(name=f"hub:{name}"), SIZE)
    assert str(caught.value).endswith("Reason: no route")


def test_names_of_kerashub_in_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configuration.load(overrides=["backbone.name=hub:./a/b", 'backbone.candidates=["hub:~/x", "hub:vit"]'])
    found = configuration.absolute(config).backbone
    assert found.name == f"hub:{tmp_path}/a/b" and found.short_name == "b"
    assert found.candidates == (f"hub:{Path.home()}/x", "hub:vit")
    assert Backbone(name="hub:hf://a/b").short_name == "b" and Backbone(name="hub:vit").short_name == "hub-vit"
    assert configuration.absolute(Config(backbone=Backbone(name="hub:hf://a/b"))).backbone.name == "hub:hf://a/b"
    compared = candidates(Backbone(name="auto", candidates=("hub:./a/b", "vgg16"), alpha=0.5))
    assert list(map(label, compared)) == ["b", "vgg16"]
    message = r"(name|candidates\.1): expected .*tiny .*\| hub:PRESET. Received: 'hub:'"
    for wrong in ("backbone.name=hub:", 'backbone.candidates=["vgg16", "hub:"]'):
        with pytest.raises(ConfigError, match=message):
            configuration.load(overrides=[wrong])


def test_positions_of_a_grid_are_interpolated_and_tokens_before_it_kept():
    ramp = np.repeat(np.arange(4.0), 4)[:, None] * [1, -2]  # rises down the image
    values = np.concatenate([[[100, 200]], ramp])[None].astype(np.float32)
    found = hub._interpolated(values, (1, 65, 2))
    np.testing.assert_array_equal(found[0, 0], [100, 200])
    grid = found[0, 1:].reshape(8, 8, 2)
    assert (np.ptp(grid, axis=1) < 1e-5).all() and (np.diff(grid[1:-1, 0, 0]) > 0.4).all()
    np.testing.assert_allclose(grid[..., 1], -2 * grid[..., 0], atol=1e-5)
    assert hub._interpolated(values, values.shape) is values


def residual() -> Iterator[keras.KerasTensor]:
    x = yield layers.Conv2D(4, 3, strides=2, name="a")(keras.Input((16, 16, 3)))
    y = layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = layers.Add(name="c")([x, y])
    x = layers.MaxPooling2D(name="d")(x)
    y = layers.Conv2D(8, 3, strides=2, padding="same", name="e")(x)
    x = layers.Conv2D(8, 1, strides=2, name="f")(x)
    x = layers.Add(name="g")([x, y])
    yield layers.Conv2D(8, 1, name="h")(ops.abs(x))


def test_a_stage_begins_where_the_map_shrinks_with_all_its_branches():
    steps = residual()
    x = next(steps)
    network = keras.Model(keras.utils.get_source_inputs(x), steps.send(x))
    names = {layer.name.rpartition("_")[2]: layer.name for layer in hub._name_blocks(network).layers[1:]}
    stem, top = "abcd", "efgh"
    assert all(names[name] == f"stem_{name}" for name in stem)
    assert all(names[name] == f"block1_{name}" for name in top)


def tokens(number: int) -> tuple[keras.Model, Backbone]:
    """A network with as many tokens."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Reshape((64, 3), name="stem_reshape")(inputs)
    x = layers.Permute((2, 1), name="stem_turn")(x)
    x = layers.Dense(number, name="block1_dense")(x)
    x = layers.Permute((2, 1), name="block2_turn")(x)
    return keras.Model(inputs, layers.Dense(5, name="block2_dense")(x)), Backbone(name="hub:x")


@pytest.mark.parametrize(("number", "others"), [(17, 1), (18, 2), (21, 5), (16, 0)])
@pytest.mark.parametrize("pooling", ["avg", "max", "both"])
def test_tokens_are_pooled_to_the_class_token_or_over_the_grid(number, others, pooling):
    base, settings = tokens(number)
    model = attach(base, settings, Head(pooling=pooling), [1, 2])
    out = run(base, pixels(8))
    mean = out[:, 0] if others else out.mean(axis=1)
    peak = out[:, others:].max(axis=1)
    expected = {"avg": mean, "max": peak, "both": np.concatenate([mean, peak], axis=1)}[pooling]
    features = keras.Model(model.inputs[0], model.get_layer("head_dropout").input)
    np.testing.assert_allclose(run(features, pixels(8)), expected, rtol=1e-5, atol=1e-5)
    two = attach(base, settings, Head(pooling=pooling, feature_levels=2), [1, 2])
    blocks = find_blocks(two, settings)
    assert boundary(two, blocks, 1) is two.get_layer("block2_turn").input
    with pytest.raises(ConfigError, match="drop_block"):
        attach(base, settings, Head(drop_block=0.1), [1, 2])


def test_a_saved_hub_layer_names_no_class_but_itself(folder, tmp_path):
    save_preset("ViT", folder)
    build_backbone(Backbone(name=f"hub:{folder / 'ViT'}"), SIZE).save(tmp_path / "x.keras")
    with zipfile.ZipFile(tmp_path / "x.keras") as archive:
        saved = json.loads(archive.read("config.json"))["config"]["layers"]
    kinds = [layer["config"]["kind"] for layer in saved if layer["class_name"] == "HubLayer"]
    assert kinds[1:] == ["keras_hub.src.models.vit.vit_layers.ViTEncoderBlock"] * 3
