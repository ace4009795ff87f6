"""The report says first what matters, says it whole, and no name in it is taken for markup; the plots are images."""

import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import softmax

from template.evaluate import document, fonts, intervals, metrics, plots, report
from template.evaluate.calibration import calibrate
from template.evaluate.classification import confusion_counts
from template.evaluate.predictions import Predictions

NASTY = ["<script>|", "two\nlines\r\n", "`code`", "**bold** [link](http://x)", "![image](http://x/y.png)", "a | b",
         "__init__", "&lt;b&gt;", "US$ and CA$", "$\\frac$", "tab\there", "犬", "'; DROP TABLE"]  # fmt: skip


def scores(right: int, wrong: int, names=("cat", "dog", "owl")) -> dict:
    """Scores of so many right and wrong predictions."""
    return metrics.score(predict_some(right, wrong, names))


def history(*losses: float, stage: int = 1, start: int = 0) -> list[dict]:
    """Rows of epochs with these validation losses."""
    return [
        {"stage": stage, "epoch": epoch, "cross_entropy": loss / 2, "val_cross_entropy": loss, "accuracy": 0.9}
        | {"val_accuracy": 1 - loss / 2}
        for epoch, loss in enumerate(losses, start + 1)
    ]


def predict_some(right: int, wrong: int, names=("cat", "dog", "owl")) -> Predictions:
    """So many right and wrong predictions."""
    labels = np.arange(right + wrong) % len(names)
    predicted = np.where(np.arange(right + wrong) < right, labels, (labels + 1) % len(names))
    logits = 3 * np.eye(len(names), dtype=np.float32)[predicted]
    return Predictions(np.arange(right + wrong).astype(str), labels, logits, tuple(names))


def write(
    test=None, val=None, rows=None, measured=None, figures=("confusion_matrix", "learning_curves"), **more
) -> str:
    """The report as Markdown of a run with these scores."""
    measured, content = measured or predict_some(30, 10), {"charts": figures}
    numbers = {"test": test, "val": val or scores(30, 10), "seconds": {"decode": 1.25, "training": 60.0}}
    numbers["calibration"] = calibrate(measured, None)
    content |= {name: more.pop(name) for name in ("galleries", "skipped", "monitor") if name in more}
    told = report.build(numbers | more, measured, rows or history(0.5), description="tiny, 32 pixels.", **content)
    return document.markdown(told)


