"""A run as an ONNX file, in float32, with float16 weights, or quantised to int8."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tf2onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from .export_graph import ANSWER, INPUT, OUTPUT, Served

OPSET = 18
QUANTISED = (
    "Conv", "MatMul", "Gemm", "Add", "Mul", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Pad",
)  # fmt: skip
"""Operations in int8; those between convolutions are among them so that nothing is converted to and fro."""


def write_onnx(served: Served, file: Path, precision: str, calibration: np.ndarray, about: dict[str, Any]) -> None:
    """Write an ONNX file of dynamic batch.

    Args:
        served: the graph.
        file: to write.
        precision: `float32`; `float16`: so are its weights, while it computes in float32; `int8`: weights and
            activations, the former with a scale for each channel, without which depthwise networks are destroyed.
        calibration: representative pixels [n, size, size, 3], whose activations set the scales of int8.
        about: goes into its metadata, by name, as JSON.
    """
    onnx.save(_converted(served, about), file)
    if precision == "float16":
        onnx.save(_halved(onnx.load(file)), file)
    elif precision == "int8":
        _quantise(file, calibration)


def _converted(served: Served, about: dict[str, Any]) -> onnx.ModelProto:
    frozen = served.frozen()
    names = {frozen.inputs[0].name: INPUT, frozen.outputs[0].name: OUTPUT}
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[frozen.inputs[0].name],
        output_names=[frozen.outputs[0].name],
        opset=OPSET,
    )
    _without_erfc(model.graph)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
    return model


def _without_erfc(graph: onnx.GraphProto) -> None:
    """Of Gelu: ONNX has erf, but not 1 - erf, and tf2onnx leaves it as it is."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Erfc":
            one, erf = f"{node.name}_one", f"{node.name}_erf"
            nodes.append(helper.make_node("Constant", [], [one], f"{one}_node", value_float=1.0))
            nodes.append(helper.make_node("Erf", list(node.input), [erf], f"{erf}_node"))
            nodes.append(helper.make_node("Sub", [one, erf], list(node.output), node.name))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights in float16, each followed by a cast to float32, which is done once, when the file is loaded.

    To compute in float16 as well would gain nothing on a CPU, and pixels, logarithms and small variances do not fit.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            name, half = weight.name, numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Calibration(CalibrationDataReader):
    def __init__(self, pixels: np.ndarray) -> None:
        self.left = iter(pixels)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {INPUT: image[None].astype(np.float32)}


def _quantise(file: Path, calibration: np.ndarray) -> None:
    """Static quantisation in place, per channel; what comes after the last feature map stays in float32."""
    props = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    # Joins biases and batch normalisation with their convolutions; apart, each would be rounded by itself.
    quant_pre_process(str(file), str(file), skip_symbolic_shape=True)
    nodes = onnx.load(file).graph.node
    pooled = [row for row, node in enumerate(nodes) if "pool_avg" in node.name or "pool_max" in node.name]
    first = min(pooled, default=next(row for row, node in enumerate(nodes) if node.name.startswith(ANSWER)))
    quantize_static(
        str(file),
        str(file),
        _Calibration(calibration),
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=[node.name for node in nodes[first:]],
    )
    model = onnx.load(file)
    helper.set_model_props(model, props)
    onnx.save(model, file)
