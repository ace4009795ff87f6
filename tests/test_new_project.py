"""A project of one's own: nothing of this one's name is left in it, and its tests are green."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, call


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "my-birds"
    code, said = call("new_project", folder, "--name", "birds", "--package", "garden_birds")
    assert code == 0 and str(folder) in said and "python -m pytest" in said
    return folder


def run(folder, *line: str) -> str:
    """What a command says in a new process that finds the package in this folder only."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *line], check=False, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_of_it_is_there_under_its_own_name_and_what_belongs_to_this_project_is_not(made):
    assert (made / ".git").is_dir() and (made / ".gitignore").exists() and (made / "LICENSE").exists()
    package, original = made / "garden_birds", ROOT / "template"
    for file in original.rglob("*.[phm][ytd]*"):
        assert "__pycache__" in file.parts or (package / file.relative_to(original)).exists(), file
    assert not [name for name in ("template", "benchmarks", "CHANGELOG.md") if (made / name).exists()]
    for file in made.rglob("*"):
        if file.suffix in {".py", ".toml", ".ipynb", ".Dockerfile"}:
            assert not re.search(r"\btemplate\b", file.read_text(encoding="utf-8")), file
    for word in ("birds", "garden_birds/recipe.py"):
        assert word in (made / "README.md").read_text(encoding="utf-8")


def test_its_scripts_use_its_package(made):
    assert "usage: train.py" in run(made, "scripts/train.py", "--help")
    assert "site_name: birds\n" in (made / "mkdocs.yml").read_text(encoding="utf-8")
    assert run(made, "-c", "import garden_birds.runs as r; print(r.__file__)").startswith(str(made))


@pytest.mark.slow
def test_its_linter_has_nothing_to_say(made):
    run(made, "-m", "ruff", "check", "--no-cache", ".")
    run(made, "-m", "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.slow
def test_its_own_tests_are_green(made):
    said = run(
        made,
        "-m",
        "pytest",
        "-n",
        "0",
        *(f"tests/test_{name}.py" for name in ("floors", "config", "build", "docs", "journey", "scripts")),
    )
    assert " passed" in said and "failed" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--package", "keras"], "that no other package has. Received: 'keras'"),
        (["--package", "json"], "that no other package has. Received: 'json'"),
        (["--package", "scripts"], "that no other package has. Received: 'scripts'"),
        (["--package", "for"], "expected a name for `import`"),
        (["--package", "my-birds"], "expected a name for `import`"),
        (["--name", "../birds"], "expected letters, digits"),
    ],
)
def test_names_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path, options, words):
    code, said = call("new_project", tmp_path / "birds", *options)
    assert words in f"{code} {said}" and not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, said = call("new_project", tmp_path, "--name", "birds")
    assert "nothing is overwritten" in f"{code} {said}" and [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    code, said = call("new_project", ROOT / "birds")
    assert "inside this project" in f"{code} {said}" and not (ROOT / "birds").exists()
