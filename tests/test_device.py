"""Cores and memory are those that a container grants, and a GPU that is there is used or missed aloud."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from template import device, runs

PACKAGE = Path(device.__file__).parent


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Fakes files of a Linux of 16 cores and 64 GiB."""

    def make(**files: str) -> None:
        write(tmp_path, {"proc/meminfo": "MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: 33554432 kB\n"})
        write(tmp_path, {name.replace("__", "/"): text for name, text in files.items()})
        for name, folder in (("CGROUPS", "cgroup"), ("PROC", "proc"), ("DEV", "dev")):
            monkeypatch.setattr(device, name, tmp_path / folder)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    return lambda files: make(**{name.replace("/", "__"): text for name, text in files.items()})


CORES = [
    ({}, 16),
    ({"cgroup/cpu.max": "200000 100000\n"}, 2),
    ({"cgroup/cpu.max": "150000 100000\n"}, 2),
    ({"cgroup/cpu.max": "10000 100000\n"}, 1),
    ({"cgroup/cpu.max": "max 100000\n"}, 16),
    ({"cgroup/cpu.max": "6400000 100000\n"}, 16),
    ({"cgroup/cpu/cpu.cfs_quota_us": "300000\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ({"cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 16),
    # The group of a batch system, whose limit lies two folders higher than ours; and one that is not ours.
    ({"proc/self/cgroup": "0::/jobs/7/step\n", "cgroup/jobs/7/step/cpu.max": "max 100000", "cgroup/jobs/cpu.max":
      "400000 100000"}, 4),
    ({"proc/self/cgroup": "0::/jobs/7\n", "cgroup/jobs/8/cpu.max": "100000 100000"}, 16),
    ({"proc/self/cgroup": "3:cpu,cpuacct:/docker/a:b\n1:name=systemd:/\n",
      "cgroup/cpu/docker/a:b/cpu.cfs_quota_us": "500000", "cgroup/cpu/docker/a:b/cpu.cfs_period_us": "100000"}, 5),
    ({"cgroup/cpu.max": "nonsense"}, 16),
]  # fmt: skip


@pytest.mark.parametrize(("files", "cores"), CORES)
def test_cores_are_those_that_a_container_is_granted(system, files, cores):
    system(files)
    assert device.cores() == cores
    assert device.threads()._max_workers == cores + 4


def test_cores_are_those_that_the_process_may_run_on(system, monkeypatch):
    system({})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert device.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert device.cores() == 7, "a system that does not say where a process may run"


GIB = 2**30
MEMORY = [
    ({}, 64, 32),
    ({"cgroup/memory.max": f"{4 * GIB}", "cgroup/memory.current": f"{GIB}"}, 4, 3),
    # What was read from files and may be forgotten again is not taken.
    ({"cgroup/memory.max": f"{4 * GIB}", "cgroup/memory.current": f"{3 * GIB}",
      "cgroup/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n"}, 4, 3),
    ({"cgroup/memory.max": "max", "cgroup/memory.current": f"{GIB}"}, 64, 32),
    ({"cgroup/memory/memory.limit_in_bytes": f"{8 * GIB}", "cgroup/memory/memory.usage_in_bytes": f"{6 * GIB}",
      "cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n"}, 8, 3),
    ({"cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # version 1 says so if there is none
      "cgroup/memory/memory.usage_in_bytes": "1"}, 64, 32),
    ({"proc/self/cgroup": "4:memory:/job/1\n0::/\n", "cgroup/memory/job/memory.limit_in_bytes": f"{2 * GIB}",
      "cgroup/memory/job/memory.usage_in_bytes": f"{GIB}"}, 2, 1),
]  # fmt: skip


@pytest.mark.parametrize(("files", "total", "available"), MEMORY)
def test_memory_is_what_a_container_is_granted(system, files, total, available):
    system(files)
    assert device.memory() / GIB == pytest.approx(total)
    assert device.available_memory() / GIB == pytest.approx(available)


def test_where_the_system_says_nothing_memory_is_without_limit(tmp_path, monkeypatch):
    for name in ("CGROUPS", "PROC"):
        monkeypatch.setattr(device, name, tmp_path)
    assert device.memory() == device.available_memory() == float("inf")
    assert device.describe("float32")["memory_gb"] is None


def test_memory_that_could_be_had_is_a_part_of_what_there_is():
    assert 0 < device.available_memory() <= device.memory()


def test_nobody_counts_cores_or_threads_on_his_own():
    for file in PACKAGE.rglob("*.py"):
        if file.name != "device.py":
            assert not re.search(r"cpu_count|ThreadPoolExecutor\(\)|sched_getaffinity", file.read_text("utf-8")), file


# GPUs


class Gpu:
    """Fakes a machine with one NVIDIA GPU, for TensorFlow too if it is `seen`."""

    def __init__(self, monkeypatch, seen: bool, name: str = "NVIDIA T4") -> None:
        self.grown, one = [], tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(
            tf.config, "list_physical_devices", lambda kind=None: [one] if seen and kind == "GPU" else []
        )
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"device_name": name})
        monkeypatch.setattr(
            tf.config.experimental, "set_memory_growth", lambda gpu, grow: self.grown.append((gpu.name, grow))
        )


