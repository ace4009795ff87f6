"""Serve finished runs over HTTP: a page for people, and an interface for programs.

    python scripts/serve.py --run runs/RUN
    curl -F files=@a.jpg -F files=@b.jpg localhost:8000/v1/predict    # or --data-binary @a.jpg

By the ONNX export of a run where it has one (scripts/export.py), which needs no TensorFlow; by Keras otherwise, with
the same answers. Stops at Ctrl-C or SIGTERM when all that has begun is answered, within ten seconds. At SIGHUP (or POST
/v1/reload with the token) the runs are loaded anew, and no request is lost. It answers this machine alone: for others
say --host 0.0.0.0, with a token, behind a server that speaks HTTPS. More: docs/deploy.md.
"""

import argparse
import asyncio
import contextlib
import functools
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from template import device, runs, system
from template.data.sources.names import DataError

if TYPE_CHECKING:
    from template.deploy.serve.server import Service

INSTALL = 'pip install -c constraints.txt -e ".[onnx,serve]"'
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXPLAINED = 50
"""Images that an explanation takes."""
GRACE = 8
"""Seconds that requests have to end in when the server stops."""


@runs.script()
def main() -> None:
    """Parse, load, serve."""
    device.give_back_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = "folder of a finished run; several are known by the names of their folders, the first answers by default"
    parser.add_argument("--run", type=Path, nargs="+", required=True, help=words)
    words = "auto: onnx where the run has that export, keras otherwise (default: auto)"
    parser.add_argument("--runtime", choices=("auto", "onnx", "keras"), default="auto", help=words)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    words = "names by which it may be called beside localhost, where another server stands in front of it"
    parser.add_argument("--allow-host", nargs="+", default=[], metavar="NAME", help=words)
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for any that is free")
    words = "listen at this open socket in the place of --host and --port, and leave it open at the end (systemd: 3)"
    parser.add_argument("--fd", type=int, metavar="N", help=words)
    words = "file with a token that clients must send (Authorization: Bearer TOKEN)"
    parser.add_argument("--token-file", type=Path, help=words)
    words = (
        "folder in which corrections of the page are kept: images, and labels.csv for train.py (default: nothing is)"
    )
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help=words)
    for name, kind, default, words in (
        ("megabytes", float, 32.0, "of one request"),
        ("files", int, 32, "in one request"),
        ("megapixels", float, 50.0, "of an image, where the limit of the run is not lower"),
        ("seconds", float, 30.0, "to send a request, and once more to answer it"),
        ("per-client", int, 256, "requests at once of one address, beyond which is 429 with Retry-After"),
        ("queue", int, 256, "images on their way at once, beyond which is 503 with Retry-After"),
        ("batch", int, 32, "images classified at once"),
        ("wait", float, 5.0, "milliseconds that an image waits for others"),
    ):
        what = f"{words}, at most (default: {default:g})"
        parser.add_argument(f"--max-{name}", type=kind, default=default, metavar="N", help=what)
    arguments = parser.parse_args()
    for name, value in vars(arguments).items():
        if name.startswith("max_") and not value > 0:
            parser.error(f"--{name.replace('_', '-')}: expected more than 0. Received: {value}")
    least = max(arguments.max_files, EXPLAINED)
    if arguments.max_queue < least:
        parser.error(f"--max-queue: expected at least {least}, for one request. Received: {arguments.max_queue}")
    if arguments.collect:
        runs.check_output(arguments.collect, "folder", "--collect")
    try:
        serve(arguments)
    except DataError as error:
        sys.exit(str(error))


def serve(arguments: argparse.Namespace) -> None:
    """Serve until a signal.

    Raises:
        DataError: if a run cannot be loaded.
    """
    try:
        import uvicorn

        from template.deploy.serve.connection import Connection, Server
        from template.deploy.serve.server import Service
    except ImportError as error:
        sys.exit(f"Needs packages that are not installed ({error.name}): {INSTALL}")
    from template.deploy.serve.batcher import Batcher
    from template.deploy.serve.collect import Corrections
    from template.deploy.serve.deployed import open_runs
    from template.deploy.serve.uploads import Limits

    listener = listen(arguments.host, arguments.port, arguments.fd)  # before minutes of loading are lost
    limits = Limits(
        **{
            name: getattr(arguments, f"max_{name}")
            for name in ("megabytes", "files", "megapixels", "seconds", "per_client")
        }
    )
    batcher = Batcher(arguments.max_batch, arguments.max_wait / 1000, arguments.max_queue)
    load = functools.partial(open_runs, arguments.run, arguments.runtime, limits.megapixels, batcher.most)
    address, port = listener.getsockname()[:2]
    local = address in LOOPBACK or arguments.allow_host
    hosts = (*LOOPBACK, "[::1]", *arguments.allow_host) if local else ()
    corrections = Corrections(arguments.collect) if arguments.collect else None
    service = Service(load, limits, batcher, read_token(arguments.token_file), hosts, corrections)
    speak = functools.partial(Connection, limits.seconds)
    config = uvicorn.Config(
        service.app(), http=speak, loop="asyncio", ws="none", log_config=None, log_level="error",
        access_log=False, server_header=False, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip

    async def run() -> None:
        reload_at_sighup(service)
        names = ", ".join(f"{model.name} ({model.runtime})" for model in service.models.values())
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is answered
        print(f"{names}: http://{address}:{port}  (Ctrl-C to stop)", flush=True)
        await Server(config).serve([listener])

    with listener, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


def listen(host: str, port: int, number: int | None) -> socket.socket:
    """A socket at an address, or the open one of this number; or the last words."""
    try:
        if number is not None:
            given = socket.socket(fileno=number)
            if given.family not in (socket.AF_INET, socket.AF_INET6):
                raise OSError("expected one of TCP")
            return given
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        where = f"{host} port {port}" if number is None else f"socket {number}"
        sys.exit(f"{where} cannot be used ({why}). Choose another with --host, --port or --fd.")


def read_token(file: Path | None) -> str:
    """The token in a file, "" without one."""
    if file is None:
        return ""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        sys.exit(f"{str(file)!r} cannot be read as a token: {error}")
    if len(token) < 16 or not token.isprintable() or " " in token:
        sys.exit(f"{str(file)!r}: expected a token of 16 letters and digits at least (openssl rand -hex 32).")
    return token


def reload_at_sighup(service: "Service") -> None:
    """Let SIGHUP load the runs anew; if that fails, the former ones go on."""

    async def swap() -> None:
        try:
            await service.swap()
            print("loaded anew", flush=True)
        except Exception as error:
            print(f"not loaded anew, the former runs go on: {error}", file=sys.stderr, flush=True)

    if system.WINDOWS:  # has no such signal; POST /v1/reload does the same
        return
    loop, tasks = asyncio.get_running_loop(), set()  # the loop itself forgets tasks that nobody holds
    loop.add_signal_handler(signal.SIGHUP, lambda: tasks.add(loop.create_task(swap())))


if __name__ == "__main__":
    main()
