"""The documentation is true where a test can see it: commands, files, settings, numbers said twice, diffs, examples."""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SCRIPTS, image

import template
from template import config

DOCS, PACKAGE = ROOT / "docs", Path(template.__file__).parent.name
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
OWN = not (SCRIPTS / "new_project.py").exists()
"""Whether this is a project of one's own, whose README has no numbers, and which has no benchmarks."""
HOWTO = [DOCS / "howto" / f"add_a_{what}.md" for what in ("backbone", "loss", "metric", "data_source")]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}


def names(pages: list[Path]) -> list[str]:
    return [page.relative_to(ROOT).as_posix() for page in pages]


def blocks(text: str, language: str = "") -> list[str]:
    """Fenced blocks of code of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for of, code in found if of == language]


def without_blocks(text: str, language: str = "") -> str:
    """The text without its blocks of code, or those of one language."""
    return re.sub(rf"^```{language}.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Commands in blocks of code and between backticks, as lists of words; comments are left out."""
    lines = [line for block in blocks(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", without_blocks(text))
    words = [shlex.split(part, comments=True) for line in lines if "python " in line or "pip " in line
             for part in line.split("&&")]  # fmt: skip
    return [each for each in words if each[:1] in (["python"], ["pip"])]


def scripts_called(text: str) -> list[tuple[str, list[str]]]:
    """(path below the project, arguments) of each script that is called."""
    called = [words[1:] for words in commands(text) if words[0] == "python" and len(words) > 1]
    return [(first, rest) for first, *rest in called if re.fullmatch(r"(scripts|benchmarks)/\w+\.py", first)]


class Parsed(BaseException):
    """What a script has understood; nothing of it is done."""


@functools.lru_cache
def main_of(script: str):
    """The function `main` of a script."""
    specification = importlib.util.spec_from_file_location(f"called_{Path(script).stem}", ROOT / script)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


def complaint(script: str, arguments: list[str]) -> str | None:
    """What a script has against these arguments, if anything: its own parser reads them, and settings are loaded."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace)[1])

    def parse_all(parser, args=None, namespace=None):
        rest = parse(parser, args, namespace)[1]
        if rest:
            parser.error(f"unrecognized: {rest}")
        raise Parsed([])

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stderr(said):
        patched.setattr(argparse.ArgumentParser, "parse_known_args", parse_known)
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_all)
        patched.setattr(sys, "argv", [script, *arguments])
        try:
            main_of(script)()
        except Parsed as parsed:
            return settings_complaint(parsed.args[0])
        except SystemExit as end:
            return None if end.code == 0 else f"{end.code} {said.getvalue()}"
    return "it did not parse its arguments"


def settings_complaint(arguments: list[str]) -> str | None:
    """The same of settings; one capital letter stands for a number, and KEY=VALUE for any."""
    given = [re.sub(r"=[A-Z]$", "=1", part) for part in arguments if part != "--KEY=VALUE"]
    try:
        config.load(None, list(config.pair_up(given)))
    except config.ConfigError as error:
        return str(error)
    return None


COMMANDS = [page for page in PAGES if page not in HOWTO]  # those are called where their diffs are applied


@pytest.mark.skipif(OWN, reason="a project that new_project.py made has no benchmarks")
@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_the_walk_of_the_pages_leaves_no_command_out(page):
    walk = runpy.run_path(str(ROOT / "benchmarks" / "commands.py"))
    walked = [shlex.split(command)[1:] for command in walk["commands"](TEXT[page])]
    told = [[script, *rest] for script, rest in scripts_called(TEXT[page]) if script.startswith("scripts")]
    assert sorted(walked) == sorted(told)


@pytest.mark.skipif(OWN, reason="a project that new_project.py made has no benchmarks")
def test_the_walk_trains_what_a_command_needs_and_calls_each_once(tmp_path):
    walk = runpy.run_path(str(ROOT / "benchmarks" / "commands.py"))
    for part in range(2):
        (tmp_path / "images" / f"kind{part}").mkdir(parents=True)
        for number in range(65):
            (tmp_path / "images" / f"kind{part}" / f"{number}.jpg").write_bytes(bytes([part, number]))
    with pytest.raises(SystemExit, match=r"kind0': expected 66 images or more.*Received: 65"):
        walk["lay_out"](tmp_path / "images", tmp_path / "home", 6)
    walk["lay_out"](tmp_path / "images", tmp_path / "home", 5)

    class Told(walk["Walk"]):
        def _row(self, command):
            if "train" in command:
                self.made[command] = self.home / "runs" / f"{len(self.made)}"
            return self._filled_in(command)

    calls, home = Told(tmp_path / "home", 60), tmp_path / "home"
    rows = [
        row
        for command in (
            "python scripts/compare.py runs/RUN runs/OTHER",
            walk["PHOTOS"],
            "python scripts/train.py --data.path=labels.csv --data.labels=multi",
            "python scripts/predict.py --run runs/RUN --bucket s3://x",
        )
        for row in calls.call(command)
    ]
    assert rows == [
        walk["PHOTOS"],
        walk["SECOND"],
        f"python scripts/compare.py {home}/runs/0 {home}/runs/1",
        "python scripts/train.py --data.path=several.csv --data.labels=multi",
        "| `python scripts/predict.py --run runs/RUN --bucket s3://x` | not called: needs a bucket | | |",
    ]
    assert (home / "scans.csv").read_text(encoding="utf-8").splitlines()[:2] == [
        "path,label,patient", f"{home}/photos/kind0/kind0-0.jpg,kind0,0"
    ]  # fmt: skip


@pytest.mark.skipif(OWN, reason="a project that new_project.py made has no benchmarks")
def test_how_far_a_forecast_was_is_read_from_what_a_run_said():
    error = runpy.run_path(str(ROOT / "benchmarks" / "commands.py"))["forecast_error"]
    said = "run, 3 s, about 900 s left\n run, 12 s, about 68 s left | x\nrun, 60 s, about 1 s left\n"
    assert error(f"{said}test accuracy 0.9 [0.8, 1.0] on 20 images, 100 s in all") == "1.25"
    assert error(said) == "", "it did not end"
    long = "run, 40 s, about 5 min left\nrun, 3 min, about 90 s left\non 20 images, 300 s in all"
    assert error(long) == "1.13", "340 s were forecast; minutes are no seconds"


@pytest.mark.parametrize("page", COMMANDS, ids=names(COMMANDS))
def test_every_command_of_a_page_is_understood(page):
    wrong = []
    for script, arguments in scripts_called(TEXT[page]):
        if OWN and script.startswith("benchmarks"):
            continue
        if not (ROOT / script).is_file():
            wrong.append(f"{script} is not there")
        elif said := complaint(script, arguments):
            wrong.append(f"{script} {' '.join(arguments)}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data.path=photos"], None),
        (["--data.paht=photos"], "data.paht"),
        (["--train.batch_size=many"], "batch_size"),
        (["--stages.0.learning_rate=S"], None),
    ],
)
def test_a_command_that_cannot_be_is_noticed(arguments, words):
    said = complaint("scripts/train.py", arguments)
    assert said is None if words is None else words in said
    assert "unrecognized" in complaint("scripts/compare.py", ["a", "b", "--fast"])
    assert scripts_called("```\n$ ls\npython scripts/a.py x \\\n  --b  # c\n```\nor `python scripts/d.py`") == [
        ("scripts/a.py", ["x", "--b"]),
        ("scripts/d.py", []),
    ]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_extra_that_a_page_installs_is_there(page):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = [part for words in commands(TEXT[page]) if words[0] == "pip" for part in words if part.startswith(".[")]
    assert {name for part in asked for name in part[2:-1].split(",")} <= set(extras)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_and_setting_that_a_page_names_is_there(page):
    prose = without_blocks(TEXT[page])
    named = re.findall(rf"(?<![\w/.])((?:{PACKAGE}|scripts|configs|docs|docker|notebooks|tests)/[\w/.]*\w)", prose)
    left_behind = ("tests/", "scripts/new_project") if OWN else ()
    assert not [name for name in named if not (ROOT / name).exists() and not name.startswith(left_behind)]
    sections = "|".join({key.partition(".")[0] for key in all_settings()})
    keys = re.findall(rf"(?<![\w/.-])(?:--)?((?:{sections})\.[a-z_]\w*(?:\.\w+)?)(?!\w*[(/])", prose)
    endings = {"py", "md", "toml", "json", "html", "csv", "keras", "npz", "yml"}
    for key in {key.replace(".N.", ".0.") for key in keys if key.rpartition(".")[2] not in endings}:
        with_name = key.startswith("train.class_weights.")
        assert with_name or key in all_settings(), f"there is no setting {key}"


@functools.lru_cache
def all_settings() -> set[str]:
    """Every setting, those of stages with 0 for their number."""
    return set(re.findall(r"^  --([\w.]+)=", config.describe(), re.MULTILINE))


# Numbers

INTERVAL = re.compile(r"\d+\.\d+ \[-?\d+\.\d+, \d+\.\d+\]")
SCORES = re.compile(r"^\|[^`]*\| \*{0,2}0\.\d{3}\b[^`]*$", re.MULTILINE)
SAID_TWICE = {
    r"test accuracy (1\.\d+ \[.*?\] on \d+ images), \d+ s": ["README.md", "docs/index.md"],
    r"test accuracy (1\.\d+ \[.*?\]) on 179 images": ["README.md", "docs/index.md", "configs/digits.toml"],
    r"(0\.\d+ in 125 s)": ["README.md", "docs/results.md"],
    r"(0\.\d+ in 68 s)": ["README.md", "docs/results.md"],
    r"nine right of ten is (\S+ to \S+?)[.:]": ["docs/search.md", "docs/howto/tiny_data.md"],
}
"""What is said on several pages: a pattern with one group, which all of them have with the same value."""
BY_CHANCE = {"0.961 [0.917, 0.982]"}  # ants and bees, by two networks


@pytest.mark.skipif(OWN, reason="this README has no numbers")
@pytest.mark.parametrize(("pattern", "files"), SAID_TWICE.items())
def test_a_number_that_is_said_twice_is_the_same(pattern, files):
    found = {file: re.findall(pattern, (ROOT / file).read_text(encoding="utf-8")) for file in files}
    assert all(found.values()), found
    assert len({value for values in found.values() for value in values}) == 1, found


def rows(text: str, header: str) -> dict[str, list[str]]:
    """Rows of the table with this header, by their first cell, without what is in brackets there."""
    table = text[text.index(header) :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[: table.index("")]]
    return {re.sub(r" \(.*\)", "", first): rest for first, *rest in cells}


@pytest.mark.skipif(OWN, reason="this README has no numbers")
def test_the_page_of_the_craft_has_the_numbers_of_the_readme():
    readme = rows(TEXT[ROOT / "README.md"], "| training images | linear probe | best probe |")
    craft = rows(TEXT[DOCS / "craft.md"], "| | half: z |")
    assert set(readme) == set(craft) and len(craft) > 5
    for name, (*_, unfrozen, _, chosen) in craft.items():
        assert readme[name][2].startswith(f"{chosen} ["), name
        assert readme[name][3].split()[0] == unfrozen.split()[0] or unfrozen in readme[name][3], name
    digits, page = readme["digits at 96 pixels, 10 per class"], TEXT[DOCS / "howto" / "other_domain.md"]
    assert f"reaches {digits[0][:5]}, the run {digits[2][:5]}" in page


@pytest.mark.skipif(OWN, reason="this README has no numbers")
def test_numbers_with_intervals_stand_on_one_page_only_or_are_compared():
    pages = Counter(number for text in TEXT.values() for number in set(INTERVAL.findall(text)))
    compared = [
        re.search(pattern, TEXT[ROOT / files[0]]) for pattern, files in SAID_TWICE.items() if "README.md" in files
    ]
    known = {number for match in compared for number in INTERVAL.findall(match[1])}
    assert {number for number, count in pages.items() if count > 1} <= known | BY_CHANCE


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_numbers_stand_beside_the_command_that_made_them(page):
    """Scores with intervals, and tables of scores."""
    for section in re.split(r"^##+ ", without_blocks(TEXT[page], "diff"), flags=re.MULTILINE):
        if INTERVAL.search(section) or SCORES.search(section):
            made = re.search(r"(scripts|benchmarks)/\w+\.py|script that was not kept", section)
            assert made, f"by which command? {section[:200]}"


# Code


def copy_of_the_project(folder: Path) -> Path:
    """Package, scripts and recipes, as they are."""
    for name in (PACKAGE, "scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def apply_diffs(pages: list[Path], folder: Path) -> None:
    """Apply every diff of these pages, one after the other; they must fit to the letter."""
    for diff in [diff for page in pages for diff in blocks(TEXT[page], "diff")]:
        line = ["git", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(line, input=diff, text=True, capture_output=True, cwd=folder, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{diff}"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git, to apply a diff")
def test_the_diffs_fit_the_code(tmp_path):
    folder = copy_of_the_project(tmp_path / "copy")
    apply_diffs(HOWTO, folder)
    assert all(blocks(TEXT[page], "diff") for page in HOWTO)
    for file in folder.rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), file, "exec")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="needs git, to apply a diff")
def test_what_the_diffs_add_is_trained_with(tmp_path):
    folder = copy_of_the_project(tmp_path / "copy")
    apply_diffs(HOWTO, folder)
    rng, kinds = np.random.default_rng(0), ("across", "disc", "upright")
    arrays = {}
    for part, each in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{part}_images"] = np.stack([image(kind, rng, 32) for kind in kinds for _ in range(each)])
        arrays[f"{part}_labels"] = np.repeat(np.arange(3), each)[:, None]
    np.savez(folder / "images.npz", **arrays)
    words = [
        word for page in HOWTO for script, words in scripts_called(TEXT[page]) if "train" in script for word in words
    ]
    assert set(words) >= {"--train.loss=poly", "--data.path=images.npz", "--backbone.name=plain"}, "as the pages say"
    line = ["--config", "configs/digits.toml", "--stages.0.epochs=3", "--data.image_size=32", "--train.batch_size=8"]
    run_in(folder, "scripts/train.py", *line, *(word for word in words if "photos" not in word and "b4" not in word))
    (run,) = (folder / "runs").iterdir()
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert test["images"] == 12 and list(test["classes"]) == ["0", "1", "2"]
    recalls = [row["recall"]["value"] for row in test["classes"].values()]
    assert test["geometric_mean"]["value"] == pytest.approx(np.prod(recalls) ** (1 / 3))
    assert test["geometric_mean"]["low"] <= test["geometric_mean"]["value"] <= test["geometric_mean"]["high"]
    assert "geometric mean of recalls" in (run / "report.md").read_text(encoding="utf-8")
    code = f"""if True:
        import numpy as np
        from {PACKAGE}.config import Backbone, Train
        from {PACKAGE}.model.backbones import build_backbone
        from {PACKAGE}.model.blocks import find_blocks
        from {PACKAGE}.train.losses import training_loss
        settings = Backbone(name="efficientnetb4", weights="none")
        assert find_blocks(build_backbone(settings, 32), settings).order == [1, 2, 3, 4, 5, 6, 7]
        loss = training_loss(Train(loss="poly"), [1, 1])(np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]]))
        assert abs(float(loss) - (np.log(2) + 0.5)) < 1e-6, float(loss)
    """
    run_in(folder, "-c", code)


def run_in(folder: Path, *line: str) -> str:
    """What Python says in a folder whose own package it imports."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_the_page_on_keras_says_is_so(tmp_path):
    examples = blocks(TEXT[DOCS / "explanation" / "keras.md"], "python")
    assert len(examples) == 4
    run_in(tmp_path, "-c", "\n".join(examples))