def cells(text: str, first: str) -> list[str]:
    """Cells of the only table row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_headline_is_the_test_accuracy_with_its_interval():
    text = write(test=scores(right=45, wrong=5))
    # Wilson: 45 of 50
    assert text.splitlines()[0] == "# 90.0 % [78.6, 95.7] accuracy on 50 test images"
    assert "no test part" not in text


def test_of_two_classes_accuracy_is_not_said_again_as_top_1():
    two = predict_some(45, 5, ("cat", "dog"))
    titles = [row[0].text for row in report.scores_of({"test": metrics.score(two)}).tables[0].rows]
    assert "accuracy" in titles and "top-1 accuracy" not in titles


def test_a_calibration_error_above_its_own_interval_is_explained_beside_it():
    generator, names = np.random.default_rng(0), tuple("abcdefghijkl")
    logits = generator.normal(0, 2, (60, 12)).astype(np.float32)
    perfect = [generator.choice(12, p=each) for each in softmax(logits.astype(np.float64), axis=1)]
    few = metrics.score(Predictions(np.arange(60).astype(str), np.array(perfect), logits, names))
    assert few["classwise_ece"]["high"] < few["classwise_ece"]["value"]  # all of it is bias
    assert "ends below it" in report.scores_of({"test": few}).text[0]
    assert not report.scores_of({"test": scores(40, 10)}).text, "where it is not above, there is nothing to explain"


def test_without_a_test_part_the_report_says_so_at_once():
    text = write(test=None, val=scores(right=30, wrong=10))
    lines = text.splitlines()
    assert lines[0] == "# 75.0 % [59.8, 85.8] accuracy on 40 validation images"
    assert lines[2].startswith("**There was no test part. ")
    assert "optimistic" in lines[2]
    assert "| metric | validation (made the choices) |" in lines
    for row in ("accuracy", "macro F1", "top-2 accuracy", "cross-entropy"):
        assert len(cells(text, row)) == 2, "no column of scores that there are not"


def test_every_number_stands_under_its_own_heading():
    test, val = scores(45, 5), scores(30, 10)
    text = write(test, val)
    assert "| metric | test | validation (made the choices) |" in text
    assert cells(text, "accuracy")[1:] == ["90.0 % [78.6, 95.7]", "75.0 % [59.8, 85.8]"]
    assert cells(text, "macro F1")[1:] == [intervals.percent(part["macro_f1"]) for part in (test, val)]
    assert cells(text, "top-2 accuracy")[1:] == [intervals.percent(part["top_k"]) for part in (test, val)]
    loss = [part["cross_entropy"] for part in (test, val)]
    assert cells(text, "cross-entropy")[1:] == [f"{x['value']:.3f} [{x['low']:.3f}, {x['high']:.3f}]" for x in loss]
    assert cells(text, "most frequent class, test")[1] == f"{100 * test['majority_baseline']:.1f} %"
    assert "tiny, 32 pixels." in text
    assert "decode 1.2, training 60.0" in text


def test_the_table_of_classes_has_each_class_and_says_where_a_score_is_undefined():
    labels = np.array([0, 0, 1])
    predicted = np.eye(3, dtype=np.float32)[[0, 0, 0]]
    text = write(test=metrics.score(Predictions(np.arange(3).astype(str), labels, predicted, ("cat", "dog", "owl"))))
    text = text[text.index("## Per-class metrics") : text.index("## Calibration")]
    assert cells(text, "`cat`")[1:5] == ["2", "0.667 [0.208, 0.939]", "1.000 [0.342, 1.000]", "0.800 [0.000, 1.000]"]
    assert cells(text, "`dog`")[1:4] == ["1", "undefined", "0.000 [0.000, 0.793]"]
    assert cells(text, "`owl`")[1:] == ["0", *["undefined"] * 5]


def test_each_stage_is_summed_up_by_its_best_epoch():
    rows = [*history(0.9, 0.5, 0.7), *history(0.6, 0.4, stage=2, start=3)]
    text = write(rows=rows)
    assert cells(text, "1") == ["1", "3", "0.500", "0.750"]
    assert cells(text, "2") == ["2", "2", "0.400", "0.800"]


def test_a_stage_that_an_earlier_version_began_is_summed_up_by_what_both_logged():
    before, now = history(0.5, 0.9), history(0.7, start=2)
    text = write(rows=[*before, now[0] | {"val_calibrated_cross_entropy": 0.6}], monitor="val_calibrated_cross_entropy")
    assert cells(text, "1")[1:3] == ["3", "0.500"]


def test_an_epoch_that_went_wrong_is_not_the_best():
    assert cells(write(rows=history(float("nan"), 0.5)), "1")[1:3] == ["2", "0.500"]


def test_images_left_out_are_listed_with_reasons():
    text = write(skipped=[("cat/1.png", "truncated"), ("dog/2.png", "not an image")])
    assert "## 2 images were left out" in text
    assert re.search(r"cat/1\.png.*truncated", text)
    assert re.search(r"dog/2\.png.*not an image", text)
    assert "left out" not in write()


def test_of_many_images_left_out_the_first_fifty_are_listed_and_all_are_counted():
    text = write(skipped=[(f"{i:03d}.png", "truncated") for i in range(60)])
    assert "## 60 images were left out" in text
    assert "049.png" in text
    assert "050.png" not in text
    assert "The first 50; 10 more are in skipped.json" in text


class Tags(HTMLParser):
    """Counts tags, and collects what they link to and the text in table cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.links, self.rows = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"href", "src"}]
        if tag == "tr":
            self.rows.append(0)
        if tag in {"td", "th"}:
            self.rows[-1] += 1


