"""Runs side by side say what their files say, differ where they differ, and lose nothing that cannot be made again."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import call, class_folders

from template import config as configuration
from template import disk, runs
from template.config import Stage
from template.evaluate.compare import compare
from template.evaluate.intervals import percent, wilson_interval
from template.evaluate.predictions import Predictions
from template.experiments import tracking
from template.experiments.read import find, read

NAME = "20260102-030405-<b>mobilenet $x$ & co"
HEADER = "stage,epoch,val_cross_entropy,val_accuracy"


def begun(folder: Path, *overrides: str, epochs: int = 0, split: str = "one") -> Path:
    """A run that has so many epochs, and is not finished."""
    folder.mkdir(parents=True)
    cache = f"data.cache={folder.parent / 'cache'}"
    config = configuration.load(None, [cache, "data.path=/x/<i>birds", *overrides])
    runs.write_text(folder / "config.toml", configuration.to_toml(config))
    runs.write_json(folder / "run.json", {"split_sha256": split})
    rows = [f"{1 + (n > 2)},{n + 1},{1 / (n + 1)},{n / (n + 1)}" for n in range(epochs)]
    if rows:
        runs.write_text(folder / "history.csv", "\n".join([HEADER, *rows]) + "\n")
    return folder


def finished(folder: Path, *overrides: str, right: np.ndarray, seconds: float = 61.4, **how) -> Path:
    """A run that was right on these test images, and on half of 40 of validation."""
    begun(folder, *overrides, **how)
    labels = np.arange(len(right)) % 3
    logits = 4 * np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    Predictions(np.arange(len(right)).astype(str), labels, logits, ("a", "b", "<u>c")).save(folder / "predictions.npz")
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        archive.writestr("config.json", "x" * 5000)
    scores = {"images": len(right), "accuracy": wilson_interval(int(right.sum()), len(right))}
    val = {"images": 40, "accuracy": wilson_interval(20, 40)}
    runs.write_json(folder / "metrics.json", {"test": scores, "val": val, "seconds": {"total": seconds}})
    return folder


def checkpoints(run: Path, place: str = "checkpoints") -> Path:
    for name in ("00004", "base-" + "0" * 32):
        (run / place / name).mkdir(parents=True)
        for file, size in (("arrays.npz", 2**19 - 2000), ("state.json", 1000), (disk.MANIFEST, 1000)):
            (run / place / name / file).write_bytes(b"x" * size)
    return run / place


def activations(cache: Path) -> Path:
    cache.mkdir(exist_ok=True)
    for name in ("features-0123456789abcdef.rows", "pixels-0123456789abcdef.rows", "my features-notes.txt"):
        (cache / name).write_bytes(b"x" * 3 * 2**20)
    return cache / "features-0123456789abcdef.rows"


RIGHT = np.arange(200) % 5 > 0
BETTER = RIGHT | (np.arange(200) % 10 == 0)


def five(place: Path) -> Path:
    """Four finished runs, three of them measured on the same images; one interrupted; and what is no run."""
    finished(place / "20260101-000000-tiny", right=RIGHT, epochs=3)
    better = ("train.seed=3", "backbone.name=mobilenet", "stages=[{unfreeze=2, epochs=5}]")
    finished(place / NAME, *better, right=BETTER, epochs=5, seconds=9)
    finished(place / "20260103-000000-equal", "train.seed=4", right=np.roll(RIGHT, 1))
    finished(place / "20260104-000000-other", "data.path=digits", right=RIGHT[:50], epochs=2, split="two")
    begun(place / "20260105-000000-tiny", "head.dropout=0.5", epochs=4)
    (place / "notes").mkdir()
    (place / "notes.txt").write_text("mine")
    return place


@pytest.fixture
def folder(tmp_path) -> Path:
    return five(tmp_path / "runs")


def listed(*arguments) -> list[dict]:
    code, said = call("runs", *arguments, "--json")
    assert code == 0, said
    return json.loads(said)


def contents(place: Path) -> dict[str, bytes]:
    """Of all files but locks."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


# the table


