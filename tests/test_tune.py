"""A search: what it measures, what a failure costs, and that nobody's work is lost. Training is played, but for one."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import SCRIPTS, without_plots

optuna = pytest.importorskip("optuna", reason='needs Optuna: pip install -e ".[tune]"')

from template import config as configuration  # noqa: E402
from template import disk  # noqa: E402
from template.config import Backbone, Config, Data, Head, Train  # noqa: E402
from template.data.examples import DataError  # noqa: E402
from template.evaluate.predictions import Predictions  # noqa: E402
from template.model.backbones import build_backbone  # noqa: E402
from template.search import tune  # noqa: E402
from template.search.outcome import conclude  # noqa: E402
from template.search.space import Range  # noqa: E402
from template.train.nonfinite import NonFiniteError  # noqa: E402

SPACE = {"head.dropout": Range(0.0, 0.6), "train.label_smoothing": Range(0.0, 0.2)}


def played(config: Config, fold, cache, folder: Path):
    """A recipe that is the better the nearer its dropout is to 0.1; the noise is that of the image, in every trial."""
    folder.mkdir(parents=True)
    if config.train.label_smoothing > 0.15:
        raise NonFiniteError("the loss became NaN in epoch 1")
    rows = fold.rows("test")
    noise = np.random.default_rng(0).normal(0, 1, (len(fold.examples), 3))[rows]
    labels = fold.examples.labels[rows]
    logits = noise + 3 * np.eye(3)[labels] * (1 - abs(config.head.dropout - 0.1))
    names = fold.examples.class_names
    return Predictions(fold.examples.ids[rows], labels, logits.astype(np.float32), names), 1.0, config


@pytest.fixture
def open_search(tmp_path, monkeypatch, make_folder):
    """Begins a study, or joins it, as a process does."""
    monkeypatch.setattr(tune, "predict_fold", played)
    make_folder(each=12)
    config = Config(
        data=Data(path=str(tmp_path / "images"), image_size=32, cache=str(tmp_path / "cache")),
        backbone=Backbone(name="tiny", weights="none"),
        head=Head(dropout=0.5),
        train=Train(batch_size=8),
        stages=(),
    )
    chosen = dataclasses.make_dataclass("Chosen", ["config"])
    monkeypatch.setattr(tune.recipe, "prepare", lambda config, *_: chosen(config))

    def open_search(name: str = "study", config: Config = config, space=SPACE):
        folder = tmp_path / name
        study = tune.open_study(str(tmp_path / "journal.log"), "one")
        return tune.open_search(config, space, study, (3, 1), folder)

    open_search.config = config
    return open_search


def test_the_first_trial_is_the_recipe_as_it_is(open_search):
    found = open_search()
    tune.search(found, None, 3)
    first, *others = found.study.trials
    assert first.user_attrs["settings"] == [] and first.params == {"head.dropout": 0.5, "train.label_smoothing": 0.0}
    assert all("default" not in trial.user_attrs and len(trial.params) == 2 for trial in others)


def test_the_objective_is_the_loss_of_every_image_that_is_not_of_the_test_part(open_search, capsys):
    found = open_search()
    tune.search(found, None, 2)
    trial = found.study.trials[0]
    apart = set(found.parts.rows("test"))
    held = np.concatenate([fold.rows("test") for fold in found.folds])
    assert apart and not apart & set(held) and len(trial.user_attrs["losses"]) == len(held) == 36 - len(apart)
    assert trial.value == pytest.approx(np.mean(trial.user_attrs["losses"]), abs=1e-5)
    assert "trial 0: loss" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_recipe_reproduces_its_score(open_search):
    found = open_search()
    tune.search(found, None, 12)
    with without_plots():
        result = conclude(found)
    config = configuration.load(found.folder / "best.toml")
    folds = [played(config, fold, None, found.folder / f"again {n}")[:2] for n, fold in enumerate(found.folds)]
    assert tune.per_image(tune.pool_folds(folds), config).mean() == pytest.approx(result["best"]["loss"], abs=1e-5)
    assert result["best"]["loss"] < result["default"]["loss"] and config.train.refit_on_train_val == "auto"
    assert result["trials"]["complete"] + result["trials"]["pruned"] + result["trials"]["fail"] == 12


@pytest.mark.slow
def test_a_failed_trial_has_a_reason_and_the_search_goes_on(open_search, capsys):
    found = open_search(space={"train.label_smoothing": Range(0.0, 0.9)})
    tune.search(found, None, 8)
    failed = [trial for trial in found.study.trials if trial.state == optuna.trial.TrialState.FAIL]
    assert failed and found.study.trials[-1].number == 7
    assert all("NonFiniteError: the loss became NaN" in trial.user_attrs["reason"] for trial in failed)
    assert "(NonFiniteError: the loss became NaN in epoch 1)" in capsys.readouterr().out
    with without_plots():
        conclude(found)
    with (found.folder / "trials.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["state"] for row in rows].count("fail") == len(failed)
    assert {row["reason"] for row in rows if row["state"] == "fail"} == {failed[0].user_attrs["reason"]}


def test_what_is_clearly_worse_is_given_up(open_search):
    found = open_search(space={"head.dropout": Range(0.0, 0.9)})
    found.study.enqueue_trial({"head.dropout": 0.1}, user_attrs={"default": []})
    found.study.enqueue_trial({"head.dropout": 0.9})
    tune.search(found, None, 2)
    best, worse = found.study.trials
    assert (
        worse.state == optuna.trial.TrialState.PRUNED
        and "clearly worse after 1 of 3 folds" in worse.user_attrs["reason"]
    )
    assert best.state == optuna.trial.TrialState.COMPLETE


def test_an_error_that_is_not_of_a_trial_ends_the_search(open_search, monkeypatch):
    def full(*_):
        raise disk.DiskError("The disk is full.")

    found = open_search()
    monkeypatch.setattr(tune, "predict_fold", full)
    with pytest.raises(disk.DiskError):
        tune.search(found, None, 3)


def test_another_process_goes_on_with_the_same_recipe(open_search, monkeypatch):
    tune.search(open_search(), None, 2)
    monkeypatch.setattr(tune.recipe, "prepare", lambda *_: pytest.fail("it was chosen already"))
    found = open_search("another folder")
    tune.search(found, None, 4)
    assert len(found.study.trials) == 4
    assert sum("default" in trial.user_attrs for trial in found.study.trials) == 1
    assert (found.folder / "default.toml").is_file()


@pytest.mark.slow
def test_a_study_may_be_in_a_database(tmp_path):
    """Two processes, or machines, that are given the same address and name have the same study."""
    address = f"sqlite:///{tmp_path}/studies.db"
    study = tune.open_study(address, "one")
    study.enqueue_trial({"head.dropout": 0.3})
    study.set_user_attr("recipe", "[head]")
    again = tune.open_study(address, "one")
    assert len(again.trials) == 1 and again.user_attrs["recipe"] == "[head]"
    assert not tune.open_study(address, "other").trials


def test_a_study_is_of_its_images(open_search, tmp_path):
    tune.search(open_search(), None, 1)
    (tmp_path / "images" / "disc" / "00.png").unlink()
    with pytest.raises(DataError, match="not those that this study began with"):
        open_search()


def test_a_killed_process_loses_its_trial_and_a_living_one_does_not(open_search):
    found = open_search()
    tune.search(found, None, 1)
    dead, alive = found.study.ask(), found.study.ask()
    for trial in (dead, alive):
        (found.folder / "trials" / str(trial.number)).mkdir(parents=True)
    with disk.locked(found.folder / "trials" / str(alive.number)):
        again = open_search()
        tune.fail_abandoned(again)
        states = [trial.state.name for trial in again.study.trials]
    assert states == ["COMPLETE", "FAIL", "RUNNING"]


def test_without_the_recipe_itself_there_is_nothing_to_compare_with(open_search, capsys):
    assert conclude(open_search()) is None and "nothing to compare with" in capsys.readouterr().out


@pytest.mark.slow
def test_no_gain_is_called_so(open_search, capsys):
    found = open_search(space={"head.l1": Range(0.0, 0.1)})  # which changes nothing here
    tune.search(found, None, 12)
    result = conclude(found)
    assert "No real gain" in capsys.readouterr().out and result["loss"]["gain"]["value"] == 0
    assert all((found.folder / f"{name}.png").stat().st_size > 1000 for name in ("history", "slices", "importance"))


# With real training


def words(home: Path) -> list[str]:
    """The command line of a small search."""
    (home / "mine.toml").write_text(
        '[tune.space]\n"head.dropout" = {low=0.0, high=0.6}\n"stages.0.unfreeze" = [1, 2]\n'
        '"stages.0.learning_rate" = {low=1e-4, high=1e-2, log=true}\n'
    )
    line = ["--config", "mine.toml", "--data.path=images", "--data.image_size=32", "--backbone.name=tiny"]
    line += [
        "--backbone.weights=tiny.weights.h5",
        "--train.batch_size=8",
        "--stages.0.unfreeze=1",
        "--stages.0.epochs=1",
    ]
    return [*line, "--folds", "2"]


@pytest.fixture
def home(tmp_path, monkeypatch, make_folder) -> Path:  # of processes that know no fixture
    make_folder(each=12)
    keras.utils.set_random_seed(0)
    build_backbone(Backbone(name="tiny", weights="none"), 32).save_weights(tmp_path / "tiny.weights.h5")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_two_processes_on_one_study_of_which_one_is_killed(home):
    """SIGKILL in the middle of a trial: the other goes on, and the study counts that one trial as lost."""

    def start(*arguments) -> subprocess.Popen:
        line = [sys.executable, str(SCRIPTS / "tune.py"), *map(str, arguments)]
        return subprocess.Popen(line, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = start(*words(home), "--trials", 6)
    for line in first.stdout:
        if "--resume" in line:
            folder = home / line.rpartition(" ")[2].strip()
            break
    second = start("--resume", folder, "--trials", 6)
    for line in second.stdout:
        if line.startswith("to search with"):
            break
    while not any(f"process {second.pid} " in lock.read_text() for lock in folder.glob("trials/*/.lock")):
        assert second.poll() is None
        time.sleep(0.02)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert first.wait() == 0
    third = start("--resume", folder, "--trials", 8)
    said, _ = third.communicate()
    assert third.returncode == 0 and "lost with its process" in said, said
    result = json.loads((folder / "tune.json").read_text())
    assert result["trials"]["fail"] == 1 and result["trials"]["running"] == 0
    assert result["trials"]["complete"] + result["trials"]["pruned"] >= 7
