"""The space of a search: checked against the settings before anything is imported or trained."""

import functools
from pathlib import Path

import pytest
from conftest import ROOT, call

from template.config import ConfigError, load
from template.search.space import Range, read_space, suggest, within


class Trial:
    """Suggests the upper end, or the last option, and remembers what it was asked."""

    def __init__(self):
        self.asked = {}

    def suggest_categorical(self, name, options):
        return self._last(name, "categorical", options)

    def suggest_int(self, name, low, high, **how):
        return self._last(name, "int", (low, high), **how)

    def suggest_float(self, name, low, high, **how):
        return self._last(name, "float", (low, high), **how)

    def _last(self, name, kind, values, **how):
        self.asked[name] = (kind, how)
        return values[-1]


def read(tmp_path: Path, lines: str):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[tune.space]\n{lines}")
    return read_space(recipe, functools.partial(load, recipe)), functools.partial(load, recipe)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('"head.droput" = {low=0.0, high=0.6}', "Did you mean 'head.dropout'"),
        ('"head.dropout" = {low=0.0, high=1.5}', "head.dropout: expected number >= 0 < 1. Received: 1.5"),
        ('"head.dropout" = {low=0.6, high=0.1}', "low must be below high"),
        ('"head.dropout" = 0.6', "expected {low=..., high=...}"),
        ('"head.dropout" = [0.6]', "a list of two or more"),
        ('"head.dropout" = {low=0.0, high=0.6, lag=true}', "expected {low=..., high=...}"),
        ('"head.l2" = {low=0.0, high=0.6, log=true}', "log needs low above 0"),
        ('"backbone.name" = ["mobilenet", "movilenet"]', "Received: 'movilenet'"),
        ('"backbone.alpha" = {low=0.25, high=1.0}', "Received: 0.625"),
        ('"stages.0.epochs" = {low=1.5, high=4.0}', "expected whole number"),
        ('"data.test_fraction" = {low=0.1, high=0.2}', "says what is measured"),
        ('"train.monitor" = ["accuracy", "macro_f1"]', "says what is measured"),
        ("", "Expected [tune.space]"),
    ],
)
def test_what_a_setting_cannot_be_is_refused(tmp_path, lines, words):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, lines)
    assert words in str(error.value)


def test_a_setting_gets_numbers_of_its_own_kind(tmp_path):
    space, loader = read(
        tmp_path,
        '"head.dropout" = {low=0, high=0.5}\n"stages.0.epochs" = {low=2, high=8, log=true}\n'
        '"stages.0.learning_rate" = {low=1e-5, high=1e-2, log=true}\n"augment.hflip" = [false, true]\n'
        '"stages.0.unfreeze" = [1, "all"]\n"backbone.name" = ["mobilenet", "hub:dinov2_small"]',
    )
    trial = Trial()
    config = load(None, suggest(trial, space, loader))
    assert (config.head.dropout, config.augment.hflip, config.backbone.name) == (0.5, True, "hub:dinov2_small")
    (stage,) = config.stages
    assert (stage.epochs, stage.learning_rate, stage.unfreeze) == (8, 1e-2, "all")
    kinds = {name: kind for name, (kind, _) in trial.asked.items()}
    assert kinds["head.dropout"] == "float" and kinds["stages.0.epochs"] == "int"
    assert trial.asked["stages.0.epochs"][1]["log"] is True and trial.asked["head.dropout"][1]["log"] is False


def test_what_the_space_holds_of_a_recipe_is_known():
    space = {"head.dropout": Range(0.0, 0.6), "head.l2": Range(1e-3, 1e-2), "augment.policy": ("light", "heavy")}
    settings = {"head.dropout": 0.3, "head.l2": 1e-4, "augment.policy": "medium", "head.l1": 0.0}
    assert within(space, settings) == {"head.dropout": 0.3}


def test_the_space_that_comes_with_the_project_is_one():
    recipe = ROOT / "configs" / "tune.toml"
    assert len(read_space(recipe, functools.partial(load, recipe))) > 4


def test_a_wrong_space_ends_the_script_before_tensorflow(tmp_path, monkeypatch):
    from template import runs

    pytest.importorskip("optuna", reason='needs Optuna: pip install -e ".[tune]"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "import_tensorflow", lambda: pytest.fail("TensorFlow was imported"))
    (tmp_path / "mine.toml").write_text('[tune.space]\n"head.droput" = [0.1, 0.2]')
    code, said = call("tune", "--config", "mine.toml", "--data.path=digits")
    assert code == 2 and "Did you mean 'head.dropout'" in said and not (tmp_path / "runs").exists()
    code, said = call("tune", "--resume", "nowhere")
    assert code == 2 and "nowhere/study.json" in said