def test_each_run_says_what_its_files_say(folder):
    newest, _, _, named, oldest = listed(folder)
    assert (oldest["run"], oldest["date"], oldest["data"]) == ("20260101-000000-tiny", "2026-01-01 00:00", "<i>birds")
    assert oldest["accuracy"] == wilson_interval(160, 200) and oldest["validation"] == wilson_interval(20, 40)
    assert (oldest["part"], oldest["images"], oldest["seconds"]) == ("test", 200, 61.4)
    assert oldest["size"] == (folder / oldest["run"] / "model.keras").stat().st_size
    assert (named["network"], named["path"]) == ("mobilenet", "/x/<i>birds")
    assert (newest["status"], newest["why"], newest["accuracy"]) == ("interrupted", "after epoch 4", None)
    _, said = call("runs", folder)
    assert percent(wilson_interval(160, 200)) in said and "of 200 test" in said and "61 s" in said


def test_without_test_images_the_accuracy_is_of_validation(tmp_path):
    run = finished(tmp_path / "run", right=RIGHT)
    runs.write_json(run / "metrics.json", json.loads((run / "metrics.json").read_text()) | {"test": None})
    (row,) = listed(run)
    assert (row["part"], row["images"], row["accuracy"]) == ("val", 40, wilson_interval(20, 40))


def crossed(folder: Path) -> Path:
    """The cross-validation of a run, and in final/ the network that learned from all images, which is not finished."""
    run = finished(folder, right=RIGHT)
    (run / "metrics.json").unlink()
    (run / "model.keras").unlink()
    for fold in ("fold-01", "fold-02"):
        checkpoints(run / fold)
        (run / fold / "fold.json").write_text("{}")
    return run


def test_a_cross_validation_is_a_run_and_a_study_is_none(tmp_path):
    run = crossed(tmp_path / "20260101-000000-cv-tiny")
    begun(tmp_path / "20260102-000000-tune-tiny")
    (tmp_path / "20260102-000000-tune-tiny" / "study.json").write_text("{}")
    (row,) = listed(tmp_path)
    assert (row["status"], row["why"], row["accuracy"]) == ("interrupted", "after fold 2", None)
    scores = {"images": 200, "accuracy": wilson_interval(160, 200), "seconds": 12.0}
    runs.write_json(run / "cross_validation.json", scores)
    begun(run / "final", epochs=3)
    kept = checkpoints(run / "final")
    (row,) = listed(tmp_path)
    assert (row["status"], row["part"], row["images"]) == ("finished", "cv", 200)
    assert (row["accuracy"], row["validation"], row["size"]) == (scores["accuracy"], None, None)
    code, _ = call("runs", tmp_path, "--html", tmp_path / "runs.html", "--prune", "--yes")
    assert code == 0 and "200 cv" in (tmp_path / "runs.html").read_text()
    assert not (run / "fold-01" / "checkpoints").exists() and len(list(kept.iterdir())) == 2


def test_the_settings_that_differ_are_those_and_no_others(folder):
    runs.write_json(folder / NAME / "choices.json", {"stages": {"half": 0.3}})
    rows = listed(folder)
    stages = "unfreeze=2 epochs=5 learning_rate=0.001"
    expected = {"head.dropout", "train.seed", "backbone.name", "stages.0"}
    assert all(set(row["differing"]) == expected for row in rows)
    assert rows[3]["differing"] == {
        "train.seed": 3, "backbone.name": "mobilenet", "stages.0": stages, "head.dropout": 0.3,
    }  # fmt: skip
    assert rows[3]["changed"] | {"train.seed": 3, "stages.0": stages} == rows[3]["changed"]
    _, said = call("runs", folder)
    assert f"stages.0={stages} (chosen)" in said and "train.seed=4" in said and "data.cache" not in said


@pytest.mark.parametrize(
    ("key", "days"),
    [("date", "54321"), ("seconds", "21345"), ("accuracy", "21345"), ("train.seed", "14523"), ("network", "13452")],
)
def test_sorted_by_a_column_or_a_setting(folder, key, days):
    """By the day in the name of each run; of equal ones the earlier comes first, and what has no value last."""
    assert "".join(row["run"][7] for row in listed(folder, "--sort", key)) == days


