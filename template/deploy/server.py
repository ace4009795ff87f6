"""The HTTP application that serves runs: files of images in, calibrated classes out.

    app = Service(open_runs, limits=Limits()).app()

Requests are decoded by worker threads and classified by one (batcher.py); limits are in uploads.py, token and headers
in guard.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from .. import device
from ..data.images.load import BadImageError
from ..data.sources.names import DataError
from ..disk import DamagedError
from .batcher import Batcher, FullError
from .deployed import Deployed
from .guard import Guard, Metrics
from .uploads import Limits, Receiver, RefusedError, Upload

NOT_SURE = "not sure"
RETRY = {"Retry-After": "1"}
"""Seconds after which a client may come again: a queue empties in less."""


class Prediction(BaseModel):
    """A class and what speaks for it."""

    label: str
    probability: Annotated[float, Field(description="calibrated: of answers with 0.9, nine of ten are right")]


class Answer(BaseModel):
    """What is said of one file."""

    file: Annotated[str, Field(description="its name, as it was sent")]
    answer: Annotated[str, Field(description="the class, 'not sure', or empty if the file cannot be read")] = ""
    sure: Annotated[bool, Field(description="whether the confidence reaches the run's reject level")] = False
    predictions: Annotated[list[Prediction], Field(description="the likeliest classes, most likely first")] = []
    note: Annotated[str, Field(description="what had to be assumed to read it")] = ""
    error: Annotated[str, Field(description="why it cannot be read")] = ""


class Answers(BaseModel):
    """What is said of the files of a request, in their order."""

    model: str
    results: list[Answer]


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


_LIKELY = [{"label": "rose", "probability": 0.93}, {"label": "tulip", "probability": 0.05}]
_GOOD = {"file": "a.jpg", "answer": "rose", "sure": True, "predictions": _LIKELY, "note": "", "error": ""}
_BAD = {"file": "b.jpg", "answer": "", "sure": False, "predictions": [], "note": ""} | {"error": "the file is empty"}
_WHY = {400: "broken form, or no file", 401: "no token", 404: "no such model", 408: "sent too slowly"}
_WHY |= {413: "too large, or too many files", 503: "too much to do; come again after Retry-After seconds"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "object", "properties": {"files": {"type": "array", "items": _BINARY["schema"]}}}
PREDICT: dict[str, Any] = {
    "response_model": Answers,
    "responses": {
        200: {"content": {"application/json": {"example": {"model": "flowers", "results": [_GOOD, _BAD]}}}},
        422: {"model": Answers, "description": "none of the files can be read: their reasons are in `error`"}
        | {"content": {"application/json": {"example": {"model": "flowers", "results": [_BAD]}}}},
        **{status: {"model": Problem, "description": words} for status, words in _WHY.items()},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FILES, "example": {"files": ["a.jpg", "b.jpg"]}},
                "image/*": _BINARY,
                "application/octet-stream": _BINARY,
            },
        }
    },
}


class Service:
    """Runs that are served, and what serves them.

    Args:
        open_runs: loads the runs, now and whenever they are swapped.
        limits: of requests.
        batcher: that computes, closed with the application.
        token: that clients must send; without one, runs are swapped by a signal only.
        hosts: by which the server may be called; by any if there are none.

    Raises:
        DataError: if a run cannot be loaded.
    """

    def __init__(
        self,
        open_runs: Callable[[], Sequence[Deployed]],
        limits: Limits,
        batcher: Batcher,
        token: str = "",
        hosts: Collection[str] = (),
    ) -> None:
        self.open_runs, self.limits, self.batcher = open_runs, limits, batcher
        self.token, self.hosts = token, hosts
        self.receiver, self.metrics = Receiver(limits), Metrics()
        self.decoders = ThreadPoolExecutor(device.cores(), thread_name_prefix="decoder")
        self.batcher.seen = self.metrics.batches.observe
        self.metrics.waiting.set_function(lambda: self.batcher.held)
        self.models = {model.name: model for model in open_runs()}

    def app(self) -> ASGIApp:
        """The application, for uvicorn or a test."""
        app = FastAPI(title="Image classification", version="1", docs_url=None, redoc_url=None, lifespan=self._lifespan)
        app.add_api_route("/v1/predict", self.predict, methods=["POST"], summary="Classify images", **PREDICT)
        app.add_api_route("/v1/model", self.model, summary="The model card")
        app.add_api_route("/v1/reload", self.reload, methods=["POST"], summary="Load the runs anew")
        app.add_api_route("/healthz", self.healthz, summary="Whether the process lives")
        app.add_api_route("/readyz", self.readyz, summary="Whether images can be classified")
        app.add_api_route("/metrics", self.show_metrics, summary="Counters for Prometheus")
        app.add_exception_handler(RefusedError, self._refuse)
        app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=400))  # nobody reads it
        paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
        return Guard(app, self.metrics, paths, self.token, self.hosts)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()

    async def _refuse(self, _: Request, error: RefusedError) -> JSONResponse:
        self.metrics.failures.labels(error.reason).inc()
        return JSONResponse({"detail": error.detail}, error.status, RETRY if error.status == 503 else None)

    async def predict(
        self,
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=1000, description="how many classes a file")] = 3,
        model: Annotated[str, Query(description="by default the first run")] = "",
    ) -> Response:
        """Send one or many images as files of a form (multipart), or one as the body.

        The answer is 200 if one of them can be read.
        """
        deployed = self._model(model)
        async with self.receiver.uploads(request) as uploads:
            try:
                with self.batcher.places(len(uploads)):
                    async with asyncio.timeout(self.limits.seconds):
                        results = await asyncio.gather(*(self._answer(deployed, upload, top_k) for upload in uploads))
            except FullError as error:
                raise RefusedError(503, "full", str(error)) from None
            except TimeoutError:
                words = f"The images could not be classified within {self.limits.seconds:g} seconds. Try again later."
                raise RefusedError(503, "timeout", words) from None
        status = 422 if all(result.error for result in results) else 200
        return JSONResponse(Answers(model=deployed.name, results=results).model_dump(), status)

    async def _answer(self, model: Deployed, upload: Upload, top_k: int) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            pixels, note = await loop.run_in_executor(self.decoders, model.classifier.inputs.load, upload.contents)
        except BadImageError as error:
            self.metrics.failures.labels("unreadable").inc()
            return Answer(file=upload.name, error=str(error))
        found = await asyncio.wrap_future(self.batcher.submit(model.classifier, pixels))
        best = np.argsort(-found, kind="stable")[:top_k]
        names, sure = model.classifier.class_names, bool(found.max() >= model.least)
        self.metrics.images.labels(model.name, sure).inc()
        return Answer(
            file=upload.name,
            answer=names[best[0]] if sure else NOT_SURE,
            sure=sure,
            predictions=[Prediction(label=names[row], probability=float(found[row])) for row in best],
            note=note,
        )

    def _model(self, name: str) -> Deployed:
        """A run by its name; the first without one."""
        found = self.models.get(name) if name else next(iter(self.models.values()))
        if found is None:
            raise RefusedError(404, "model", f"There is no such model. Expected one of: {', '.join(self.models)}.")
        return found

    async def model(self, model: str = "") -> Response:
        """What must be known about a run: classes, scores, limits, versions."""
        deployed = self._model(model)
        about = {"name": deployed.name, "names": list(self.models), "runtime": deployed.runtime}
        return JSONResponse(about | {"requests": vars(self.limits)} | deployed.card)

    async def reload(self) -> Response:
        """Load the runs anew from where they are, beside those that answer meanwhile. Needs a server with a token."""
        if not self.token:
            raise RefusedError(403, "token", "Only a server that was started with a token is told to do this.")
        try:
            await self.swap()
        except (DataError, DamagedError, OSError) as error:
            raise RefusedError(409, "reload", f"{error} The former runs go on.") from None
        return JSONResponse({"names": list(self.models)})

    async def swap(self) -> None:
        """Load the runs anew. Requests that have begun are answered by the former ones.

        Raises:
            DataError: if one cannot be loaded; nothing has changed then.
        """
        self.models = {model.name: model for model in await run_in_threadpool(self.open_runs)}

    async def healthz(self) -> Response:
        """200 while the process answers, however busy it is."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """200 while images can be classified."""
        ready = self.batcher.alive
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def show_metrics(self) -> Response:
        """In Prometheus's text format."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)
