"""The house keeps to its plan: imports go down, the wings are strangers, and nothing runs what a file says."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import template

PACKAGE = Path(template.__file__).parent
ROOT = PACKAGE.parent
PLAN = [
    {"system", "progress"},
    {"disk", "device"},
    {"config", "labels", "runs"},
    {"data", "model", "evaluate", "suggest", "doctor"},
    {"train", "deploy", "experiments"},
    {"model_selection", "distillation"},
    {"diagnose"},
    {"publish", "messages"},
    {"recipe"},
    {"search"},
]
FLOORS = {part: floor for floor, parts in enumerate(PLAN) for part in parts}
LIGHT = ["system", "progress", "disk", "device", "config", "runs", "suggest", "doctor"]
LIGHT += ["data.images.load", "data.audit.checks", "deploy.runtime", "deploy.serve.batcher", "deploy.serve.deployed"]
LIGHT += [
    f"data.{name}" for name in ("examples", "split", "decode", "array_file", "cache", "augment", "dataset", "lineage")
]
LIGHT += [f"deploy.many.{name}" for name in ("sources", "parts", "tally", "drift", "network")]
LIGHT += [f"experiments.{name}" for name in ("read", "table", "page", "prune", "tracking")]
LIGHT += [f"evaluate.{file.stem}" for file in sorted((PACKAGE / "evaluate").glob("*.py")) if file.stem != "__init__"]
HEAVY = {"tensorflow", "keras", "tf_keras", "tensorflow_datasets"}
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_NAMES = {
    "eval", "exec", "__import__", "enable_unsafe_deserialization", "load_model", "model_from_json", "custom_objects",
    "unsafe_load", "TFSMLayer",
}  # fmt: skip
SAFE_VALUES = {"allow_pickle": False, "safe_mode": True, "compile": False}
CHECKED = {
    ("template/deploy/predictor.py", "load_model"),  # after a look at what is in the file: test_predictor.py
    ("template/model/torch_weights.py", "pickle.Unpickler"),  # one that knows three names: test_torch_weights.py
}

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
FILES = sorted([*PACKAGE_FILES, *(file for name in ("scripts", "benchmarks") for file in (ROOT / name).glob("*.py"))])


def imports(tree: ast.AST) -> Iterator[tuple[int, int, list[str]]]:
    """(line, number of leading dots, dotted name) of everything that is imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            yield from ((node.lineno, node.level, [*base, alias.name]) for alias in node.names)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a module that run when it is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import_time(child)


def climbs(file: Path, tree: ast.AST) -> Iterator[str]:
    """Imports inside the package that do not go down, or are not relative. `file` is relative to the package."""
    own = file.with_suffix("").parts[0]
    for line, dots, name in imports(tree):
        where = f"template/{file}:{line}"
        if dots == 0:
            if name[0] == PACKAGE.name:
                yield f"{where}: imports {'.'.join(name)}; inside the package imports are relative"
            continue
        if dots > len(file.parts):
            yield f"{where}: leaves the package"
            continue
        other = [*file.parts[: len(file.parts) - dots], *name][0]
        if other == own:
            continue
        if unknown := {own, other} - set(FLOORS):
            yield f"{where}: on which floor is {unknown}? Say it in PLAN of this test"
        elif FLOORS[other] >= FLOORS[own]:
            yield f"{where}: {own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"


def uses_scripts(file: Path, tree: ast.AST) -> Iterator[str]:
    """Imports of a script, by its folder or, from its neighbours, by its name alone."""
    neighbours = {script.stem for script in (ROOT / file.parts[0]).glob("*.py")}
    for line, dots, name in imports(tree):
        from_neighbour = file.parts[0] in {"scripts", "benchmarks"} and (dots or name[0] in neighbours)
        if from_neighbour or name[0] in {"scripts", "benchmarks"}:
            yield f"{file}:{line}: imports the script {'.'.join(name)}"