def test_what_has_no_accuracy_comes_last_either_way(folder):
    for more in ([], ["--reverse"]):
        rows = listed(folder, "--sort", "accuracy", *more)
        assert rows[-1]["accuracy"] is None
    assert rows[-2]["run"] == NAME


def test_filters_must_all_hold(folder):
    assert len(listed(folder, "--filter", "status=finished")) == 4
    assert [row["run"] for row in listed(folder, "--filter", "backbone.name=mobile*")] == [NAME]
    both = listed(folder, "--filter", "status=finished", "--filter", "train.seed=4")
    assert [row["run"] for row in both] == ["20260103-000000-equal"]
    assert listed(folder, "--filter", "stages.0.epochs=5")[0]["run"] == NAME
    assert listed(folder, "--filter", "train.seed=99") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "train.sead=1"], "Did you mean 'train.seed'?"),
        (["--filter", "acuracy=1"], "Or a column: run, status, date"),
        (["--filter", "status=done"], "expected finished | running | interrupted | damaged. Received: 'done'"),
        (["--filter", "finished"], "Expected key=value"),
        (["--sort", "best"], "Or a column:"),
    ],
)
def test_words_that_do_not_exist_are_refused(folder, arguments, message):
    code, said = call("runs", folder, *arguments)
    assert code == 2 and message in said


def test_a_folder_without_runs_is_said(tmp_path):
    assert "no runs in" in call("runs", tmp_path)[0]
    assert "cannot be read" in call("runs", tmp_path / "none")[0]


def test_a_run_that_is_being_written_is_running(folder):
    with disk.locked(folder / "20260105-000000-tiny"):
        assert listed(folder)[0]["status"] == "running"
    assert listed(folder)[0]["status"] == "interrupted"


def test_a_killed_run_is_interrupted(folder):
    (folder / "20260105-000000-tiny" / ".lock").write_text("process 1 on elsewhere since yesterday")
    assert listed(folder)[0]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda run: (run / "model.keras").unlink(), "model.keras' is missing"),
        (lambda run: (run / "model.keras").write_bytes(b"x"), "model.keras' is damaged"),
        (lambda run: (run / "predictions.npz").write_bytes(b"x"), "predictions.npz' is damaged"),
        (lambda run: (run / "metrics.json").write_text('{"test": nul'), "metrics.json' is damaged"),
        (lambda run: (run / "metrics.json").write_text('{"test": null}'), "metrics.json' is damaged: it lacks 'val'"),
        (lambda run: (run / "history.csv").write_text("stage,epoch\n1,x\n"), "history.csv' is damaged"),
        (lambda run: (run / "config.toml").write_text("[data"), "is not valid TOML"),
    ],
)
def test_a_damaged_run_is_listed_as_such_and_hides_no_other(folder, damage, why):
    damage(folder / NAME)
    rows = {row["run"]: row for row in listed(folder)}
    assert rows[NAME]["status"] == "damaged" and why in rows[NAME]["why"] and len(rows) == 5
    assert "damaged: " in call("runs", folder)[1]


# the page


def text_of(page: str) -> str:
    """What a reader sees of a page, on one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(style|script|svg|pre).*?</\1>", "", page)).split())


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Of the five and a damaged one."""
    home = tmp_path_factory.mktemp("page")
    (finished(five(home / "runs") / "20250101-000000-old", right=RIGHT) / "model.keras").unlink()
    code, said = call("runs", home / "runs", "--html", home / "runs.html")
    assert code == 0, said
    return (home / "runs.html").read_text(encoding="utf-8")


def test_names_are_text(page):
    assert "<b>mobilenet" not in page and "<i>birds" not in page and "<u>c" not in page
    assert "#4 20260102-030405-&lt;b&gt;mobilenet $x$ &amp; co" in page and "&lt;i&gt;birds" in page
    assert not re.search(
        r"https?://(?!www\.w3\.org)", re.sub(r"(?s)<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", page)
    )


