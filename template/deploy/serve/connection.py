"""Connections of the server: those on which no request arrives are closed, and none that has been made is lost."""

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ON_ITS_WAY = 0.5
"""Seconds within which a request arrives that was sent before its client could know that the server stops."""


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, which would wait for ever for the rest of a request's head.

    Args:
        seconds: within which a head must have arrived; twice that at most, as it is looked at from time to time.
    """

    def __init__(self, seconds: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.seconds, self.stops = seconds, False

    def connection_made(self, transport: Any) -> None:
        """Begin to look at it."""
        super().connection_made(transport)
        self.loop.call_later(self.seconds, self._look, None)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self, before: Any) -> None:
        """Close it if there has been no request since, and none is being answered."""
        if self.transport.is_closing():
            return
        if self.is_idle and self.cycle is before:
            self.transport.close()
        else:
            self.loop.call_later(self.seconds, self._look, self.cycle)

    def handle_events(self) -> None:
        """See what has arrived; where the server stops, its answer is the last one."""
        super().handle_events()
        if self.stops and not self.is_idle:
            self._say_that_it_is_the_last()

    def shutdown(self) -> None:
        """Close it after its answer, or if none is due, when nothing can be on its way any more."""
        self.stops = True
        if self.is_idle:
            self.loop.call_later(ON_ITS_WAY, self._end)
        else:
            self._say_that_it_is_the_last()

    def _say_that_it_is_the_last(self) -> None:
        if self.cycle.keep_alive:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()


class Server(uvicorn.Server):
    """uvicorn's, which when it stops would reset the connections that the system has made and it has not taken yet."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take them all, listen no more, answer what has begun."""
        loop, made = asyncio.get_running_loop(), []
        for listener in sockets or []:
            loop.remove_reader(listener)
        await asyncio.sleep(0.01)  # those that are being taken would be lost with their listener
        for listener in sockets or []:
            with contextlib.suppress(BlockingIOError):
                while True:
                    made.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for client in made:
            await loop.connect_accepted_socket(self._speak, client)
        await super().shutdown(sockets)

    def _speak(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
