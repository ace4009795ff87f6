"""What finished runs no longer need and would be made again: their checkpoints, and cached activations."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import disk
from ..data.cache import Cache
from .read import Run, read

CHECKPOINTS = ("checkpoints", "final")
"""Folders of a run from which its training, and its refit, would have been resumed."""
_CHECKPOINT = re.compile(r"\d{5,}|base-[0-9a-f]{32}")
_INSIDE = {"arrays.npz", "state.json", disk.MANIFEST}


@dataclass(frozen=True)
class Freeable:
    """Files and folders that can go.

    Args:
        title: what they are.
        run: whose they are; None for those of a cache, which several runs share.
        paths: each to be removed whole.
        bytes: of all of them.
    """

    title: str
    run: Run | None
    paths: tuple[Path, ...]
    bytes: int


def freeable(found: Sequence[Run]) -> list[Freeable]:
    """What could be removed without losing a model, report or prediction, or what an interrupted run goes on from.

    That are checkpoints of finished runs, which cannot be resumed, and the activations in the caches of all these runs,
    which the next one would compute again from the pixels beside them. Of a run that is being written, and of its
    cache, nothing; of checkpoints only what has the names and files that this project gives them.
    """
    result = [_checkpoints(run) for run in found if run.status == "finished"]
    caches: dict[Path, list[Run]] = {}
    for run in found:
        if run.config:
            caches.setdefault(Path(run.config.data.cache).expanduser().resolve(), []).append(run)
    for folder, users in caches.items():
        if all(run.status != "running" for run in users):
            result.append(_activations(folder, users))
    return [each for each in result if each.paths]


def remove(what: Freeable) -> int:
    """Delete it, and return how many bytes that freed: files that others have removed or hold are passed over.

    Raises:
        DiskError: if a process writes to the run, or its folder cannot be written to.
    """
    if what.run is None:
        return _removed(what.paths)
    with disk.locked(what.run.folder):
        if read(what.run.folder).status != "finished":
            return 0
        freed = _removed(what.paths)
        for place in _places(what.run):
            with contextlib.suppress(OSError):  # it holds something else
                place.rmdir()
        return freed


def _removed(paths: Sequence[Path]) -> int:
    freed = 0
    for path in paths:
        size = _bytes(path)
        with contextlib.suppress(OSError):
            disk.remove_folder(path) if path.is_dir() else path.unlink()
            freed += size
    return freed


def _checkpoints(run: Run) -> Freeable:
    places = _places(run)
    paths = tuple(path for place in places if place.is_dir() and not place.is_symlink() for path in _ours(place))
    return Freeable(f"checkpoints of {str(run.folder)!r}, which is finished", run, paths, sum(map(_bytes, paths)))


def _places(run: Run) -> list[Path]:
    """Where a run, or each fold of a cross-validation, has checkpoints."""
    return [folder / name for folder in (run.folder, *run.folder.glob("fold-*")) for name in CHECKPOINTS]


def _ours(place: Path) -> list[Path]:
    folders = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.is_symlink()]
    named = [path for path in folders if _CHECKPOINT.fullmatch(path.name)]
    return [path for path in named if {file.name for file in path.iterdir()} <= _INSIDE]


def _activations(folder: Path, users: Sequence[Run]) -> Freeable:
    found = [(path, size) for _, size, path in Cache(folder, 0).entries() if path.name.startswith("features-")]
    shared = f"{len(users)} of these runs" if len(users) > 1 else repr(str(users[0].folder))
    title = f"activations in {str(folder)!r}, the cache of {shared}"
    return Freeable(title, None, tuple(path for path, _ in found), sum(size for _, size in found))


def _bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())