def test_only_runs_on_the_same_images_are_compared_and_by_these(page, folder):
    told = text_of(page)
    assert told.count("On the same") == 1 and "On the same 200 images, against #5 20260101-000000-tiny" in told
    first, second, third = (Predictions.load(folder / name / "predictions.npz") for name in
                            ("20260101-000000-tiny", NAME, "20260103-000000-equal"))  # fmt: skip
    for other, verdict in ((second, "more accurate"), (third, "no significant difference")):
        found = compare(first, other)
        low, value, high = (100 * found["accuracy"]["difference"][key] for key in ("low", "value", "high"))
        only = f"{found['mcnemar']['only_first']} {found['mcnemar']['only_second']}"
        assert f"{value:+.1f} [{low:+.1f}, {high:+.1f}] {verdict} {only}" in told
    assert "Choose by validation" in told


def test_curves_of_one_division_of_images_lie_over_each_other(page):
    drawn = [part for part in re.findall(r"(?s)<svg.*?</svg>", page)]
    lines = [
        len(re.findall(r'id="line2d_\d+"[^>]*>\s*<path d="[^"]*" clip-path[^>]*stroke-width: 1\.5', s)) for s in drawn
    ]
    assert lines == [3, 3, 1, 1], "three runs on images of one division, interrupted ones among them; and another"


def test_the_unfinished_are_on_the_page_too(page):
    assert "#6 20250101-000000-old damaged" in text_of(page) and "is missing." in text_of(page)
    assert "#1 20260105-000000-tiny interrupted after epoch 4" in text_of(page)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_read_on_a_phone_by_day_and_by_night(page, scheme):
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright and chromium: pip install playwright"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        opened.set_content(page)
        wide = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        letters = opened.locator(".chart g[id^=text] use").first.evaluate("one => getComputedStyle(one).fill")
        assert (wide, letters) == (0, opened.evaluate("getComputedStyle(document.body).color"))
        browser.close()


# what can be freed


@pytest.fixture
def full(folder) -> Path:
    """The runs with checkpoints, and a cache."""
    for run in folder.glob("2*"):
        checkpoints(run)
    checkpoints(folder / NAME, "final")
    activations(folder / "cache")
    return folder


FREED = (4 + 1 + 3) * 2**20


def prune(*arguments, answer: str = "") -> tuple:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "stdin", io.StringIO(answer))
        return call("runs", *arguments, "--prune")


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "no\n", "maybe\n"])
def test_nothing_is_freed_without_a_yes(full, answer):
    before = contents(full)
    code, said = prune(full, answer=answer)
    assert "nothing was deleted" in f"{code}{said}" and contents(full) == before


@pytest.mark.parametrize("how", [{"answer": "y\n"}, {"answer": "YES\n"}, {}])
def test_what_is_freed_is_checkpoints_of_the_finished_and_activations(full, how):
    before = contents(full)
    code, said = prune(full, *([] if how else ["--yes"]), **how)
    gone = before.keys() - contents(full).keys()
    assert code == 0 and contents(full).items() <= before.items()
    assert sum(len(before[name]) for name in gone) == FREED
    assert all("/checkpoints/" in name or "/final/" in name or name.startswith("cache/features-") for name in gone)
    assert not any("20260105" in name for name in gone), "which can be resumed"
    assert not (full / NAME / "checkpoints").exists()
    assert f"freed {disk.format_bytes(FREED)}" in said and said.count("  1.0 MiB") == 3 and "  2.0 MiB" in said
    assert "nothing to free" in prune(full, "--yes")[1]


def test_what_others_have_put_there_stays(full):
    run = full / NAME
    (run / "checkpoints" / "00004" / "mine.txt").write_text("mine")
    (run / "final" / "best of all").mkdir()
    shutil.rmtree(full / "20260101-000000-tiny" / "checkpoints")
    (full / "elsewhere").mkdir()
    checkpoints(full / "elsewhere")
    (full / "20260101-000000-tiny" / "checkpoints").symlink_to(full / "elsewhere" / "checkpoints")
    kept = contents(run / "checkpoints" / "00004"), contents(full / "elsewhere")
    prune(full, "--yes")
    assert (contents(run / "checkpoints" / "00004"), contents(full / "elsewhere")) == kept
    assert (run / "final" / "best of all").is_dir() and not (run / "final" / "00004").exists()


