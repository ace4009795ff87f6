"""Every setting does something and says what: none is read nowhere, none is without a description."""

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from template import config

PACKAGE = Path(config.__file__).parent
SECTIONS = {
    name: value for name, value in vars(config).items() if isinstance(value, type) and dataclasses.is_dataclass(value)
}
SETTINGS = [(name, field) for name, section in SECTIONS.items() for field in section.__pydantic_fields__]


class Reads(ast.NodeVisitor):
    """Collects (section, field) of every setting that a module reads.

    A value is a section if it is a parameter annotated with one (`settings: Head`), a variable named like one
    (`head`), or a field that holds one (`config.head`, or `context.settings` where that class, of this module or
    among `classes`, says `settings: Train`).
    Matching the field's name alone would take any `.path` or `.name` for a setting.
    """

    def __init__(self, source: str, classes: Mapping[str, dict[str, str]] = MappingProxyType({})) -> None:
        tree = ast.parse(source)
        self.found: set[tuple[str, str]] = set()
        self.classes = {**classes, **fields_of_classes(tree)}
        self.scopes: list[dict[str, str | None]] = [{name.lower(): name for name in SECTIONS}]
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: N802
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        annotated = {a.arg: ast.unparse(a.annotation).rpartition(".")[2] for a in arguments if a.annotation}
        # A parameter of another type hides a section of the same name: `train: Source` is no settings.
        self.scopes.append({name: kind if kind in {*SECTIONS, *self.classes} else None
                            for name, kind in annotated.items()})  # fmt: skip
        self.generic_visit(node)  # in which `settings = context.settings` may give a section a short name
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:  # noqa: N802
        names, values = ([x] if not isinstance(x, ast.Tuple) else x.elts for x in (node.targets[0], node.value))
        for name, value in zip(names, values, strict=False):
            if isinstance(name, ast.Name) and self.section(value):
                self.scopes[-1][name.id] = self.section(value)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:  # noqa: N802
        section = self.section(node.value)
        if section in SECTIONS and isinstance(node.ctx, ast.Load):
            self.found.add((section, node.attr))
        self.generic_visit(node)

    def section(self, node: ast.expr) -> str | None:
        """Section, or class that may hold one, that an expression stands for, or None."""
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        if isinstance(node, ast.Attribute) and self.section(node.value) == "Config":
            return next((name for name in SECTIONS if name.lower() == node.attr), None)
        if isinstance(node, ast.Attribute):
            return self.classes.get(self.section(node.value), {}).get(node.attr)
        return None


def fields_of_classes(tree: ast.AST) -> dict[str, dict[str, str]]:
    """Annotated fields of each class."""
    return {
        node.name: {
            line.target.id: ast.unparse(line.annotation) for line in node.body if isinstance(line, ast.AnnAssign)
        }
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def sources() -> Iterator[str]:
    for file in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("scripts/*.py"), *PACKAGE.parent.glob("benchmarks/*.py")]:
        if file.name != "config.py":
            yield file.read_text(encoding="utf-8")


def properties() -> Iterator[tuple[str, str, str]]:
    """Section, setting and property, for each setting that a property of its section reads."""
    for node in ast.parse((PACKAGE / "config.py").read_text(encoding="utf-8")).body:
        for function in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(function, ast.FunctionDef) and [ast.unparse(d) for d in function.decorator_list] == [
                "property"
            ]:
                for inner in ast.walk(function):
                    if isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                        yield node.name, inner.attr, function.name


@pytest.fixture(scope="module")
def read() -> set[tuple[str, str]]:
    classes = {name: fields for source in sources() for name, fields in fields_of_classes(ast.parse(source)).items()}
    found = {pair for source in sources() for pair in Reads(source, classes).found}
    return found | {(section, name) for section, name, through in properties() if (section, through) in found}


def test_all_sections_are_looked_at():
    assert {"Config", "Data", "Augment", "Backbone", "Head", "Stage", "Train"} <= set(SECTIONS)
    assert ("Head", "dropout") in SETTINGS


