"""Classify any number of images with a run: the list, the parts, the workers, and what came of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ... import progress, runs
from ...data.sources.files import require_outside
from ...data.sources.names import DataError
from . import drift
from .network import pack_run
from .parts import Job, collect_parts, open_job
from .pools import Pools
from .rows import Row, write_parquet
from .sources import is_address, list_images
from .tally import Tally, tally_parts

DRIFT = "drift.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for.

    Args:
        run: folder of a finished run.
        source: folder, list or address of the images.
        out: folder for the parts, which is there and ours alone.
        runtime, precision: as of `pack_run`.
        top_k: how many classes of each image are written.
        features: whether its features are.
        reference: run with whose validation images these are compared; by default `run`, if it has any.
        part_size: images in a part.
        chunk_size: images that travel between processes together.
        decoders, networks, address: as of `Pools`.
    """

    run: Path
    source: str
    out: Path
    runtime: Literal["auto", "onnx", "keras"] = "auto"
    precision: str = "float32"
    top_k: int = 3
    features: bool = False
    reference: Path | None = None
    part_size: int = 2000
    chunk_size: int = 32
    decoders: int | None = None
    networks: int | None = None
    address: str | None = None


def predict_many(options: Options) -> Tally:
    """Classify what is not finished yet, and print what came of all of it.

    Returns:
        Counts over all images of the job.

    Raises:
        DataError: if the run, the images or the workers cannot be used. Finished parts stay.
    """
    reference = _reference(options)
    job = _classify(options)
    edges = reference.edges if isinstance(reference, drift.Reference) else np.array([])
    counted = tally_parts(map(job.file, range(job.parts)), edges)
    print(*counted.describe(), sep="\n")
    if counted.classified:
        _print_drift(reference, counted, options)
    return counted


def _reference(options: Options) -> drift.Reference | str:
    """What to compare with, or why that cannot be; an error if it was asked for. Before any work."""
    try:
        return drift.Reference.of_run(options.reference or options.run)
    except DataError as error:
        if options.reference:
            raise
        return str(error)


def _classify(options: Options) -> Job:
    packed = pack_run(options.run, options.runtime, options.precision)
    if options.features and not packed.features:
        raise DataError("--features: the export gives none, or onnx is not installed. Use --runtime keras.")
    row = Row(
        class_names=packed.class_names,
        top_k=min(options.top_k, len(packed.class_names)),
        least=packed.least,
        above=packed.above,
        model=packed.digest,
        features=packed.features if options.features else 0,
    )
    if not is_address(options.source):
        require_outside(os.path.abspath(options.source), {"--out": options.out})  # noqa: PTH100 (links stay)
    about = {"model": packed.digest, "top_k": row.top_k, "features": row.features}
    job = open_job(options.out, list_images(options.source), about, options.part_size)
    finished = job.finished()
    print(f"{job.images:,} images in {job.parts:,} parts, {len(finished):,} of them finished; by {packed.runtime}")
    if len(finished) == job.parts:
        return job
    how = {name: getattr(options, name) for name in ("chunk_size", "decoders", "networks", "address")}
    with Pools(packed, row, **how) as pools:
        print(f"{pools.sizes.decoders} processes decode, {pools.sizes.networks} classify", flush=True)
        results = pools.classify(job.chunks(options.chunk_size, finished))
        with progress.step("classifying", job.images - sum(map(job.size, finished))) as shown:
            for done in collect_parts(results, job, write_parquet):
                shown.advance(done)
    return job


def _print_drift(reference: drift.Reference | str, counted: Tally, options: Options) -> None:
    if isinstance(reference, str):
        print(f"no comparison with the images that the run was measured with: {reference}")
        return
    compared = {"reference": str(options.reference or options.run), **drift.compare(reference, counted)}
    runs.write_json(options.out / DRIFT, compared)
    print(*drift.describe(compared), sep="\n")