def test_a_damaged_run_keeps_its_checkpoints(full):
    (full / NAME / "model.keras").unlink()
    prune(full, "--yes")
    assert (full / NAME / "final" / "00004" / "arrays.npz").exists()


def test_a_run_that_is_being_written_is_left_alone_and_its_cache_too(full):
    with disk.locked(full / "20260105-000000-tiny"):
        prune(full, "--yes")
        assert activations(full / "cache").exists()
        assert (full / "20260105-000000-tiny" / "checkpoints" / "00004").exists()
    checkpoints(full / NAME)
    with disk.locked(full / NAME):
        code, said = prune(full, "--yes")
        assert code == 0 and "left alone" in said and (full / NAME / "checkpoints" / "00004").exists()


def test_what_is_no_run_any_more_when_it_is_freed_keeps_its_files(full):
    """Between question and answer somebody may have begun something."""
    from template.experiments import prune as pruning

    (run,) = (run for run in find([full]) if run.folder.name == NAME)
    (what,) = (each for each in pruning.freeable([run]) if each.run)
    (full / NAME / "metrics.json").unlink()
    assert pruning.remove(what) == 0 and (full / NAME / "checkpoints" / "00004").exists()


# MLflow


def test_without_mlflow_it_is_said_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("template.experiments.tracking.find_spec", lambda name: None)
    code, said = call("train", "--train.track=mlflow", "--data.image_size=32")
    assert "train.track=mlflow needs MLflow, which is not installed" in f"{code}{said}"
    assert not list((tmp_path / "runs").iterdir())


def test_what_cannot_be_logged_spoils_no_run(folder, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason='needs the extra mlflow: pip install -e ".[mlflow]"')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    tracking.log(read(folder / NAME))
    assert "warning: MLflow was not told of this run" in capsys.readouterr().err


@pytest.mark.slow
def test_mlflow_gives_back_what_a_run_was(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason='needs the extra mlflow: pip install -e ".[mlflow]"')
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    settings = [
        f"--data.path={class_folders(tmp_path / 'my images')}",
        "--backbone.name=tiny",
        "--backbone.weights=none",
    ]
    settings += ["--data.image_size=32", "--train.batch_size=8", "--train.track=mlflow", "--data.test_fraction=0.25"]
    settings += ["--stages=[{unfreeze=1, epochs=2, learning_rate=3e-3}, {unfreeze=2, epochs=1}]"]
    code, said = call("train", *settings)
    assert code == 0 and "logged to MLflow: sqlite:///" in said
    (folder,) = (tmp_path / "runs").glob("2*")
    run, client = read(folder), mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("my images").experiment_id])
    assert (kept.info.run_name, kept.info.status) == (folder.name, "FINISHED")
    assert kept.data.tags["folder"] == str(folder)
    assert kept.data.params == {key: str(value) for key, value in configuration.flat(run.config).items()}
    for column in ("val_cross_entropy", "val_accuracy", "learning_rate"):
        logged = client.get_metric_history(kept.info.run_id, column)
        assert [(each.step, each.value) for each in logged] == [(row["epoch"], row[column]) for row in run.history]
    assert kept.data.metrics["test/accuracy"] == run.score.accuracy["value"]
    assert kept.data.metrics["val/macro_f1"] == runs.read_json(folder / "metrics.json")["val"]["macro_f1"]["value"]
    names = {file.path for file in client.list_artifacts(kept.info.run_id)}
    assert {"report.html", "config.toml", "confusion_matrix.png"} <= names and "model.keras" not in names
    assert [each.folder for each in find([tmp_path / "runs"])] == [folder], "the store is no run"


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = read(begun(tmp_path / "run", "stages=[{unfreeze=1}, {unfreeze=2}]", epochs=4))
    assert run.config.stages == (Stage(unfreeze=1), Stage(unfreeze=2))
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert dataclasses.replace(run.config, stages=None) == configuration.load(
        None, [f"data.cache={tmp_path / 'cache'}", "data.path=/x/<i>birds"]
    )
    with contextlib.redirect_stderr(io.StringIO()) as said:
        read(run.folder)
    assert said.getvalue() == ""
