"""The range test finds where the loss is about to rise, and leaves the network as it was."""

import dataclasses
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from template.config import Backbone, Head, Stage, Train
from template.data import batches
from template.data.batches import shuffled_rows
from template.data.dataset import ArrayDataset
from template.diagnose.range_test import best_rate, sweep
from template.model.backbones import build_backbone, standardise
from template.model.blocks import find_blocks
from template.model.build import attach, build
from template.progress import Timer
from template.train.features import FeatureCache
from template.train.one_stage import TrainContext, compile_stage

TINY = Backbone(name="tiny", weights="none")


@pytest.fixture(scope="module", autouse=True)
def fewer_layers(shallow):
    """What is swept here is any network."""


def test_a_sweep_changes_neither_weights_nor_optimizer_and_ends_where_the_loss_explodes(tmp_path):
    labels = np.arange(24) % 3
    pixels = np.full((24, 16, 16, 3), 30, np.uint8)
    pixels[np.arange(24), :, :, labels] += 150
    settings, stage = (
        Train(batch_size=8),
        Stage(unfreeze=1, optimizer="sgd", layer_decay=0.5, l2_sp=0.01, cached_augmentations=1),
    )
    model = build(TINY, Head(dropout=0), 16, np.ones(3))
    start = [v.numpy() for v in model.variables]
    cache = FeatureCache(tmp_path / "cache", 1e9, 8, Timer())
    context = TrainContext(find_blocks(model, TINY), (stage,), settings, cache, start)
    compiled = compile_stage(model, stage, [ArrayDataset(lambda _, rows: pixels[rows], labels)], None, context)
    network = compiled.network
    slots = [v.numpy() for v in network.optimizer.variables]
    rates, losses = sweep(compiled, low=1e-4, high=1e4, count=60)
    for before, variables in ((start, model.variables), (slots, network.optimizer.variables)):
        assert all(a.tobytes() == b.numpy().tobytes() for a, b in zip(before, variables, strict=True))
    assert int(network.optimizer.iterations) == 0
    assert 10 < len(rates) == len(losses) < 60, "steps of 10,000 explode"
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e8 ** (1 / 59))
    assert np.isfinite(losses).all() and losses[0] == pytest.approx(np.log(3), rel=0.3)
    found = best_rate(rates, losses)
    assert losses.min() < 0.7 * losses[0] and 1e-4 < found < rates[-1] / 5


def test_a_sweep_sees_the_images_as_the_network_does(tmp_path, eagerly):
    rng, labels = np.random.default_rng(0), np.arange(8) % 2
    pixels = rng.integers(200, 210, (8, 16, 16, 3)).astype(np.uint8)
    settings, stage, head = Train(batch_size=8), Stage(unfreeze="all", l2=0.01), Head(dropout=0)
    base = build_backbone(TINY, 16)
    standardise(base, np.full(3, 205.0), np.full(3, 8.0))
    model = attach(base, TINY, head, np.ones(2))
    context = TrainContext(
        find_blocks(model, TINY), (stage,), settings, FeatureCache(tmp_path / "cache", 1e9, 8, Timer())
    )
    compiled = compile_stage(model, stage, [ArrayDataset(lambda _, rows: pixels[rows], labels)], None, context)
    _, losses = sweep(compiled, count=2)
    _, order = shuffled_rows(labels, 8, settings.seed, 0)[0]
    logits = compiled.network(pixels[order].astype("float32"), training=True)
    expected = keras.losses.CategoricalCrossentropy(from_logits=True)(np.eye(2)[labels[order]], logits)
    penalty = float(sum(compiled.network.losses))
    assert losses[0] == pytest.approx(float(expected) + penalty, rel=1e-4)


