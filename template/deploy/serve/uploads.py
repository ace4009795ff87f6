"""What a client sends, within limits: a body that is read in time and no further, and the files in it.

Nothing of it is written to a disk, and names are for the answer only.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ... import runs

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would log parts of what was sent
_CHUNK = 2**16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for, and all together.

    Args:
        megabytes: of a body.
        files: in a request.
        megapixels: of an image; a run's own limit holds too.
        seconds: to send a body, and once more to answer it.
        bodies: that may be in memory at once, each at its full size.
        per_client: requests at once of one address.
    """

    megabytes: float = 32.0
    files: int = 32
    megapixels: float = 50.0
    seconds: float = 30.0
    bodies: int = 8
    per_client: int = 256


class RefusedError(Exception):
    """A request that gets no answer but why.

    Args:
        status: of HTTP.
        reason: one word, by which failures are counted.
        detail: what was expected, what was received, what to do.
    """

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail


@dataclass(frozen=True)
class Upload:
    """A file: its name as the client gave it, never used as a path; its contents."""

    name: str
    contents: bytes


class Receiver:
    """Reads bodies, and knows how much of them is in memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.most = limits, int(limits.megabytes * 1e6)
        self.held = 0

    @contextlib.asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The files of a request, in memory within the block: those of a form (multipart), or the body as one.

        Raises:
            RefusedError: if there are none, too many, too much, or too slowly.
        """
        parts: list[bytes] = []
        try:
            await self._read(request, parts)
            body = b"".join(parts)
            is_form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"
            yield await self._of_form(request, body) if is_form else _whole(body)
        finally:
            self._drop(parts)

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        """Read a body into a list. Beyond the limit it is read on and dropped, or few clients would see the answer."""
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    if size <= self.most:
                        self._keep(part, parts)
                    else:
                        self._drop(parts)
                    if size > 8 * self.most:
                        break
                else:
                    if size <= self.most:
                        return
        if size > self.most:
            limit = f"{self.limits.megabytes:g} MB"
            raise RefusedError(413, "body", f"Expected a body of at most {limit}. Received: more. Send fewer images.")
        words = f"Expected the whole body within {self.limits.seconds:g} seconds. Received: {size} bytes."
        raise RefusedError(408, "slow", words)

    def _keep(self, part: bytes, parts: list[bytes]) -> None:
        if self.held + len(part) > self.limits.bodies * self.most:
            raise RefusedError(503, "full", "As much is being sent as fits into memory. Try again later.")
        self.held += len(part)
        parts.append(part)

    def _drop(self, parts: list[bytes]) -> None:
        self.held -= sum(map(len, parts))
        parts.clear()

    async def _of_form(self, request: Request, body: bytes) -> list[Upload]:
        most = self.limits.files
        form = _Form(request.headers, _chunks(body), max_files=most, max_fields=most)
        try:
            fields = await form.parse()
        except MultiPartException as error:
            if "Too many files" in error.message:
                raise RefusedError(413, "files", f"Expected at most {most} files. Received: more.") from None
            raise RefusedError(400, "form", f"The form cannot be read: {error.message}") from None
        except Exception as error:  # of a charset that decodes nothing, ...
            raise RefusedError(400, "form", f"The form cannot be read: {type(error).__name__}") from None
        if not form.is_complete:
            raise RefusedError(400, "form", "The form is cut short: its last boundary is missing. Send it again.")
        files = [part for _, part in fields.multi_items() if not isinstance(part, str)]
        if not files:
            raise RefusedError(400, "form", "Expected files in the form: curl -F files=@photo.jpg. Received: none.")
        return [Upload(runs.legible(file.filename or "")[:200], await file.read()) for file in files]


class _Form(MultiPartParser):
    spool_max_size = sys.maxsize  # beyond which Starlette would write files to a disk
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True


async def _chunks(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]
        await asyncio.sleep(0)  # others have their turn


def _whole(body: bytes) -> list[Upload]:
    if not body:
        words = "Expected an image: curl --data-binary @photo.jpg, or files in a form. Received: an empty body."
        raise RefusedError(400, "empty", words)
    return [Upload("", body)]