def test_no_name_is_taken_for_markup():
    markdown = pytest.importorskip("markdown", reason="comes with TensorBoard")
    plain = [f"class {i}" for i in range(len(NASTY))]

    def of(names) -> str:
        given, image = predict_some(30, 10, names), "data:image/jpeg;base64,AAAA"
        shown = [{"id": n, "true": n, "predicted": n, "confidence": 0.9, "image": image, "heat": image} for n in names]
        findings = [{"severity": "warning", "message": n, "advice": n} for n in names]
        alike = [
            {"fact": "folder", "slice": n, "images": 3, "error": intervals.wilson_interval(1, 3), "differs": True}
            for n in names
        ]
        found = {"audit": findings, "slices": alike, "galleries": {"Errors": shown}, "measured": given}
        return write(test=metrics.score(given), val=metrics.score(given), skipped=[(n, n) for n in names], **found)

    text, simple = of(NASTY), of(plain)
    found, expected = (Tags(markdown.markdown(t, extensions=["tables"])) for t in (text, simple))
    assert found.tags == expected.tags, "the page has the same parts as with simple names"
    assert found.rows == expected.rows
    assert found.links == ["confusion_matrix.png", "learning_curves.png"]
    assert "<" not in text, "nor in a viewer that lets HTML through"
    bars = [[line.count("|") for line in t.splitlines()] for t in (text, simple)]
    assert bars[0] == bars[1], "GitHub ends a cell at a bar in code too; and no name begins a line"
    assert "犬" in text, "letters of all languages stay"


def page(names=("cat", "dog", "owl"), test=True, drawn=None, skipped=(), galleries=None, more=None) -> str:
    """The page of a run; what is wrong is wrong in a known way."""
    given = predict_some(18 * len(names), 2 * len(names), names)
    numbers = {"test": metrics.score(given) if test else None, "val": metrics.score(given), "seconds": {"decode": 1.25}}
    numbers |= {"calibration": calibrate(given, given if test else None), "slices": [], "memory_gb": 1.5}
    drawn = {"learning_curves": plots.learning_curves(history(0.9, 0.5))} if drawn is None else drawn
    drawn |= {"confusion_matrix": plots.confusion_matrix(confusion_counts(given), names)}
    how = {"charts": tuple(drawn), "galleries": galleries or {}, "skipped": skipped}
    told = report.build(numbers | (more or {}), given, history(0.9, 0.5), description="tiny, 32 pixels.", **how)
    return document.html(told, drawn, {"python": "3.11"})


