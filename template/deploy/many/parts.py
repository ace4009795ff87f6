"""A large job in numbered parts: a folder of Parquet files that is interrupted and continued at any point.

The list of images is written down and divided by position, so that part 17 is the same images in every process that
ever works on the job. A part is written under a temporary name and renamed: it is there as a whole or not at all.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ... import runs
from ...data.sources.names import DataError

MANIFEST, LIST = "manifest.json", "images.jsonl"
PARTS = "parts"
"""A folder of nothing but Parquet files, which other programs read as one table."""


class Chunk(NamedTuple):
    """Consecutive images of one part, which travel between processes together.

    Args:
        part: its number.
        start: position of its first image in the part.
        paths: of its images.
        deaths: processes that have died over it.
    """

    part: int
    start: int
    paths: tuple[str, ...]
    deaths: int = 0


@dataclass(frozen=True)
class Job:
    """A job in its folder.

    Args:
        folder: of the job.
        images: how many.
        part_size: images in a part; the last may have fewer.
    """

    folder: Path
    images: int
    part_size: int

    @property
    def parts(self) -> int:
        """How many parts."""
        return -(-self.images // self.part_size)

    def file(self, part: int) -> Path:
        """Where a part is written."""
        return self.folder / PARTS / f"part-{part:07d}.parquet"

    def finished(self) -> set[int]:
        """Numbers of the parts that are there."""
        names = (re.fullmatch(r"part-(\d+)\.parquet", file.name) for file in (self.folder / PARTS).glob("*"))
        return {int(name[1]) for name in names if name}

    def size(self, part: int) -> int:
        """Images of a part."""
        return min(self.part_size, self.images - part * self.part_size)

    def chunks(self, chunk_size: int, finished: Container[int]) -> Iterator[Chunk]:
        """What is left to do, in order; the list is read as it is needed.

        Args:
            chunk_size: images in a chunk; the last of a part may have fewer.
            finished: parts to leave out.
        """
        with (self.folder / LIST).open(encoding="ascii") as lines:
            for part in range(self.parts):
                mine = itertools.islice(lines, self.part_size)
                if part in finished:
                    next(itertools.islice(mine, self.part_size, None), None)  # only reads on
                    continue
                for start in itertools.count(step=chunk_size):
                    if not (paths := tuple(map(json.loads, itertools.islice(mine, chunk_size)))):
                        break
                    yield Chunk(part, start, paths)


def open_job(folder: Path, images: Iterable[str], about: dict[str, Any], part_size: int) -> Job:
    """Begin a job, or go on with it: only if images and everything else are those that it began with.

    Args:
        folder: of the job, which is there.
        images: from `list_images`.
        about: what determines the rows beside the images, such as the digest of the model; ready for JSON.
        part_size: images in a part.

    Raises:
        DataError: if the folder holds another job, naming in what it differs, or if there are no images.
    """
    file = folder / MANIFEST
    before = runs.read_json(file) if file.exists() else None
    with runs.replacing(folder / LIST) as temporary:
        count, digest = _write_list(images, temporary)
        manifest = {"images": count, "list_sha256": digest, "part_size": part_size, **about}
        if before is None and any((folder / PARTS).glob("*.parquet")):
            raise DataError(f"{str(folder)!r} holds parts, but no {MANIFEST}. Choose another folder with --out.")
        if before is not None and before != manifest:
            differ = [
                f"{key}: {before.get(key)!r} -> {manifest.get(key)!r}"
                for key in sorted(before.keys() | manifest.keys())
                if before.get(key) != manifest.get(key)
            ]
            raise DataError(
                f"{str(folder)!r} holds another job ({'; '.join(differ)}). Go on with the same images, run and "
                "options, or choose another folder with --out."
            )
        if not count:
            raise DataError("There are no images. Expected a folder, a list or an address with some.")
    if before is None:
        runs.write_json(file, manifest)
    return Job(folder, count, part_size)


def _write_list(images: Iterable[str], temporary: Path) -> tuple[int, str]:
    """A line of JSON each, since a name may hold anything; how many there are, and the digest of the file."""
    count, digest = 0, hashlib.sha256()
    with temporary.open("w", encoding="ascii", newline="\n") as out:
        for path in images:
            line = json.dumps(path) + "\n"
            out.write(line)
            digest.update(line.encode())
            count += 1
    return count, digest.hexdigest()


def collect_parts(
    results: Iterable[tuple[Chunk, Any]], job: Job, write: Callable[[list[Any], Path], None]
) -> Iterator[int]:
    """Write each part when all its chunks are there, in whatever order they come.

    Args:
        results: chunks with their rows, each image in exactly one of them.
        job: whose parts they are of.
        write: takes rows in the order of the images and a temporary path.

    Yields:
        How many images each chunk had, after it has been dealt with.
    """
    waiting: dict[int, dict[int, tuple[int, Any]]] = {}
    for chunk, rows in results:
        mine = waiting.setdefault(chunk.part, {})
        mine[chunk.start] = len(chunk.paths), rows
        if sum(count for count, _ in mine.values()) == job.size(chunk.part):
            with runs.replacing(job.file(chunk.part)) as temporary:
                write([rows for _, (_, rows) in sorted(waiting.pop(chunk.part).items())], temporary)
        yield len(chunk.paths)
