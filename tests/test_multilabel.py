"""Several labels an image: tables, parts, the probe, scores that equal scikit-learn's, and the scripts."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from sklearn import metrics as reference
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from template.config import Config, ConfigError, Data, Train
from template.data.examples import DataError, Examples, load_examples
from template.data.split import split
from template.data.stratify import iterative_stratification, multilabel_folds
from template.diagnose.grids import label_text
from template.evaluate import multilabel
from template.evaluate.calibration import temperature
from template.evaluate.predictions import Predictions, average
from template.labels import thresholds_of
from template.train.linear_probe import fit_probe, folds
from template.train.select import per_image_losses, scores
from tests.conftest import call


def compose(folder, n: int, seed: int = 0):
    """Images of two or three handwritten digits each, and a table of which they are."""
    digits, generator = load_digits(), np.random.default_rng(seed)
    folder.mkdir()
    rows = []
    for number in range(n):
        canvas, labels = np.zeros((24, 24), np.uint8), set()
        for cell in generator.permutation(9)[: generator.integers(2, 4)]:
            which = int(generator.integers(len(digits.target)))
            top, left = 8 * (int(cell) // 3), 8 * (int(cell) % 3)
            canvas[top : top + 8, left : left + 8] = digits.images[which] * 15.9
            labels.add(str(digits.target[which]))
        Image.fromarray(canvas).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number:04d}.png")
        rows.append((f"{number:04d}.png", ";".join(sorted(labels))))
    with (folder / "labels.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label"), *rows])
    return folder / "labels.csv"


def table(folder, text: str):
    for name in "abcd":
        Image.new("RGB", (8, 8), (40 * ord(name) % 256, 9, 9)).save(folder / f"{name}.png")
    file = folder / "labels.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,cat;dog\nb.png,dog\nc.png,\nd.png,cat\n",
        "path,label\na.png,cat | dog\nb.png,dog\nc.png,\nd.png,cat\n",
        "path,cat,dog\na.png,1,1\nb.png,0,1\nc.png,0,0\nd.png,1,0\n",
        "path;cat;dog\na.png;True;True\nb.png;False;True\nc.png;False;False\nd.png;True;False\n",
        "path,label\na.png,cat\na.png,dog\nb.png,dog\nc.png,\nd.png,cat\n",
    ],
    ids=["semicolons", "bars", "a column a class", "words, and semicolons between the columns", "a row a label"],
)
def test_labels_are_read_from_every_form_of_table(tmp_path, text):
    found = load_examples(str(table(tmp_path, text)), labels="multi")
    assert found.class_names == ("cat", "dog") and found.ids.tolist() == ["a.png", "b.png", "c.png", "d.png"]
    assert found.labels.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0]]


def test_classes_that_look_like_several_labels_are_pointed_out(tmp_path, capsys):
    found = load_examples(str(table(tmp_path, "path,label\na.png,cat;dog\nb.png,dog\n")))
    assert found.class_names == ("cat;dog", "dog") and "--data.labels=multi" in capsys.readouterr().out


def test_a_folder_cannot_say_several_labels(tmp_path):
    with pytest.raises(DataError, match=r"expected a CSV file .* 0 and 1"):
        load_examples(str(tmp_path), labels="multi")


def test_a_table_without_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match="a column for each class"):
        load_examples(str(table(tmp_path, "path,width\na.png,640\nb.png,480\n")), labels="multi")


def test_labels_are_indices_into_another_list_of_classes(tmp_path):
    found = load_examples(str(table(tmp_path, "path,label\na.png,cat;dog\nb.png,dog\n")), labels="multi")
    assert found.with_classes(["ant", "Dog", "cat"]).labels.tolist() == [[0, 1, 1], [0, 1, 0]]


def some_labels(n: int, seed: int = 0, shares=(0.5, 0.3, 0.1, 0.03)) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, len(shares))) < shares).astype(np.uint8)


def test_folds_have_their_share_of_the_rarest_label():
    labels = some_labels(400)
    judged = np.zeros(400, int)
    for inside, outside in multilabel_folds(labels, 5, seed=0):
        judged[outside] += 1
        assert len(np.intersect1d(inside, outside)) == 0 and abs(len(outside) - 80) <= 2
        assert np.abs(labels[outside].sum(axis=0) - labels.sum(axis=0) / 5).max() <= 1.5
    assert (judged == 1).all()


def test_folds_do_not_part_a_group():
    labels, groups = some_labels(300, shares=(0.5, 0.3)), np.arange(300) // 3
    for inside, outside in folds(labels, 2, seed=0, groups=groups):
        assert not np.intersect1d(groups[inside], groups[outside]).size and len(outside) > 30


def test_a_label_of_one_image_cannot_be_held_out():
    labels = some_labels(50, shares=(0.5, 0.3))
    labels = np.column_stack([labels, np.arange(50) == 7]).astype(np.uint8)
    assert folds(labels, 3, seed=0) == []


def test_what_has_no_label_is_divided_too():
    counts = np.array([[0, 0, 1]] * 10)
    part = iterative_stratification(counts, [0.5, 0.5], np.arange(10))
    assert np.bincount(part).tolist() == [5, 5]


def examples_of(labels: np.ndarray, digests: np.ndarray) -> Examples:
    names = tuple("abcd"[: labels.shape[1]])
    n = len(labels)
    return Examples(digests, [b""] * n, labels, names, np.full(n, ""), digests=digests)


def test_every_part_has_every_label_and_the_same_images_whatever_their_order():
    labels, digests = some_labels(300), np.array([f"{i:04d}" for i in range(300)])
    parts = split(examples_of(labels, digests), val_fraction=0.2, test_fraction=0.1, seed=0).parts
    for part, share in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        mine = parts == part
        assert abs(mine.mean() - share) < 0.01
        assert np.abs(labels[mine].sum(axis=0) - share * labels.sum(axis=0)).max() <= 1.5
    order = np.random.default_rng(1).permutation(300)
    again = split(examples_of(labels[order], digests[order]), val_fraction=0.2, test_fraction=0.1, seed=0).parts
    assert (again == parts[order]).all()


def test_one_image_with_two_sets_of_labels_is_left_out():
    labels, digests = some_labels(100, shares=(0.5, 0.5)), np.array([f"{i:04d}" for i in range(100)])
    labels[0], labels[1], digests[1] = [1, 0], [1, 1], digests[0]
    found = split(examples_of(labels, digests), val_fraction=0.2, test_fraction=0.1, seed=0)
    assert found.parts[:2].tolist() == ["", ""] and "['a', 'a;b']" in found.skipped[0][1]


def test_the_probe_is_a_regression_of_each_label_against_the_rest():
    generator, labels = np.random.default_rng(0), some_labels(200, shares=(0.5, 0.4, 0.2))
    features = (labels @ generator.normal(size=(3, 30)) + generator.normal(size=(200, 30)) + 5).astype(np.float32)
    probe = fit_probe(features[None], labels, 3, seed=0)
    scaled = (features - features.mean(axis=0)) / np.sqrt(np.mean((features - features.mean(axis=0)) ** 2))
    mine = expit(features @ probe.kernel.astype(float) + probe.bias)
    for label in range(3):
        alone = LogisticRegression(C=probe.strength, tol=1e-7, max_iter=5000).fit(scaled, labels[:, label])
        np.testing.assert_allclose(mine[:, label], alone.predict_proba(scaled)[:, 1], atol=0.01)
    shares = labels.mean(axis=0)
    chance = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).mean()
    assert 0 < probe.cross_entropy < 0.8 * chance and 0.3 < probe.accuracy <= 1


def noisy(n: int, seed: int = 0, boast: float = 1.0) -> Predictions:
    labels = some_labels(n, seed, (0.5, 0.3, 0.1)).astype(np.int64)
    logits = boast * (2.0 * labels - 1.5 + np.random.default_rng(seed + 1).normal(size=labels.shape))
    return Predictions(np.arange(n).astype(str), labels, logits.astype(np.float32), ("a", "b", "c"))


def test_every_score_is_that_of_scikit_learn():
    predictions, levels = noisy(300), np.array([0.5, 0.4, 0.3])
    found = multilabel.score(predictions, levels)
    has, p = predictions.labels, predictions.probabilities
    says = p >= levels
    expected = {
        "accuracy": reference.accuracy_score(has, says),
        "hamming_loss": reference.hamming_loss(has, says),
        "micro_f1": reference.f1_score(has, says, average="micro"),
        "macro_f1": reference.f1_score(has, says, average="macro"),
        "mean_average_precision": reference.average_precision_score(has, p),
        "roc_auc": reference.roc_auc_score(has, p),
        "cross_entropy": np.mean([reference.log_loss(has[:, c], p[:, c]) for c in range(3)]),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-6), name
        assert found[name]["low"] < value < found[name]["high"], name
    for c, row in enumerate(found["classes"].values()):
        assert row["precision"]["value"] == pytest.approx(reference.precision_score(has[:, c], says[:, c]))
        assert row["recall"]["value"] == pytest.approx(reference.recall_score(has[:, c], says[:, c]))
        assert row["f1"]["value"] == pytest.approx(reference.f1_score(has[:, c], says[:, c]))
        assert row["average_precision"]["value"] == pytest.approx(
            reference.average_precision_score(has[:, c], p[:, c]), abs=1e-6
        )


@pytest.mark.slow
def test_intervals_hold_what_they_promise():
    truth = multilabel.score(noisy(40_000), np.full(3, 0.5))
    held = {"micro_f1": 0, "mean_average_precision": 0, "hamming_loss": 0}
    for seed in range(40):
        found = multilabel.score(noisy(150, 10 + seed), np.full(3, 0.5))
        for name in held:
            held[name] += found[name]["low"] <= truth[name]["value"] <= found[name]["high"]
    assert min(held.values()) >= 35, held  # 38 expected of 40


def test_a_label_that_no_image_has_is_undefined_and_spoils_nothing():
    predictions = noisy(100)
    labels = predictions.labels.copy()
    labels[:, 2] = 0
    without = Predictions(predictions.ids, labels, predictions.logits, predictions.class_names)
    found = multilabel.score(without, np.full(3, 0.5))
    assert found["classes"]["c"]["average_precision"]["value"] is None and found["classes"]["c"]["recall"] is None
    expected = reference.average_precision_score(labels[:, :2], without.probabilities[:, :2])
    assert found["mean_average_precision"]["value"] == pytest.approx(expected, abs=1e-6)


def test_nothing_wrong_among_few_is_no_certainty():
    labels = np.tile([[1, 0], [0, 1]], (6, 1))
    logits = (8.0 * labels - 4).astype(np.float32)
    found = multilabel.score(Predictions(np.arange(12).astype(str), labels, logits, ("a", "b")), np.full(2, 0.5))
    for row in found["classes"].values():
        assert row["f1"]["value"] == 1 and row["f1"]["low"] < 0.7


def test_temperature_and_thresholds_come_from_validation():
    val, test = noisy(400, boast=4.0), noisy(400, seed=9, boast=4.0)
    found = multilabel.calibrate(val, test)
    assert 2 < found["temperature"] < 8 and found == multilabel.calibrate(val, test.take(np.arange(400)))
    levels = thresholds_of(found, val.class_names)
    probabilities = val.scaled(found["temperature"]).probabilities
    for c in range(3):
        tried = [reference.f1_score(val.labels[:, c], probabilities[:, c] >= at) for at in (0.2, 0.35, 0.5, 0.65)]
        assert reference.f1_score(val.labels[:, c], probabilities[:, c] >= levels[c]) >= max(tried)


def test_the_monitored_loss_knows_several_labels():
    predictions = noisy(3000, boast=3.0)
    logits, labels = predictions.logits, predictions.labels
    losses = {name: per_image_losses(logits, labels, name) for name in ("cross_entropy", "accuracy", "macro_f1")}
    says = logits > 0
    assert losses["accuracy"].mean() == pytest.approx(1 - reference.accuracy_score(labels, says))
    assert losses["macro_f1"].mean() == pytest.approx(1 - reference.f1_score(labels, says, average="macro"))
    scaled = predictions.scaled(temperature(logits, labels, prior_std=np.inf))
    plain = np.mean([reference.log_loss(labels[:, c], scaled.probabilities[:, c]) for c in range(3)])
    assert losses["cross_entropy"].mean() == pytest.approx(plain, abs=0.01)
    assert scores(logits, labels)["val_cross_entropy"] > plain


def test_views_are_averaged_class_by_class():
    one, other = noisy(20), noisy(20, boast=2.0)
    other = Predictions(one.ids, one.labels, other.logits, one.class_names)
    np.testing.assert_allclose(
        average([one, other]).probabilities, (one.probabilities + other.probabilities) / 2, atol=1e-6
    )


@pytest.mark.parametrize(
    "train", [{"loss": "focal"}, {"class_weights": "balanced"}, {"logit_adjustment": 1.0}, {"sampling": "balanced"}]
)
def test_what_counts_on_one_class_an_image_is_refused(train):
    with pytest.raises(ValueError, match=f"train.{next(iter(train))}: for images of one class each"):
        Config(data=Data(path="x.csv", labels="multi"), train=Train(**train))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one short stage on composed digits."""
    home = tmp_path_factory.mktemp("multilabel")
    file, cache = compose(home / "images", 120), home / "cache"
    code, said = call(
        "train", f"--data.path={file}", "--data.labels=multi", "--runs", home / "runs", f"--data.cache={cache}",
        "--backbone.name=tiny", "--backbone.weights=none", "--data.image_size=32", "--augment.policy=light",
        "--stages.0.unfreeze=all", "--stages.0.epochs=2", "--augment.hflip=false", "--data.resize=crop",
    )  # fmt: skip
    assert code == 0, said
    return next((home / "runs").iterdir()), file, said


