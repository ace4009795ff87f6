"""All kinds of files and folders that are not what one would wish for: none is a traceback, none is lost."""

import dataclasses
import json
import time
from pathlib import Path

import corpus
import numpy as np
import pytest

from template import messages
from template.config import Config, Data
from template.data.audit.facts import facts_from_pixels, read_facts
from template.data.decode import decode
from template.data.examples import DataError, Examples, load_examples
from template.data.images.load import load, load_image
from template.data.load import Parts, load_data
from template.data.split import split


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    corpus.write(folder)
    return folder


@pytest.fixture(scope="module")
def expected(written) -> dict:
    return json.loads((written / "expected.json").read_text(encoding="utf-8"))


def prepared(place: Path, cache: Path) -> Examples:
    """As a run does it."""
    table = place / "data.csv"
    examples, pixels = decode(
        load_examples(str(table if table.exists() else place)), Data(cache=str(cache), image_size=16)
    )
    examples = split(examples, val_fraction=0.2, test_fraction=0.1, seed=0)
    assert len(pixels) == len(examples)
    return examples


@pytest.mark.slow
def test_the_corpus_has_as_many_kinds_as_it_should(expected):
    assert len(expected["files"]) >= 60 and len(expected["folders"]) >= 25


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about damaged tags and many pixels
def test_every_kind_of_file_is_used_or_named_with_a_reason_and_an_action(written, expected, tmp_path, capsys):
    start = time.monotonic()
    examples = prepared(written / "files", tmp_path)
    assert time.monotonic() - start < 60, "the eleven bytes alone would take TensorFlow ten seconds, the pipe for ever"
    reasons = {name.removeprefix("odd/"): reason for name, reason in examples.skipped}
    used = {str(name).removeprefix("odd/") for name in examples.ids if str(name).startswith("odd/")}
    on_disk = [file for file in (written / "files").rglob("*") if not file.is_dir()]
    assert len(examples) + len(examples.skipped) == len(on_disk), "found = used + skipped"
    for name, outcome in expected["files"].items():
        if outcome == corpus.USED:
            assert name in used, (name, reasons.get(name))
        else:
            assert name in reasons and outcome in reasons[name], (name, reasons.get(name, "used"))
            assert ";" in reasons[name] or "? " in reasons[name], f"no action: {reasons[name]}"
    # What a run prints of it: one line a file, whatever its name holds.
    capsys.readouterr()
    parts = Parts(examples, lambda *_: None, np.arange(len(examples)))
    messages.print_found(Config(data=Data(path="files")), parts, tmp_path)
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said and len(said.splitlines()) == 1 + 10 + 1


@pytest.mark.filterwarnings("ignore")
def test_no_label_moves_beside_files_that_are_left_out(written, tmp_path):
    examples, pixels = decode(load_examples(str(written / "files")), Data(cache=str(tmp_path), image_size=16))
    for row, file in enumerate(examples.images):
        assert examples.class_names[examples.labels[row]] == file.parent.name
        np.testing.assert_array_equal(pixels[np.array([row])][0], load_image(file, 16, "crop"))
    # The audit sees them too, of decoded ones by their headers alone.
    headers = facts_from_pixels(examples, pixels, np.arange(len(examples)))
    seen = {str(name): row for row, name in enumerate(examples.ids)}
    assert headers.width[seen["odd/thumbnail first.tif"]] == 48, "of the image and not of its thumbnail"
    facts = read_facts(load_examples(str(written / "files")))
    assert facts.readable.sum() == len(examples)
    np.testing.assert_array_equal(headers.width, facts.width[facts.readable])


@pytest.mark.parametrize("name", corpus.folder_kinds())
def test_every_kind_of_folder_is_used_or_refused_in_words(written, expected, tmp_path, name):
    outcome = expected["folders"][name]
    if isinstance(outcome, str):
        with pytest.raises(DataError) as error:
            prepared(written / "folders" / name, tmp_path)
        assert outcome in str(error.value)
        return
    examples = prepared(written / "folders" / name, tmp_path)
    used = int((examples.parts != "").sum())
    assert list(examples.class_names) == outcome["classes"]
    assert (used, used + len(examples.skipped)) == (outcome["used"], outcome["found"]), examples.skipped
    for word, reason in outcome["skipped"].items():
        assert any(word in file and reason in why for file, why in examples.skipped), examples.skipped
    for row, file in enumerate(examples.images):
        label = examples.class_names[examples.labels[row]]
        folders = {outcome["spelled"].get(part, part) for part in (*file.parts, *file.resolve().parts)}
        assert label in folders, "the label is that of the folder"


def test_the_bits_of_a_set_go_into_the_recipe_for_what_is_predicted_later(tmp_path):
    """And a second run, a resumed one and predict.py scale as the first did."""
    for number in range(12):
        file = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        values = corpus.noise(seed=number).astype(np.uint16)[..., :1] * (16 if number < 4 else 3)
        file.write_bytes(corpus.deep_png(values))
    data = Data(path=str(tmp_path / "set"), cache=str(tmp_path / "cache"), image_size=16)
    config, parts = load_data(Config(data=data), data)
    assert config.data.bits == 12 and len(parts.examples) == 12
    again, _ = load_data(config, config.data)
    assert again == config
    expected = [load(file, config.data)[0] for file in parts.examples.images]
    np.testing.assert_array_equal(parts.all_pixels(config.data)[np.arange(12)], expected)
    other = dataclasses.replace(data, path=str(corpus.fill(tmp_path / "plain", "a", "b")))
    plain, _ = load_data(Config(data=other), other)
    assert plain.data.bits == "auto"


def test_classes_that_some_systems_cannot_tell_apart_are_named(written, capsys):
    load_examples(str(written / "folders" / "upper and lower case letters"))
    assert "'B' and 'b' differ only in case" in capsys.readouterr().out