class Page(HTMLParser):
    """What is in a page: tags, text outside scripts and styles, and every address."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.addresses, self._inside = [], "", [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._inside = tag
        self.addresses += [value for name, value in attrs if name in {"href", "src", "xlink:href"}]

    def handle_endtag(self, tag):
        self._inside, self.text = "", self.text + " "

    def handle_data(self, data):
        self.text += data if self._inside not in {"script", "style"} else ""


def test_the_page_says_the_number_first_with_its_interval_and_the_baselines():
    text = " ".join(Page(page()).text.split())
    assert "accuracy on 60 test images 90.0 % [79.9, 95.3] tiny, 32 pixels." in text  # Wilson: 54 of 60
    assert text.index("90.0 %") < text.index("most frequent class, test 33.3 %")
    assert "no test part" not in text
    without = " ".join(Page(page(test=False)).text.split())
    assert "accuracy on 60 validation images" in without and "There was no test part." in without
    assert "undefined" not in text


def test_a_tree_of_classes_has_its_levels_and_what_is_answered_there():
    """Fifty of sixty right, and all that is wrong is within the dogs."""
    labels = np.arange(60) % 3
    predicted = np.where((labels > 0) & (np.arange(60) < 15), 3 - labels, labels)
    dogs = 4 * (labels > 0)[:, None] * np.array([0, 1, 1])
    logits = (dogs + np.eye(3)[predicted] * (1 + 8 * (labels == 0)[:, None])).astype(np.float32)
    given = Predictions(np.arange(60).astype(str), labels, logits, ("cat", "dog/husky", "dog/poodle"))
    text = write(test=metrics.score(given), val=metrics.score(given), measured=given)
    assert "| 1 | `cat, dog` | 100.0 % [94.0, 100.0] | 100.0 % [94.0, 100.0] |" in text
    assert "| 2 | the 3 classes | 83.3 % [72.0, 90.7] | 83.3 % [72.0, 90.7] |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("Not sure of the class, but of level 1")]
    assert ": 100.0 % [94.0, 100.0] of the test images, 100.0 % [94.0, 100.0] right." in line
    assert "Levels of the tree" not in write(test=scores(30, 10))


def test_page_and_markdown_have_the_same_headings_and_cells():
    given, curve = predict_some(54, 6), {"sizes": [10, 100], "errors": [0.4, 0.2], "twice": 0.03}
    numbers = {"test": metrics.score(given), "val": metrics.score(given), "seconds": {"decode": 1.25}}
    numbers |= {"calibration": calibrate(given, given), "learning_curve": curve | {"scale": 0.8, "exponent": 0.3}}
    numbers["diagnosis"] = {"verdict": "overfitting", "because": "because", "try_next": ["more images"]}
    drawn = {"learning_curve": plots.learning_curve(numbers["learning_curve"])}
    told = report.build(
        numbers, given, history(0.9, 0.5), description="tiny.", charts=tuple(drawn), skipped=[("a.png", "cut short")]
    )
    text, html = document.markdown(told), document.html(told, drawn, {})
    words = " ".join(Page(html).text.split())
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert headings == re.findall(r"<h2>(.*)</h2>", html)[:-1] and len(headings) == 8
    cells_told = [cell for section in told.sections for table in section.tables for row in table.rows for cell in row]
    paragraphs = [
        line for section in told.sections for line in (*section.text, *section.items, *section.charts.values())
    ]
    for line in (*told.text, *paragraphs, *(f"{cell.text} {cell.interval}".strip() for cell in cells_told)):
        assert line in text and " ".join(line.split()) in words


def test_the_page_needs_nothing_but_itself():
    image = "data:image/jpeg;base64,AAAA"
    shown = {"id": "a.jpg", "true": "cat", "predicted": "dog", "confidence": 0.9, "image": image, "heat": image}
    text = page(galleries={"Wrong": [shown], "Empty": []})
    addresses = [a for a in Page(text).addresses if not a.startswith(("#", "data:"))]
    assert addresses == []
    # w3.org names the dialect of a drawing, and is never asked for
    hosts = {"www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"}
    assert set(re.findall(r"https?://([^/\s\"']+)", text)) <= hosts
    assert "a.jpg" in text and ">Wrong<" in text and ">Empty<" not in text
    assert "default-src 'none'" in text, "a browser is told to refuse what might be asked for"
    assert len(text) < 5e6


def test_no_name_is_taken_for_markup_in_the_page():
    plain = [f"class {i}" for i in range(len(NASTY))]
    image = "data:image/jpeg;base64,AAAA"

    def of(names) -> Page:
        shown = [{"id": n, "true": n, "predicted": n, "confidence": 0.9, "image": image, "heat": image} for n in names]
        return Page(page(names, skipped=[(n, n) for n in names], galleries={n: shown for n in names}))

    nasty, simple = of(NASTY), of(plain)
    assert nasty.tags == simple.tags
    for name in NASTY:
        assert name.replace("\r\n", "\n") in nasty.text.replace("\r\n", "\n")


@pytest.mark.slow
def test_many_classes_are_drawn_and_not_tabled():
    few, many = page(), page([f"class {i}" for i in range(31)])
    assert 'class="matrix"' in few and 'class="matrix"' not in many
    assert many.count("<svg") == few.count("<svg") + 1


def test_a_page_of_no_epochs_and_undefined_scores():
    text = page(drawn={})
    assert text.count("<svg") == page().count("<svg") - 1
    labels, predicted = np.array([0, 0, 1]), np.eye(3, dtype=np.float32)[[0, 0, 0]]
    found = metrics.score(Predictions(np.arange(3).astype(str), labels, predicted, ("cat", "dog", "owl")))
    assert "undefined" in page(more={"test": found})


def test_the_page_says_what_holds_a_run_back_and_what_is_odd_about_its_images():
    curve = {"sizes": [10, 100], "errors": [0.4, 0.2], "scale": 0.8, "exponent": 0.3, "twice": 0.0375}
    found = {"verdict": "overfitting", "because": "99 % here, 80 % there", "try_next": ["more <b>images</b>"]}
    odd = [{"check": "exact duplicates", "severity": "warning", "message": "<i>twice</i>", "advice": "Look."}]
    numbers = {
        "diagnosis": found,
        "learning_curve": curve,
        "audit": odd,
        "color_baseline": intervals.wilson_interval(30, 60),
    }
    numbers["preflight"] = {"validation accuracy of a small network from scratch": 0.7, "validation accuracy, x": 0.123}
    curves = {"learning_curve": plots.learning_curve(curve)}
    curves["prediction_dynamics"] = plots.prediction_dynamics(np.full((2, 3), 0.5), ["a", "b", "c"])
    html = page(more=numbers, drawn=curves)
    text = " ".join(Page(html).text.split())
    assert "Diagnosis: overfitting 99 % here, 80 % there." in text and "more <b>images</b>" in text
    assert "Twice the training images: about +3.8 points" in text and "<i>twice</i> Look." in text
    assert (
        "color histograms, test 50.0 %" in text and "from scratch, validation 70.0 %" in text and "12.3 %" not in text
    )
    assert "<i>twice" not in html and html.count("<svg") == page(drawn={}).count("<svg") + 2
    text = write(rows=history(0.5), figures=tuple(curves), **numbers)
    assert "## Diagnosis: overfitting" in text and "about +3.8 points" in text and "‹i›twice" in text


def test_long_labels_of_a_figure_are_not_cut_off(tmp_path):
    figure = Figure()
    figure.add_subplot().barh(["a setting with a very long name " * 2], [1.0])
    plots.save(figure, tmp_path / "bars.png")
    pixels = np.asarray(Image.open(tmp_path / "bars.png").convert("L"))
    assert (pixels < 128).any(), "something is drawn"
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge > 250).all(), "and nothing of it at the edge"


def test_a_learning_curve_draws_each_error_and_the_law_to_twice_as_many(tmp_path, figures):
    curve = {"sizes": [10, 100], "errors": [0.4, 0.2], "scale": 0.8, "exponent": 0.3, "twice": 0.0375}
    plots.save(plots.learning_curve(curve), tmp_path / "c.png")
    check_png(tmp_path / "c.png")
    points, law = figures[0].axes[0].lines[:2]
    assert points.get_xdata().tolist() == [10, 100] and points.get_ydata().tolist() == [0.4, 0.2]
    assert law.get_xdata()[-1] == pytest.approx(200) and law.get_ydata()[-1] == pytest.approx(0.8 * 200**-0.3)


def test_prediction_dynamics_have_the_hardest_image_on_top_and_an_epoch_a_column(tmp_path, figures):
    watched = np.array([[0.9, 0.2, 0.5], [0.8, 0.1, np.nan]])
    plots.save(plots.prediction_dynamics(watched, ["easy", "hard $", "middle"]), tmp_path / "d.png")
    check_png(tmp_path / "d.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hard $", "middle", "easy"]
    np.testing.assert_array_equal(axes.collections[0].get_array(), [[0.2, 0.1], [0.5, np.nan], [0.9, 0.8]])
    assert axes.yaxis_inverted(), "the first row is the topmost"


def test_drawings_take_the_colour_of_the_page(tmp_path):
    drawn = plots.svg(plots.learning_curves(history(0.9, 0.5)))
    assert drawn.startswith("<svg") and "currentColor" in drawn
    assert "#000000" not in drawn and "<text" not in drawn
    assert drawn == plots.svg(plots.learning_curves(history(0.9, 0.5))), "the same run, the same page"


def test_calibration_draws_each_table_against_the_diagonal(tmp_path, figures):
    table = [
        {"images": 4, "confidence": c, "accuracy": intervals.wilson_interval(k, 4)} for c, k in ((0.3, 1), (0.9, 4))
    ]
    plots.save(plots.calibration({"before": table, "after": table[:1]}), tmp_path / "c.png")
    check_png(tmp_path / "c.png")
    (axes,) = figures[0].axes
    diagonal, before, after = (
        line for line in axes.lines if len(line.get_xdata()) and line.get_marker() in {"o", "None"}
    )
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist() == [0, 1]
    assert before.get_xdata().tolist() == [0.3, 0.9] and before.get_ydata().tolist() == [0.25, 1]
    assert after.get_xdata().tolist() == [0.3]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved, to be asked what is in them."""
    drawn, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    return drawn


