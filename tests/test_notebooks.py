"""The notebooks run from top to bottom, show what they promise, and are stored without outputs."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
TOLD = re.compile(
    r"  .*\d (s|min)( left)?|(error|warning): Near duplicates .*|  \(python scripts/audit.py .*"
    r"|  skipped '.*broken.jpg': .*"
)
"""What a run says on stderr: how far it is, every few seconds, and what the audit finds in the drawn images."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_notebooks_are_valid_and_hold_no_outputs(file):
    notebook = nbformat.read(file, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id


class Executed:
    """A notebook after it was run in a folder of its own."""

    def __init__(self, name: str, folder: Path, **parameters) -> None:
        self.notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        for cell in self.notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
        NotebookClient(self.notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
        self.folder = folder

    @property
    def run(self) -> Path:
        """The folder of its only run, or search."""
        (run,) = (self.folder / "runs").iterdir()
        return run

    @property
    def metrics(self) -> dict:
        return json.loads((self.run / "metrics.json").read_text())

    def outputs(self, cell: str) -> list:
        (found,) = [c for c in self.notebook.cells if c.id == cell]
        return found.outputs

    def printed(self, cell: str) -> str:
        return "".join(o.text for o in self.outputs(cell) if o.output_type == "stream" and o.name == "stdout")

    def images(self, cell: str) -> int:
        return sum("image/png" in output.get("data", {}) for output in self.outputs(cell))

    def noise(self) -> list[str]:
        """What no cell means to say: warnings of libraries, which in a notebook arrive on either stream."""
        cells = [c for c in self.notebook.cells if c.cell_type == "code"]
        said = [o for c in cells for o in c.outputs if o.output_type == "stream"]
        lines = [(o.name, line) for o in said for line in o.text.splitlines() if line.strip()]
        return [line for name, line in lines if "WARNING" in line or (name == "stderr" and not TOLD.fullmatch(line))]


@pytest.fixture(autouse=True)
def a_kernel_as_a_person_starts_it(monkeypatch):
    """Where it sees this variable, a kernel does not show what libraries write past sys.stderr."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)


def test_first_result(tmp_path):
    done = Executed("01_first_result.ipynb", tmp_path, epochs=2)
    accuracy = done.metrics["test"]["accuracy"]["value"]
    assert accuracy > 0.8  # ten classes, two epochs
    assert f"{accuracy:.1%} of {done.metrics['test']['images']} test images" in done.printed("number")
    assert done.images("plots") == 2
    assert done.images("mistakes") == 1
    assert done.printed("use").count("with probability") == 3
    assert done.noise() == []


def test_your_own_images(tmp_path):
    done = Executed("02_your_own_images.ipynb", tmp_path)
    assert "120 images of 3 classes" in done.printed("look")
    assert "disc/broken.jpg: text, not an image" in done.printed("look")
    assert done.images("look") == 1
    assert done.metrics["test"]["accuracy"]["low"] > done.metrics["test"]["majority_baseline"]
    (report,) = done.outputs("report")
    assert f"{100 * done.metrics['test']['accuracy']['value']:.1f} %" in report.data["text/markdown"]
    for name in ("confusion_matrix.png", "learning_curves.png"):
        assert f"({done.run.relative_to(tmp_path)}/{name})" in report.data["text/markdown"]
    assert "disc/broken.jpg: text, not an image" in done.printed("use")
    assert done.printed("use").count("%)") == 5
    assert done.noise() == []


def test_bad_labels_are_found_and_mended(tmp_path):
    done = Executed("03_find_and_mend_bad_labels.ipynb", tmp_path, images=None)
    assert "cross/cross-000.png, ring/copy.png" in done.printed("audit")
    assert done.images("look") == 1
    wrong = {name.split(": ")[0] for name in done.printed("decide").splitlines()}
    planted = {
        "disc/cross-021.png",
        "disc/ring-050.png",
        "disc/cross-081.png",
        "ring/disc-010.png",
        "ring/cross-042.png",
    }
    assert wrong == planted | {"ring/copy.png"}
    assert done.printed("decide").count("did not doubt it") <= 2, "of these six"
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        table = {Path(row["path"]).name: row["label"] for row in csv.DictReader(file)}
    assert len(table) == 120 and all(name.startswith(label) for name, label in table.items())
    assert done.noise() == []


def test_a_network_is_chosen_and_tuned(tmp_path):
    if importlib.util.find_spec("optuna") is None:
        pytest.skip('needs the extra tune: pip install -e ".[tune]"')
    done = Executed("04_choose_a_network_and_tune.ipynb", tmp_path, images=None, seconds=1200)
    assert "efficientnet_lite0" in done.printed("networks") and "take " in done.printed("choice")
    assert done.images("choice") == 1
    result = json.loads((done.run / "tune.json").read_text())
    assert result["default"]["trial"] == 0 and result["trials"]["complete"] >= 1
    assert f"gain of loss {result['loss']['gain']['value']:+.4f}" in done.printed("outcome")
    assert "best.toml" in done.printed("train") and (done.run / "best.toml").is_file()
    assert done.noise() == []


def test_an_export_is_made_checked_and_used(tmp_path):
    if importlib.util.find_spec("tf2onnx") is None:
        pytest.skip('needs the extra onnx: pip install -e ".[onnx]"')
    done = Executed("05_export_and_use.ipynb", tmp_path, run=None)
    assert (done.run / "export" / "model.onnx").is_file()
    assert "onnx float32" in done.printed("export") and "100.0 %" in done.printed("export")
    (card,) = done.outputs("card")
    assert "cross, disc, ring" in card.data["text/markdown"]
    answers = [line.split(": ") for line in done.printed("use").splitlines()]
    assert len(answers) == 6 and sum(name.split("/")[0] == answer.split()[0] for name, answer in answers) >= 5
    assert len(done.printed("sure").splitlines()) == 7
    assert done.noise() == []
