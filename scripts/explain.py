"""Explain predictions: one PNG per image, with a heat map of what spoke for the predicted class beside it.

    python scripts/explain.py --run runs/RUN IMAGE_OR_FOLDER ... --out heat/

Grad-CAM weights the topmost feature maps by their gradients; `--occlusion` covers one square after another instead and
watches the logit, which takes fifty times as long and trusts nothing inside the network. Either explains the prediction
for the plain image, and where an image may have several labels, each that it is given; predict.py averages over several
views (TTA), and may differ where it is close.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from template import runs
from template.labels import thresholds_of


@runs.script()
def main() -> None:
    """Parse, load, explain one image after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=Path("heat"), help="folder to write to (default: heat)")
    parser.add_argument(
        "--occlusion", action="store_true", help="occlusion maps instead of Grad-CAM: cover squares in turn"
    )
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IMAGE_OR_FOLDER")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() in (".png", ".jpg", ".jpeg") and not arguments.out.is_dir():
        parser.error(f"--out: expected a folder, for each image has a file. Received: {str(arguments.out)!r}")
    runs.check_output(arguments.out, "folder")

    from template.config import ConfigError
    from template.data.examples import DataError
    from template.data.images.load import BadImageError, load
    from template.data.sources.files import collect_files, describe_notes, describe_skipped, failure_reason

    try:
        files, left = collect_files(arguments.inputs)
        runs.import_tensorflow()
        from template.deploy.explain import grad_cam, occlusion, side_by_side
        from template.deploy.predictor import load_run

        config, classes, model = load_run(arguments.run)
    except (DataError, ConfigError) as error:
        sys.exit(str(error))
    multi = config.data.labels == "multi"
    explain = functools.partial(occlusion, multi=multi) if arguments.occlusion else grad_cam
    done, notes = 0, []
    for number, file in enumerate(files):
        try:
            pixels, note = load(file, config.data)
        except BadImageError as error:
            print(f"{str(file)!r}: {error}")
            continue
        notes.append((str(file), note))
        pixels = pixels[None]
        logits = np.asarray(model.predict_on_batch(pixels.astype(np.float32)), np.float64)[0]
        for label in _labels(logits, classes, arguments.run) if multi else [int(logits.argmax())]:
            heat = explain(model, pixels, np.array([label]))
            name = f"{number:04d}-{runs.short(file.stem)}"
            several = f"-{runs.short(classes[label])}" * multi
            target = arguments.out / f"{name}{several}.png"
            with runs.replacing(target) as temporary:
                side_by_side(pixels[0], heat[0]).save(temporary, format="PNG")
            print(f"{str(file)!r}: {' '.join(classes[label].split())}, {target}")
        done += 1
    for line in [*describe_notes(notes), *describe_skipped(left)]:
        print(line)
    if problem := failure_reason(arguments.inputs, left, done):
        sys.exit(problem)


def _labels(logits: np.ndarray, classes: Sequence[str], run: Path) -> list[int]:
    """Of an image that may have several labels: those that it is given; without any, the nearest to its threshold."""
    found = runs.read_json(run / "calibration.json")
    away = expit(logits / found["temperature"]) - thresholds_of(found, classes)
    return np.flatnonzero(away >= 0).tolist() or [int(away.argmax())]


if __name__ == "__main__":
    main()
