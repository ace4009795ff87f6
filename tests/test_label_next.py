"""The images to label next are uncertain, unlike each other and unlike what is labelled; labels of persons add up."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from template.config import TTA, Config, Data
from template.data.examples import DataError, load_examples
from template.data.images.load import load_image
from template.deploy.annotate import NONE, Annotations
from template.deploy.label_next import copies, give_every_class_some, margins, select_next, unlabelled, views_of
from template.deploy.labels import agreement, answers_file, read_answers, settle, write_table


def certain(margin: np.ndarray, label: np.ndarray | int = 0, classes: int = 3) -> np.ndarray:
    """Probabilities whose two highest differ by this much; the highest is that of a class."""
    label = np.broadcast_to(label, len(margin))
    values = np.full((len(margin), classes), 0.05 / (classes - 2))
    values[np.arange(len(margin)), label] = (0.95 + margin) / 2
    values[np.arange(len(margin)), (label + 1) % classes] = (0.95 - margin) / 2
    return values


def test_margins_are_those_of_the_two_likeliest_classes():
    np.testing.assert_allclose(margins(np.array([[0.2, 0.5, 0.3], [1, 0, 0], [0.5, 0.5, 0]])), [0.2, 1, 0])


def test_a_run_is_asked_about_the_whole_of_an_image_too_where_its_predictions_are(tmp_path):
    """Of one that is wider than high the crop is not all: the whole is another view of it, decoded anew."""
    file = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 60, 3)).astype(np.uint8)).save(file)
    data = Data(image_size=16, resize="crop", cache=str(tmp_path / "cache"))
    config = Config(data=data, tta=TTA(full_image=True, hflip=False))
    crop, whole = views_of(*unlabelled([file], config), config)
    np.testing.assert_array_equal(crop.read(0, np.array([0]))[0], load_image(file, 16, "crop"))
    np.testing.assert_array_equal(whole.read(0, np.array([0]))[0], load_image(file, 16, "stretch"))


def test_of_many_alike_that_are_uncertain_few_are_asked_for():
    """Twenty copies of one uncertain image, and nine others, less uncertain: margins alone would ask for copies."""
    rng = np.random.default_rng(0)
    features = np.concatenate([np.zeros((20, 8)), 10 * np.eye(9, 8), rng.normal(size=(60, 8))])
    features[:20] += rng.normal(0, 1e-3, (20, 8))
    margin = np.concatenate([np.full(20, 0.01), np.full(9, 0.2), np.full(60, 0.9)])
    rows = select_next(certain(margin, np.arange(89) % 3), features.astype(np.float32), 10)
    assert len(set(rows)) == 10 and sum(rows < 20) <= 2 and sum((rows >= 20) & (rows < 29)) >= 7
    assert rows.tolist() == select_next(certain(margin, np.arange(89) % 3), features.astype(np.float32), 10).tolist()
    assert sorted(margin[rows]) == list(margin[rows]), "the least certain first"


def test_all_are_asked_for_where_there_are_no_more_and_equal_images_do_not_make_fewer():
    probabilities, features = certain(np.array([0.5, 0.1, 0.3])), np.zeros((3, 4), np.float32)
    assert select_next(probabilities, features, 5).tolist() == [1, 2, 0]
    with pytest.warns(UserWarning, match="distinct clusters"):  # scikit-learn's
        rows = select_next(certain(np.linspace(0, 0.5, 30)), np.zeros((30, 4), np.float32), 6)
    assert len(set(rows)) == 6


def test_a_class_that_is_seldom_predicted_does_not_wait():
    margin = np.concatenate([np.full(40, 0.1), np.full(10, 0.8)])
    label = np.concatenate([np.zeros(40, int), np.ones(10, int)])
    rows = give_every_class_some(np.arange(12), certain(margin, label))
    assert len(set(rows)) == 12 and sum(label[rows] == 1) == 12 // 6, "half of an equal share of three classes"
    assert give_every_class_some(np.array([45, 3]), certain(margin, label)).tolist() == [3, 45], "no class has a share"


def test_copies_of_labelled_images_are_known_by_contents_and_by_features():
    features = np.random.default_rng(1).normal(size=(30, 16))
    known = np.stack([features[4] * 2 + 1e-3, np.ones(16)])
    digests = np.array([f"{row}" for row in range(30)])
    assert np.flatnonzero(copies(features, known, digests, np.array(["7", "x"]))).tolist() == [4, 7]
    assert np.flatnonzero(copies(features, known[:0], digests, np.array(["7"]))).tolist() == [7]


# Persons


def test_the_label_of_the_most_is_taken_and_divided_opinions_are_not():
    answers = {
        "anna": {"a": "cat", "b": "cat", "c": "dog", "d": "cat"},
        "bert": {"a": "cat", "b": "dog", "c": "dog"},
        "carl": {"a": "dog", "c": NONE},
    }
    assert settle(answers) == ({"a": "cat", "c": "dog", "d": "cat"}, ["b"])
    rows = {row["pair"]: row for row in agreement(answers)}
    assert rows["anna", "bert"]["images"] == 3 and rows["anna", "bert"]["agreed"] == pytest.approx(2 / 3)
    expected = cohen_kappa_score(["cat", "cat", "dog"], ["cat", "dog", "dog"])
    assert rows["anna", "bert"]["cohen_kappa"] == pytest.approx(expected)
    assert np.isnan(agreement({"x": {"a": "cat"}, "y": {"a": "cat"}})[0]["cohen_kappa"])
    assert agreement({"x": {"a": "cat"}, "y": {"b": "cat"}}) == []


def test_answers_of_all_persons_are_found_beside_the_table(tmp_path):
    table = tmp_path / "my [labels].csv"
    for name in ("anna", "bert"):
        answers_file(table, name).write_text(json.dumps({"a": name}))
    (tmp_path / "my l.other.json").write_text("{}")
    assert read_answers(table) == {"anna": {"a": "anna"}, "bert": {"a": "bert"}}
    answers_file(table, "carl").write_text("{")
    with pytest.raises(DataError, match="carl.json"):
        read_answers(table)


def test_the_table_keeps_parts_and_trains_on_what_is_new(make_folder, tmp_path):
    labelled = load_examples(str(make_folder(each=4)))
    parts = np.array(["test", "val", *["train"] * 10])
    (tmp_path / "new").mkdir()
    files = [str(tmp_path / "new" / name) for name in ("one.png", "two, three.png", "four.png")]
    for file in files:
        shutil.copy(labelled.images[0], file)
    table = tmp_path / "labels.csv"
    with_parts = dataclasses.replace(labelled, parts=parts)
    write_table(table, with_parts, dict(zip(files, ("disc", "a new class", NONE), strict=True)))
    read = load_examples(str(table))
    assert set(read.class_names) == {*labelled.class_names, "a new class"} and len(read) == 14
    assert read.parts.tolist() == [*parts, "train", "train"]
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[-2:] == [
        {"path": files[0], "label": "disc", "split": "train"},
        {"path": files[1], "label": "a new class", "split": "train"},
    ]
    with pytest.raises(DataError, match="not files"):
        write_table(table, load_examples("digits"), {})


def test_a_new_class_no_class_and_an_answer_taken_back(make_folder, tmp_path):
    examples = load_examples(str(make_folder(each=2)))
    asked = Annotations(examples, tmp_path / "labels.me.json", new_classes=True)
    for row, label in enumerate(("  a new\u200b class ", NONE, "disc", "disc")):
        asked.annotate(row, label)
    asked.annotate(3, None)
    assert asked.answers() == ["a new class", "", "disc", None, None, None]
    assert asked.class_names == [*examples.class_names, "a new class"]
    assert Annotations(examples, asked.file).answers() == asked.answers()
    for label in ("\u200b ", "x" * 101):
        with pytest.raises(ValueError, match="Expected an image from 0 to 5 and a class"):
            asked.annotate(0, label)
    with pytest.raises(ValueError, match="and a class"):
        Annotations(examples, tmp_path / "human.json").annotate(0, NONE)
