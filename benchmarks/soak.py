"""What a server of a run withstands: good and hostile requests mixed, and how many it answers a second.

python benchmarks/soak.py mixed --run RUN --images FOLDER --requests 50000   # a fifth of them hostile
python benchmarks/soak.py rate --run RUN --images FOLDER                     # 1, 8, 64 clients; against model.predict

serve.py runs as a process of its own, on this machine alone. `mixed`: every good request must be answered as the run
answers, every hostile one with its 4xx and a reason; none with 500. Meanwhile the run is loaded anew, by SIGHUP; memory
at the end is held against that after a fifth. Then more is sent while the process is stopped by SIGTERM, and then
killed, a few times, and another one is started at the same socket: at SIGTERM no request may be lost, at a kill those
alone that were on their way, and they are sent again. `rate`: beside the server's own figures, those of one
`model.predict` a request, decoding included, without any HTTP around it. Prints JSON; exit code 1 if something was
wrong. docs/deploy.md has the figures of one machine.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import math
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from template import runs
from template.deploy.serve.deployed import Deployed, open_runs

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SECONDS = 3.0
"""That the server gives a sender here: slow ones would make the soak last for hours."""
BETWEEN = 30.0
"""Seconds between two swaps of the run; a tenth of it between two restarts."""
BROKEN = (ConnectionError, http.client.HTTPException)
Reply = tuple[int, dict]
"""Status and JSON; 0 where one side hung up."""


class Server:
    """serve.py, running. Those that come after it have the same socket, in which connections wait for them.

    Args:
        run: that it serves.
        options: of serve.py.
    """

    def __init__(self, run: Path, *options: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, number = self.listener.getsockname()[1], str(self.listener.fileno())
        self.line = [sys.executable, str(SCRIPTS / "serve.py"), "--run", str(run), "--fd", number, *options]
        self.stops: Counter[str] = Counter()
        self.busy, self.killed_until = 0, 0.0
        self.start()

    def start(self) -> None:
        """Start a process, and wait until it can answer."""
        passed = [self.listener.fileno()]
        self.process = subprocess.Popen(self.line, stdout=subprocess.PIPE, text=True, pass_fds=passed)
        self._heard(f"127.0.0.1:{self.port}")

    def _heard(self, words: str) -> None:
        line = self.process.stdout.readline()
        assert words in line, f"expected {words!r} of serve.py, received {line!r}"

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End the process, which must obey SIGTERM with 0 within ten seconds."""
        self.stops[by.name] += 1
        self.process.send_signal(by)
        code = self.process.wait(10)
        assert code == (0 if by == signal.SIGTERM else -by), f"serve.py ended with {code}"

    def kill(self) -> None:
        """End the process in a way that it cannot answer."""
        self.killed_until = math.inf
        self.stop(signal.SIGKILL)
        self.killed_until = time.monotonic()

    def reload(self) -> None:
        """Let it load its run anew."""
        self.process.send_signal(signal.SIGHUP)
        self._heard("loaded anew")

    def close(self) -> None:
        """Nobody listens any more, whatever has happened."""
        self.process.kill()
        self.process.wait()
        self.listener.close()

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1000

    def connect(self) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, body: object, path: str = "/v1/predict", **headers: str) -> Reply:
        """One request on a fresh connection, as often as the server says 503."""
        while True:
            with contextlib.closing(self.connect()) as connection:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                if answer.status != 503:
                    return answer.status, json.loads(answer.read())
            self.busy += 1
            time.sleep(0.1)

    def raw(self, sent: bytes, wait: bool = True) -> Reply:
        """Bytes, and what is answered to them, if anything; or hang up at once."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(sent)
            if not wait:
                return 0, {}
            answer = http.client.HTTPResponse(client)
            try:
                answer.begin()
            except http.client.RemoteDisconnected:  # closed in time, with nothing to be said
                return 0, {}
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith("{") else {"detail": text}


@contextlib.contextmanager
def serving(run: Path, *options: str) -> Iterator[Server]:
    """A server of a run, until the end of the block."""
    server = Server(run, *options)
    try:
        yield server
        server.stop()
    finally:
        server.close()


# mixed


def form(files: list[tuple[str, bytes]]) -> tuple[bytes, dict[str, str]]:
    """Files as a form: its body and headers."""
    parts = [
        f'--soak\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + contents
        + b"\r\n"
        for name, contents in files
    ]
    return b"".join(parts) + b"--soak--\r\n", {"Content-Type": "multipart/form-data; boundary=soak"}


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of some hundred bytes that claims to be this large."""
    pieces = [b"\x89PNG\r\n\x1a\n"]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b"")):
        pieces += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(pieces)


