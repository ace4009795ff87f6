"""Make this project yours: a copy with a package and a README of your own.

    python scripts/new_project.py ../my-birds --name birds --package birds

copies the package, scripts, recipes, notebooks, docs and tests; this project's README, changelog and benchmarks stay
behind, as do runs and caches. Writes nothing but the new folder, which must be empty or not there.
"""

import argparse
import importlib.util
import keyword
import re
import shutil
import subprocess
import sys
from pathlib import Path

from template import runs

ROOT, PACKAGE = Path(__file__).resolve().parents[1], runs.__name__.partition(".")[0]
COPIED = [
    PACKAGE, "scripts", "configs", "notebooks", "docs", "docker", "tests", ".ci", ".github",
    ".devcontainer", "mkdocs.yml", "pyproject.toml", "constraints.txt", "LICENSE", ".gitignore", ".dockerignore",
    ".pre-commit-config.yaml",
]  # fmt: skip
LEFT_OUT = ["__pycache__", "*.pyc", ".*_cache", ".ipynb_checkpoints", "new_project.py", "test_new_project.py"]
TESTS_OF_BENCHMARKS = ["test_faults.py", "test_soak.py", "test_speed.py"]
RENAMED = {".py", ".ipynb", ".toml", ".Dockerfile", ".gpu", ".md", ".yml", ".yaml", ""}
"""Endings of files in which the package is named."""

README = """\
# {name}

Image classification with Keras 3 on TensorFlow. Python 3.11 to 3.13, in a virtual environment:

```
pip install -c constraints.txt -e .
python scripts/train.py --data.path=FOLDER               # one sub-folder of images per class
python scripts/predict.py --run runs/RUN new_photo.jpg
```

Settings are in `configs/` and `{package}/config.py` (`python scripts/train.py --help` lists them), the run itself in
`{package}/recipe.py`. Documentation is in `docs/` (its measurements are of the project that this one was made from);
as a site:

```
pip install -c constraints.txt -e ".[docs]" && mkdocs serve
```

Tests:

```
pip install -c constraints.txt -e ".[test]" && python -m pytest
```
"""


@runs.script()
def main() -> None:
    """Check the names, copy, rename, say what comes next."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to: a new folder, or an empty one")
    parser.add_argument("--name", help="of the project, as pip knows it (default: that of the folder)")
    parser.add_argument("--package", help="what Python imports (default: the name, with _ for -)")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    name = arguments.name or folder.name
    package = arguments.package or re.sub(r"[-.]", "_", name).lower()
    if problem := wrong_name(name, package) or wrong_folder(folder):
        sys.exit(problem)
    copy(folder)
    rename(folder, package)
    write_own(folder, name, package)
    tidy(folder)
    began = start_git(folder)
    print(f"{name} is in {folder}; its package is {package}{'' if began else '. git did not start there: git init'}\n")
    print(f'  cd "{arguments.folder}"\n  pip install -c constraints.txt -e ".[test]" && python -m pytest')


def wrong_name(name: str, package: str) -> str | None:
    """Why a project cannot be called so, if it cannot."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        return f"--name: expected letters, digits, and - _ . between them. Received: {name!r}"
    if not re.fullmatch(r"[a-z_][a-z0-9_]*", package) or keyword.iskeyword(package):
        return f"--package: expected a name for `import`, such as my_birds. Received: {package!r}"
    taken = package in {*COPIED, *sys.stdlib_module_names} or importlib.util.find_spec(package) is not None
    if taken and package != PACKAGE:
        return f"--package: expected a name that no other package has. Received: {package!r}"
    return None


def wrong_folder(folder: Path) -> str | None:
    """Why nothing can be written there, if nothing can."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        return f"{str(folder)!r} is there already, and nothing is overwritten. Expected a new or an empty folder."
    if folder.is_relative_to(ROOT):
        return f"{str(folder)!r} is inside this project. Expected a folder beside it, such as ../{folder.name}."
    return None


def copy(folder: Path) -> None:
    """What belongs to a project of one's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT, *TESTS_OF_BENCHMARKS))
        elif source.exists():
            shutil.copy2(source, folder / name)


def rename(folder: Path, package: str) -> None:
    """Give the package its name, wherever it is named: imports inside it are relative."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in RENAMED and file.name != "LICENSE":
            text = file.read_text(encoding="utf-8")
            file.write_text(re.sub(rf"\b{PACKAGE}\b", package, text), encoding="utf-8", newline="\n")
    (folder / PACKAGE).rename(folder / package)


def write_own(folder: Path, name: str, package: str) -> None:
    """A README, and the name of the project where pip reads it and where the documentation shows it."""
    (folder / "README.md").write_text(README.format(name=name, package=package), encoding="utf-8")
    file = folder / "pyproject.toml"
    text = re.sub(r'^name = ".*"$', f'name = "{name}"', file.read_text(encoding="utf-8"), count=1, flags=re.MULTILINE)
    text = re.sub(r"^description = .*$", f'description = "Image classification: {name}"', text, count=1, flags=re.M)
    file.write_text(text, encoding="utf-8")
    site = folder / "mkdocs.yml"
    text = re.sub(r"^site_name: .*$", f"site_name: {name}", site.read_text(encoding="utf-8"), count=1, flags=re.M)
    site.write_text(text, encoding="utf-8")


def tidy(folder: Path) -> None:
    """Sort imports and wrap lines anew, if the linter is there: the name may be a longer one."""
    if importlib.util.find_spec("ruff"):
        for command in (["check", "--fix", "--select=I"], ["format"]):
            line = [sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", "."]
            subprocess.run(line, check=False, capture_output=True, cwd=folder)


def start_git(folder: Path) -> bool:
    """Whether there is a repository now; nothing is committed, for that takes a name and an address."""
    try:
        return subprocess.run(["git", "init", "--quiet", str(folder)], check=False, capture_output=True).returncode == 0
    except OSError:  # no git on this machine
        return False


if __name__ == "__main__":
    main()
