"""Writes a trained model as ONNX, and compares what the file computes with the model itself.

The graph maps "images" (uint8, B 3 H W, any size) to "labels" (int64, B H W) and to the network's outputs. The class table is an
input with a default, so a program may pass a table with other classes. Names and ids of the classes are in the file's metadata.
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from kiloseg.inference.exported import PaddedNetwork, padded, program_of
from kiloseg.inference.model import TrainedModel
from kiloseg.inference.onnx_search import with_search
from kiloseg.storage.errors import DataError

OPSETS = range(18, 24)
"""Versions of ONNX's operators that can be written: torch's exporter writes none below 18, and none above 23."""
DEFAULT_OPSET = 20
IR_VERSION = 10
"""Version of the file format: the newest that onnxruntime 1.18 reads."""
MAX_BYTES = 2**31 - 2**20
"""Largest size of a file in bytes, which protobuf limits to 2 GiB."""
CHECKED_SIZES = ((1, 64, 64), (2, 75, 98), (1, 161, 130))
"""Batch, height and width of the images on which a file is compared with the model."""
MAX_ERROR = 1e-3
"""Largest difference of an output, relative to the largest output, between onnxruntime and torch."""
MAX_DIFFERING = 1e-3
"""Largest share of pixels whose labels differ: two classes may be equally near up to rounding."""


def onnx_model(model: TrainedModel, *, opset: int = DEFAULT_OPSET) -> bytes:
    """Returns the content of an ONNX file.

    Args:
        model: a model on the CPU, in full precision.
        opset: version of the operators, 18 to 23.

    Raises:
        ValueError: the opset is too old or too new, the architecture cannot be exported, or the file would be too large.
    """
    check_opset(opset)
    program = program_of(PaddedNetwork(model.segmenter), model)
    outputs = "logits" if model.segmenter.head.table is None else "embeddings"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own parts
            exported = torch.onnx.export(
                program, input_names=["images"], output_names=[outputs], opset_version=opset, verbose=False
            )
    except Exception as error:  # the exporter raises many kinds
        settings = model.config.model
        raise ValueError(
            f"{model.source}: {settings.arch} over {settings.backbone} cannot be written in opset {opset} "
            f"({type(error).__name__}: {str(error)[:300]}); try another --opset, or --format folder"
        ) from error
    assert exported is not None, "the exporter returns a program"
    proto = exported.model_proto
    proto.ir_version = IR_VERSION
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if found != opset:
        raise ValueError(
            f"--opset {opset}: the exporter wrote opset {found}, since the model has operators that it cannot convert; "
            f"use --opset {found}"
        )
    head = model.segmenter.head
    rows = None if head.table is None else numpy_helper.from_array(head.table().detach().float().cpu().numpy())
    proto = with_search(proto, rows, rows_per_class=head.rows_per_class)
    _name_sizes(proto.graph)
    onnx.helper.set_model_props(proto, _metadata(model))
    if proto.ByteSize() > MAX_BYTES:
        raise ValueError(
            f"{model.source} takes {proto.ByteSize() / 2**30:.2f} GiB as ONNX, whose files hold 2 GiB at most; use --format folder"
        )
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def check_opset(opset: int) -> None:
    """Raises ValueError if a model cannot be written with this version of the operators."""
    if opset not in OPSETS:
        age = "old" if opset < OPSETS[0] else "new"
        raise ValueError(
            f"--opset {opset} is too {age}: expected {OPSETS[0]} to {OPSETS[-1]}, the versions of ONNX's operators that torch's "
            "exporter writes"
        )


def check_onnx(content: bytes, model: TrainedModel) -> float:
    """Compares a file with its model on random images of several sizes, in onnxruntime.

    Returns:
        The largest difference of the network's outputs, relative to the largest output.

    Raises:
        DataError: outputs or labels differ by more than rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the table is an input with a default, which is intended
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch, height, width in CHECKED_SIZES:
        # Coarse noise: a network sees nothing in noise of single pixels.
        images = torch.randint(0, 256, (batch, 3, -(-height // 8), -(-width // 8)), dtype=torch.uint8)
        images = images.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :height, :width].contiguous()
        labels, outputs = session.run(None, {"images": images.numpy()})
        whole = padded(images)
        with torch.no_grad():
            expected = model.segmenter(whole)
            decided = model.segmenter.head.predict(expected, (whole.shape[2], whole.shape[3]))[:, :height, :width]
        error = float(np.abs(outputs - expected.numpy()).max() / max(float(expected.abs().max()), 1e-12))
        differing = float((labels != decided.numpy()).mean())
        if not error <= MAX_ERROR or differing > MAX_DIFFERING:
            raise DataError(
                f"{model.source} as ONNX differs from the model on {batch} images of {height} x {width}: outputs by {error:.2g} "
                f"of the largest, labels in {differing:.2%} of the pixels; expected at most {MAX_ERROR:g} and "
                f"{MAX_DIFFERING:.1%}; use --format folder, or another --opset"
            )
        largest = max(largest, error)
    return largest


def _metadata(model: TrainedModel) -> dict[str, str]:
    settings = model.config.model
    record: dict[str, Any] = dict(model.classes.record())
    return {
        "classes": json.dumps(record, ensure_ascii=False),
        "model": json.dumps({"arch": settings.arch, "backbone": settings.backbone, "head": settings.head}),
        "input": "images: uint8 RGB of shape (batch, 3, height, width)",
    }


def _name_sizes(graph: onnx.GraphProto) -> None:
    """Names the variable sizes, which the exporter numbers or writes as formulas."""
    for value in (*graph.input, *graph.output):
        names = {"images": ("batch", "", "height", "width"), "embeddings": ("batch", "", "cells_high", "cells_wide")}
        names["logits"] = names["embeddings"]
        for dim, name in zip(value.type.tensor_type.shape.dim, names.get(value.name, ()), strict=False):
            if name:
                dim.dim_param = name