def head(length: int) -> bytes:
    """Of a request whose body has so many bytes, or claims to."""
    return f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


WRONG = [b"hello", b"%PDF-1.7 x", b"<svg/>", b"\0" * 999, b"GIF89a", b"PK\3\4" + bytes(30), b"II*\0\xff\xff\xff\xff"]
Hostile = Callable[[Server, bytes, random.Random], Reply]
HOSTILE: dict[str, tuple[int, float, Hostile]] = {
    # expected status, how often, what is done with an image that is good
    "truncated": (422, 6, lambda server, image, rng: server.post(image[: rng.randrange(1, len(image) // 2)])),
    "bomb": (422, 4, lambda server, image, rng: server.post(bomb())),
    "wrong type": (422, 6, lambda server, image, rng: server.post(rng.choice(WRONG))),
    "empty": (400, 1, lambda server, image, rng: server.post(b"")),
    "slow sender": (408, 0.3, lambda server, image, rng: server.raw(head(len(image)) + image[:9])),
    "slow head": (0, 0.3, lambda server, image, rng: server.raw(head(9)[:30])),
    "hangs up in the head": (0, 2, lambda server, image, rng: server.raw(head(9)[:30], wait=False)),
    "hangs up in the body": (0, 2, lambda server, image, rng: server.raw(head(len(image)) + image[:99], wait=False)),
    "hangs up before the answer": (0, 2, lambda server, image, rng: server.raw(head(len(image)) + image, wait=False)),
    "no HTTP": (400, 1, lambda server, image, rng: server.raw(b"\x16\x03\x01 hello\r\n\r\n")),
    "100 MB": (413, 0.1, lambda server, image, rng: server.post(bytes(100_000_000))),
    "100 MB in chunks": (413, 0.1, lambda server, image, rng: server.post(itertools.repeat(bytes(10**6), 100))),
    "1,000 files": (413, 0.5, lambda server, image, rng: post_form(server, [("x", b"x")] * 1000)),
    "cut form": (400, 2, lambda server, image, rng: post_form(server, [("x", image)], cut=rng.randrange(8, 200))),
    "other model": (404, 1, lambda server, image, rng: server.post(image, "/v1/predict?model=../../etc/passwd")),
    "other path": (404, 1, lambda server, image, rng: server.post(image, "/../../etc/passwd")),
}  # fmt: skip
NAMES = ("../../../etc/passwd", "/etc/passwd", "C:\\a", "a" * 2000, "\u202egpj.exe", ";rm -rf *", "<b>")


def post_form(server: Server, files: list[tuple[str, bytes]], cut: int = 0) -> Reply:
    """Files in a form, which may lack its last bytes."""
    body, headers = form(files)
    return server.post(body[: len(body) - cut], **headers)


class Soak:
    """Requests to a server, what is expected of them, and what was wrong.

    Args:
        server: that is asked.
        model: the same run, in this process.
        images: contents of files that can be read.
        hostile: share of such requests.
    """

    def __init__(self, server: Server, model: Deployed, images: list[bytes], hostile: float = 0.2) -> None:
        self.server, self.images, self.hostile = server, images, hostile
        self.names = model.classifier.class_names
        self.expected = [answer.probabilities for _, answer in model.classifier.classify_files(images)]
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.seconds: list[float] = []

    def request(self, number: int) -> None:
        """One request, of which its number decides everything; again if the process was killed meanwhile."""
        again = True
        while again:
            start = time.monotonic()
            try:
                again = False
                self._request(random.Random(number))
            except Exception as error:  # a connection that broke, an answer that is no JSON: as wrong as a wrong answer
                again = isinstance(error, BROKEN) and self.server.killed_until >= start
                if not again:
                    self.wrong.append(f"request {number}: {type(error).__name__}: {error}")
            self.counts["killed, came again"] += again

    def _request(self, rng: random.Random) -> None:
        if rng.random() < self.hostile:
            kinds = list(HOSTILE)
            self._bad(rng.choices(kinds, [HOSTILE[kind][1] for kind in kinds])[0], rng)
        else:
            self._good(rng)

    def _bad(self, kind: str, rng: random.Random) -> None:
        expected, _, act = HOSTILE[kind]
        status, said = act(self.server, rng.choice(self.images), rng)
        if expected and not status:
            raise ConnectionResetError(f"{kind}: closed without an answer")
        self.counts[f"{kind}: {status}"] += 1
        reasons = [said.get("detail")] + [result["error"] for result in said.get("results", [])]
        if status != expected or (status and not any(reasons)):
            self.wrong.append(f"{kind}: expected {expected} and a reason, received {status} {str(said)[:200]}")

    def _good(self, rng: random.Random) -> None:
        rows = [rng.randrange(len(self.images)) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        start = time.perf_counter()
        if len(rows) == 1 and rng.random() < 0.5:
            status, said = self.server.post(self.images[rows[0]])
        else:
            status, said = post_form(self.server, [(rng.choice(NAMES), self.images[row]) for row in rows])
        self.seconds.append(time.perf_counter() - start)
        self.counts[f"good: {status}"] += 1
        results = said.get("results", [])
        if status != 200 or len(results) != len(rows) or not all(map(self._is_right, rows, results)):
            self.wrong.append(f"good: received {status} {str(said)[:300]} of images {rows}")

    def _is_right(self, row: int, result: dict) -> bool:
        """Whether an answer is that of the run; batches of other sizes may sum in another order."""
        given = [self.expected[row][self.names.index(each["label"])] for each in result["predictions"]]
        return bool(given) and np.allclose(given, [each["probability"] for each in result["predictions"]], atol=1e-4)


def mixed(arguments: argparse.Namespace) -> dict:
    """Good and hostile requests; a dictionary of what came of them."""
    (model,) = open_runs([arguments.run])
    with (
        serving(arguments.run, "--max-seconds", str(SECONDS)) as server,
        ThreadPoolExecutor(arguments.clients) as pool,
    ):
        soak = Soak(server, model, contents(arguments.images), arguments.hostile)
        start = time.perf_counter()
        swaps, memory = _swapped(soak, pool, arguments.requests)
        found = {
            "requests": arguments.requests,
            "seconds": round(time.perf_counter() - start, 1),
            "answers": dict(sorted(soak.counts.items())),
            "came_again_after_503": server.busy,
            "median_ms": round(1000 * float(np.quantile(soak.seconds, 0.5)), 1),
            "p99_ms": round(1000 * float(np.quantile(soak.seconds, 0.99)), 1),
            "memory_mb_after_each_fifth": memory,
            "swaps": swaps,
        }
        soak.counts.clear()
        sent = _restarted(soak, pool, arguments.clients, arguments.restarts)
        restarts = {"requests": sent, "answers": dict(sorted(soak.counts.items())), "by": dict(server.stops)}
    return found | {"restarts": restarts, "wrong": soak.wrong[:50]}


def _swapped(soak: Soak, pool: ThreadPoolExecutor, requests: int) -> tuple[int, list[float]]:
    """Requests, while the run is loaded anew from time to time: how often; and megabytes after each fifth of them."""
    swaps, memory, fifth = 0, [], max(1, requests // 5)
    for first in range(0, requests, fifth):
        asked = [pool.submit(soak.request, number) for number in range(first, min(first + fifth, requests))]
        while wait(asked, BETWEEN).not_done:
            soak.server.reload()
            swaps += 1
        memory.append(round(soak.server.megabytes, 1))
    return swaps, memory


def _restarted(soak: Soak, pool: ThreadPoolExecutor, clients: int, times: int) -> int:
    """Requests without a pause, while the process is stopped and killed: their number."""
    numbers, over = itertools.count(10**9), threading.Event()

    def ask() -> int:
        sent = 0
        while not over.is_set():
            soak.request(next(numbers))
            sent += 1
        return sent

    asked = [pool.submit(ask) for _ in range(clients)]
    try:
        for end in (soak.server.stop, soak.server.kill) * times:
            time.sleep(BETWEEN / 10)
            end()
            soak.server.start()
        time.sleep(BETWEEN / 10)
    finally:
        over.set()
    return sum(each.result() for each in asked)


def contents(folder: Path, most: int = 64) -> list[bytes]:
    """Some of the images in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not files:
        sys.exit(f"There are no .jpg or .png images in {str(folder)!r}.")
    return [path.read_bytes() for path in random.Random(0).sample(files, min(most, len(files)))]


# rate


def rate(arguments: argparse.Namespace) -> dict:
    """Requests a second of 1, 8 and 64 clients, one image each; and of one `model.predict` a request."""
    images, found = contents(arguments.images), {}
    with serving(arguments.run) as server:
        for clients in (1, 8, 64):
            seconds = [second for each in _busy(server, images, clients, arguments.seconds) for second in each]
            found[f"{clients} clients"] = {
                "per_second": round(len(seconds) / arguments.seconds, 1),
                "median_ms": round(1000 * float(np.quantile(seconds, 0.5)), 1),
                "p99_ms": round(1000 * float(np.quantile(seconds, 0.99)), 1),
            }
    naive = _by_predict(arguments.run, images, arguments.seconds)
    for each in found.values():
        each["times_model_predict"] = round(each["per_second"] / naive, 1)
    return {"model.predict": {"per_second": round(naive, 1)}, **found, "wrong": []}


def _busy(server: Server, images: list[bytes], clients: int, lasting: float) -> list[list[float]]:
    """Seconds of each request of each client, for so long."""

    def ask(client: int) -> list[float]:
        seconds: list[float] = []
        with contextlib.closing(server.connect()) as connection:
            for row in itertools.count(client):
                start = time.perf_counter()
                if start > end:
                    return seconds
                connection.request("POST", "/v1/predict", images[row % len(images)])
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    seconds.append(time.perf_counter() - start)
        return seconds

    end = time.perf_counter() + lasting
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, range(clients)))


def _by_predict(run: Path, images: list[bytes], lasting: float) -> float:
    """Images a second that are decoded and given to Keras's `predict` one by one, with the views of the run."""
    runs.import_tensorflow()
    from template.deploy.predictor import inputs_of, load_run
    from template.suggest import uses_hflip

    config, _, model = load_run(run)
    inputs = inputs_of(config)

    def answer(image: bytes) -> None:
        views = inputs.load(image)[0].astype(np.float32)
        both = np.concatenate([views, views[:, :, ::-1]]) if uses_hflip(config) else views
        model.predict(both, verbose=0)

    answer(images[0])
    start = time.perf_counter()
    for count in itertools.count(1):
        answer(images[count % len(images)])
        if (taken := time.perf_counter() - start) > lasting:
            return count / taken
    raise AssertionError


@runs.script()
def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("mixed", "rate"))
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--images", type=Path, required=True, help="folder of images that can be read")
    parser.add_argument("--requests", type=int, default=3000, help="of mixed (default: 3000)")
    parser.add_argument("--clients", type=int, default=16, help="of mixed, at once (default: 16)")
    parser.add_argument("--hostile", type=float, default=0.2, help="share of such requests (default: 0.2)")
    words = "of mixed: how often the process is stopped, and how often it is killed (default: 5)"
    parser.add_argument("--restarts", type=int, default=5, help=words)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each figure of rate (default: 10)")
    arguments = parser.parse_args()
    result = {"mixed": mixed, "rate": rate}[arguments.part](arguments)
    print(json.dumps(result, indent=2))
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