def test_a_run_says_reports_and_keeps_what_several_labels_need(run):
    folder, _, said = run
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "test mean average precision" in said and set(metrics["test"]["classes"]) == set("0123456789")
    assert ";" in (folder / "split.csv").read_text()
    report = (folder / "report.html").read_text()
    assert "mean average precision on" in report and "Per-label metrics" in report and "confusion" not in report
    saved = Predictions.load(folder / "predictions.npz")
    assert saved.multi and saved.labels.shape == saved.logits.shape


def test_predict_names_all_labels_above_their_thresholds(run):
    folder, file, _ = run
    thresholds = json.loads((folder / "calibration.json").read_text())["thresholds"]
    images, progress = [file.parent / "0000.png", file.parent / "0001.png"], io.StringIO()
    code, said = call("predict", "--run", folder, "--top-k", 10, *images, errors=progress)
    assert code == 0, progress.getvalue()
    for row in csv.DictReader(said.splitlines()):
        probabilities = {row[f"class_{i}"]: float(row[f"probability_{i}"]) for i in range(1, 11)}
        expected = [name for name in sorted(probabilities) if probabilities[name] >= thresholds[name]["threshold"]]
        assert row["labels"].split(";") == (expected or [""])


def test_evaluate_says_what_the_run_said(run):
    folder, _, _ = run
    code, said = call("evaluate", "--run", folder)
    value = json.loads((folder / "metrics.json").read_text())["test"]["micro_f1"]["value"]
    assert code == 0 and f"micro F1                            {100 * value:.1f} %" in said