def check_png(path) -> None:
    """A whole image, with something in it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(path) as image:
        assert min(image.size) > 200
        assert np.asarray(image.convert("L")).std() > 5
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_confusion_matrix_has_the_truth_in_rows(tmp_path, figures):
    counts = np.array([[5, 2, 0], [0, 1, 0], [3, 0, 4]])
    plots.save(plots.confusion_matrix(counts, ("cat", "dog", "owl")), tmp_path / "c.png")
    check_png(tmp_path / "c.png")
    (axes,) = figures[0].axes
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert axes.get_title() == "10 of 15 correct"
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "dog", "owl"]
    at = {text.get_position(): text.get_text() for text in axes.texts}  # (x, y) = (predicted, true)
    assert at[1, 0] == "2"
    assert at[0, 2] == "3"
    assert at[0, 1] == "·"
    shares = axes.images[0].get_array()
    assert shares[2].tolist() == pytest.approx([3 / 7, 0, 4 / 7])


@pytest.mark.parametrize(
    "n", [2, pytest.param(30, marks=pytest.mark.slow), 31, pytest.param(120, marks=pytest.mark.slow)]
)
def test_confusion_matrix_of_few_and_many_classes(tmp_path, n):
    counts = np.diag(np.arange(n))  # the first class has no images
    plots.save(
        plots.confusion_matrix(counts, [f"class number {i} with a long name" for i in range(n)]), tmp_path / "c.png"
    )
    check_png(tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 2500


def test_confusion_matrix_takes_any_name_as_it_is(tmp_path, figures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save(plots.confusion_matrix(np.eye(len(NASTY), dtype=int), NASTY), tmp_path / "c.png")
    check_png(tmp_path / "c.png")
    shown = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    for name, label in zip(fonts.drawable(NASTY), shown, strict=True):
        assert label == name or (len(name) > 20 and label[:-1] == name[:19])
    for index, (name, label) in enumerate(zip(NASTY, fonts.drawable(NASTY), strict=True)):
        assert label == " ".join(name.split()) or label == f"#{index}" and not name.isascii()
    assert not any(label.get_parse_math() for label in figures[0].axes[0].get_xticklabels()), "$ is no formula"


def test_learning_curves_draw_each_number_at_its_epoch_and_each_stage(tmp_path, figures):
    rows = [*history(0.9, 0.5, 0.7), *history(0.6, 0.4, stage=2, start=3)]
    plots.save(plots.learning_curves(rows), tmp_path / "l.png")
    check_png(tmp_path / "l.png")
    for axes, name in zip(figures[0].axes, ("cross_entropy", "accuracy"), strict=True):
        for line, key in zip(axes.lines, (name, f"val_{name}"), strict=True):
            assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
            assert line.get_ydata().tolist() == [row[key] for row in rows]
            assert line.get_label().startswith("validation" if key.startswith("val") else "training")
        assert sorted(text.get_text() for text in axes.texts) == ["stage 1", "stage 2"]


@pytest.mark.parametrize("losses", [[0.5], [0.5, float("nan"), float("inf"), 0.4]], ids=["one epoch", "not finite"])
def test_learning_curves_of_odd_runs(tmp_path, losses):
    plots.save(plots.learning_curves(history(*losses)), tmp_path / "l.png")
    check_png(tmp_path / "l.png")
