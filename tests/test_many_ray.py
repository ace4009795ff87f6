"""Workers of Ray that are killed, crash and are interrupted: every image has one row all the same."""

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SCRIPTS, call, class_folders, without_plots
from PIL import Image
from served import ABOUT, colour_run

ray = pytest.importorskip("ray", reason='needs the extra ray: pip install -e ".[ray]"')
pq = pytest.importorskip("pyarrow.parquet", reason='needs the extra ray: pip install -e ".[ray]"')

from template.data.sources.names import DataError  # noqa: E402
from template.deploy.many.network import PackedRun, pack_run  # noqa: E402
from template.deploy.many.parts import Job, collect_parts, open_job  # noqa: E402
from template.deploy.many.pools import LOST, Pools  # noqa: E402
from template.deploy.many.rows import Row, write_parquet  # noqa: E402
from template.deploy.runtime import Inputs  # noqa: E402

pytestmark = pytest.mark.slow


class Crashing(Inputs):
    """Inputs of a decoder that some files end, as a fault in a library would."""

    def load(self, source):
        if source == b"crash":
            os._exit(1)
        return super().load(source)


def photos(root: Path, number: int) -> list[str]:
    root.mkdir()
    generator, paths = np.random.default_rng(0), []
    for i in range(number):
        paths.append(str(root / f"{i:04d}.png"))
        Image.fromarray(generator.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(paths[-1])
    return paths


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "parts").to_pylist()


def pid(actor) -> int:
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))


def opened(
    tmp_path: Path, paths: list[str], chunk_size: int, inputs: type[Inputs] = Inputs, networks: int = 2, **how
) -> tuple[Job, Pools]:
    """A job for the run of colours, and its pools, with two decoders."""
    packed = pack_run(colour_run(tmp_path / "run"))
    packed = dataclasses.replace(packed, inputs=inputs(**dataclasses.asdict(packed.inputs)))
    row = Row(class_names=packed.class_names, top_k=1, least=0.0, above=(), model=packed.digest, features=0)
    (tmp_path / "out").mkdir()
    job = open_job(tmp_path / "out", paths, {}, part_size=40)
    return job, Pools(packed, row, chunk_size=chunk_size, decoders=2, networks=networks, **how)


def test_three_killed_workers_cost_nothing_but_time(tmp_path):
    paths = photos(tmp_path / "photos", 400)
    job, pools = opened(tmp_path, paths, chunk_size=5)
    with pools:
        victims = [lambda: pools._networks[0], lambda: pools._decoders[1], lambda: pools._networks[0]]
        done, killed = 0, []
        for images in collect_parts(pools.classify(job.chunks(5, ())), job, write_parquet):
            done += images
            if victims and done >= 80 * (len(killed) + 1):
                killed.append(pid(victims.pop(0)()))
                os.kill(killed[-1], signal.SIGKILL)
    assert len(set(killed)) == 3, "those that came in their place are others"
    rows = rows_of(job.folder)
    assert [row["path"] for row in rows] == paths and done == 400
    assert all(row["reason"] is None and row["confidence"] > 0 for row in rows)


def test_files_that_crash_a_decoder_are_left_out_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # for `Crashing`
    paths = photos(tmp_path / "photos", 60)
    for poisoned in (7, 8, 41):
        Path(paths[poisoned]).write_bytes(b"crash")
    Path(paths[20]).write_bytes(b"no image")
    job, pools = opened(tmp_path, paths, chunk_size=10, inputs=Crashing)
    with pools:
        assert sum(collect_parts(pools.classify(job.chunks(10, ())), job, write_parquet)) == 60
    rows = rows_of(job.folder)
    assert [row["path"] for row in rows] == paths
    assert [i for i, row in enumerate(rows) if row["reason"] == LOST] == [7, 8, 41]
    assert [i for i, row in enumerate(rows) if row["answer"] is None] == [7, 8, 20, 41]


def test_a_run_that_no_worker_can_open_ends_at_once_with_the_reason():
    packed = PackedRun(runtime="onnx", files={"model.onnx": b"no network"}, digest="", class_names=("a", "b"),
                       inputs=Inputs(**ABOUT["inputs"]), least=0.0, above=(), features=0)  # fmt: skip
    row = Row(class_names=("a", "b"), top_k=1, least=0.0, above=(), model="", features=0)
    with pytest.raises(DataError, match=r"No worker can be started[\s\S]*cannot be loaded by onnxruntime"):
        Pools(packed, row, chunk_size=1)
    assert not ray.is_initialized()


