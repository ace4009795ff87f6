"""What each format and precision says and costs, network by network: docs/deploy.md has the table.

    python benchmarks/parity.py --data.path=FOLDER --networks mobilenet efficientnet_lite0

For each network a run is trained (the linear probe alone) and exported in every format; export.py compares the files
with Keras on images of the run, and measures. ImageNet weights are taken where they are on this machine, or with
`--download`; other networks get random ones, whose answers show whether a format says the same as Keras, and nothing
about the accuracy that int8 costs. Milliseconds depend on the machine: look at the rows of one network.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from template import runs

SCRIPTS = Path(__file__).parents[1] / "scripts"
NETWORKS = ("efficientnet_lite0", "mobilenet", "resnet50", "efficientnetb0", "convnexttiny", "vgg16")


@runs.script()
def main() -> None:
    """Train, export, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.path", dest="path", required=True, help="a folder of class folders, as in training")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--images", type=int, default=64, help="images that are compared at most (default: 64)")
    parser.add_argument("--download", action="store_true", help="let Keras download ImageNet weights")
    parser.add_argument("--out", type=Path, default=Path("parity.json"), help="JSON to write (default: parity.json)")
    arguments = parser.parse_args()
    runs.check_output(arguments.out, "file")
    runs.import_tensorflow()
    found: dict[str, Any] = {}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as scratch:
            weights, settings = weights_of(name, arguments.size, arguments.download, Path(scratch))
            rows = measured(
                Path(arguments.path).resolve(), Path(scratch), arguments, [f"--backbone.name={name}", *settings]
            )
        found[name] = {"weights": weights, "rows": rows}
        show(name, weights, rows)
        runs.write_json(arguments.out, {"environment": runs.environment(), "networks": found})


def weights_of(name: str, size: int, download: bool, folder: Path) -> tuple[str, list[str]]:
    """ImageNet or random weights, and the settings that ask for them."""
    import keras

    from template.config import Backbone
    from template.model.at_hand import weights_at_hand
    from template.model.backbones import build_backbone

    for settings in weights_at_hand():
        if settings.name == name:
            return "ImageNet", [f"--backbone.alpha={settings.alpha}"]
    if download:
        return "ImageNet", []
    keras.utils.set_random_seed(0)
    network = build_backbone(Backbone(name=name, weights="none"), size)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    noise = np.random.default_rng(0).uniform(0, 255, (16, size, size, 3)).astype(np.float32)
    keras.Model(network.inputs[0], network.outputs[0])(noise, training=True)  # or activations fade away
    network.save_weights(folder / "random.weights.h5")
    return "random", [f"--backbone.weights={folder / 'random.weights.h5'}"]


def measured(images: Path, scratch: Path, arguments: argparse.Namespace, settings: list[str]) -> list[dict[str, Any]]:
    """Rows of the model card of a run, in processes of their own."""
    views = [f"--tta.{name}=false" for name in ("hflip", "full_image", "center_zoom")]  # one pass an image
    line = [f"--data.path={images}", f"--data.image_size={arguments.size}", f"--data.cache={scratch / 'cache'}"]
    line += ["--stages=[]", "--train.refit_on_train_val=no", "--head.feature_levels=1", *views, *settings]
    line += [f"--runs={scratch / 'runs'}"]
    subprocess.run([sys.executable, SCRIPTS / "train.py", *line], check=True, stdout=subprocess.DEVNULL)
    (run,) = (scratch / "runs").iterdir()
    formats = ["--format", "onnx", "litert", "savedmodel", "--precision", "float32", "float16", "int8"]
    export = [sys.executable, SCRIPTS / "export.py", "--run", run, *formats, "--images", str(arguments.images)]
    done = subprocess.run(export, check=False, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, flush=True)
    card = run / "export" / "model_card.json"
    return runs.read_json(card)["artefacts"] if card.is_file() else []


def show(name: str, weights: str, rows: list[dict[str, Any]]) -> None:
    """Rows of the table in the docs."""
    from template.deploy.export.model_card import table

    for row in table(rows):
        print(f"| {name} ({weights}) | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
