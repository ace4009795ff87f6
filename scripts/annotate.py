"""Human baseline: label test images on a small local page, and compare yourself with their labels and the classifier.

    python scripts/annotate.py --run runs/RUN --count 50

Open the address that it prints. Answers are saved one by one in the run's folder, so you may stop (Ctrl-C) and go on
later; it then prints how often you, the labels and the classifier agree. If you are no better than the classifier,
better labels or other images will help more than a better network. Needs no TensorFlow.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from template import config as configuration
from template import runs
from template.data.examples import DataError, load_examples
from template.deploy.annotate import Annotations, Server, compare, sample
from template.evaluate.intervals import number, percent
from template.evaluate.predictions import Predictions


@runs.exit_if_damaged()
def main() -> None:
    """Serve until Ctrl-C, then compare."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--data.path", dest="path", help="where the images are now, if the run comes from elsewhere")
    parser.add_argument("--count", type=int, default=50, help="how many images (default: 50)")
    parser.add_argument("--port", type=int, default=8000, help="of the page (default: 8000; 0 for any that is free)")
    arguments = parser.parse_args()
    run, file = arguments.run, arguments.run / "human.json"
    if not (run / "metrics.json").is_file():
        sys.exit(f"{str(run)!r} does not hold a finished run: it has no metrics.json.")
    if arguments.count < 1:
        parser.error(f"--count: expected at least 1. Received: {arguments.count}")
    runs.check_output(file, "file", "--run (a copy of it)")
    predictions = Predictions.load(run / "predictions.npz")
    try:
        data = configuration.load(run / "config.toml").data
        examples = load_examples(arguments.path or data.path)
        examples = examples.with_classes(predictions.class_names)
        annotations = Annotations(sample(examples, predictions, arguments.count), file, data)
    except (configuration.ConfigError, DataError, ValueError) as error:
        sys.exit(f"{error}\n(Are the images elsewhere now? --data.path says where.)")
    try:
        server = Server(annotations, arguments.port)
    except OSError as error:
        sys.exit(f"Port {arguments.port} cannot be used ({error.strerror}). Choose another with --port.")
    left = annotations.answers().count(None)
    print(
        f"{left} images to label: http://127.0.0.1:{server.server_address[1]}  (Ctrl-C when you are done)", flush=True
    )
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    if annotations.labels:
        report(compare(annotations.labels, predictions))
        print(f"answers: {file}")


def report(found: dict) -> None:
    """Print who agrees with whom."""
    print(f"\n{found['images']} images labelled by you")
    print(f"  you          accuracy {percent(found['human'])}, Cohen's kappa {number(found['cohen_kappa'])}")
    print(f"  classifier   accuracy {percent(found['classifier'])}")
    print(f"  you and the classifier agree on {percent(found['agreement'])}")
    for name, label, answer in found["disagreements"][:10]:
        print(f"  {name!r} is labelled {label!r}, you chose {answer!r}")
    if len(found["disagreements"]) > 10:
        print(f"  and {len(found['disagreements']) - 10} more")


if __name__ == "__main__":
    main()