def nvidia_smi(folder: Path, says: str, code: int = 0) -> None:
    """A program of this name."""
    write(folder, {"nvidia-smi": f"#!/bin/sh\necho '{says}'\nexit {code}\n"})
    (folder / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize("sign", ["dev/nvidia0", "proc/driver/nvidia/version", "bin/nvidia-smi"])
def test_a_gpu_that_tensorflow_does_not_see_is_warned_of_with_what_to_install(system, monkeypatch, tmp_path, sign):
    system({})
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    Gpu(monkeypatch, seen=False)
    assert device.unused_gpu() is None, "there is none"
    write(tmp_path, {sign: ""})
    (tmp_path / sign).chmod(0o755)
    said = device.unused_gpu()
    assert 'pip install -c constraints.txt -e ".[gpu]"' in said and "does not see it" in said
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert device.unused_gpu() is None, "somebody wants it so"
    Gpu(monkeypatch, seen=True)
    assert device.unused_gpu() is None


def test_a_gpu_is_named_with_its_memory(system, monkeypatch, tmp_path):
    system({"cgroup/cpu.max": "800000 100000"})
    nvidia_smi(tmp_path / "bin", "NVIDIA T4, 15360, 550.54\nNVIDIA L4, 23034, 550.54")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    Gpu(monkeypatch, seen=True)
    said = device.describe("mixed_bfloat16")
    assert said["gpus"] == [{"name": "NVIDIA T4", "memory_gb": 15.0, "driver": "550.54"}]
    assert said["xla"] is True
    assert device.summary(said) == "NVIDIA T4 (15.0 GiB), 8 cores, 64.0 GiB, mixed_bfloat16, XLA"
    nvidia_smi(tmp_path / "bin", "NVIDIA-SMI has failed because it could not talk to the driver", 9)
    assert device.summary(device.describe("float32")) == "NVIDIA T4, 8 cores, 64.0 GiB, float32, XLA"


def test_a_cpu_is_said_to_be_one(system, monkeypatch, tmp_path):
    system({"cgroup/cpu.max": "100000 100000"})
    monkeypatch.setenv("PATH", str(tmp_path))
    Gpu(monkeypatch, seen=False)
    assert device.summary(device.describe("float32")) == "CPU, 1 core, 64.0 GiB, float32, no XLA"


def test_at_the_door_gpus_are_shared_and_threads_are_as_many_as_cores(system, monkeypatch):
    system({"cgroup/cpu.max": "200000 100000"})
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    gpu, threads = Gpu(monkeypatch, seen=True), []
    for name in ("intra", "inter"):
        monkeypatch.setattr(tf.config.threading, f"set_{name}_op_parallelism_threads", threads.append)
    runs.import_tensorflow()
    assert gpu.grown == [("/physical_device:GPU:0", True)] and threads == [2, 2]

    def begun(*_) -> None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", begun)
    runs.import_tensorflow()


KEPT = """
import numpy as np
from template import device
device.give_back_memory()
np.ones(30_000_000, np.uint8)  # after which glibc, left alone, maps nothing smaller by itself
def resident():
    return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0]) / 1000
def freed(count, size):  # blocks, and small ones between them that stay
    blocks = [(np.ones(size, np.uint8), small.append(np.ones(2_000, np.uint8))) for _ in range(count)]
    return resident()
before, small = resident(), []
print(freed(50, 4_000_000) - before, resident() - before)
print(freed(2_000, 100_000) - before, device.give_back_memory() or resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do")
def test_memory_goes_back_to_the_system_though_small_blocks_stay():
    """Large blocks at once, small ones when it is said."""
    root = str(PACKAGE.parent)
    lines = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, cwd=root).stdout
    (large, none), (small, kept) = (map(float, line.split()) for line in lines.splitlines())
    assert large > 150 and none < 20, lines
    assert small > 150 and kept < 60, lines  # 4 MB stay, each in a page of its own