@pytest.mark.parametrize(("section", "field"), SETTINGS, ids=[f"{s}.{f}" for s, f in SETTINGS])
def test_every_setting_is_read(read, section, field):
    assert (section, field) in read, (
        f"{section}.{field} can be set, but nothing outside config.py reads it, as far as can be seen: through a "
        f"parameter annotated `{section}`, a variable named `{section.lower()}`, or `config.{section.lower()}`."
    )


@pytest.mark.parametrize(("section", "field"), SETTINGS, ids=[f"{s}.{f}" for s, f in SETTINGS])
def test_every_setting_is_described(section, field):
    info = SECTIONS[section].__pydantic_fields__[field]
    if info.annotation in SECTIONS.values():
        return  # a section of its own; its settings are described one by one
    description = " ".join((info.description or "").split())
    assert len(description) >= 15, f"{section}.{field} has no docstring in config.py"
    assert description.rstrip(")").endswith("."), f"{section}.{field}: {description!r} is not a whole sentence"
    assert field == "stages" or description in config.describe(), "--help does not show it"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("config.data.image_size", {("Config", "data"), ("Data", "image_size")}),
        ("def f(settings: Head): return settings.l1", {("Head", "l1")}),
        ("def f(settings: configuration.Head): return settings.l1", {("Head", "l1")}),
        ("def f(data: Data):\n  def g(): return data.resize", {("Data", "resize")}),
        ("for stage in stages: stage.epochs", {("Stage", "epochs")}),
        ("class How:\n  settings: Train\ndef f(how: How): return how.settings.seed", {("Train", "seed")}),
        ("class How:\n  settings: Train\ndef f(how: How):\n  s = how.settings\n  s.seed", {("Train", "seed")}),
        ("class How:\n  settings: Train\ndef f(how: How):\n  s, t = how.settings, 3\n  s.seed", {("Train", "seed")}),
        ("class How:\n  settings: Train\ndef f(how: How):\n  s, t = 3, how.settings\n  s.seed", set()),
        ("class How:\n  settings: Train\ndef f(how: Other): return how.settings.seed", set()),
        ("def f(train: Source): return train.seed", set()),
        ("def f(file: Path): return file.name", set()),
        ("config.data.image_size = 3", {("Config", "data")}),
        ("def f(settings: Head): pass\nsettings.l1", set()),
    ],
)
def test_a_read_is_told_from_what_looks_like_one(source, expected):
    assert Reads(source).found == expected


def craft_rows() -> list[tuple[str, str]]:
    """(setting, default) of every row in the tables of docs/craft.md."""
    text = (PACKAGE.parent / "docs" / "craft.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([a-z]+\.[\w.]+)` \| `(.+?)` \| .+ \| .+ \d{4}.* \|$", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("key", "default"), craft_rows())
def test_the_page_of_the_craft_says_each_default_as_it_is(key, default):
    lines = config.describe().splitlines()
    assert any(line.startswith(f"  --{key.replace('.N.', '.0.')}={default}  (") for line in lines), (
        f"docs/craft.md says {default} for {key}, which is not so, or there is no such setting"
    )


def test_the_page_of_the_craft_has_a_row_for_every_such_setting():
    there = {key for key, _ in craft_rows()}
    epochs_and_views = {"unfreeze", "epochs", "batch_size", "cached_augmentations", "refresh", "only_if_gain"}
    expected = {f"stages.N.{name}" for name in SECTIONS["Stage"].__pydantic_fields__ if name not in epochs_and_views}
    expected |= {
        f"train.{name}" for name in ("loss", "label_smoothing", "class_weights", "sampling", "logit_adjustment")
    } | {"train.mixup", "train.cutmix"}
    expected |= {f"augment.{name}" for name in SECTIONS["Augment"].__pydantic_fields__}
    expected |= {f"head.{name}" for name in ("activation", "dropout", "gaussian_dropout", "drop_block", "drop_connect")}
    expected |= {f"head.{name}" for name in ("l1", "l2", "max_norm")}
    expected |= {"backbone.stochastic_depth", "train.gradient_accumulation_steps", "train.monitor_gradients"}
    assert expected <= there