@pytest.mark.slow
def test_an_export_says_what_keras_says(run):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from template.deploy.runtime import Classifier

    folder, file, _ = run
    code, said = call("export", "--run", folder, "--format", "onnx", "savedmodel", "--data.path", file)
    assert code == 0, said
    card = json.loads((folder / "export" / "model_card.json").read_text())
    assert card["labels"] == "multi" and {row["agreement"] for row in card["artefacts"]} == {1.0}
    assert Classifier.of_run(folder).multi
    images = [file.parent / f"{number:04d}.png" for number in range(6)]
    rows = []
    for how in ([], ["--runtime", "onnx"]):
        _, said = call("predict", "--run", folder, "--top-k", 10, *how, *images, errors=io.StringIO())
        rows.append(list(csv.DictReader(said.splitlines())))
    assert [row["labels"] for row in rows[0]] == [row["labels"] for row in rows[1]]
    sums = [sum(float(row[f"probability_{i}"]) for i in range(1, 11)) for row in rows[1]]
    assert min(sums) > 1.1, "each label alone: of two or three in ten, they add up to more than one"


def test_means_over_views_are_of_each_label_alone():
    from template.deploy.runtime import _power

    p = np.array([[0.2, 0.9], [0.6, 0.8]])
    np.testing.assert_allclose(_power(p, 2.0, multi=True), expit(2 * np.log(p / (1 - p))))


