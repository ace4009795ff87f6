"""What a run says before it trains: machine, images, what the audit found. Warnings go to stderr."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import device, runs, suggest, system
from .config import Config, Train
from .data.audit.checks import audit
from .data.audit.facts import Facts
from .data.audit.findings import to_json
from .data.examples import PARTS, Examples
from .data.lineage import warm_start_leaks
from .data.load import Parts
from .evaluate.tree import describe
from .labels import is_multi
from .train.losses import weight_table


def print_device(config: Config) -> None:
    """What computes, and what is odd about that or about how images will be seen."""
    found = device.describe(config.train.precision)
    print(f"device: {device.summary(found)}")
    if len(found["gpus"]) > 1 and config.train.devices == 1:
        print(
            f"one of {len(found['gpus'])} GPUs is used; --train.devices=auto shares the work among all (docs/craft.md)"
        )
    if warning := device.unused_gpu():
        print(f"warning: {warning}", file=sys.stderr)
    if suggest.uses_hflip(config) and not config.augment.flips:
        print(
            "warning: tta.hflip=true answers by mirror images too, and training sees none (augment.hflip=false or "
            "augment.policy=none). Where left and right differ that costs accuracy; tta.hflip=auto follows it",
            file=sys.stderr,
        )


def print_class_weights(settings: Train, labels: np.ndarray, class_names: Sequence[str]) -> None:
    """What each class counts in the loss, unless that is nothing special."""
    if settings.class_weights != "none":
        counts = np.bincount(labels, minlength=len(class_names))
        print(weight_table(class_names, counts, settings.class_weights))


def print_audit(examples: Examples, facts: Facts, config: Config, folder: Path) -> None:
    """Look for what commonly spoils a number, say what was found, and write audit.json."""
    rows = np.flatnonzero(examples.parts != "")
    used = dataclasses.replace(examples, skipped=()).take(rows)
    found = audit(used, facts.take(rows)) + warm_start_leaks(used, config.backbone.weights)
    runs.write_json(folder / "audit.json", to_json(used, found))
    noteworthy = [finding for finding in found if finding.severity != "info"]
    for finding in noteworthy:
        advice = f" {finding.advice}" if finding.check == "warm start" else ""
        print(f"{finding.severity}: {finding.message}{advice}", file=sys.stderr)
    if noteworthy:
        print(f"  (python scripts/audit.py {system.quote(config.data.path)} --out audit shows them)", file=sys.stderr)


def print_found(config: Config, parts: Parts, folder: Path) -> None:
    """How many images there are, in which parts, and which were left out for what reason."""
    sizes = ", ".join(f"{len(parts.rows(name))} {name}" for name in PARTS)
    _print_used(config.data.path, parts.examples, f"; {sizes}", folder / "skipped.json")
    if parts.unlabelled:
        found = parts.unlabelled.examples
        _print_used(config.data.unlabelled, found, ", without labels", folder / "unlabelled_skipped.json")


def _print_used(path: str, examples: Examples, what: str, listed: Path) -> None:
    used, left_out = (examples.parts != "").sum(), len(examples.skipped)
    print(f"{path}: {used + left_out} found = {used} used + {left_out} skipped{what}")
    for line in () if is_multi(examples.labels) else describe(examples.class_names):
        print(line)
    for name, reason in examples.skipped[:10]:
        print(f"  skipped {name!r}: {reason}", file=sys.stderr)
    if left_out > 10:
        print(f"  and {left_out - 10} more: {listed}", file=sys.stderr)
