"""A served run says what it says elsewhere; what is wrong is refused with a reason, and nobody else waits for it."""

import asyncio
import dataclasses
import gc
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, call
from PIL import Image
from served import (
    ABOUT,
    BLUE,
    CARD,
    GREEN,
    MIXED,
    ONLY,
    RED,
    TOKEN,
    backwards,
    built,
    colour_run,
    picture,
    process,
    shares,
)

pytest.importorskip("fastapi", reason='needs the extra serve: pip install -e ".[serve]"')
pytest.importorskip("prometheus_client", reason='needs the extra serve: pip install -e ".[serve]"')

from starlette.testclient import TestClient

from template import disk, runs
from template.data.examples import load_examples
from template.data.sources.names import DataError
from template.deploy.runtime import Classifier
from template.deploy.serve.batcher import Batcher, FullError
from template.deploy.serve.collect import Corrections
from template.deploy.serve.deployed import Deployed, open_runs
from template.deploy.serve.server import Service
from template.deploy.serve.uploads import Limits


def deployed(name: str = "colours", infer=shares) -> Deployed:
    return Deployed(name=name, runtime="onnx", classifier=Classifier(infer, ABOUT), card=CARD)


LIMITS = Limits(megabytes=0.2, files=4, seconds=5.0, bodies=2)


@pytest.fixture
def serve():
    """Makes a client of a service; all of them are closed in the end."""
    batchers, clients = [], []

    def start(*models: Deployed, limits: Limits = LIMITS, open_runs=None, room: int = 64, **how) -> TestClient:
        batchers.append(Batcher(wait=0.01, room=room))
        service = Service(open_runs or (lambda: models or [deployed()]), limits, batchers[-1], **how)
        client = TestClient(service.app())
        client.service = service
        clients.append(client)
        return client

    yield start
    for batcher in batchers:
        batcher.close()
        assert batcher.held == 0, "every place is given back"
    for client in clients:
        assert client.service.receiver.held == 0, "and every byte"


def form(*files: bytes) -> list:
    return [("files", (f"{number}.png", contents)) for number, contents in enumerate(files)]


# Answers


def test_files_are_answered_in_order_with_calibrated_probabilities_and_doubts(serve):
    answer = serve().post("/v1/predict?top_k=2", files=form(RED, BLUE, b"", MIXED))
    assert answer.status_code == 200 and answer.json()["model"] == "colours"
    red, blue, empty, mixed = answer.json()["results"]
    assert [red["answer"], blue["answer"], mixed["answer"]] == ["red", "blue", "not sure"]
    assert (red["sure"], mixed["sure"]) == (True, False) and mixed["predictions"][0]["label"] == "red"
    np.testing.assert_allclose([p["probability"] for p in mixed["predictions"]], [0.4, 1 / 3], atol=1e-6)
    assert empty["answer"] == "" and empty["predictions"] == [] and "the file is empty" in empty["error"]
    assert [result["file"] for result in answer.json()["results"]] == ["0.png", "1.png", "2.png", "3.png"]


def test_what_is_like_nothing_in_training_is_told_where_the_export_knows(serve, tmp_path):
    for knows in (True, False):
        client = serve(*open_runs([colour_run(tmp_path / f"{knows}", novelty=knows)]))
        results = client.post("/v1/predict", files=form(GREEN, RED, MIXED)).json()["results"]
        assert [result["answer"] for result in results] == ["green", "red", "not sure"]
        assert [result["novelty"] for result in results] == ([pytest.approx(1.275), 0, 0.5] if knows else [None] * 3)
        assert client.post("/v1/explain", content=GREEN).json()["label"] == "green"


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_may_be_an_image_whatever_it_is_called(serve, kind):
    answer = serve().post("/v1/predict", content=BLUE, headers={"Content-Type": kind})
    assert answer.status_code == 200 and answer.json()["results"][0]["answer"] == "blue"


