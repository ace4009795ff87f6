"""The HTTP application that serves runs: files of images in, calibrated classes out.

    app = Service(open_runs, limits=Limits()).app()

Requests are decoded by worker threads and classified by one (batcher.py); limits are in uploads.py, token and headers
in guard.py.
"""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ... import device
from ...data.images.load import BadImageError, data_url
from ...data.sources.names import DataError
from ...disk import DamagedError
from .. import runtime
from ..occlusion import PATCHES, covered, evidence
from .batcher import Batcher, FullError
from .collect import Corrections
from .deployed import Deployed
from .guard import Guard, Metrics
from .interface import IMAGE, PREDICT, PROBLEMS, Answer, Answers, Correction, Explanation, Prediction
from .uploads import Limits, Receiver, RefusedError, Upload

NOT_SURE = "not sure"
PAGE = Path(__file__).with_name("page.html")
RETRY = {"Retry-After": "1"}
"""Seconds after which a client may come again: a queue empties in less."""


class Service:
    """Runs that are served, and what serves them.

    Args:
        open_runs: loads the runs, now and whenever they are swapped.
        limits: of requests.
        batcher: that computes, closed with the application.
        token: that clients must send; without one, runs are swapped by a signal only.
        hosts: by which the server may be called; by any if there are none.
        corrections: where corrected answers are kept, if they are.

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
        corrections: Corrections | None = None,
    ) -> None:
        self.open_runs, self.limits, self.batcher = open_runs, limits, batcher
        self.token, self.hosts, self.corrections = token, hosts, corrections
        self.receiver, self.metrics = Receiver(limits), Metrics()
        self.decoders = ThreadPoolExecutor(device.cores(), thread_name_prefix="decoder")
        self.batcher.seen = self.metrics.batches.observe
        self.metrics.waiting.set_function(lambda: self.batcher.held)
        self.page = PAGE.read_text(encoding="utf-8")
        self.models = {model.name: model for model in open_runs()}

    def app(self) -> ASGIApp:
        """The application, for uvicorn or a test."""
        app = FastAPI(title="Image classification", version="1", docs_url=None, redoc_url=None, lifespan=self._lifespan)
        app.add_api_route("/", self.show_page, response_class=HTMLResponse, include_in_schema=False)
        app.add_api_route("/v1/predict", self.predict, methods=["POST"], summary="Classify images", **PREDICT)
        for path, ask, answer in (
            ("/v1/explain", self.explain, Explanation),
            ("/v1/correct", self.correct, Correction),
        ):
            how: dict[str, Any] = {"response_model": answer, "responses": PROBLEMS, "openapi_extra": IMAGE}
            app.add_api_route(path, ask, methods=["POST"], **how)
        app.add_api_route("/v1/model", self.model, summary="The model card")
        app.add_api_route("/v1/reload", self.reload, methods=["POST"], summary="Load the runs anew")
        app.add_api_route("/healthz", self.healthz, summary="Whether the process lives")
        app.add_api_route("/readyz", self.readyz, summary="Whether images can be classified")
        app.add_api_route("/metrics", self.show_metrics, summary="Counters for Prometheus")
        refusals: dict[type[Exception], Any] = {RefusedError: self._refuse, RequestValidationError: self._refuse_values}
        for error, answer_error in refusals.items():
            app.add_exception_handler(error, answer_error)
        app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=400))  # nobody reads it
        paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
        return Guard(app, self.metrics, paths, self.token, self.hosts, self.limits.per_client)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()

    async def _refuse(self, _: Request, error: RefusedError) -> JSONResponse:
        self.metrics.failures.labels(error.reason).inc()
        return JSONResponse({"detail": error.detail}, error.status, RETRY if error.status == 503 else None)

    async def _refuse_values(self, request: Request, error: RequestValidationError) -> JSONResponse:
        words = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return await self._refuse(request, RefusedError(400, "query", f"{words}."))

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
        async with self.receiver.uploads(request) as uploads, self._places(len(uploads)):
            results = await asyncio.gather(*(self._answer(deployed, upload, top_k) for upload in uploads))
        status = 422 if all(result.error for result in results) else 200
        return JSONResponse(Answers(model=deployed.name, results=results).model_dump(), status)

    @contextlib.asynccontextmanager
    async def _places(self, count: int) -> AsyncIterator[None]:
        """Room for so many images, and the time that they may take."""
        try:
            with self.batcher.places(count):
                async with asyncio.timeout(self.limits.seconds):
                    yield
        except FullError as error:
            raise RefusedError(503, "full", str(error)) from None
        except TimeoutError:
            words = f"The images could not be classified within {self.limits.seconds:g} seconds. Try again later."
            raise RefusedError(503, "timeout", words) from None

    async def _answer(self, model: Deployed, upload: Upload, top_k: int) -> Answer:
        try:
            pixels, note = await self._load(model, upload)
        except BadImageError as error:
            self.metrics.failures.labels("unreadable").inc()
            return Answer(file=upload.name, error=str(error))
        found, novelty = await self._classify(model, pixels)
        best = np.argsort(-found, kind="stable")[:top_k]
        names, sure = model.classifier.class_names, bool(found.max() >= model.least)
        self.metrics.images.labels(model.name, sure).inc()
        return Answer(
            file=upload.name,
            answer=names[best[0]] if sure else NOT_SURE,
            sure=sure,
            novelty=None if np.isnan(novelty) else novelty,
            predictions=[Prediction(label=names[row], probability=float(found[row])) for row in best],
            note=note,
        )

    async def _load(self, model: Deployed, upload: Upload) -> tuple[np.ndarray, str]:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, model.load, upload.contents)

    async def _classify(self, model: Deployed, pixels: np.ndarray) -> runtime.Answer:
        return await asyncio.wrap_future(self.batcher.submit(model.classifier, pixels))

    async def explain(self, request: Request, model: str = "") -> Response:
        """Send one image; the answer says where its likeliest class was seen, at the price of 50 images."""
        deployed = self._model(model)
        async with self._one(request, deployed) as (_, pixels), self._places(1 + PATCHES**2):
            images = [pixels[:1], *covered(pixels[0])[:, None]]
            answers = await asyncio.gather(*(self._classify(deployed, image) for image in images))
        whole, *each = (answer.probabilities for answer in answers)
        label = int(whole.argmax())
        name, heat = deployed.classifier.class_names[label], evidence(whole, each, label).tolist()
        return JSONResponse(Explanation(label=name, image=data_url(pixels[0]), heat=heat).model_dump())

    async def correct(self, request: Request, label: str, model: str = "") -> Response:
        """Send one image and what is on it, to be kept for the next training. Needs a server with --collect."""
        if self.corrections is None:
            raise RefusedError(403, "collect", "Nothing is kept here: the server was started without --collect.")
        deployed = self._model(model)
        if label not in deployed.classifier.class_names:
            words = f"Expected one of the classes: {', '.join(deployed.classifier.class_names)}."
            raise RefusedError(400, "label", words)
        async with self._one(request, deployed) as (contents, _):
            try:
                path = await run_in_threadpool(self.corrections.add, contents, label)
            except OSError as error:  # the disk is full, or the drive is gone
                raise RefusedError(507, "disk", f"It could not be saved: {error.strerror}.") from None
        return JSONResponse(Correction(path=path, label=label).model_dump())

    @contextlib.asynccontextmanager
    async def _one(self, request: Request, model: Deployed) -> AsyncIterator[tuple[bytes, np.ndarray]]:
        """The one image of a request: its contents and pixels."""
        async with self.receiver.uploads(request) as uploads:
            if len(uploads) > 1:
                raise RefusedError(400, "files", f"Expected one image. Received: {len(uploads)}.")
            try:
                async with self._places(1):
                    pixels, _ = await self._load(model, uploads[0])
            except BadImageError as error:
                raise RefusedError(422, "unreadable", str(error)) from None
            yield uploads[0].contents, pixels

    def _model(self, name: str) -> Deployed:
        """A run by its name; the first without one."""
        found = self.models.get(name) if name else next(iter(self.models.values()))
        if found is None:
            raise RefusedError(404, "model", f"There is no such model. Expected one of: {', '.join(self.models)}.")
        return found

    async def model(self, model: str = "") -> Response:
        """What must be known about a run: classes, scores, limits, versions."""
        deployed = self._model(model)
        about: dict[str, Any] = {"name": deployed.name, "names": list(self.models), "runtime": deployed.runtime}
        about["collects"] = self.corrections is not None
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
        await run_in_threadpool(gc.collect)  # the former ones, if they are TensorFlow's, refer to themselves
        await run_in_threadpool(device.give_back_memory)

    async def show_page(self) -> Response:
        """The page for people."""
        return HTMLResponse(self.page)

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
