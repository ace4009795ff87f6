"""What stands around the application: who may ask, what a browser may do with the answer, and what is counted."""

import hmac
import time
from collections import Counter as Tally
from collections.abc import Collection, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = {"/", "/healthz", "/readyz", "/openapi.json"}
"""What anybody may see where there is a token: nothing of a run."""
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Metrics:
    """Counters of one server, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("serve_requests", "Requests answered", ["path", "status"], **own)
        words = "Seconds from a request's headers to its answer"
        self.seconds = Histogram("serve_request_seconds", words, ["path"], **own)
        self.failures = Counter("serve_failures", "Requests and files without an answer", ["reason"], **own)
        self.images = Counter("serve_images", "Images classified", ["model", "sure"], **own)
        self.waiting = Gauge("serve_images_on_their_way", "Images that are decoded, wait or are classified", **own)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram("serve_batch_size", "Images that were classified at once", buckets=sizes, **own)


class Guard:
    """ASGI middleware: bearer token, origin of requests, headers of answers, counters.

    Args:
        app: what it stands around.
        metrics: where requests are counted.
        paths: that the application has; others are counted as one.
        token: that clients must send, or "".
        hosts: by which the server may be called, or none: by any. A page elsewhere whose name leads to this machine
            (DNS rebinding) calls it by another.
        per_client: requests at once of one address, but for what anybody may see.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: frozenset[str],
        token: str = "",
        hosts: Collection[str] = (),
        per_client: int = 256,
    ) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths
        self.token, self.hosts, self.per_client = token.encode(), hosts, per_client
        self.asking: Tally[str] = Tally()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), "none"

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        address = (scope.get("client") or ("",))[0]
        self.asking[address] += 1
        refusal = self._refusal(scope["path"], Headers(scope=scope), self.asking[address])
        try:
            await (refusal or self.app)(scope, receive, send_guarded)
        finally:
            self.asking -= Tally([address])  # which forgets those that are at 0
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refusal(self, path: str, headers: Headers, asking: int) -> JSONResponse | None:
        """What is said to those who may not ask, or ask too much at once."""
        origin, host = headers.get("origin"), headers.get("host", "")
        strange = self.hosts and host.rpartition(":")[0] not in self.hosts and host not in self.hosts
        if strange or (origin is not None and origin.partition("://")[2] != host):
            self.metrics.failures.labels("origin").inc()
            return JSONResponse({"detail": "Requests of other web pages, or to another host, are not answered."}, 403)
        given = headers.get("authorization", "").encode()
        if self.token and path not in OPEN and not hmac.compare_digest(given, b"Bearer " + self.token):
            self.metrics.failures.labels("token").inc()
            words = "Expected the header: Authorization: Bearer TOKEN, with the token of this server."
            return JSONResponse({"detail": words}, 401, {"WWW-Authenticate": "Bearer"})
        if asking > self.per_client and path not in OPEN:
            self.metrics.failures.labels("client").inc()
            words = f"Expected at most {self.per_client} requests at once of one address. Received: more."
            return JSONResponse({"detail": words}, 429, {"Retry-After": "1"})
        return None
