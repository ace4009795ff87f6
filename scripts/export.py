"""Export a finished run for other programs: ONNX, LiteRT (TensorFlow Lite), TensorFlow SavedModel.

    python scripts/export.py --run runs/RUN --format onnx
    python scripts/export.py --run runs/RUN --format onnx litert savedmodel --precision float32 float16 int8

Each file takes RGB 0-255 of the run's size and gives calibrated probabilities. It is loaded by its own runtime and held
against Keras on images of the run; one that says something else is not kept. The table says what each costs in
accuracy, bytes and milliseconds. The folder (RUN/export) is replaced as a whole. Exit code: 0, or 1 if one of the files
could not be made. What the files need, and which networks they can hold: docs/deploy.md.
"""

import argparse
import sys
from pathlib import Path

from template import runs
from template.deploy.runtime import CARD, FILES, FOLDER


@runs.script()
def main() -> None:
    """Parse, export, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    words = "one or several (default: onnx)"
    parser.add_argument("--format", nargs="+", choices=("onnx", "litert", "savedmodel"), default=["onnx"], help=words)
    words = "one or several; savedmodel has float32 only (default: float32)"
    parser.add_argument("--precision", nargs="+", choices=tuple(FILES), default=["float32"], help=words)
    parser.add_argument("--out", type=Path, help=f"folder to write to (default: RUN/{FOLDER})")
    parser.add_argument("--data.path", dest="path", help="where the images are now, if the run comes from elsewhere")
    words = "how many validation images are compared at most (default: 256; 32 images in any case)"
    parser.add_argument("--images", type=int, default=256, help=words)
    arguments = parser.parse_args()
    out = arguments.out or arguments.run / FOLDER
    runs.check_output(out, "folder")
    if out.exists() and any(out.iterdir()) and not (out / CARD).is_file():
        sys.exit(f"{str(out)!r} holds other files than an export, and would be replaced. Choose another with --out.")
    if arguments.images < 1:
        parser.error(f"--images: expected at least 1. Received: {arguments.images}")

    from template.config import ConfigError
    from template.data.examples import DataError

    runs.import_tensorflow()
    from template.deploy.export import model_card
    from template.deploy.export.export import PRECISIONS, ExportError, export_run

    pairs = [(kind, precision) for kind in arguments.format for precision in arguments.precision]
    for kind, precision in pairs:
        if precision not in PRECISIONS[kind]:
            print(f"{kind} {precision}: not made, {kind} has {', '.join(PRECISIONS[kind])} only", file=sys.stderr)
    wanted = [(kind, precision) for kind, precision in dict.fromkeys(pairs) if precision in PRECISIONS[kind]]
    if not wanted:
        sys.exit("There is nothing to export.")
    try:
        card, problems = export_run(arguments.run, wanted, out, arguments.path, arguments.images)
    except (ConfigError, DataError) as error:
        sys.exit(f"{error}\n(Are the images elsewhere now? --data.path says where.)")
    except ExportError as error:
        sys.exit(str(error))
    rows = [model_card.COLUMNS, *model_card.table(card["artefacts"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"compared on {card['artefacts'][0]['images']} images. {model_card.NOTE}")
    print(f"written: {out}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