def test_where_no_file_can_be_read_the_request_is_wrong_and_has_a_reason_for_each(serve):
    large = picture((0, 0, 9), size=2000)  # 4 megapixels, and the run takes one
    answer = serve().post("/v1/predict", files=form(b"GIF8 no", large, b"hello"))
    errors = [result["error"] for result in answer.json()["results"]]
    assert answer.status_code == 422 and len(errors) == 3
    assert "GIF" in errors[0] and "megapixels" in errors[1] and "text, not an image" in errors[2]


@pytest.mark.parametrize(("megapixels", "words"), [(9.0, "1 megapixels; make it smaller, or raise data.max_megapixels"),
                                                   (0.5, "the 0.5 megapixels that this server takes")])  # fmt: skip
def test_an_image_that_is_too_large_is_told_whose_limit_it_is(serve, megapixels, words):
    client = serve(dataclasses.replace(deployed(), megapixels=megapixels))
    (result,) = client.post("/v1/predict", content=picture((0, 0, 9), size=2000)).json()["results"]
    assert "is more than " + words in result["error"]
    assert client.post("/v1/predict", content=RED).status_code == 200


def test_what_had_to_be_assumed_is_said(serve):
    out = io.BytesIO()
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    (result,) = serve().post("/v1/predict", content=out.getvalue()).json()["results"]
    assert result["answer"] == "red" and "first frame" in result["note"]


def test_several_runs_answer_under_their_names(serve):
    client = serve(deployed("a"), deployed("b", backwards))
    said = {name: client.post(f"/v1/predict?model={name}", content=RED).json() for name in ("", "a", "b")}
    assert [said[name]["model"] for name in said] == ["a", "a", "b"]
    assert [said[name]["results"][0]["answer"] for name in said] == ["red", "red", "blue"]
    for wrong in ("c", "../a", "a/"):
        answer = client.post("/v1/predict", params={"model": wrong}, content=RED)
        assert answer.status_code == 404 and "Expected one of: a, b" in answer.json()["detail"]


def test_the_card_the_schema_and_the_states_are_there(serve):
    client = serve()
    card = client.get("/v1/model").json()
    assert card["classes"] == ["red", "green", "blue"] and card["name"] == "colours" and card["requests"]["files"] == 4
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    schema = client.get("/openapi.json").json()
    predict = schema["paths"]["/v1/predict"]["post"]
    example = predict["responses"]["200"]["content"]["application/json"]["example"]
    assert {part["name"] for part in predict["parameters"]} == {"top_k", "model"}
    assert set(example["results"][0]) == set(schema["components"]["schemas"]["Answer"]["properties"])
    assert set(client.post("/v1/predict", content=RED).json()["results"][0]) == set(example["results"][0])
    assert {"multipart/form-data", "image/*"} < set(predict["requestBody"]["content"])


def test_what_is_counted_is_true(serve):
    client = serve()
    client.post("/v1/predict", files=form(RED, b"no", MIXED))
    client.post("/v1/predict", content=b"")
    client.get("/nowhere/at/all")
    said = client.get("/metrics").text
    for line in (
        'serve_requests_total{path="/v1/predict",status="200"} 1.0',
        'serve_requests_total{path="/v1/predict",status="400"} 1.0',
        'serve_requests_total{path="other",status="404"} 1.0',
        'serve_failures_total{reason="unreadable"} 1.0',
        'serve_failures_total{reason="empty"} 1.0',
        'serve_images_total{model="colours",sure="True"} 1.0',
        'serve_images_total{model="colours",sure="False"} 1.0',
        "serve_batch_size_sum 2.0",
        "serve_images_on_their_way 0.0",
        'serve_request_seconds_count{path="/v1/predict"} 2.0',
    ):
        assert line in said


# Refusals


def multipart(body: bytes, boundary: str = "x", kind: str = "multipart/form-data") -> dict:
    return {"content": body, "headers": {"Content-Type": f"{kind}; boundary={boundary}" if boundary else kind}}


PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + RED + b"\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"content": b""}, 400, "empty body"),
        ({"content": b"x" * 300_000}, 413, "at most 0.2 MB"),
        ({"content": iter([b"x" * 100_000] * 3)}, 413, "at most 0.2 MB"),
        ({"files": form(b"x" * 300_000)}, 413, "at most 0.2 MB"),
        ({"files": form(*[RED] * 5)}, 413, "at most 4 files"),
        ({"files": form(*[b"x"] * 500)}, 413, "at most 4 files"),
        ({"data": {f"f{n}": "x" for n in range(5)}, "files": form(RED)}, 400, "Too many fields"),
        (multipart(b"", boundary=""), 400, "boundary"),
        (multipart(b"no form at all"), 400, "The form cannot be read"),
        (multipart(PART), 400, "cut short"),
        (multipart(PART[:-40]), 400, "cut short"),
        (multipart(b"--x--"), 400, "Received: none"),
        (multipart(b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\nhello\r\n--x--'), 400, "Received: none"),
        (multipart(b"--x\r\nContent-Disposition: form-data\r\n\r\nhello\r\n--x--"), 400, "must be provided"),
        (multipart(PART.replace(b"a.png", b"\xff\xfe") + b"--x--", "x; charset=punycode"), 400, "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_with_a_reason(serve, sent, status, words):
    client = serve()
    answer = client.post("/v1/predict", **sent)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert client.post("/v1/predict", content=RED).status_code == 200


@pytest.mark.parametrize("query", ["top_k=0", "top_k=abc", "top_k=99999"])
def test_wrong_numbers_are_refused_with_their_name(serve, query):
    answer = serve().post(f"/v1/predict?{query}", content=RED)
    assert answer.status_code == 400 and answer.json()["detail"].startswith("top_k: Input should be")


def test_a_correction_that_cannot_be_saved_is_said(serve, tmp_path, monkeypatch):
    client = serve(corrections=Corrections(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_text", full)
    answer = client.post("/v1/correct?label=red", content=RED)
    assert answer.status_code == 507 and "No space left" in answer.json()["detail"]


def test_a_whole_form_is_read_whatever_stands_around_it(serve):
    for end in (b"--x--", b"--x--\r\n", b"--x--\r\nmore"):
        assert serve().post("/v1/predict", **multipart(PART + end)).json()["results"][0]["answer"] == "red"


def test_names_of_clients_are_words_and_no_paths(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 3000, "<script>", "ä猫"]
    for name in names:
        (result,) = serve().post("/v1/predict", files=[("files", (name, RED))]).json()["results"]
        assert result["answer"] == "red" and result["file"] == name[:200]
    odd = multipart(PART.replace(b"a.png", b"\\ud800\\x00.png") + b"--x--", "x; charset=raw_unicode_escape")
    answer = serve().post("/v1/predict", **odd)
    assert answer.status_code == 200 and "\\ud800" in answer.json()["results"][0]["file"]
    assert list(tmp_path.iterdir()) == []


def test_no_upload_is_written_to_a_disk(serve, monkeypatch):
    from tempfile import SpooledTemporaryFile

    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to a disk"))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    assert len(out.getvalue()) > 2**21
    answer = serve(limits=Limits()).post("/v1/predict", files=form(out.getvalue(), RED))
    assert [result["error"] for result in answer.json()["results"]] == ["", ""]


def test_a_slow_sender_is_sent_away_and_one_that_never_ends_too(serve):
    async def slowly():
        yield RED[:10]
        await asyncio.sleep(60)

    async def for_ever():
        while True:
            yield b"x" * 50_000
            await asyncio.sleep(0)

    for body, status in ((slowly, 408), (for_ever, 413)):
        service = serve(limits=Limits(megabytes=0.2, seconds=0.2)).service
        sent = asyncio.run(asked(service, body()))
        assert service.receiver.held == 0
        assert sent[0]["status"] == status and json.loads(sent[1]["body"])["detail"]


async def asked(service: Service, body, headers: tuple = ()) -> list[dict]:
    """What the application says to a body that comes bit by bit; a disconnect is one that ends too early."""

    async def receive() -> dict:
        try:
            return {"type": "http.request", "body": await anext(body), "more_body": True}
        except StopAsyncIteration:
            return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    sent: list[dict] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": list(headers)}
    await service.app()(scope | {"http_version": "1.1"}, receive, send)
    return sent


def test_a_client_that_hangs_up_is_no_error(serve):
    async def a_part():
        yield RED[:10]

    service = serve().service
    assert asyncio.run(asked(service, a_part()))[0]["status"] == 400


def test_bodies_of_all_clients_together_are_bounded(serve):
    client = serve()
    client.service.receiver.held = 2 * 200_000 - 5
    answer = client.post("/v1/predict", content=RED)
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
    client.service.receiver.held = 0
    assert client.post("/v1/predict", content=RED).status_code == 200


# The page: its explanations and corrections


def test_what_an_answer_rests_on_is_where_it_is(serve):
    image = np.full((56, 56, 3), (60, 60, 60), np.uint8)
    image[16:32, 32:48] = (255, 0, 0)  # the third row of squares, the fifth and sixth column
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    about = ABOUT | {"inputs": ABOUT["inputs"] | {"image_size": 56, "center_zoom": True}}
    client = serve(dataclasses.replace(deployed(), classifier=Classifier(shares, about)))
    said = client.post("/v1/explain", content=out.getvalue()).json()
    heat = np.array(said["heat"])
    assert said["label"] == "red" and said["image"].startswith("data:image/jpeg;base64,") and heat.shape == (7, 7)
    assert (heat[2:4, 4:6] > 0.02).all() and np.abs(heat[:2]).max() < 0.02 and heat[5:].max() < 0.02
    assert client.post("/v1/predict", content=out.getvalue()).json()["results"][0]["predictions"][0]["label"] == "red"


def test_a_correction_is_kept_once_under_a_name_of_its_contents_and_can_be_trained_on(serve, tmp_path):
    kept = tmp_path / "kept"
    client = serve(corrections=Corrections(kept))
    form_of = {"files": [("image", ("../../evil.png", MIXED))]}
    for contents, label in ((RED, "blue"), (picture((0, 9, 0), "JPEG"), "green"), (RED, "red")):
        path = client.post("/v1/correct", params={"label": label}, content=contents).json()["path"]
        assert (kept / path).read_bytes() == contents
    assert client.post("/v1/correct", params={"label": "red"}, **form_of).status_code == 200
    for label, contents, status in (("../x", RED, 400), ("red", b"junk", 422), ("red", b"", 400)):
        answer = client.post("/v1/correct", params={"label": label}, content=contents)
        assert answer.status_code == status and answer.json()["detail"]
    two = client.post("/v1/correct", params={"label": "red"}, files=form(RED, BLUE))
    assert two.status_code == 400 and "one image" in two.json()["detail"]
    names = sorted(file.name for file in (kept / "images").iterdir())
    assert len(names) == 3 and {name[64:] for name in names} == {".png", ".jpg"}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted([*names, "labels.csv"])
    examples = load_examples(str(kept / "labels.csv"))
    assert sorted(np.array(examples.class_names)[examples.labels]) == ["green", "red", "red"]
    assert Corrections(kept).labels == client.service.corrections.labels, "and after a restart too"
    refused = serve().post("/v1/correct", params={"label": "red"}, content=RED)
    assert refused.status_code == 403 and "--collect" in refused.json()["detail"]


# Load


class Gate:
    """A network that waits until it may answer."""

    def __init__(self) -> None:
        self.open, self.entered, self.sizes = threading.Event(), threading.Event(), []

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(20)
        self.sizes.append(len(pixels))
        return shares(pixels)


def test_beyond_the_queue_clients_come_again_while_health_is_answered(serve):
    gate = Gate()
    with serve(deployed(infer=gate), room=4) as client, ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, "/v1/predict", content=RED)
        assert gate.entered.wait(20)
        second = pool.submit(client.post, "/v1/predict", files=form(BLUE, RED, b"junk"))
        while client.service.batcher.held < 4:
            time.sleep(0.001)
        full = client.post("/v1/predict", content=RED)
        assert full.status_code == 503 and full.headers["Retry-After"] and "4 images" in full.json()["detail"]
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert "serve_images_on_their_way 4.0" in client.get("/metrics").text
        gate.open.set()
        assert first.result().json()["results"][0]["answer"] == "red"
        assert [r["answer"] for r in second.result().json()["results"]] == ["blue", "red", ""]
        assert client.post("/v1/predict", content=RED).status_code == 200


def test_one_address_may_not_ask_all_at_once_while_health_is_answered(serve):
    gate = Gate()
    limits = dataclasses.replace(LIMITS, per_client=2)
    with serve(deployed(infer=gate), limits=limits) as client, ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(client.post, "/v1/predict", content=RED) for _ in range(2)]
        while client.service.batcher.held < 2:
            time.sleep(0.001)
        third = client.post("/v1/predict", content=RED)
        assert third.status_code == 429 and third.headers["Retry-After"] and "at most 2" in third.json()["detail"]
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        other = TestClient(client.app, client=("another", 1))
        begun.append(pool.submit(other.post, "/v1/predict", content=RED))
        gate.open.set()
        assert [each.result().status_code for each in begun] == [200, 200, 200]
        assert client.post("/v1/predict", content=RED).status_code == 200 and not client.app.asking


def test_who_waits_too_long_is_told_and_does_not_hold_a_place(serve):
    gate = Gate()
    with serve(deployed(infer=gate), limits=Limits(seconds=0.2)) as client:
        answer = client.post("/v1/predict", content=RED)
        assert answer.status_code == 503 and "within 0.2 seconds" in answer.json()["detail"]
        assert client.service.batcher.held == 0
        gate.open.set()
        assert client.post("/v1/predict", content=RED).status_code == 200


def test_requests_share_batches_of_one_network_and_each_gets_its_own_answer():
    gate, sizes = Gate(), []
    batcher = Batcher(most=8, wait=5, room=99, seen=sizes.append)
    one, other = Classifier(gate, ABOUT), Classifier(backwards, ABOUT)
    images = [np.full((1, 8, 8, 3), (n, 255 - n, 0), np.uint8) for n in range(20)]
    with batcher.places(40):
        answers = [batcher.submit(one, image) for image in images[:8]]  # a full batch, which waits at the gate
        assert gate.entered.wait(20)
        cancelled = batcher.submit(one, images[0])
        assert cancelled.cancel()
        answers += [batcher.submit(one, image) for image in images[8:]]
        others = [batcher.submit(other, image) for image in images]
        gate.open.set()
        batcher.close()
    expected = np.stack([shares(image.astype(np.float32))[0][0] for image in images])
    np.testing.assert_allclose([answer.result(0).probabilities for answer in answers], expected, atol=1e-6)
    np.testing.assert_allclose([answer.result(0).probabilities for answer in others], expected[:, ::-1], atol=1e-6)
    assert max(sizes) == 8 and sum(sizes) == 40 and len(sizes) <= 7 and not batcher.alive
    with pytest.raises(CancelledError):
        cancelled.result(0)


def test_an_image_waits_for_no_others_where_none_are_on_their_way():
    batcher = Batcher(most=8, wait=1000)
    with batcher.places(1):
        batcher.submit(Classifier(shares, ABOUT), np.zeros((1, 8, 8, 3), np.uint8)).result(20)
    batcher.close()


def test_a_network_is_let_go_of_when_it_has_answered():
    batcher, classifier = Batcher(wait=0), Classifier(shares, ABOUT)
    gone = threading.Event()
    weakref.finalize(classifier, gone.set)
    with batcher.places(1):
        batcher.submit(classifier, np.zeros((1, 8, 8, 3), np.uint8)).result(20)
    del classifier
    assert gone.wait(20), "though nobody asks again"
    batcher.close()


def test_a_network_that_fails_is_heard_of_and_the_next_batch_is_answered():
    batcher, image = Batcher(wait=0, room=1), np.zeros((1, 8, 8, 3), np.uint8)
    with batcher.places(1), pytest.raises(FullError, match="1 images are on their way"), batcher.places(1):
        pass
    with pytest.raises(ZeroDivisionError):
        batcher.submit(Classifier(lambda pixels: 1 / 0, ABOUT), image).result(20)
    assert batcher.submit(Classifier(shares, ABOUT), image).result(20).probabilities.shape == (3,) and batcher.alive
    batcher.close()


# Swapping


def test_a_run_that_was_swapped_is_gone_though_it_refers_to_itself(serve):
    """As networks of TensorFlow do."""
    opened = []

    def open_runs() -> list[Deployed]:
        model = deployed()
        model.classifier.itself = model.classifier
        opened.append(weakref.ref(model.classifier))
        return [model]

    service = serve(open_runs=open_runs).service
    gc.disable()  # which would come to it by and by
    try:
        asyncio.run(service.swap())
        assert [network() is None for network in opened] == [True, False]
    finally:
        gc.enable()


def test_a_run_is_swapped_and_requests_that_had_begun_are_answered_by_the_former(serve):
    gate, opened = Gate(), []

    def open_runs() -> list[Deployed]:
        opened.append(deployed(infer=gate) if not opened else deployed(infer=backwards))
        if len(opened) == 3:
            raise DataError("the run is damaged.")
        return opened[-1:]

    headers = {"Authorization": f"Bearer {TOKEN}"}
    with serve(open_runs=open_runs, token=TOKEN) as client, ThreadPoolExecutor(1) as pool:
        before = pool.submit(client.post, "/v1/predict", content=RED, headers=headers)
        assert gate.entered.wait(20)
        assert client.post("/v1/reload", headers=headers).json() == {"names": ["colours"]}
        after = pool.submit(client.post, "/v1/predict", content=RED, headers=headers)
        gate.open.set()
        assert before.result().json()["results"][0]["answer"] == "red"
        assert after.result().json()["results"][0]["answer"] == "blue"
        refused = client.post("/v1/reload", headers=headers)
        assert refused.status_code == 409 and "the run is damaged. The former runs go on." in refused.json()["detail"]
        assert client.post("/v1/predict", content=RED, headers=headers).json()["results"][0]["answer"] == "blue"


# Who may ask


def test_a_token_is_needed_for_all_that_says_something_of_a_run(serve):
    client = serve(token=TOKEN)
    for given in (
        {},
        {"Authorization": "Bearer x"},
        {"Authorization": TOKEN},
        {"Authorization": f"bearer é{TOKEN}".encode()},
    ):
        for path in ("/v1/model", "/metrics", "/nowhere"):
            answer = client.get(path, headers=given)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert client.post("/v1/predict", content=RED, headers=given).status_code == 401
        assert client.post("/v1/reload", headers=given).status_code == 401
    assert all(client.get(path).status_code == 200 for path in ("/", "/healthz", "/readyz", "/openapi.json"))
    assert client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    refused = serve().post("/v1/reload")
    assert refused.status_code == 403 and "with a token" in refused.json()["detail"]


def test_other_pages_and_other_hosts_are_not_answered(serve):
    client = serve(hosts=("testserver", "localhost"))
    for headers, status in (
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 403),
    ):
        assert client.post("/v1/predict", content=RED, headers=headers).status_code == status, headers


def test_every_answer_tells_browsers_to_be_careful(serve):
    client = serve(token=TOKEN)
    for path, status in (("/nowhere", 401), ("/v1/model", 401), ("/healthz", 200), ("/openapi.json", 200)):
        answer = client.get(path)
        assert answer.status_code == status and answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store" and answer.headers["Referrer-Policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_an_error_of_ours_is_a_500_with_the_same_headers(serve):
    client = serve(deployed(infer=lambda pixels: 1 / 0))
    client.raise_server_exceptions = False
    answer = TestClient(client.app, raise_server_exceptions=False).post("/v1/predict", content=RED)
    assert answer.status_code == 500 and answer.headers["X-Frame-Options"] == "DENY"
    assert "Traceback" not in answer.text and client.get("/healthz").status_code == 200


# A process


def ask(port: int, contents: bytes, token: str = TOKEN) -> str:
    """The answer to an image."""
    headers = {"Content-Type": "image/png", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", contents, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)["results"][0]["answer"]


DOCKER = ROOT / "docker"


def head_of(port: int, contents: bytes) -> bytes:
    """A request without its body."""
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Length: {len(contents)}\r\n"
    return f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode()


def received(client: socket.socket) -> bytes:
    """All that is answered until the connection is closed."""
    return b"".join(iter(lambda: client.recv(4096), b""))


def test_a_process_answers_swaps_a_run_and_ends_when_what_it_has_begun_is_done(tmp_path):
    run, token = colour_run(tmp_path / "colours"), tmp_path / "token"
    token.write_text(TOKEN + "\n")
    with process("--run", run, "--token-file", token) as (running, port):
        assert [ask(port, contents) for contents in (RED, BLUE, MIXED)] == ["red", "blue", "not sure"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(port, RED, token="another-token-of-16")
        colour_run(run, order=(2, 1, 0))
        running.send_signal(signal.SIGHUP)
        assert running.stdout.readline() == "loaded anew\n" and ask(port, RED) == "blue"
        (run / "export" / "model.onnx").write_bytes(b"damaged")
        running.send_signal(signal.SIGHUP)
        assert "the former runs go on" in running.stderr.readline() and ask(port, RED) == "blue"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(head_of(port, RED) + RED[:20])
            time.sleep(0.2)  # until it has begun
            with socket.create_connection(("127.0.0.1", port), timeout=20) as later:
                running.terminate()
                time.sleep(0.2)
                later.sendall(head_of(port, RED) + RED)  # it was connected, and could not know
                answers = [received(later)]
            client.sendall(RED[20:])
            answers.append(received(client))
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 200") and b'"answer":"blue"' in answer
            assert b"connection: close" in answer.lower()
        assert running.wait(10) == 0 and running.stderr.read() == ""


@pytest.mark.slow
def test_a_client_that_never_ends_does_not_keep_a_process_and_a_killed_one_starts_again(tmp_path):
    run = colour_run(tmp_path / "colours")
    with process("--run", run) as (running, port):
        running.kill()
    with (
        process("--run", run, port=port) as (running, same),
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        assert same == port and ask(port, RED) == "red"
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n" + RED[:20])
        time.sleep(0.2)
        start = time.monotonic()
        running.terminate()
        assert running.wait(12) == 0 and 5 < time.monotonic() - start < 10


@pytest.mark.slow
def test_a_connection_without_a_request_is_closed_and_one_that_is_used_is_not(tmp_path):
    with process("--run", colour_run(tmp_path / "colours"), "--max-seconds", "1") as (_, port):
        silent, begun = (socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2))
        used = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        begun.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: local")
        used.connect()
        first = used.sock
        for _ in range(12):
            used.request("GET", "/healthz")
            assert used.getresponse().read() == b'{"status":"ok"}'
            time.sleep(0.25)
        assert silent.recv(1) == begun.recv(1) == b""
        assert used.sock is first, "as long as it was used"
        first.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        assert first.recv(1) == b""
        for client in (silent, begun, used):
            client.close()


@pytest.mark.slow
def test_no_request_is_lost_while_runs_are_swapped(tmp_path):
    run = colour_run(tmp_path / "colours")
    with process("--run", run) as (running, port), ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, port, RED) for _ in range(600)]
        for number in range(6):
            order = ((2, 1, 0), (0, 1, 2))[number % 2]
            with disk.replacing_folder(run / "export") as temporary:
                (colour_run(tmp_path / f"new{number}", order) / "export" / "model.onnx").rename(
                    temporary / "model.onnx"
                )
                (tmp_path / f"new{number}" / "export" / "model_card.json").rename(temporary / "model_card.json")
            running.send_signal(signal.SIGHUP)
            assert running.stdout.readline() == "loaded anew\n"
        said = [answer.result() for answer in answers]
        assert set(said) == {"red", "blue"} and len(said) == 600


SERVER = "PIL numpy onnxruntime template fastapi starlette pydantic pydantic_core annotated_types annotated_doc anyio "
SERVER += "opentelemetry typing_extensions typing_inspection idna h11 click uvicorn python_multipart multipart "
SERVER += "prometheus_client"


@pytest.mark.slow
def test_a_server_needs_no_tensorflow_and_writes_nothing(tmp_path):
    (tmp_path / "home").mkdir()
    entry = built("server", colour_run(tmp_path / "colours"), tmp_path / "image")
    before = sorted(tmp_path.rglob("*"))
    lines = (DOCKER / "server.Dockerfile").read_text().splitlines()
    (check,) = (json.loads(line.partition("CMD ")[2]) for line in lines if line.startswith("    CMD"))
    env = {"PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path / "home")}
    line = [sys.executable, "-c", ONLY, SERVER, *entry, "--port", "0"]
    with subprocess.Popen(line, cwd=tmp_path / "image" / "app", env=env, stdout=subprocess.PIPE, text=True) as running:
        try:
            said = running.stdout.readline()
            port = int(said.rpartition("0.0.0.0:")[2].split()[0])
            assert said.startswith("run (onnx)") and ask(port, MIXED) == "not sure" and ask(port, BLUE) == "blue"
            healthy = [sys.executable, "-c", check[2].replace("8000", str(port))]
            assert subprocess.run(healthy, check=False).returncode == 0
            running.terminate()
            assert running.wait(10) == 0
        finally:
            running.kill()
    assert sorted(tmp_path.rglob("*")) == before
    done = subprocess.run(healthy, check=False, capture_output=True, text=True)
    assert done.returncode != 0 and "refused" in done.stderr


def test_runs_that_cannot_be_served_are_refused_before_anybody_is_answered(tmp_path):
    line = ("--run", tmp_path / "none", "--port", "0")
    last_words, _ = call("serve", *line, "--runtime", "onnx")
    assert "has no ONNX export" in last_words
    last_words, _ = call("serve", *line)
    assert "does not hold a finished run" in last_words
    with pytest.raises(DataError, match="'a' twice"):
        open_runs([tmp_path / "a", tmp_path / "b" / "a"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-files", "0"], "--max-files: expected more than 0"),
        (["--max-seconds", "-1"], "--max-seconds: expected more than 0"),
        (["--max-queue", "49"], "--max-queue: expected at least 50"),
        (["--port", "99999"], "cannot be used"),
        (["--host", "256.1.1.1"], "cannot be used"),
        (["--port", "TAKEN"], "cannot be used"),
        (["--fd", "999"], "socket 999 cannot be used (Bad file descriptor)"),
        (["--max-per-client", "0"], "--max-per-client: expected more than 0"),
        (["--port", "0", "--token-file", "/nowhere"], "cannot be read as a token"),
        (["--port", "0", "--token-file", "short"], "a token of 16"),
    ],
)
def test_wrong_options_are_refused(tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = call("serve", "--run", "RUN", *[port if option == "TAKEN" else option for option in options])
    assert words in f"{code} {said}"