def script(*arguments) -> list[str]:
    return [sys.executable, str(SCRIPTS / "predict_many.py"), *map(str, arguments)]


def test_an_interrupted_job_goes_on(tmp_path):
    run, paths, out = colour_run(tmp_path / "run"), photos(tmp_path / "photos", 1500), tmp_path / "out"
    line = script("--run", run, tmp_path / "photos", "--out", out, "--part-size", 25, "--chunk-size", 5)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(out.glob("parts/part-*.parquet")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and "Go on with: python scripts/predict_many.py" in errors
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("parts/part-*.parquet")}
    assert 0 < len(before) < 60
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert f"1,500 images in 60 parts, {len(before)} of them finished; by onnx" in done.stdout
    assert f" of {1500 - 25 * len(before):,} images" in done.stderr, "what is left, in the lines on how far it is"
    assert {name: (out / "parts" / name).stat().st_mtime_ns for name in before} == before
    assert [row["path"] for row in rows_of(out)] == paths
    assert not list(out.rglob(".tmp-*"))
    finished = subprocess.run(line, capture_output=True, text=True, check=True)
    assert "60 of them finished" in finished.stdout and "processes decode" not in finished.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small run with views and mirror images, and its ONNX export."""
    pytest.importorskip("tf2onnx", reason='needs the extra onnx: pip install -e ".[onnx]"')
    home = tmp_path_factory.mktemp("many")
    settings = [
        f"--data.path={class_folders(home / 'images')}",
        f"--data.cache={home / 'cache'}",
        "--runs",
        home / "runs",
    ]
    settings += ["--backbone.name=tiny", "--backbone.weights=none", "--data.image_size=32", "--train.batch_size=8"]
    settings += ["--tta.hflip=true", "--tta.full_image=true", "--stages=[{unfreeze='all', epochs=3}]"]
    with without_plots():
        assert call("train", *settings)[0] == 0
    (run,) = (home / "runs").iterdir()
    assert call("export", "--run", run, "--format", "onnx")[0] == 0
    return run


@pytest.mark.parametrize("runtime", ["onnx", "keras"])
def test_answers_are_those_of_predict(trained, tmp_path, runtime):
    images = class_folders(tmp_path / "new", each=5, seed=1)
    (images / "disc" / "broken.png").write_bytes(b"no image")
    many, out = tmp_path / "many", tmp_path / "predictions.csv"
    code, said = call("predict_many", "--run", trained, images, "--out", many, "--runtime", runtime, "--features",
                      "--part-size", 7, "--chunk-size", 3)  # fmt: skip
    assert code == 0 and "16 images, 15 classified" in said
    assert re.search(r"confidence: .* against \d+ validation images", said) and "novelty: " in said
    assert call("predict", "--run", trained, images, "--out", out)[0] == 0
    with out.open(newline="", encoding="utf-8") as table:
        expected = {row["path"]: row for row in csv.DictReader(table)}
    rows = rows_of(many)
    assert [row["path"] for row in rows] == list(expected)
    for row in rows:
        one = expected[row["path"]]
        if one["problem"]:
            assert row["reason"] == one["problem"] and row["features"] is None
            continue
        assert row["classes"][0] == one["class_1"] and len(row["features"]) > 3
        assert row["confidence"] == pytest.approx(float(one["probability_1"]), abs=2e-5)
        assert row["novelty"] == pytest.approx(float(one["novelty"]), abs=2e-3)


def test_a_machine_of_the_cluster_that_goes_away_costs_nothing_but_time(tmp_path):
    """Machines that are imitated on this one, by several of Ray's node processes."""
    from ray.cluster_utils import Cluster

    def home() -> str:
        return ray.get_runtime_context().get_node_id()

    paths = photos(tmp_path / "photos", 300)
    how = {"num_cpus": 3, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=how)
    other = cluster.add_node(num_cpus=3, object_store_memory=2**27)
    try:
        job, pools = opened(tmp_path, paths, chunk_size=5, networks=4, address=cluster.address)
        with pools:
            homes = [
                ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
                for actor in pools._networks
            ]
            assert len(set(homes)) == 2, "both machines are at work"
            done, gone = 0, False
            for images in collect_parts(pools.classify(job.chunks(5, ())), job, write_parquet):
                done += images
                if done >= 80 and not gone:
                    gone = cluster.remove_node(other, allow_graceful=False) or True
        assert [row["path"] for row in rows_of(job.folder)] == paths and gone
    finally:
        cluster.shutdown()
