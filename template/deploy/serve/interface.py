"""What the server says, for OpenAPI: the form of its answers, with examples, and when there is none."""

from typing import Annotated, Any

from pydantic import BaseModel, Field


class Prediction(BaseModel):
    """A class and what speaks for it."""

    label: str
    probability: Annotated[float, Field(description="calibrated: of answers with 0.9, nine of ten are right")]


_NOVELTY = (
    "distance to the most similar image of training, as a part of what is usual: above 1, the image is like nothing in "
    "training, whatever the answer; null where the run cannot tell"
)


class Answer(BaseModel):
    """What is said of one file."""

    file: Annotated[str, Field(description="its name, as it was sent")]
    answer: Annotated[str, Field(description="the class, 'not sure', or empty if the file cannot be read")] = ""
    sure: Annotated[bool, Field(description="whether the confidence reaches the run's reject level")] = False
    novelty: Annotated[float | None, Field(description=_NOVELTY)] = None
    predictions: Annotated[list[Prediction], Field(description="the likeliest classes, most likely first")] = []
    note: Annotated[str, Field(description="what had to be assumed to read it")] = ""
    error: Annotated[str, Field(description="why it cannot be read")] = ""


class Answers(BaseModel):
    """What is said of the files of a request, in their order."""

    model: str
    results: list[Answer]


class Explanation(BaseModel):
    """Where in an image its likeliest class was seen."""

    label: str
    image: Annotated[str, Field(description="what the network was asked about, as a data URL")]
    heat: Annotated[
        list[list[float]],
        Field(description="how much log p(label) falls where a square of the image is covered, row by row"),
    ]


class Correction(BaseModel):
    """What was kept of a correction."""

    path: Annotated[str, Field(description="of the image, in the folder and in its labels.csv")]
    label: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


_LIKELY = [{"label": "rose", "probability": 0.93}, {"label": "tulip", "probability": 0.05}]
_GOOD = {"file": "a.jpg", "answer": "rose", "sure": True, "novelty": 0.61, "predictions": _LIKELY}
_GOOD |= {"note": "", "error": ""}
_BAD = {"file": "b.jpg", "answer": "", "sure": False, "novelty": None, "predictions": [], "note": ""}
_BAD |= {"error": "the file is empty"}
_WHY = {400: "broken form, or no file", 401: "no token", 404: "no such model", 408: "sent too slowly"}
_WHY |= {413: "too large, or too many files", 429: "too many requests at once of one address"}
_WHY |= {503: "too much to do; come again after Retry-After seconds"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "object", "properties": {"files": {"type": "array", "items": _BINARY["schema"]}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words} for status, words in _WHY.items()
}
IMAGE: dict[str, Any] = {"requestBody": {"required": True, "content": {"image/*": _BINARY}}}
PREDICT: dict[str, Any] = {
    "response_model": Answers,
    "responses": {
        200: {"content": {"application/json": {"example": {"model": "flowers", "results": [_GOOD, _BAD]}}}},
        422: {"model": Answers, "description": "none of the files can be read: their reasons are in `error`"}
        | {"content": {"application/json": {"example": {"model": "flowers", "results": [_BAD]}}}},
        **PROBLEMS,
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
