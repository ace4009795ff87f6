"""Audit a dataset before training: unreadable images, duplicates, data leakage, conflicting labels, shortcuts.

    python scripts/audit.py PATH                     # text; seconds for thousands of images
    python scripts/audit.py PATH --out audit/        # and an HTML page with the images, and JSON
    python scripts/audit.py PATH --labels            # and label issues and duplicates found with a pretrained network
    python scripts/audit.py PATH --write-csv clean.csv

PATH is what train.py takes as data.path; with --labels its settings can be given too (--backbone.name=resnet50). No
file is ever deleted or moved. Exit code: 0 without errors, 1 if an error was found (severity `error`; warnings and
info do not count), 2 if PATH or a setting cannot be used.
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
from template.labels import texts

RECIPE = Path(__file__).parent.parent / "configs" / "folder.toml"


@runs.script()
def main() -> None:
    """Audit; print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("--out", type=Path, help="folder for audit.html and audit.json")
    parser.add_argument(
        "--labels", action="store_true", help="also use a pretrained network: label issues, cropped or rotated copies"
    )
    parser.add_argument(
        "--write-csv",
        type=Path,
        metavar="FILE",
        help="write a CSV without unreadable images, duplicates and conflicting labels",
    )
    arguments, rest = parser.parse_known_args()
    try:
        config = configuration.load(RECIPE, [*configuration.pair_up(rest), f"data.path={arguments.path}"])
        check_outputs(arguments, config)
        examples = load_examples(arguments.path, config.data.class_folders, config.data.labels)
        if arguments.labels:
            configuration.require_single_label(config, "--labels")
    except (configuration.ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    facts = read_facts(examples, config.data)
    findings = audit(examples, facts)
    if arguments.labels:
        try:
            findings += network_findings(config)
        except (configuration.ConfigError, disk.DiskError) as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    show(findings, examples, "" if arguments.out else " (--out FOLDER shows all)")
    if arguments.out:
        runs.write_json(arguments.out / "audit.json", to_json(examples, findings))
        title = f"{arguments.path}: {len(examples)} images of {len(examples.class_names)} classes"
        runs.write_text(arguments.out / "audit.html", to_html(title, examples, facts, findings))
        print(f"written: {arguments.out / 'audit.html'}")
    if arguments.write_csv:
        write_csv(arguments.write_csv, examples, clean_rows(examples, findings))
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


def check_outputs(arguments: argparse.Namespace, config: configuration.Config) -> None:
    """Leave before the work unless its results can be written."""
    if arguments.out:
        runs.check_output(arguments.out, "folder")
    if arguments.write_csv:
        runs.check_output(arguments.write_csv, "file", "--write-csv")
    if arguments.labels:
        runs.check_output(Path(config.data.cache).expanduser(), "folder", "--data.cache")


def network_findings(config: configuration.Config) -> list[Finding]:
    """Label issues and duplicates by the features of a pretrained network.

    A label issue is a label to which a linear probe gives, out of fold, a probability below one half; the lowest first
    (Northcutt et al. 2021, "Confident learning: estimating uncertainty in dataset labels").
    """
    runs.import_tensorflow()
    from template.data.dataset import eval_dataset
    from template.data.decode import decode
    from template.data.split import clusters
    from template.model.backbones import build_backbone
    from template.model.weights import WeightsError
    from template.model_selection.auto import probe_features, select_levels, without_auto
    from template.train.features import FeatureCache
    from template.train.linear_probe import fit_probe

    config = without_auto(config)
    loaded = load_examples(config.data.path, config.data.class_folders)
    examples, pixels = decode(loaded, config.data)
    cache = FeatureCache.of(config)
    try:
        base = build_backbone(config.backbone, config.data.image_size)
    except WeightsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    dataset = eval_dataset(pixels, np.arange(len(examples)), examples.labels)
    features, widths = select_levels(probe_features(base, config, [dataset], cache), config.head)
    options = {"seed": config.train.seed, "widths": widths, "groups": clusters(examples)}
    losses = fit_probe(features, examples.labels, len(examples.class_names), **options).losses
    if np.isnan(losses).any():
        print("label issues: not looked for; a class has a single image or group, and cross-validation is impossible")
    row_of = {name: row for row, name in enumerate(loaded.ids)}
    order = np.argsort(-losses, kind="stable")
    wrong = [int(i) for i in order if losses[i] > np.log(2)]  # probability of the label below one half
    found = [
        Finding(
            "label issues",
            "warning",
            f"Labels with an out-of-fold probability below 50 % ({config.backbone.name}), lowest first: {len(wrong)}",
            "Check the first ones: wrong labels are worse than missing images, but hard images are among them too.",
            [(i,) for i in wrong],
        )
    ] * bool(wrong)
    found += feature_duplicates(examples, features[0])
    rows = [row_of[name] for name in examples.ids]
    return [dataclasses.replace(f, images=[tuple(rows[i] for i in group) for group in f.images]) for f in found]


def seen_from(folder: Path, image: Path) -> str:
    """Relative path of an image; its whole path where it is on another drive. With / on every system."""
    try:
        return Path(os.path.relpath(image, folder)).as_posix()
    except ValueError:  # only on Windows
        return image.absolute().as_posix()


def write_csv(file: Path, examples: Examples, rows: np.ndarray) -> None:
    """`path,label,split,group` of these rows, relative to the file, without names that are not UTF-8."""
    if not all(isinstance(image, Path) for image in examples.images):
        sys.exit("--write-csv needs images that are files.")
    paths = {row: os.fsencode(seen_from(file.resolve().parent, examples.images[row])) for row in rows}
    paths = {row: path.decode("utf-8", "surrogateescape") for row, path in paths.items()}
    undecodable = [row for row, path in paths.items() if any("\ud800" <= letter <= "\udfff" for letter in path)]
    first = repr(paths[undecodable[0]]) if undecodable else ""
    paths = {row: path for row, path in paths.items() if row not in undecodable}
    groups = np.full(len(examples), "") if examples.groups is None else examples.groups
    labels = texts(examples.labels, examples.class_names)
    with runs.replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["path", "label", "split", "group"])
        for row, path in paths.items():
            writer.writerow([path, labels[row], examples.parts[row], groups[row]])
    if undecodable:
        print(f"not in the CSV: {len(undecodable)} images whose names are not UTF-8, such as {first}; rename them")
    print(f"{len(paths)} of {len(examples)} images are in {file}: python scripts/train.py --data.path={file}")


if __name__ == "__main__":
    main()
