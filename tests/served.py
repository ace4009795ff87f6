"""A run to be served that nobody has trained, and a process that serves it."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SCRIPTS
from PIL import Image

from template import disk, runs

ABOUT = {
    "class_names": ["red", "green", "blue"],
    "temperature": 1.0,
    "inputs": {"image_size": 8, "resize": "crop", "bits": "auto", "max_megapixels": 1.0, "full_image": False,
               "center_zoom": False},
}  # fmt: skip
CARD = {"reject": {"confidence": 0.9}, "classes": ABOUT["class_names"]}
TOKEN = "a-token-of-this-test"


def shares(pixels: np.ndarray) -> list[np.ndarray]:
    """A network: the share of each colour in an image."""
    sums = pixels.sum(axis=(1, 2)) + 1e-6
    return [(sums / sums.sum(axis=1, keepdims=True)).astype(np.float32)]


def backwards(pixels: np.ndarray) -> list[np.ndarray]:
    """Another network, which takes red for blue."""
    return shares(pixels[..., ::-1])


def picture(color: tuple[int, int, int], kind: str = "PNG", size: int = 20) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), color).save(out, kind)
    return out.getvalue()


RED, BLUE, MIXED = picture((255, 0, 0)), picture((0, 0, 255)), picture((120, 100, 80))
GREEN = picture((0, 255, 0))


def colour_run(folder: Path, order: tuple[int, ...] = (0, 1, 2), novelty: bool = False) -> Path:
    """The export of a run: a network that says how much of each colour there is; and whether that much green is new."""
    onnx = pytest.importorskip("onnx", reason='needs the extra onnx: pip install -e ".[onnx]"')
    pytest.importorskip("onnxruntime", reason='needs the extra onnx: pip install -e ".[onnx]"')
    make, kind = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        make.make_node("Gather", ["mean", "order"], ["ordered"], axis=1),
        make.make_node("Mul", ["ordered", "scale"], ["logits"]),
        make.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        make.make_tensor("axes", kind.INT64, [2], [1, 2]),
        make.make_tensor("order", kind.INT64, [3], order),
        make.make_tensor("scale", kind.FLOAT, [1], [0.1]),
        make.make_tensor("green", kind.INT64, [], [1]),
        make.make_tensor("usual", kind.FLOAT, [1], [0.005]),
    ]
    ports = [
        make.make_tensor_value_info("pixels", kind.FLOAT, ["n", 8, 8, 3]),
        make.make_tensor_value_info("probabilities", kind.FLOAT, ["n", 3]),
    ]
    if novelty:
        nodes += [
            make.make_node("Gather", ["mean", "green"], ["greens"], axis=1),
            make.make_node("Mul", ["greens", "usual"], ["novelty"]),
        ]
        ports.append(make.make_tensor_value_info("novelty", kind.FLOAT, ["n"]))
    graph = make.make_graph(nodes, "colours", ports[:1], ports[1:], constants)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    make.set_model_props(model, {name: json.dumps(value) for name, value in ABOUT.items()})
    (folder / "export").mkdir(parents=True, exist_ok=True)
    file = folder / "export" / "model.onnx"
    file.write_bytes(model.SerializeToString())
    runs.write_json(
        file.with_name("model_card.json"), CARD | {"artefacts": [{"file": file.name, "sha256": disk.sha256(file)}]}
    )
    return folder


ONLY = (
    "import runpy, sys; allowed = set(sys.argv.pop(1).split()) | set(sys.stdlib_module_names)\n"
    "class Only:\n"
    "    def find_spec(self, name, *_):\n"
    "        first = name.partition('.')[0]\n"
    "        if not {first, first.lstrip('_')} & allowed and not first.startswith('_sysconfigdata'):\n"
    "            raise ModuleNotFoundError(f'{name} is not installed', name=name)\n"
    "sys.meta_path.insert(0, Only()); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""For `python -c`: packages that may be imported, in one word of the command line, and a script with its arguments."""


def built(name: str, run: Path, image: Path) -> list[str]:
    """What a Dockerfile copies, into a folder, and what it runs there, with python left out."""
    for line in (SCRIPTS.parent / "docker" / f"{name}.Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"]:
            source, target = words[1].replace("${RUN}", str(run)), image / "app" / words[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (SCRIPTS.parent / source).is_dir() else shutil.copy
            copy(SCRIPTS.parent / source, target)
        if words[:1] == ["ENTRYPOINT"]:
            return json.loads(line.partition(" ")[2])[1:]
    raise ValueError("no ENTRYPOINT")


@contextlib.contextmanager
def process(*arguments, port: int = 0) -> Iterator[tuple[subprocess.Popen, int]]:
    """serve.py and the port it listens at."""
    line = [sys.executable, str(SCRIPTS / "serve.py"), "--port", str(port), *map(str, arguments)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            said = running.stdout.readline()
            assert "http://127.0.0.1:" in said, said + running.communicate(timeout=20)[1]
            yield running, int(said.partition("127.0.0.1:")[2].split()[0])
        finally:
            running.kill()
