"""A run as a LiteRT file (.tflite), for phones and small computers."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from ... import device, runs
from .graph import ANSWER


def write_litert(frozen: Any, temporary: Path, precision: str, calibration: np.ndarray, about: dict[str, Any]) -> None:
    """Write a LiteRT file, whose batch the interpreter may resize.

    Args:
        frozen: from `freeze`.
        temporary: file to write.
        precision: `float32`; `float16`: its weights; `int8`: weights and activations, but for what follows the logits.
        calibration: representative pixels [n, size, size, 3], whose activations set the scales of int8.
        about: files of this name in a ZIP archive behind the network, where LiteRT's own metadata would be.
    """
    with runs.quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        contents = _quantised(converter, calibration) if precision == "int8" else converter.convert()
    with temporary.open("wb") as out:
        out.write(contents)
    with zipfile.ZipFile(temporary, "a") as archive:
        for name, value in about.items():
            archive.writestr(f"{name}.json", json.dumps(value, ensure_ascii=False))
        archive.writestr("labels.txt", "\n".join(about["class_names"]) + "\n")


def _quantised(converter: tf.lite.TFLiteConverter, calibration: np.ndarray) -> bytes:
    """In int8 up to the logits. What follows (softmax, logarithm, softmax) would be rounded to 1/256 each time."""

    def images() -> Iterator[list[np.ndarray]]:
        return ([image[None].astype(np.float32)] for image in calibration)

    converter.representative_dataset = images
    debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=images)
    found = Interpreter(model_content=debugger.calibrated_model).get_tensor_details()
    answer = [tensor["name"] for tensor in found if ANSWER in tensor["name"]] + _outputs(debugger.calibrated_model)
    debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=answer)
    return debugger.get_nondebug_quantized_model()


def _outputs(contents: bytes) -> list[str]:
    return [tensor["name"] for tensor in Interpreter(model_content=contents).get_output_details()]


def load_litert(file: Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The function of a LiteRT file, run by LiteRT itself; for one thread at a time."""
    with runs.quiet():  # it tells of its delegate
        interpreter = Interpreter(model_path=str(file), num_threads=device.cores())
        interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def infer(pixels: np.ndarray) -> list[np.ndarray]:
        if tuple(interpreter.get_input_details()[0]["shape"]) != pixels.shape:
            interpreter.resize_tensor_input(into, pixels.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(into, pixels)
        interpreter.invoke()
        return [interpreter.get_tensor(out)]

    return infer