def swept(folder: Path, settings: Train, count: int = 12) -> np.ndarray:
    """Losses of a sweep of the top block, without dropout and batch statistics."""
    labels = np.arange(24) % 3
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 3)).astype(np.uint8)
    stage = Stage(unfreeze=1, optimizer="sgd", cached_augmentations=1)
    keras.utils.set_random_seed(0)
    model = build(TINY, Head(dropout=0), 16, np.ones(3))
    blocks = dataclasses.replace(find_blocks(model, TINY), pretrained=True)  # batch normalisation stays as it is
    context = TrainContext(blocks, (stage,), settings, FeatureCache(folder, 1e9, 8, Timer()))
    compiled = compile_stage(model, stage, [ArrayDataset(lambda _, rows: pixels[rows], labels)], None, context)
    return sweep(compiled, low=0.1, high=10, count=count)[1]


@pytest.mark.slow
def test_a_step_of_several_batches_is_swept_as_one_large_batch_is(tmp_path):
    whole = swept(tmp_path, Train(batch_size=24))
    in_parts = swept(tmp_path, Train(batch_size=8, gradient_accumulation_steps=3))
    assert len(whole) == len(in_parts) == 12 and whole.max() - whole.min() > 0.01
    np.testing.assert_allclose(in_parts, whole, rtol=1e-3)


@pytest.mark.slow
def test_a_sweep_mixes_as_training_does_to_its_last_step(tmp_path, monkeypatch):
    seen, original = [], batches.mix_batch

    def spy(inputs, labels, mixing, seed, epoch, number):
        seen.append((epoch, number, mixing.mixup, mixing.cutmix))
        return original(inputs, labels, mixing, seed, epoch, number)

    monkeypatch.setattr(batches, "mix_batch", spy)
    swept(tmp_path, Train(batch_size=8, mixup=0.2))
    assert sorted(set(seen)) == [(epoch, number, 0.2, 0.0) for epoch in range(4) for number in range(3)]


def test_suggested_is_a_tenth_of_where_the_loss_is_lowest_and_one_lucky_batch_does_not_decide():
    rates = np.geomspace(1e-6, 10, 100)
    losses = 1 - 0.6 * np.exp(-((np.log10(rates) + 1) ** 2)) + np.where(rates > 1, rates, 0)
    assert best_rate(rates, losses) == pytest.approx(0.01, rel=0.2)
    losses[20] = 0.3
    assert best_rate(rates, losses) == pytest.approx(0.01, rel=0.2)


def test_where_the_loss_never_falls_nothing_is_suggested():
    rates, noise = np.geomspace(1e-6, 10, 100), np.random.default_rng(0).normal(1, 0.1, 100)
    assert best_rate(rates, np.ones(100)) is None
    assert best_rate(rates, noise + np.linspace(0, 2, 100)) is None
    assert best_rate(rates[:3], noise[:3]) is None, "it exploded at once"


def test_of_a_network_that_begins_at_its_lowest_a_tenth_of_where_it_explodes():
    rates, losses = np.geomspace(1e-6, 1e-3, 50), np.random.default_rng(0).normal(0.05, 0.01, 50)
    losses[10] = 0.2  # one hard batch is no explosion
    assert best_rate(rates, losses) is None
    losses[-1] = 4
    assert best_rate(rates, losses) == pytest.approx(1e-4)


@pytest.mark.slow  # it is walked in test_journey.py
def test_the_script_suggests_a_rate_and_draws_it(class_folder, tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[1] / "scripts" / "find_lr.py"
    line = [f"--data.path={class_folder}", f"--data.cache={tmp_path / 'cache'}", "--data.image_size=16"]
    line += ["--backbone.name=tiny", "--backbone.weights=none", "--train.batch_size=8", f"--out={tmp_path / 'lr.png'}"]
    monkeypatch.setattr(sys, "argv", [str(script), *line, "--stages.0.unfreeze=0", "--head.feature_levels=1"])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("suggested: --stages.0.learning_rate=") and said.endswith("(the recipe has 0.001)")
    assert 1e-6 < float(said.split("=")[1].split()[0]) < 1
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
