"""Two pools of Ray actors, one that reads and decodes files and one that classifies pixels, so that neither waits.

Actors, and not Ray Data: that survives the death of a worker too (measured), but tries the same block for ever, so that
a file at which a decoder crashes would stop it; its parts are not the same images when it is started again; and it
needs pandas. Who dies here is replaced, and what it was at work on is done again, in the end image by image.
"""

import dataclasses
import logging
import os
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from ... import device
from ...data.sources.names import DataError
from ..runtime import Inputs
from .network import Network, PackedRun
from .parts import Chunk
from .rows import Decoded, Row, decode

PACKAGE = Path(__file__).parents[2]
DEATHS = 3
"""Of processes, over the same images: then they are tried one by one; over one image: then it is left out."""
IN_A_ROW = 25
"""Deaths of processes, beyond one of each, between which nothing was done: then it is not because of an image."""
LOST = f"the process that read it died {DEATHS} times (a crash, or too little memory); convert it, or make it smaller"
ALONE = 1000
"""Load of an actor that nothing else is sent to."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # or it tells its makers of every cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns of what a later version will do
    "RAY_worker_niceness": "0",  # or workers stand back behind everything else on the machine
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many processes do what.

    Args:
        decoders: that read and decode.
        networks: that classify.
        threads: of each of them.
        gpus: of each of them, 0 or 1.
    """

    decoders: int
    networks: int
    threads: int
    gpus: int

    @classmethod
    def of(cls, cpus: int, gpus: int, runtime: str) -> "Sizes":
        """For a machine or a cluster.

        A network on every GPU, if there are any. By TensorFlow, which takes a gigabyte for each process, one on every
        four cores; by onnxruntime, one on every core: several threads would wait for each other. And a decoder on every
        core: who has nothing to do waits, and the cores go to whatever is behind, decoding or networks.
        """
        if gpus:
            return cls(decoders=max(1, cpus - gpus - 1), networks=gpus, threads=1, gpus=1)
        threads = min(4, cpus) if runtime == "keras" else 1
        return cls(decoders=cpus, networks=max(1, cpus // threads), threads=threads, gpus=0)


class Decoder:
    """An actor that reads and decodes files."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def decode(self, paths: Sequence[str]) -> Decoded:
        """Images at these paths or addresses."""
        return decode(paths, self.inputs)


class Classifying:
    """An actor that classifies pixels.

    Args:
        packed: a list of one reference to a `PackedRun`; of a bare one, Ray warns that it may be gone too early.
        row: what its rows have in common.
        threads: that compute.
    """

    def __init__(self, packed: list[Any], row: Row, threads: int) -> None:
        run: PackedRun = ray.get(packed[0])
        self.network, self.row = Network(run.files, run.runtime, threads), row

    def rows(self, found: Decoded) -> pa.Table:
        """Rows of images."""
        return self.row.table(found, self.network.classify)


class Pools:
    """The actors, on this machine or a cluster, as a context: at its end they are gone.

    Args:
        packed: run that classifies.
        row: what all rows have in common.
        chunk_size: images that travel together.
        decoders, networks: how many; as `Sizes.of` has it where None.
        address: of a Ray cluster; None for processes of this machine.

    Raises:
        DataError: if a cluster cannot be reached.
    """

    def __init__(
        self,
        packed: PackedRun,
        row: Row,
        *,
        chunk_size: int,
        decoders: int | None = None,
        networks: int | None = None,
        address: str | None = None,
    ) -> None:
        cpus, gpus = _join(address) if address else (device.cores(), _gpus(packed.runtime))
        usual = Sizes.of(cpus, gpus, packed.runtime)
        self.sizes = dataclasses.replace(
            usual, decoders=decoders or usual.decoders, networks=networks or usual.networks
        )
        self.most = self.sizes.decoders + 2 * self.sizes.networks
        if not address:
            pixels = chunk_size * len(packed.inputs.views) * packed.inputs.image_size**2 * 3
            _start(self.sizes, 2 * self.most * pixels)
        self._packed, self._inputs, self._row = [ray.put(packed)], packed.inputs, row
        self._decoders = [self._make_decoder() for _ in range(self.sizes.decoders)]
        self._networks = [self._make_network() for _ in range(self.sizes.networks)]
        _require_opened([self._decoders[0], self._networks[0]])
        self._busy: Counter[Any] = Counter()
        self._flying: dict[Any, tuple[Chunk, tuple[Any, Any]]] = {}

    def __enter__(self) -> "Pools":
        return self

    def __exit__(self, *_: Any) -> None:
        ray.shutdown()

    def classify(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        """Rows of all images, in chunks, as they are done. No more than `most` chunks are on their way.

        Raises:
            DataError: if processes die and nothing gets done.
        """
        fresh, again, deaths = iter(chunks), deque[Chunk](), 0
        while True:
            self._send_all(fresh, again)
            if not self._flying:
                return
            (done,), _ = ray.wait(list(self._flying), num_returns=1)
            chunk, pair = self._flying.pop(done)
            self._busy.subtract({actor: ALONE if chunk.deaths else 1 for actor in pair})
            try:
                rows, deaths = ray.get(done), 0
            except RayError as error:
                if isinstance(error, RayTaskError) and not isinstance(error, (RayActorError, ObjectLostError)):
                    raise  # a mistake in what it ran, which would be made again
                deaths += self._replace(getattr(error, "actor_id", None))
                if deaths > IN_A_ROW + len(self._decoders) + len(self._networks):
                    raise DataError(f"Processes die one after the other, and nothing gets done: {error}") from error
                if not _try_again(chunk, again):
                    continue
                rows, deaths = self._row.lost(chunk.paths[0], LOST), 0
            yield chunk, rows

    def _send_all(self, fresh: Iterator[Chunk], again: deque[Chunk]) -> None:
        """Send what there is room for; first what processes died over, each alone, so that the culprit is found."""
        while again:
            if not self._send(again[0]):
                return
            again.popleft()
        while len(self._flying) < self.most and self._room(1) and (chunk := next(fresh, None)):
            self._send(chunk)

    def _room(self, load: int) -> tuple[Any, Any] | None:
        """The least busy decoder and network, if they can take so much."""
        pair = min(self._decoders, key=self._busy.__getitem__), min(self._networks, key=self._busy.__getitem__)
        return pair if all(self._busy[actor] + load <= ALONE for actor in pair) else None

    def _send(self, chunk: Chunk) -> bool:
        load = ALONE if chunk.deaths else 1
        if not (pair := self._room(load)):
            return False
        self._busy.update({actor: load for actor in pair})
        self._flying[pair[1].rows.remote(pair[0].decode.remote(chunk.paths))] = chunk, pair
        return True

    def _replace(self, dead: str | None) -> bool:
        """Put a new actor in the place of a dead one, unless that has been done; whether it was now."""
        for pool, make in ((self._decoders, self._make_decoder), (self._networks, self._make_network)):
            for place, actor in enumerate(pool):
                if actor._actor_id.hex() == dead:
                    ray.kill(actor)  # for one that cannot be reached, but lives
                    pool[place] = make()
                    return True
        return False

    def _make_decoder(self) -> Any:
        # Of no CPU of its own: it works while networks wait for files, and may be on any machine.
        return ray.remote(Decoder).options(num_cpus=0, scheduling_strategy="SPREAD").remote(self._inputs)

    def _make_network(self) -> Any:
        actor = ray.remote(Classifying).options(
            num_cpus=self.sizes.threads, num_gpus=self.sizes.gpus, scheduling_strategy="SPREAD"
        )
        return actor.remote(self._packed, self._row, self.sizes.threads)


def _require_opened(actors: Sequence[Any]) -> None:
    """Wait until these are ready; if they cannot be, all others cannot either."""
    try:
        ray.get([actor.__ray_ready__.remote() for actor in actors])
    except RayError as error:
        ray.shutdown()
        raise DataError(f"No worker can be started: {error}") from error


def _try_again(chunk: Chunk, again: deque[Chunk]) -> bool:
    """Put what a process died over back into the queue, in the end image by image; whether it is one that is lost."""
    chunk = chunk._replace(deaths=chunk.deaths + 1)
    if chunk.deaths < DEATHS:
        again.append(chunk)
    elif len(chunk.paths) > 1:
        again.extend(Chunk(chunk.part, chunk.start + i, (path,), deaths=1) for i, path in enumerate(chunk.paths))
    return chunk.deaths >= DEATHS and len(chunk.paths) == 1


def _gpus(runtime: str) -> int:
    """GPUs of this machine that TensorFlow sees; onnxruntime computes on CPUs here."""
    if runtime != "keras":
        return 0
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU"))


def _start(sizes: Sizes, store: int) -> None:
    """Ray on this machine alone, with room for so many bytes on their way."""
    _init(
        address="local",
        num_cpus=sizes.networks * sizes.threads + 1,  # with none left, it waits for ever and only warns
        num_gpus=sizes.networks * sizes.gpus,
        object_store_memory=max(2**27, store),
        include_dashboard=False,
    )


def _init(**how: Any) -> None:
    """`ray.init`, without its pages of words, and without its handler of SIGTERM in the place of the one before."""
    handled = signal.getsignal(signal.SIGTERM)
    os.environ.update(ENVIRONMENT)
    try:
        ray.init(**how, logging_level=logging.ERROR, log_to_driver=False)
    finally:
        signal.signal(signal.SIGTERM, handled)


def _join(address: str) -> tuple[int, int]:
    """Join a cluster, with this package, so that its machines run the same code; its CPUs but for one, and its GPUs."""
    try:
        _init(address=address, runtime_env={"py_modules": [str(PACKAGE)]})
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DataError(f"The Ray cluster {address!r} cannot be reached: {error}") from error
    cluster: Any = ray  # whose functions have no types
    found = cluster.cluster_resources()
    return max(1, int(found.get("CPU", 1)) - 1), int(found.get("GPU", 0))
