"""What a person answers is saved, compared rightly, and taken from this machine alone."""

import base64
import http.client
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from template.data.examples import DataError, Examples, load_examples
from template.deploy.annotate import Annotations, Server, compare, sample
from template.evaluate.predictions import Predictions


@pytest.fixture
def examples(class_folder) -> Examples:
    return load_examples(str(class_folder))


def predictions(examples: Examples, wrong: int = 0) -> Predictions:
    """Of every third image; the first few are wrong."""
    some = examples.take(np.arange(0, len(examples), 3))
    predicted = np.where(np.arange(len(some)) < wrong, (some.labels + 1) % 3, some.labels)
    return Predictions(some.ids, some.labels, 5 * np.eye(3, dtype=np.float32)[predicted], examples.class_names)


@pytest.fixture
def asked(examples, tmp_path) -> Annotations:
    return Annotations(sample(examples, predictions(examples), 6), tmp_path / "human.json")


@pytest.fixture
def server(asked):
    with Server(asked, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def request(server: Server, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    data = None if body is None else body if isinstance(body, str) else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    return response.status, response.read()


def test_the_images_are_those_that_the_run_was_measured_on_in_an_order_that_says_nothing(examples):
    predicted = predictions(examples)
    some = sample(examples, predicted, 6)
    assert len(some) == 6 and set(some.ids) < set(predicted.ids) and list(some.ids) != sorted(some.ids)
    assert list(some.ids) == list(sample(examples, predicted, 6).ids), "to go on tomorrow"
    assert set(sample(examples, predicted, 999).ids) == set(predicted.ids)
    with pytest.raises(DataError, match="12 images .* are missing, such as"):
        sample(examples.take(np.arange(1, len(examples), 3)), predicted, 999)


def test_a_whole_session(server, asked):
    status, page = request(server, "GET", "/")
    assert status == 200 and b"across" in page and not any(str(name).encode() in page for name in asked.examples.ids)
    assert json.loads(request(server, "GET", "/answers")[1]) == [None] * 6
    for row in (0, 3):
        assert request(server, "POST", "/answers", {"row": row, "label": "disc"})[0] == 200
    assert request(server, "POST", "/answers", {"row": 3, "label": "upright"})[0] == 200, "one may change one's mind"
    assert json.loads(request(server, "GET", "/answers")[1]) == ["disc", None, None, "upright", None, None]
    names = [str(name) for name in asked.examples.ids]
    assert json.loads(asked.file.read_text()) == {names[0]: "disc", names[3]: "upright"}
    assert Annotations(asked.examples, asked.file).answers() == asked.answers(), "found again tomorrow"


def test_a_image_is_shown_whole_and_says_nothing_else(server, asked):
    status, body = request(server, "GET", "/image/2")
    kind, encoded = json.loads(body).split(",")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).resize((32, 32)), float)
    with Image.open(asked.examples.images[2]) as original:
        assert np.corrcoef(shown.ravel(), np.asarray(original, float).ravel())[0, 1] > 0.9
    assert status == 200 and kind == "data:image/jpeg;base64"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"row": 6, "label": "disc"}, "from 0 to 5"),
        ({"row": -1, "label": "disc"}, "from 0 to 5"),
        ({"row": 0, "label": "dog"}, "dog"),
        ({"row": "0", "label": "disc"}, "from 0 to 5"),
        ({"row": 0}, "label"),
        ([1, 2], "indices"),
        ("not json", "Expecting value"),
    ],
)
def test_an_answer_that_is_none_changes_nothing(server, asked, body, message):
    status, reply = request(server, "POST", "/answers", body)
    assert status == 400 and message in json.loads(reply)
    assert asked.answers() == [None] * 6 and not asked.file.exists()


def test_other_sites_are_turned_away(server, asked):
    answer = {"row": 0, "label": "disc"}
    assert request(server, "GET", "/answers", Host="evil.example")[0] == 403
    assert request(server, "POST", "/answers", answer, Host="evil.example")[0] == 403
    # What a form on another site can send without the browser asking us first.
    assert request(server, "POST", "/answers", answer, **{"Content-Type": "text/plain"})[0] == 403
    assert asked.answers() == [None] * 6
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/image/6", "/image/", "/image/x", "/../human.json", "/image/../0"])
def test_nothing_else_is_served(server, path):
    assert request(server, "GET", path)[0] == 404


def test_a_missing_image_is_reported_and_the_rest_goes_on(server, asked):
    Path(asked.examples.images[1]).unlink()
    status, reply = request(server, "GET", "/image/1")
    assert status == 404 and json.loads(reply)
    assert request(server, "GET", "/image/2")[0] == 200


def test_person_classifier_and_labels_are_compared_on_what_the_person_named(examples):
    predicted = predictions(examples, wrong=3)  # the classifier errs on the first three of twelve
    names, classes = list(map(str, predicted.ids)), predicted.class_names
    true = [classes[label] for label in predicted.labels]
    other = classes[(predicted.labels[9] + 1) % 3]
    answers = dict(zip(names[:10], true, strict=False)) | {names[9]: other}
    found = compare(answers, predicted)
    assert found["images"] == 10
    assert found["human"]["value"] == 0.9 and found["classifier"]["value"] == 0.7 and found["agreement"]["value"] == 0.6
    assert found["disagreements"] == [(names[9], true[9], other)]
    assert 0 < found["cohen_kappa"]["value"] < 1
    with pytest.raises(ValueError, match="at least one"):
        compare({"another.png": "disc"}, predicted)
