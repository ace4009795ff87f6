"""Classify any number of images with a finished run, on all cores or a Ray cluster, into Parquet files.

    pip install -c constraints.txt -e ".[ray,onnx]"
    python scripts/predict_many.py --run runs/RUN photos/ --out predictions
    python scripts/predict_many.py --run runs/RUN list.txt --out predictions         # a path or address in a line
    python scripts/predict_many.py --run runs/RUN s3://bucket/photos --out predictions --address auto

The same command goes on where it was interrupted: finished parts stay, and no image is missing or twice. A worker that
is killed is replaced. Each row has the answer ("not sure" below the run's reject level), calibrated probabilities,
novelty, the sha256 of the file, the reason if it cannot be read, and the digest of the model. At the end drift.json
says whether these images are still like those of the run's validation part. docs/scale.md: more, and what a million
images cost. Exit code: 0; 1 if it could not end, or nothing could be classified; 2 if it cannot begin; 130 or 143 if
it was stopped.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from template import disk, runs, system
from template.data.sources.names import DataError
from template.deploy.runtime import FILES

NEEDED = {"ray": "Ray", "pyarrow": "PyArrow", "fsspec": "fsspec"}


@runs.script()
def main() -> None:
    """Parse, classify, say what came of it."""
    arguments = parse()
    again = " ".join(map(system.quote, ["python", "scripts/predict_many.py", *sys.argv[1:]]))
    with runs.graceful_stop(f"Stopped. Finished parts are kept. Go on with: {again}"):
        from template.deploy.many.predict import Options, predict_many

        try:
            with disk.locked(arguments.out):
                counted = predict_many(Options(**vars(arguments)))
        except (DataError, disk.DiskError) as error:
            sys.exit(str(error))
    if not counted.classified:
        sys.exit("none of the files could be read as an image")


def parse() -> argparse.Namespace:
    """Command line; leaves with a message if something needed is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="folder, file that lists images, or address (fsspec)")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the Parquet files")
    words = "by which it answers: auto (default) for its ONNX export where it has one, TensorFlow otherwise"
    parser.add_argument("--runtime", choices=("auto", "onnx", "keras"), default="auto", help=words)
    parser.add_argument("--precision", choices=tuple(FILES), default="float32", help="of the export (default: float32)")
    parser.add_argument("--top-k", type=int, default=3, help="how many classes per image (default: 3)")
    parser.add_argument("--features", action="store_true", help="write the features too, float32: to search, to label")
    parser.add_argument("--reference", type=Path, help="run whose validation images to compare with (default: --run)")
    parser.add_argument("--part-size", type=int, default=2000, help="images in a Parquet file (default: 2000)")
    parser.add_argument("--chunk-size", type=int, default=32, help="images that travel together (default: 32)")
    parser.add_argument("--decoders", type=int, help="processes that decode (default: one a core)")
    parser.add_argument("--networks", type=int, help="processes that classify (default: one a core, or a GPU)")
    parser.add_argument("--address", help="of a Ray cluster (`auto` for the one of this machine); default: none needed")
    arguments = parser.parse_args()
    if missing := [words for name, words in NEEDED.items() if importlib.util.find_spec(name) is None]:
        words = f'it needs {", ".join(missing)}: pip install -c constraints.txt -e ".[ray,onnx]"'
        parser.exit(2, f"scripts/predict_many.py: {words}\n")
    numbers = ("top_k", "part_size", "chunk_size", "decoders", "networks")
    for name in numbers:
        if (given := getattr(arguments, name)) is not None and given < 1:
            parser.error(f"Expected --{name.replace('_', '-')} from 1 on. Received: {given}")
    runs.check_output(arguments.out, "folder")
    return arguments


if __name__ == "__main__":
    main()
