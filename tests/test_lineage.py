"""Images of a run are found again by their contents, and a warm start warns of held-out images that it has seen."""

from pathlib import Path

import numpy as np
import pytest

from template.data.examples import Examples
from template.data.lineage import lineage, parts_in_run, warm_start_leaks


def a_run(folder: Path, parts: dict[str, str], weights: str = "imagenet") -> Path:
    folder.mkdir(parents=True)
    lines = [f"{digest}.png,{digest},cat,{part}" for digest, part in parts.items()]
    (folder / "split.csv").write_text("\n".join(["id,sha256,label,part", *lines]))
    (folder / "config.toml").write_text(f'[backbone]\nweights = "{weights}"\n')
    return folder


def examples(digests: str, parts: list[str]) -> Examples:
    n = len(digests)
    names = np.array([f"{i}.png" for i in range(n)])
    return Examples(names, [b""] * n, np.zeros(n, int), ("cat",), np.array(parts), digests=np.array(list(digests)))


def test_images_are_found_by_their_contents_in_the_run_and_in_those_that_it_began_from(tmp_path):
    first = a_run(tmp_path / "first", dict(a="train", b="val", c="test", d="train"))
    second = a_run(tmp_path / "second", dict(c="train", d="test", e="test"), str(first / "model.keras"))
    assert parts_in_run(first, list("abcdx")).tolist() == ["train", "val", "test", "train", ""]
    assert lineage(second) == [second, first]
    assert parts_in_run(second, list("abcdex")).tolist() == ["train", "val", "train", "train", "test", ""]
    assert parts_in_run(tmp_path / "nowhere", list("ab")).tolist() == ["", ""]
    (first / "config.toml").write_text(f'[backbone]\nweights = "{second / "model.keras"}"\n')  # a circle
    assert lineage(second) == [second, first]


def test_a_student_comes_from_its_teachers_too(tmp_path):
    teachers = [a_run(tmp_path / name, {name: "train"}) for name in "ab"]
    student = a_run(tmp_path / "student", dict(a="test", c="val"))
    with (student / "config.toml").open("a") as file:
        file.write(f"[train]\nteachers = {[*map(str, teachers), str(tmp_path / 'gone')]}\n")
    assert lineage(student) == [student, *teachers]
    assert parts_in_run(student, list("abc")).tolist() == ["train", "train", "val"]


@pytest.mark.parametrize("direct", [True, False], ids=["from the run", "from one that began from it"])
def test_a_warm_start_that_has_learned_held_out_images_is_said(tmp_path, direct):
    old = a_run(tmp_path / "old", dict(a="train", b="val", c="test", d="train"))
    if not direct:
        old = a_run(tmp_path / "between", dict(x="train"), str(old / "model.keras"))
    new = examples("abcdef", ["test", "val", "test", "train", "test", "val"])
    (found,) = warm_start_leaks(new, str(old / "model.keras"))
    assert found.severity == "error" and found.images == [(0,), (1,)]
    assert "1 of 2 val images and 1 of 3 test images" in found.message and str(old) in found.message
    assert "data.split_seed" in found.advice
    assert warm_start_leaks(examples("ac", ["train", "test"]), str(old / "model.keras")) == []
    for weights in ("imagenet", "none", str(tmp_path / "weights.h5")):
        assert warm_start_leaks(new, weights) == []