# The site


def test_every_room_of_the_package_is_in_the_reference():
    shown = {
        name for page in (DOCS / "reference").glob("*.md") for name in re.findall(r"^::: ([\w.]+)", TEXT[page], re.M)
    }
    modules = {
        path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert shown == {PACKAGE, *(f"{PACKAGE}.{name}" for name in modules - {"__init__"})}


class Addresses(HTMLParser):
    """What a page loads, or leads to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attributes if name in {"src", "href", "srcset", "action", "data"}]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for package in ("material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip('needs the extra docs: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("docs") / "site"
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere_and_leads_nowhere_else(site):
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) == len(PAGES) - 1
    for page in [*pages, site / "404.html"]:
        text = page.read_text(encoding="utf-8")
        assert not [a for a in Addresses(text).found if re.match(r"(https?:)?//", a)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


@pytest.mark.slow
def test_the_search_finds_a_setting_in_a_folder_without_a_network(site):
    api = pytest.importorskip("playwright.sync_api", reason='needs the extra browser: pip install -e ".[browser]"')
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs a chromium, which is not there")
    asked = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.fill("input.md-search__input", "stochastic depth")
        page.wait_for_selector(".md-search-result__item a")
        found = page.eval_on_selector_all(".md-search-result__item a", "links => links.map(link => link.href)")
        browser.close()
    assert any("craft.html" in link for link in found) and any("reference/" in link for link in found)
    assert len(asked) > 5 and not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


def test_images_are_small_and_all_are_shown_with_words_for_those_who_do_not_see_them():
    files = {file.name for file in (DOCS / "images").iterdir()}
    assert files and sum((DOCS / "images" / name).stat().st_size for name in files) < 300_000
    shown = [each for text in TEXT.values() for each in re.findall(r"!\[(.*?)\]\((?:[./\w]*/)?images/([\w.]+)\)", text)]
    assert OWN or {name for _, name in shown} == files
    assert all(len(words) > 30 for words, _ in shown)
