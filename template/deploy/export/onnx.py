"""A run as an ONNX file, in float32, with float16 weights, or quantised to int8."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tf2onnx import optimizer, tf_loader, tfonnx
from tf2onnx.optimizer.back_to_back_optimizer import BackToBackOptimizer
from tf2onnx.optimizer.const_fold_optimizer import ConstFoldOptimizer
from tf2onnx.optimizer.identity_optimizer import IdentityOptimizer
from tf2onnx.optimizer.transpose_optimizer import TransposeOptimizer

from ..runtime import NOVELTY, OUTPUT
from .graph import INPUT

OPSET = 18


class _Transposes(TransposeOptimizer):
    """That of tf2onnx 1.17 takes the length of a bias from the shape of a number, which has none, and stops."""

    def _add_handler(self, trans: Any, node: Any) -> bool:
        added = node.inputs[1]
        if added.is_const() and added.get_tensor_value(as_list=False).ndim == 0:
            return self._handle_node_having_branches(trans, node)
        return super()._add_handler(trans, node)


OPTIMIZERS = {
    "optimize_transpose": _Transposes,
    "fold_constants": ConstFoldOptimizer,
    "remove_identity": IdentityOptimizer,
    "remove_back_to_back": BackToBackOptimizer,
}
"""Of those of tf2onnx, each of which takes as much memory as the network; onnxruntime does the rest as it loads."""
QUANTISED = (
    "Conv", "MatMul", "Gemm", "Add", "Mul", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat",
    "Pad",
)  # fmt: skip
"""Operations in int8; those between convolutions are among them so that nothing is converted to and fro."""


def write_onnx(model: onnx.ModelProto, file: Path, precision: str, calibration: np.ndarray) -> None:
    """Write an ONNX file of dynamic batch.

    Args:
        model: from `converted`.
        file: to write.
        precision: `float32`; `float16`: so are its weights, while it computes in float32; `int8`: weights and
            activations, the former with a scale for each channel, without which depthwise networks are destroyed.
        calibration: representative pixels [n, size, size, 3], whose activations set the scales of int8.
    """
    onnx.save(model, file)
    if precision == "int8":
        _quantise(file, calibration)
    onnx.save(_halved(onnx.load(file), exactly=precision != "float16"), file)


def converted(frozen: Any, about: dict[str, Any]) -> onnx.ModelProto:
    """A network as ONNX, in float32.

    By the parts of tf2onnx, whose own `from_graph_def` copies the whole network thirty times.

    Args:
        frozen: from `freeze`.
        about: goes into its metadata, by name, as JSON.
    """
    pixels, names = frozen.inputs[0].name, sorted([OUTPUT, NOVELTY][: len(frozen.outputs)])  # as TensorFlow sorts them
    given = {tensor.name: name for tensor, name in zip(frozen.outputs, names, strict=True)}
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with tf.Graph().as_default():
        simpler = tf_loader.tf_optimize([pixels], list(given), frozen.graph.as_graph_def())
    with tf.Graph().as_default() as graph, tf_loader.tf_session(graph=graph):
        tf.import_graph_def(simpler, name="")
        converted = tfonnx.process_tf_graph(
            graph,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
            input_names=[pixels],
            output_names=list(given),
            tensors_to_rename={pixels: INPUT} | given,
        )
    simplified = optimizer.optimize_graph(converted, catch_errors=False, optimizers=OPTIMIZERS)
    model = simplified.make_model("classifier")
    model.graph.output.sort(key=lambda value: value.name != OUTPUT)  # probabilities first
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    helper.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
    return model


def _erfc(context: Any, node: Any, *_: Any) -> None:
    """Of Gelu: ONNX has erf, but not 1 - erf."""
    name, outputs, inputs = node.name, node.output, node.input
    shapes, types = node.output_shapes, node.output_dtypes
    context.remove_node(name)
    one = context.make_const(f"{name}_one", np.float32(1))
    erf = context.make_node("Erf", inputs, shapes=shapes, dtypes=types)
    context.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, name=name, shapes=shapes, dtypes=types)


def _halved(model: onnx.ModelProto, exactly: bool) -> onnx.ModelProto:
    """Weights in float16, each followed by a cast to float32, which is done once, when the file is loaded.

    Or those alone that this leaves exactly as they are, which are the features that novelty is measured from.

    To compute in float16 as well would gain nothing on a CPU, and pixels, logarithms and small variances do not fit.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            name, whole = weight.name, numpy_helper.to_array(weight)
            half = whole.astype(np.float16)
            if exactly and (half != whole).any():
                continue
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
    quantize_static(
        str(file),
        str(file),
        _Calibration(calibration),
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        nodes_to_exclude=_head(onnx.load(file).graph),
    )
    model = onnx.load(file)
    helper.set_model_props(model, props)
    onnx.save(model, file)


def _head(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that pool the features, and of all that follow from those."""
    names, made = list[str](), set[str]()
    for node in graph.node:
        if "/pool_avg" in node.name or "/pool_max" in node.name or made & set(node.input):
            names.append(node.name)
            made.update(node.output)
    return names