def test_explain_shows_each_label_that_is_given(run, tmp_path):
    folder, file, _ = run
    thresholds = json.loads((folder / "calibration.json").read_text())["thresholds"]
    code, said = call("explain", "--run", folder, "--out", tmp_path, file.parent / "0001.png", errors=io.StringIO())
    _, row = call("predict", "--run", folder, "--top-k", 10, file.parent / "0001.png", errors=io.StringIO())
    given = next(csv.DictReader(row.splitlines()))["labels"].split(";")
    assert code == 0 and len(list(tmp_path.glob("0000-0001-*.png"))) == len(given) == said.count("0000-0001-")
    assert set(given) <= set(thresholds)


def test_all_runs_side_by_side_may_have_several_labels(run, tmp_path):
    folder, _, _ = run
    shutil.copytree(folder, tmp_path / "runs" / "one")
    shutil.copytree(folder, tmp_path / "runs" / "two")
    code, said = call("runs", tmp_path / "runs", "--html", tmp_path / "runs.html")
    assert code == 0, said
    assert "What separates them" not in (tmp_path / "runs.html").read_text()


def test_what_training_sees_is_drawn_with_all_labels(run, tmp_path):
    _, file, _ = run
    out, cache = tmp_path / "seen.png", tmp_path / "cache"
    more = ["--data.labels=multi", "--data.image_size=32", "--out", out, f"--data.cache={cache}"]
    code, said = call("show", f"--data.path={file}", *more)
    assert code == 0 and out.is_file(), said
    assert label_text(np.array([0, 1, 1]), "abc") == "b c" and label_text(np.zeros(3), "abc") == ""
    assert label_text(np.array([0.3, 0.7, 0]), "abc") == "b 0.70 a 0.30"


