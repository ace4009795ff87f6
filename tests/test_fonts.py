"""Names in any writing are drawn with a font that has their letters, or numbered; a figure never warns of boxes."""

import warnings

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image

from template.diagnose import grids
from template.evaluate import fonts, plots

NAMES = [
    "cat",
    "\u732b",
    "\uace0\uc591\uc774",
    "\U0001f98a",
    "\u0642\u0637",
    "caf\xe9",
    "\u043a\u043e\u0442",
    "new\nline",
    "\u2764\ufe0f",
]


@pytest.fixture
def font_of(tmp_path, monkeypatch):
    """Installs a font that draws an A for each of some letters, and has no others."""

    def install(family: str, letters: str) -> str:
        font, file = TTFont(font_manager.findfont(fonts.PLAIN)), tmp_path / f"{family}.ttf"
        for table in font["cmap"].tables:
            table.cmap = {ord(letter): "A" for letter in letters if ord(letter) < 0x10000 or table.format == 12}
        for record in font["name"].names:
            if record.nameID in {1, 4, 16}:
                record.string = family
        font.save(file)
        monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
        font_manager.fontManager.addfont(file)
        forget()
        return str(file)

    yield install
    monkeypatch.undo()
    forget()


def forget():
    for cached in (fonts._installed, fonts._letters, fonts._others):
        cached.cache_clear()


def drawn(names: list[str], path) -> np.ndarray:
    """A confusion matrix of these names; any warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(plots.confusion_matrix(np.eye(len(names), dtype=int), names), path)
        plots.svg(plots.confusion_matrix(np.eye(len(names), dtype=int), names))
        shown = fonts.drawable(names)
        plots.svg(plots.prediction_dynamics(np.full((2, len(names)), 0.5), shown))
    return np.asarray(Image.open(path).convert("L"))


def test_names_that_no_font_has_are_numbered_and_nothing_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "_installed", dict)
    forget_others = fonts._others.cache_clear
    forget_others()
    shown = fonts.drawable(NAMES)
    assert shown == ["cat", "#1", "#2", "#3", "\u0642\u0637", "caf\xe9", "\u043a\u043e\u0442", "new line", "\u2764"]
    assert fonts.numbered(NAMES) == {"#1": NAMES[1], "#2": NAMES[2], "#3": NAMES[3]}
    assert drawn(NAMES, tmp_path / "c.png").std() > 5
    forget_others()


def test_a_font_that_has_the_letters_is_used(tmp_path, font_of):
    font_of("Of Cats", "\u732b")
    font_of("Of Korea", "\uace0\uc591\uc774")
    names = ["cat", "\u732b", "\uace0\uc591\uc774"]
    assert fonts.drawable(names) == names and fonts.numbered(names) == {}
    assert {"Of Cats", "Of Korea"} <= set(fonts.families(names)) and fonts.families(names)[0] == fonts.PLAIN
    np.testing.assert_array_equal(drawn(["B", "\u732b"], tmp_path / "c.png"), drawn(["B", "A"], tmp_path / "a.png"))
    # The letters are drawn as an A: a box would be another image.


def test_a_font_that_cannot_be_opened_is_none(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert fonts._letters(str(tmp_path / "broken.ttf"), 0) == frozenset()


def test_the_grid_of_the_preflight_writes_them_too(tmp_path, font_of):
    pixels = np.zeros((1, 32, 32, 3))
    font_of("Of Cats", "\u732b")
    cats, letter, other = (np.asarray(grids.grid(pixels, [name])) for name in ("\u732b", "A", "B"))
    np.testing.assert_array_equal(cats, letter)
    assert (cats != other).any()


def test_a_name_that_begins_like_a_number_is_no_number():
    assert fonts.numbered(["#0", "#1", "a"]) == {}
