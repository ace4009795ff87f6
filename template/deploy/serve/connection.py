"""Connections of the server: those on which no request arrives are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, which would wait for ever for the rest of a request's head.

    Args:
        seconds: within which a head must have arrived; twice that at most, as it is looked at from time to time.
    """

    def __init__(self, seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.seconds = seconds

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to look at it."""
        super().connection_made(transport)
        self.loop.call_later(self.seconds, self._look, None)

    def _look(self, before: Any) -> None:
        """Close it if there has been no request since, and none is being answered."""
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is before:
            self.transport.close()
        else:
            self.loop.call_later(self.seconds, self._look, self.cycle)