def loads_tensorflow(file: Path, tree: ast.AST) -> Iterator[str]:
    """Imports of TensorFlow or Keras that run when the module is imported."""
    for node in at_import_time(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for line, dots, name in imports(node):
                if not dots and name[0] in HEAVY:
                    yield f"{file}:{line}: imports {name[0]} at module level"


def runs_what_a_file_says(file: Path, tree: ast.AST) -> Iterator[str]:
    """Modules, functions and arguments with which loading a file can execute it."""
    for line, _, name in imports(tree):
        unsafe = UNSAFE_MODULES & {name[0]} | UNSAFE_NAMES & {name[-1]}
        if unsafe and (file.as_posix(), ".".join(name)) not in CHECKED:
            yield f"{file}:{line}: imports {unsafe.pop()}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in UNSAFE_NAMES:
            yield f"{file}:{node.lineno}: uses {node.id}"
        unsafe = isinstance(node, ast.Attribute) and node.attr in UNSAFE_NAMES - {"eval", "exec"}
        if unsafe and (file.as_posix(), node.attr) not in CHECKED:
            yield f"{file}:{node.lineno}: uses {node.attr}"
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_NAMES:
            yield f"{file}:{node.value.lineno}: gives {node.arg}"
        if isinstance(node, ast.keyword) and node.arg in SAFE_VALUES:
            safe = SAFE_VALUES[node.arg]
            if not (isinstance(node.value, ast.Constant) and node.value.value is safe):
                yield f"{file}:{node.value.lineno}: {node.arg} must be {safe}"


WRITES = {"write_text", "write_bytes", "savefig", "mkstemp"}


def writes_in_place(file: Path, tree: ast.AST) -> Iterator[str]:
    """Files that are written under their own name: cut short, they would be taken for whole ones.

    What is written must be called `temporary` or stand below it, as `runs.replacing` and `disk.replacing_folder` give
    it, or be a stream called `out`, or the lock, of which nobody reads more than a line.
    """
    fine = re.compile(r"\btemporary\b|\.lock|savefig\(out\b")
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        call, constants = ast.unparse(node), [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
        opens = node.func.attr == "open" and any(re.fullmatch(r"r?[wax+][bt+]*|r[bt]*\+", c) for c in constants)
        if (opens or node.func.attr in WRITES) and not call.startswith("runs.") and not fine.search(call):
            yield f"{file}:{node.lineno}: writes {call[:60]}"


def leaves_the_encoding_open(file: Path, tree: ast.AST) -> Iterator[str]:
    """Text that is read or written in the encoding of the system, which on Windows is an old one."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        modes, said = [getattr(a, "value", "?") for a in node.args], {keyword.arg for keyword in node.keywords}
        opens = node.func.attr == "open" and all(re.fullmatch("[rwax+]t?", str(mode)) for mode in modes)
        text = node.func.attr in {"read_text", "write_text"} and ast.unparse(node.func.value) != "runs"
        if (opens or text) and "encoding" not in said:
            yield f"{file}:{node.lineno}: {ast.unparse(node)[:60]} names no encoding"


def check(rule, files, base) -> None:
    assert files, "nothing was checked"
    found = [
        message
        for file in files
        for message in rule(file.relative_to(base), ast.parse(file.read_text(encoding="utf-8"), str(file)))
    ]
    assert not found, "\n" + "\n".join(found)


def test_imports_go_down_and_are_relative():
    check(climbs, PACKAGE_FILES, PACKAGE)


def test_nothing_imports_a_script():
    check(uses_scripts, [*FILES, *(ROOT / "tests").glob("*.py")], ROOT)


def test_light_modules_do_not_name_tensorflow_at_module_level():
    check(loads_tensorflow, [PACKAGE / f"{name.replace('.', '/')}.py" for name in LIGHT], ROOT)


def test_nothing_runs_what_a_file_says():
    check(runs_what_a_file_says, FILES, ROOT)


def test_everything_is_written_under_a_temporary_name_first():
    check(writes_in_place, PACKAGE_FILES, ROOT)


def test_text_is_utf_8_on_every_system():
    check(leaves_the_encoding_open, [file for file in FILES if file.parent.name != "benchmarks"], ROOT)


def test_every_script_prints_on_any_terminal_and_into_any_pipe():
    """A class name in an encoding that the terminal lacks would end a run in the middle."""
    for file in sorted({*FILES} - {*PACKAGE_FILES}):
        (main,) = [n for n in ast.parse(file.read_text(encoding="utf-8")).body if getattr(n, "name", "") == "main"]
        assert "runs.script()" in map(ast.unparse, main.decorator_list), f"{file.name}: main must be decorated with it"


def test_light_modules_really_do_without_tensorflow():
    # Also through what they import, which no look at the source shows.
    code = (
        "import importlib, json, sys\nfound = {}\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module('template.' + name)\n"
        f"    found[name] = sorted({HEAVY!r} & set(sys.modules))\n"
        "print(json.dumps(found))"
    )
    said = subprocess.run([sys.executable, "-c", code, *LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == {name: [] for name in LIGHT}


def test_the_types_of_the_package_are_there_for_those_who_use_it():
    assert (
        "py.typed"
        in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["template"]
    )
    assert (PACKAGE / "py.typed").is_file()


def test_importing_the_package_imports_nothing_else():
    assert list(imports(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("rule", "file", "source", "expected"),
    [
        (climbs, "runs.py", "from . import config", ["template/runs.py:1: runs (floor 2) imports config (floor 2)"]),
        (climbs, "data/a.py", "from ..config import Data\nfrom .. import runs\nfrom . import split", []),
        (climbs, "data/a.py", "\nfrom ..model.build import b", ["template/data/a.py:2: data (floor 3) imports model"]),
        (climbs, "model/a.py", "from .. import evaluate", ["template/model/a.py:1: model (floor 3) imports evaluate"]),
        (climbs, "evaluate/a.py", "def f():\n  from ..data import b", ["template/evaluate/a.py:2: evaluate (floor 3)"]),
        (climbs, "train/a.py", "from ..recipe import run", ["template/train/a.py:1: train (floor 4) imports recipe"]),
        (climbs, "train/a.py", "from ..deploy import x", ["template/train/a.py:1: train (floor 4) imports deploy"]),
        (climbs, "recipe.py", "from .train.stages import fit\nfrom . import runs", []),
        (climbs, "recipe.py", "import template.runs", ["template/recipe.py:1: imports template.runs; inside"]),
        (climbs, "data/a.py", "from ... import scripts", ["template/data/a.py:1: leaves the package"]),
        (climbs, "data/a.py", "from ..utils import x", ["template/data/a.py:1: on which floor is {'utils'}?"]),
        (uses_scripts, "template/a.py", "from scripts.train import main", ["template/a.py:1: imports the script"]),
        (uses_scripts, "scripts/a.py", "import train", ["scripts/a.py:1: imports the script train"]),
        (uses_scripts, "scripts/a.py", "from template.train import stages", []),
        (loads_tensorflow, "a.py", "if x:\n  import keras.ops", ["a.py:2: imports keras at module level"]),
        (loads_tensorflow, "a.py", "try:\n  from tensorflow import io\nexcept E: pass", ["a.py:2: imports tensorflow"]),
        (loads_tensorflow, "a.py", "class A:\n  import keras", ["a.py:2: imports keras"]),
        (loads_tensorflow, "a.py", "class A:\n  def f(self):\n    import keras", []),
        (runs_what_a_file_says, "a.py", "def f():\n  import pickle", ["a.py:2: imports pickle"]),
        (runs_what_a_file_says, "a.py", "from joblib import load", ["a.py:1: imports joblib"]),
        (runs_what_a_file_says, "a.py", "x = 1\neval('x')", ["a.py:2: uses eval"]),
        (runs_what_a_file_says, "a.py", "run = exec", ["a.py:1: uses exec"]),
        (runs_what_a_file_says, "a.py", "from builtins import eval as e", ["a.py:1: imports eval"]),
        (runs_what_a_file_says, "a.py", "keras.config.enable_unsafe_deserialization()", ["a.py:1: uses enable_unsafe"]),
        (runs_what_a_file_says, "a.py", "np.load(f, allow_pickle=True)", ["a.py:1: allow_pickle must be False"]),
        (runs_what_a_file_says, "a.py", "np.load(f, allow_pickle=flag)", ["a.py:1: allow_pickle must be False"]),
        (runs_what_a_file_says, "a.py", "load(f,\n  safe_mode=False)", ["a.py:2: safe_mode must be True"]),
        (runs_what_a_file_says, "a.py", "keras.models.load_model(f)", ["a.py:1: uses load_model"]),
        (runs_what_a_file_says, "template/deploy/predictor.py", "keras.saving.load_model(f, safe_mode=True)", []),
        (
            runs_what_a_file_says,
            "template/deploy/predictor.py",
            "keras.saving.load_model(f, safe_mode=x)",
            ["template/deploy/predictor.py:1: safe_mode must be True"],
        ),
        (
            runs_what_a_file_says,
            "template/deploy/predictor.py",
            "eval(f)",
            ["template/deploy/predictor.py:1: uses eval"],
        ),
        (runs_what_a_file_says, "template/model/torch_weights.py", "from pickle import Unpickler", []),
        (
            runs_what_a_file_says,
            "template/model/torch_weights.py",
            "from pickle import Unpickler, loads\nimport pickle",
            ["template/model/torch_weights.py:1: imports pickle", "template/model/torch_weights.py:2: imports pickle"],
        ),
        (
            runs_what_a_file_says,
            "template/model/build.py",
            "from pickle import Unpickler",
            ["template/model/build.py:1: "],
        ),
        (runs_what_a_file_says, "a.py", "from keras.saving import load_model", ["a.py:1: imports load_model"]),
        (runs_what_a_file_says, "a.py", "load(f, custom_objects=x)", ["a.py:1: gives custom_objects"]),
        (writes_in_place, "a.py", "path.write_text('x')", ["a.py:1: writes path.write_text"]),
        (writes_in_place, "a.py", "with path.open('wb') as f: pass", ["a.py:1: writes path.open"]),
        (writes_in_place, "a.py", "figure.savefig(path)", ["a.py:1: writes figure.savefig"]),
        (writes_in_place, "a.py", "(temporary / 'x').write_text('x'); path.open('rb'); runs.write_text(p, 'x')", []),
        (leaves_the_encoding_open, "a.py", "path.read_text()", ["a.py:1: path.read_text() names no encoding"]),
        (leaves_the_encoding_open, "a.py", "with path.open() as f: pass", ["a.py:1: path.open() names no"]),
        (leaves_the_encoding_open, "a.py", "path.open('w', newline='')", ["a.py:1: path.open('w', newline='')"]),
        (leaves_the_encoding_open, "a.py", "path.open('rb'); Image.open(f); f.read_text(encoding='utf-8')", []),
        (runs_what_a_file_says, "a.py", "np.load(f, allow_pickle=False); model.eval(); re.compile('')", []),
    ],
)
def test_the_rules_find_what_they_should(rule, file, source, expected):
    found = list(rule(Path(file), ast.parse(source)))
    assert len(found) == len(expected)
    assert all(message.startswith(start) for message, start in zip(found, expected, strict=True)), found
