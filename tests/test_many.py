"""Any number of images: each in one part, with its answer or a reason; and drift that is not invented."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import call
from served import ABOUT, BLUE, RED, colour_run

from template import runs
from template.data.sources.names import DataError
from template.deploy.many.drift import Reference, compare, describe, psi
from template.deploy.many.parts import LIST, Chunk, collect_parts, open_job
from template.deploy.many.sources import list_images, read_image
from template.deploy.many.tally import Tally
from template.deploy.runtime import Inputs
from template.evaluate.predictions import Predictions

NAMES = [f"/photos/{number:03d}.png" for number in range(23)]


def write_text(rows: list, temporary: Path) -> None:
    temporary.write_text(json.dumps(rows))


def results(job, finished=frozenset()):
    return [(chunk, list(chunk.paths)) for chunk in job.chunks(4, finished)]


def contents(job) -> list[str]:
    return [name for part in range(job.parts) for rows in json.loads(job.file(part).read_text()) for name in rows]


def test_every_image_is_in_one_part_in_whatever_order_chunks_come(tmp_path):
    job = open_job(tmp_path, NAMES, {}, part_size=10)
    done = results(job)
    assert [chunk[:2] for chunk, _ in done] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert sum(collect_parts(done[::-1], job, write_text)) == 23
    assert contents(job) == NAMES and job.finished() == {0, 1, 2}


def test_a_part_is_written_when_it_is_whole_and_never_again(tmp_path):
    job = open_job(tmp_path, NAMES, {}, part_size=10)
    half = [result for result in results(job) if result[0][:2] != (0, 4)]
    list(collect_parts(half, job, write_text))
    assert job.finished() == {1, 2}
    again = open_job(tmp_path, NAMES, {}, part_size=10)
    left = results(again, again.finished())
    assert [name for _, names in left for name in names] == NAMES[:10]
    list(collect_parts(left, again, write_text))
    assert contents(again) == NAMES


@pytest.mark.parametrize(
    ("names", "about", "part_size", "words"),
    [
        (NAMES[1:], {"model": "a"}, 10, "images: 23 -> 22; list_sha256: "),
        ([*NAMES[1:], "/other.png"], {"model": "a"}, 10, "list_sha256: "),
        (NAMES, {"model": "b"}, 10, "model: 'a' -> 'b'"),
        (NAMES, {"model": "a"}, 11, "part_size: 10 -> 11"),
    ],
)
def test_another_job_does_not_go_into_the_same_folder(tmp_path, names, about, part_size, words):
    open_job(tmp_path, NAMES, {"model": "a"}, part_size=10)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DataError, match="holds another job") as error:
        open_job(tmp_path, names, about, part_size)
    assert words in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_parts_of_nobody_knows_what_are_not_taken_for_ours(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "part-0000000.parquet").touch()
    with pytest.raises(DataError, match="no manifest.json"):
        open_job(tmp_path, NAMES, {}, part_size=10)


def test_names_may_hold_anything(tmp_path):
    names = sorted(["/a\nb.png", "/caf\udce9.png", "/\u732b.png", '/"quoted".png'])
    job = open_job(tmp_path, names, {}, part_size=10)
    assert [path for chunk in job.chunks(3, ()) for path in chunk.paths] == names
    assert (tmp_path / LIST).read_bytes().isascii()


def test_no_images_are_no_job(tmp_path):
    with pytest.raises(DataError, match="There are no images"):
        open_job(tmp_path, [], {}, part_size=10)
    assert list(tmp_path.iterdir()) == []


# sources


@pytest.fixture
def photos(tmp_path) -> Path:
    root = tmp_path / "photos"
    (root / "b").mkdir(parents=True)
    for name in ("c.png", "b/a.png", ".hidden.png", "Thumbs.db"):
        (root / name).write_bytes(RED)
    return root


def test_folder_list_and_address_are_the_same_images(photos):
    pytest.importorskip("fsspec", reason='needs the extra ray: pip install -e ".[ray]"')
    expected = {photos / "c.png", photos / "b" / "a.png"}
    assert set(map(Path, list_images(str(photos)))) == expected
    (photos.parent / "list.txt").write_text(f"photos/c.png\n\n{photos}/b/a.png\nphotos/c.png\n")
    assert [*map(Path, list_images(str(photos.parent / "list.txt")))] == sorted(expected)
    addresses = list(list_images(f"file://{photos}"))
    assert addresses == [f"file://{path}" for path in sorted(expected)]
    assert {read_image(address) for address in addresses} == {RED}
    assert list(list_images(str(photos))) == list(list_images(str(photos))), "the order does not change"


def test_sources_that_are_none_are_named(photos):
    pytest.importorskip("fsspec", reason='needs the extra ray: pip install -e ".[ray]"')
    for source, words in (
        (str(photos / "nowhere"), "is not there"),
        (str(photos / "c.png"), "is no list"),
        (f"file://{photos}/nowhere", "is not there"),
        ("nosuch://bucket", "cannot be opened"),
    ):
        with pytest.raises(DataError, match=words):
            list(list_images(source))


# rows


def test_rows_have_an_answer_or_a_reason(tmp_path):
    pytest.importorskip("pyarrow", reason='needs the extra ray: pip install -e ".[ray]"')
    from template.deploy.many.rows import Row, decode, write_parquet
    from template.deploy.many.tally import tally_parts

    files = {"blue.png": BLUE, "broken.png": RED[:40], "red.png": RED, "text.png": b"no image"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in [*files, "missing.png"]]
    row = Row(class_names=("red", "green", "blue"), top_k=2, least=0.7, above=(), model="abc", features=3)

    def classify(images):
        shares = images[:, 0].mean(axis=(1, 2)) / 255 * 0.6 + 0.2  # 0.8 of the colour, 0.2 of the others
        return shares / shares.sum(axis=1, keepdims=True), np.array([0.5, np.nan]), shares

    table = row.table(decode(paths, Inputs(**ABOUT["inputs"])), classify)
    rows = {Path(found["path"]).name: found for found in table.to_pylist()}
    assert rows["red.png"]["classes"] == ["red", "green"] and rows["blue.png"]["classes"][0] == "blue"
    assert rows["red.png"]["answer"] == "not sure" and rows["red.png"]["confidence"] == pytest.approx(0.8 / 1.2)
    assert rows["blue.png"]["novelty"] == 0.5 and rows["red.png"]["novelty"] is None
    np.testing.assert_allclose(rows["red.png"]["features"], [0.8, 0.2, 0.2], rtol=1e-6)
    assert rows["text.png"]["sha256"] == hashlib.sha256(b"no image").hexdigest()
    for name, words in (("broken.png", "cut short"), ("text.png", "not an image"), ("missing.png", "no such file")):
        assert words in rows[name]["reason"] and rows[name]["answer"] is None and rows[name]["features"] is None
    assert rows["missing.png"]["sha256"] is None
    assert {found["model"] for found in rows.values()} == {"abc"}
    write_parquet([table], tmp_path / "part.parquet")
    counted = tally_parts([tmp_path / "part.parquet"], np.array([0.5]))
    assert (counted.images, counted.unreadable, counted.unsure) == (5, 3, 2)
    assert counted.counts.tolist() == [0, 2] and counted.novel == (0, 1)
    assert "5 images, 2 classified (2 of them not sure), 3 could not be read" in list(counted.describe())


def test_the_answer_is_above_the_class_where_the_class_is_not_sure():
    pytest.importorskip("pyarrow", reason='needs the extra ray: pip install -e ".[ray]"')
    from template.deploy.many.rows import Decoded, Row

    names = ("cat", "dog/husky", "dog/poodle")
    row = Row(class_names=names, top_k=1, least=0.8, above=(0.7,), model="", features=0)
    probabilities = np.array([[0.1, 0.85, 0.05], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    found = Decoded(["a", "b", "c"], ["1", "2", "3"], [""] * 3, [None] * 3, np.zeros((3, 1, 8, 8, 3), np.uint8))
    table = row.table(found, lambda pixels: (probabilities, np.full(3, np.nan), np.zeros((3, 0))))
    assert table["answer"].to_pylist() == ["dog/husky", "dog", "not sure"]


def test_a_disk_that_is_gone_is_no_answer(tmp_path):
    pytest.importorskip("pyarrow", reason='needs the extra ray: pip install -e ".[ray]"')
    from template.deploy.many.rows import Row, decode, write_parquet

    row = Row(class_names=("a", "b"), top_k=1, least=0.0, above=(), model="", features=0)
    table = row.table(decode(["/gone/a.png", "/gone/b.png"], Inputs(**ABOUT["inputs"])), lambda pixels: None)
    with pytest.raises(DataError, match="None of 2 files can be read"):
        write_parquet([table], tmp_path / "part.parquet")
    assert list(tmp_path.iterdir()) == []


# the network


def test_a_packed_run_says_what_the_run_says(tmp_path):
    from template.deploy.many.network import Network, pack_run
    from template.deploy.runtime import Classifier

    run = colour_run(tmp_path / "run")
    packed = pack_run(run)
    assert (packed.runtime, packed.least, packed.features) == ("onnx", 0.9, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 1, 8, 8, 3)).astype(np.uint8)
    probabilities, novelty, features = Network(packed.files, packed.runtime, threads=1).classify(pixels)
    np.testing.assert_allclose(probabilities, Classifier.of_run(run).classify(pixels), rtol=1e-6)
    assert np.isnan(novelty).all() and features.shape == (70, 0)
    assert pack_run(run).digest == packed.digest
    assert pack_run(colour_run(tmp_path / "other", order=(2, 1, 0))).digest != packed.digest


# drift


def counted(confidence: np.ndarray, reference: Reference, novelty: np.ndarray | None = None) -> Tally:
    found = Tally(reference.edges)
    found.add(confidence, np.full(len(confidence), np.nan) if novelty is None else novelty)
    return found


@pytest.mark.slow
def test_without_drift_one_comparison_in_twenty_says_so():
    generator, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        reference = Reference(generator.beta(5, 1, 60), None)
        alarms += (
            compare(reference, counted(generator.beta(5, 1, 3000), reference))["confidence"]["drift"] != "none seen"
        )
    assert 2 <= alarms <= 22, "10 are expected, with a standard deviation of 3"


def test_a_drift_is_found_and_its_size_is_within_the_interval():
    generator = np.random.default_rng(0)
    reference = Reference(generator.beta(5, 1, 400), None)
    compared = compare(reference, counted(generator.beta(2, 1, 5000), reference))
    confidence = compared["confidence"]
    assert confidence["drift"] == "large"
    difference = confidence["difference"]
    assert difference["low"] < 2 / 3 - 5 / 6 < difference["high"] < 0
    edges = reference.edges
    far = [np.bincount(np.searchsorted(edges, generator.beta(a, 1, 200_000), "right")) for a in (5, 2)]
    assert confidence["psi"]["low"] < psi(*far) < confidence["psi"]["high"]
    assert "LARGE DRIFT" in describe(compared)[0]


def test_images_of_one_group_are_one_witness():
    generator = np.random.default_rng(0)
    confidence, new = generator.beta(5, 1, 200), generator.beta(4, 1, 2000)
    alone, grouped = Reference(confidence, None), Reference(confidence, np.arange(200) // 10)
    of_images, of_groups = (compare(each, counted(new, each))["confidence"] for each in (alone, grouped))
    assert of_groups["chance"] > 5 * of_images["chance"]


def test_novelty_is_drift_beyond_what_a_network_flatters_itself_with():
    reference = Reference(np.full(40, 0.9), None)
    for new, words in ((60, "no drift seen"), (200, "DRIFT: 20.0 %")):
        novelty = np.where(np.arange(1000) < new, 1.5, 0.5)
        line = describe(compare(reference, counted(np.full(1000, 0.9), reference, novelty)))[1]
        assert f"novelty: {words}" in line
    assert "not known" in describe(compare(reference, counted(np.full(10, 0.9), reference)))[1]


def test_the_reference_is_calibrated_and_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match=r"lacks predictions_val.npz, calibration.json"):
        Reference.of_run(tmp_path)
    logits = np.array([[4.0, 0.0], [0.0, 2.0]], np.float32)
    Predictions(np.array(["a", "b"]), np.array([0, 1]), logits, ("x", "y")).save(tmp_path / "predictions_val.npz")
    runs.write_json(tmp_path / "calibration.json", {"temperature": 2.0})
    np.testing.assert_allclose(Reference.of_run(tmp_path).confidence, 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-6)


# the script


def test_without_ray_it_says_what_to_install(monkeypatch, tmp_path):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else there(name, *rest))
    code, said = call("predict_many", "--run", tmp_path, "photos", "--out", tmp_path / "out")
    assert code == 2 and 'needs Ray: pip install -c constraints.txt -e ".[ray,onnx]"' in said
    assert list(tmp_path.iterdir()) == []


def test_there_is_work_for_every_core_and_gpu():
    pytest.importorskip("ray", reason='needs the extra ray: pip install -e ".[ray]"')
    from template.deploy.many.pools import Sizes

    assert Sizes.of(16, 0, "onnx") == Sizes(decoders=16, networks=16, threads=1, gpus=0)
    assert Sizes.of(16, 0, "keras") == Sizes(decoders=16, networks=4, threads=4, gpus=0)
    assert Sizes.of(16, 2, "keras") == Sizes(decoders=13, networks=2, threads=1, gpus=1)
    for runtime in ("onnx", "keras"):
        assert Sizes.of(1, 0, runtime) == Sizes(decoders=1, networks=1, threads=1, gpus=0)


def test_chunks_that_killed_a_process_come_back_one_by_one():
    pytest.importorskip("ray", reason='needs the extra ray: pip install -e ".[ray]"')
    from collections import deque

    from template.deploy.many.pools import _try_again

    again: deque[Chunk] = deque()
    assert not _try_again(Chunk(0, 4, ("a", "b"), deaths=1), again) and again.pop() == Chunk(0, 4, ("a", "b"), 2)
    assert not _try_again(Chunk(0, 4, ("a", "b"), deaths=2), again)
    assert list(again) == [Chunk(0, 4, ("a",), 1), Chunk(0, 5, ("b",), 1)]
    assert _try_again(Chunk(0, 5, ("b",), deaths=2), deque()), "this one is left out"
