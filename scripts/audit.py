"""Look at a set of images before training on it: what is broken, repeated, contradictory, or gives the class away.

    python scripts/audit.py PATH                     # text; seconds for thousands of images
    python scripts/audit.py PATH --out audit/        # and a page with the images, and JSON
    python scripts/audit.py PATH --labels            # and labels that a network doubts, and copies that only it sees
    python scripts/audit.py PATH --write-csv clean.csv

PATH is whatever train.py takes; with --labels its settings are taken too (--backbone.name=resnet50). Nothing is ever
deleted or moved. Exit code: 0 if nothing must be mended, 1 if something must, 2 if PATH cannot be read at all.
"""

import argparse
import csv
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np

from template import config as configuration
from template import disk, runs
from template.data.audit.checks import audit
from template.data.audit.duplicates import feature_duplicates
from template.data.audit.facts import read_facts
from template.data.audit.findings import Finding, clean_rows, to_html, to_json
from template.data.examples import DataError, Examples, load_examples

RECIPE = Path(__file__).parent.parent / "configs" / "folder.toml"


def main() -> None:
    """Audit, print, write what was asked for."""
    runs.any_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--out", type=Path, help="folder for audit.html and audit.json")
    parser.add_argument(
        "--labels", action="store_true", help="also ask a network: doubtful labels, cropped or turned copies"
    )
    parser.add_argument("--write-csv", type=Path, metavar="FILE", help="a table of what is worth training on")
    known, rest = parser.parse_known_args()
    try:
        config = configuration.load(RECIPE, [*configuration.pair_up(rest), f"data.path={known.path}"])
        check_outputs(known, config)
        examples = load_examples(known.path)
    except (configuration.ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    facts = read_facts(examples, config.data)
    findings = audit(examples, facts)
    if known.labels:
        try:
            findings += seen_by_a_network(config)
        except disk.DiskError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    show(findings, examples, "" if known.out else " (--out FOLDER shows all)")
    if known.out:
        runs.write_json(known.out / "audit.json", to_json(examples, findings))
        title = f"{known.path}: {len(examples)} images of {len(examples.class_names)} classes"
        runs.write_text(known.out / "audit.html", to_html(title, examples, facts, findings))
        print(f"written: {known.out / 'audit.html'}")
    if known.write_csv:
        write_csv(known.write_csv, examples, clean_rows(examples, findings))
    sys.exit(int(any(finding.severity == "error" for finding in findings)))


def show(findings: list[Finding], examples: Examples, where: str) -> None:
    """Print findings with their first images; `where` the others are."""
    for finding in findings:
        print(f"{finding.severity:<7}  {finding.check}: {finding.message}")
        for group in finding.images[:3]:
            print(f"        {', '.join(repr(str(examples.ids[row])) for row in group)}")
        if len(finding.images) > 3:
            print(f"        and {len(finding.images) - 3} more{where}")
        if finding.advice:
            print(f"        {finding.advice}")


def check_outputs(known: argparse.Namespace, config: configuration.Config) -> None:
    """Leave before the work unless its results can be written."""
    if known.out:
        runs.check_output(known.out, "folder")
    if known.write_csv:
        runs.check_output(known.write_csv, "file", "--write-csv")
    if known.labels:
        runs.check_output(Path(config.data.cache).expanduser(), "folder", "--data.cache")


def seen_by_a_network(config: configuration.Config) -> list[Finding]:
    """Labels that it doubts, and images that it finds alike.

    Labels that a logistic regression on frozen features, which has not seen them, finds unlikely; the least likely
    first (Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels").
    """
    runs.import_tensorflow()
    from template.data.dataset import eval_dataset
    from template.data.decode import decode
    from template.data.split import clusters
    from template.model.backbones import build_backbone
    from template.model.weights import WeightsError
    from template.train.auto import probe_features, select_levels, without_auto
    from template.train.features import FeatureCache
    from template.train.linear_probe import fit_probe

    config = without_auto(config)
    loaded = load_examples(config.data.path)
    examples, pixels = decode(loaded, config.data)
    folder, limit = Path(config.data.cache).expanduser(), config.data.cache_gb * 2**30
    store = FeatureCache(folder, limit, config.train.batch_size, runs.Timer())
    try:
        base = build_backbone(config.backbone, config.data.image_size)
    except WeightsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    source = eval_dataset(pixels, np.arange(len(examples)), examples.labels)
    features, widths = select_levels(probe_features(base, config, [source], store), config.head)
    how = {"seed": config.train.seed, "widths": widths, "groups": clusters(examples)}
    losses = fit_probe(features, examples.labels, len(examples.class_names), **how).losses
    if np.isnan(losses).any():
        print("labels: none could be doubted; a class has a single image or group, which cannot be held out")
    row_of = {name: row for row, name in enumerate(loaded.ids)}
    first = np.argsort(-losses, kind="stable")
    wrong = [int(i) for i in first if losses[i] > np.log(2)]  # its own label is less likely than all others together
    found = [
        Finding(
            "label issues",
            "warning",
            f"{len(wrong)} labels are less likely than not, says {config.backbone.name}; the most doubtful first.",
            "Look at the first few. A wrong label costs more than a missing image; of hard images it often errs.",
            [(i,) for i in wrong],
        )
    ] * bool(wrong)
    found += feature_duplicates(examples, features[0])
    rows = [row_of[name] for name in examples.ids]
    return [dataclasses.replace(f, images=[tuple(rows[i] for i in group) for group in f.images]) for f in found]


def write_csv(file: Path, examples: Examples, rows: np.ndarray) -> None:
    """`path,label,split,group` of these rows, relative to the file, without names that are not UTF-8."""
    if not all(isinstance(image, Path) for image in examples.images):
        sys.exit("--write-csv needs images that are files.")
    paths = {row: os.fsencode(os.path.relpath(examples.images[row], file.resolve().parent)) for row in rows}
    paths = {row: path.decode("utf-8", "surrogateescape") for row, path in paths.items()}
    nameless = [row for row, path in paths.items() if any("\ud800" <= letter <= "\udfff" for letter in path)]
    first = repr(paths[nameless[0]]) if nameless else ""
    paths = {row: path for row, path in paths.items() if row not in nameless}
    groups = np.full(len(examples), "") if examples.groups is None else examples.groups
    with runs.replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["path", "label", "split", "group"])
        for row, path in paths.items():
            writer.writerow([path, examples.class_names[examples.labels[row]], examples.parts[row], groups[row]])
    if nameless:
        print(f"not in the table: {len(nameless)} images whose names are not UTF-8, such as {first}; rename them")
    print(f"{len(paths)} of {len(examples)} images are in {file}: python scripts/train.py --data.path={file}")


if __name__ == "__main__":
    main()
