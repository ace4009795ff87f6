"""What a run computes on: cores and memory that it may really use, and GPUs, seen or overlooked."""

import contextlib
import csv
import ctypes
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CGROUPS, PROC, DEV = Path("/sys/fs/cgroup"), Path("/proc"), Path("/dev")
INSTALL = 'pip install -c constraints.txt -e ".[gpu]"'
_M_MMAP_THRESHOLD = -3
"""glibc's mallopt(3): the bytes from which on a block is mapped by itself. Once it is set, it stays where it is."""
_LARGE = 2**20


def cores() -> int:
    """Cores that this process may use, at least 1: of those it may run on, no more than its container is granted.

    A machine's own number is neither: a container of 2 of 64 cores with 64 threads is slower than with 2.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = min(map(_granted_cores, _groups("cpu")))
    return max(1, usable if math.isinf(granted) else min(usable, math.ceil(granted)))


def threads() -> ThreadPoolExecutor:
    """Threads that read and decode files: a few more than cores, as some of them wait for the disk."""
    return ThreadPoolExecutor(min(32, cores() + 4))


def memory() -> float:
    """Bytes of memory that this process may use at most; infinite where the system does not say."""
    return min(_meminfo("MemTotal"), *(limit for limit, _ in map(_memory_of, _groups("memory"))))


def available_memory() -> float:
    """Bytes of memory that could be had now, also inside a container; infinite where the system does not say."""
    return min(_meminfo("MemAvailable"), *(limit - used for limit, used in map(_memory_of, _groups("memory"))))


def give_back_memory() -> None:
    """Give the system what is free now; and from now on, large blocks as soon as they are free (glibc, on Linux).

    For programs that run for weeks. glibc takes ever larger blocks from its heaps, where small ones that stay keep what
    was freed before them from going back: a server grows as if it forgot something.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
        glibc = ctypes.CDLL(None)
        glibc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        glibc.malloc_trim(0)


def share_gpus() -> None:
    """Let TensorFlow take of each GPU what it needs as it needs it, and of the cores what is granted.

    Left alone it takes all memory of every GPU at once, and a second program fails; and as many threads as the machine
    has cores. Does nothing once TensorFlow has begun to compute.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if cores() < (os.cpu_count() or 1):
            tf.config.threading.set_intra_op_parallelism_threads(cores())
            tf.config.threading.set_inter_op_parallelism_threads(cores())


def uses_xla() -> bool:
    """Whether networks are compiled by XLA: on a GPU.

    On a CPU, XLA makes an epoch of MobileNet three to six times as long, and needs seconds for every size of a batch.
    """
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def describe(precision: str) -> dict[str, Any]:
    """The device of a run, for run.json.

    Args:
        precision: of the arithmetic, `train.precision`.

    Returns:
        `gpus` (their names, with GiB of memory and driver where nvidia-smi says them), `cores`, `memory_gb` (None
        where the system does not say), `precision`, `xla`.
    """
    import tensorflow as tf

    about = {row[0]: {"memory_gb": round(float(row[1]) / 1024, 1), "driver": row[2]} for row in _nvidia_smi()}
    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    names = [detail.get("device_name", "GPU") for detail in details]
    total = memory()
    return {
        "gpus": [{"name": name, **about.get(name, {})} for name in names],
        "cores": cores(),
        "memory_gb": None if math.isinf(total) else round(total / 2**30, 1),
        "precision": precision,
        "xla": uses_xla(),
    }


def summary(device: dict[str, Any]) -> str:
    """`describe` in one line: `CPU, 2 cores, 23.5 GiB, float32, no XLA`."""
    gpus = [f"{gpu['name']} ({gpu['memory_gb']} GiB)" if "memory_gb" in gpu else gpu["name"] for gpu in device["gpus"]]
    many, gib = device["cores"], device["memory_gb"]
    parts = [*(gpus or ["CPU"]), f"{many} core{'s' * (many > 1)}", *([f"{gib} GiB"] if gib else [])]
    return ", ".join([*parts, device["precision"], "XLA" if device["xla"] else "no XLA"])


def unused_gpu() -> str | None:
    """A warning if there is an NVIDIA GPU that TensorFlow does not see; None if all is well, or somebody hid it."""
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in {"", "-1"}
    signs = [DEV / "nvidia0", PROC / "driver" / "nvidia"]
    found = [str(sign) for sign in signs if sign.exists()] + list(filter(None, [shutil.which("nvidia-smi")]))
    if hidden or not found or tf.config.list_physical_devices("GPU"):
        return None
    return (
        f"there is an NVIDIA GPU ({found[0]}), but TensorFlow does not see it: everything runs on the CPU, many times "
        f"slower. Install what is missing ({INSTALL}), or hide the GPU (CUDA_VISIBLE_DEVICES=-1)"
    )


def _nvidia_smi() -> list[list[str]]:
    """Name, MiB of memory and driver of each GPU; none where the program is missing or fails."""
    line = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(line, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(output.splitlines())]
    return [row for row in rows if len(row) == 3 and row[1].isdecimal()]


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, of both versions, each with all around it."""
    yield from (CGROUPS, CGROUPS / controller)
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text(encoding="ascii", errors="replace").splitlines():
            _, names, path = line.split(":", 2)
            if not names or controller in names.split(","):
                root = CGROUPS / controller if names else CGROUPS
                own = root / path.strip("/")
                yield from (group for group in (own, *own.parents) if root in group.parents)


def _granted_cores(group: Path) -> float:
    """Cores that a control group may keep busy; infinite if it has no limit."""
    with contextlib.suppress(OSError, ValueError):  # version 2: "150000 100000"; "max" is no number
        quota, period = map(float, (group / "cpu.max").read_text(encoding="ascii").split())
        return quota / period
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 without a limit
        quota, period = (
            float((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
        )
        return quota / period if quota > 0 else math.inf
    return math.inf


def _memory_of(group: Path) -> tuple[float, float]:
    """Bytes of memory that a control group may take, infinite without a limit, and bytes that it cannot give back."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            most, held = (float((group / name).read_text(encoding="ascii")) for name in (limit, used))
            return most, held - _number(group / "memory.stat", rf"^{cached} (\d+)", 0.0)
    return math.inf, 0.0


def _meminfo(name: str) -> float:
    return 1024 * _number(PROC / "meminfo", rf"^{name}:\s+(\d+) kB", math.inf)


def _number(file: Path, pattern: str, otherwise: float) -> float:
    """A number in a file of the system."""
    with contextlib.suppress(OSError):
        if found := re.search(pattern, file.read_text(encoding="ascii", errors="replace"), re.MULTILINE):
            return float(found[1])
    return otherwise