def test_a_precision_that_cannot_be_promised_gives_the_label_to_none(tmp_path):
    val = noisy(60)
    found = multilabel.calibrate(val, val, precision=0.999)
    levels = thresholds_of(found, val.class_names)
    assert np.isinf(levels).all() and found["thresholds"] == {}
    scores = multilabel.score(val, levels)
    assert scores["classes"]["a"]["threshold"] is None and scores["classes"]["a"]["recall"]["value"] == 0
    assert len(multilabel.most_confident_errors(val, levels, 5)[0]) == 0
    json.dumps(scores, allow_nan=False)


def test_a_run_with_preflight_is_refused_before_it_trains(run, tmp_path):
    _, file, _ = run
    code, _ = call("train", f"--data.path={file}", "--data.labels=multi", "--preflight", "--runs", tmp_path / "runs")
    assert "preflight.py is for images of one class each" in str(code) and not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize("script", ["preflight", "cross_validate", "tune"])
def test_scripts_for_one_class_each_say_so(run, script, tmp_path):
    if script == "tune":
        pytest.importorskip("optuna", reason='needs the extra tune: pip install -e ".[tune]"')
    _, file, _ = run
    where = ["--out"] if script == "preflight" else ["--runs"]
    code, said = call(script, f"--data.path={file}", "--data.labels=multi", *where, tmp_path / "out")
    assert code == 2 and f"{script}.py is for images of one class each" in said


def test_scripts_for_a_run_of_one_class_each_say_so(run, tmp_path):
    folder, file, _ = run
    pool = ["--pool", file.parent, "--out", tmp_path / "next.csv"]
    for script, arguments in {
        "label_next": ["--run", folder, *pool], "annotate": ["--run", folder], "compare": [folder, folder],
        "diagnose": ["--run", folder],
    }.items():  # fmt: skip
        code, _ = call(script, *arguments)
        assert isinstance(code, str) and "several labels" in code, script


@pytest.mark.slow
def test_composed_digits_are_learned(tmp_path):
    file = compose(tmp_path / "images", 2000)
    code, said = call("train", f"--data.path={file}", "--data.labels=multi", "--runs", tmp_path / "runs",
                      "--config", "configs/digits.toml", f"--data.cache={tmp_path / 'cache'}")  # fmt: skip
    metrics = json.loads((next((tmp_path / "runs").iterdir()) / "metrics.json").read_text())
    assert code == 0 and metrics["test"]["mean_average_precision"]["value"] >= 0.97, said


def test_config_errors_name_the_page():
    from template.config import require_single_label

    with pytest.raises(ConfigError, match=r"docs/multilabel\.md"):
        require_single_label(Config(data=Data(path="x.csv", labels="multi")), "this")
