"""Builds the part of an ONNX graph that finds the class of every pixel, in chunks of classes.

Scores are taken at feature cells and then upsampled, which gives the same order as upsampling embeddings, and a loop keeps a
running best: a map of all classes never exists. The size of a chunk follows from the size of the images when the graph runs.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, c classes of a chunk, N channels of the network.
"""

from __future__ import annotations

import onnx
from onnx import helper, parser

from kiloseg.inference.tiling import STRIDE

CHUNK_SCORES = 2**24
"""Target number of upsampled scores of a chunk; a chunk has at least one class."""
PREFIX = "search_"
"""Start of the names of values in the search, which tells them from values of the network."""

_GRAPH = """
search (uint8[batch, 3, height, width] images, float[batch, N, h, w] {outputs} {table})
    => (int64[batch, height, width] labels) {{
    one = Constant <value_ints = [1]> ()
    batch_1 = Shape <start = 0, end = 1> (images)
    size_2 = Shape <start = 2, end = 4> (images)
    cells_2 = Shape <start = 2, end = 4> ({outputs})
    stride = Constant <value_ints = [{stride}]> ()
    rest = Constant <value_ints = [{stride_less_one}]> ()
    raised_2 = Add (size_2, rest)
    blocks_2 = Div (raised_2, stride)
    padded_2 = Mul (blocks_2, stride)
    corner_2 = Constant <value_ints = [0, 0]> ()
    space_2 = Constant <value_ints = [2, 3]> ()
    shape_3 = Concat <axis = 0> (batch_1, size_2)
    num_pixels = ReduceProd <keepdims = 1> (shape_3)
    most = Constant <value_ints = [{chunk_scores}]> ()
    fitting = Div (most, num_pixels)
    zero_axis = Constant <value_ints = [0]> ()
    one_axis = Constant <value_ints = [1]> ()
    {setup}
    fewer = Min (fitting, num_classes)
    chunk = Max (fewer, one)
    raised = Add (num_classes, chunk)
    raised_less_one = Sub (raised, one)
    num_chunks_1 = Div (raised_less_one, chunk)
    num_chunks = Squeeze (num_chunks_1, zero_axis)
    best_before = ConstantOfShape <value = float[1] {{-3.4e38}}> (shape_3)
    labels_before = ConstantOfShape <value = int64[1] {{0}}> (shape_3)
    best, {found} = Loop (num_chunks, , best_before, labels_before) <body = one_chunk (
        int64 number, bool go_on, float[batch, height, width] best_in, int64[batch, height, width] labels_in
    ) => (bool go_on_out, float[batch, height, width] best_out, int64[batch, height, width] labels_out) {{
        go_on_out = Identity (go_on)
        start = Mul (number, chunk)
        end = Add (start, chunk)
        {scores}
        upsampled_shape = Concat <axis = 0> (batch_1, chunk_classes, padded_2)
        upsampled = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (
            scores_Bchw, , , upsampled_shape)
        scores_BcHW = Slice (upsampled, corner_2, size_2, space_2)
        ids_B1HW = ArgMax <axis = 1, keepdims = 1> (scores_BcHW)
        values_B1HW = GatherElements <axis = 1> (scores_BcHW, ids_B1HW)
        values = Squeeze (values_B1HW, one_axis)
        ids_within = Squeeze (ids_B1HW, one_axis)
        ids = Add (ids_within, start)
        better = Greater (values, best_in)
        best_out = Where (better, values, best_in)
        labels_out = Where (better, ids, labels_in)
    }}>
    {classes}
}}
"""
_TABLE_SETUP = """
    num_classes = Shape <start = 0, end = 1> (table)
    lengths_C1 = ReduceL2 <keepdims = 1> (table, one_axis)
    least = Constant <value_floats = [1e-12]> ()
    safe_C1 = Max (lengths_C1, least)
    rows_CD = Div (table, safe_C1)
    flat_shape = Constant <value_ints = [0, 0, -1]> ()
    pixels_BDP = Reshape (embeddings, flat_shape)
"""
_TABLE_SCORES = """
        rows_cD = Slice (rows_CD, start, end, zero_axis)
        chunk_classes = Shape <start = 0, end = 1> (rows_cD)
        products = MatMul (rows_cD, pixels_BDP)
        cell_shape = Concat <axis = 0> (batch_1, chunk_classes, cells_2)
        scores_Bchw = Reshape (products, cell_shape)
"""
_LOGITS_SETUP = "num_classes = Shape <start = 1, end = 2> (logits)"
_LOGITS_SCORES = """
        scores_Bchw = Slice (logits, start, end, one_axis)
        chunk_classes = Shape <start = 1, end = 2> (scores_Bchw)
"""

_CLASSES_OF_ROWS = """
    rows_per_class = Constant <value_ints = [{rows_per_class}]> ()
    labels = Div (nearest_rows, rows_per_class)
"""


def search_graph(*, table: bool, rows_per_class: int = 1) -> onnx.GraphProto:
    """Returns a graph from "images" (uint8, B 3 H W) and the network's outputs to "labels" (int64, B H W, 0 to C - 1).

    Args:
        table: whether the outputs are "embeddings" (float, B D h w), which are compared with the rows of "table" (float, C D);
            else they are "logits" (float, B C h w).
        rows_per_class: the number of rows of each class in the table, which follow each other; the nearest row decides.
    """
    several = rows_per_class > 1
    text = _GRAPH.format(
        outputs="embeddings" if table else "logits",
        table=", float[C, D] table" if table else "",
        setup=_TABLE_SETUP if table else _LOGITS_SETUP,
        scores=_TABLE_SCORES if table else _LOGITS_SCORES,
        stride=STRIDE,
        stride_less_one=STRIDE - 1,
        chunk_scores=CHUNK_SCORES,
        found="nearest_rows" if several else "labels",
        classes=_CLASSES_OF_ROWS.format(rows_per_class=rows_per_class) if several else "",
    )
    return _prefixed(parser.parse_graph(text), kept={"images", "embeddings", "logits", "table", "labels", ""})


def _prefixed(graph: onnx.GraphProto, kept: set[str]) -> onnx.GraphProto:
    """Returns the graph with the prefix before the names of all its values except the kept ones."""

    def renamed(name: str) -> str:
        return name if name in kept else PREFIX + name

    for node in graph.node:
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                body = _prefixed(attribute.g, kept)
                for value in (*body.input, *body.output):
                    value.name = renamed(value.name)
    return graph


def with_search(
    model: onnx.ModelProto, table_CD: onnx.TensorProto | None, *, rows_per_class: int = 1
) -> onnx.ModelProto:
    """Adds the search to a model of the network, whose outputs are kept beside the labels.

    Args:
        model: a model from "images" to "embeddings" or "logits"; it is changed.
        table_CD: the class table, which becomes an input named "table" with this default; None for logits.
        rows_per_class: as `search_graph` takes it.
    """
    added = search_graph(table=table_CD is not None, rows_per_class=rows_per_class)
    graph = model.graph
    graph.node.extend(added.node)
    if table_CD is not None:
        table_CD.name = "table"
        graph.initializer.append(table_CD)
        dim = table_CD.dims[1]
        dim_name = "classes" if rows_per_class == 1 else "rows"
        graph.input.append(helper.make_tensor_value_info("table", onnx.TensorProto.FLOAT, [dim_name, dim]))
    labels = helper.make_tensor_value_info("labels", onnx.TensorProto.INT64, ["batch", "height", "width"])
    outputs = list(graph.output)
    del graph.output[:]
    graph.output.extend([labels, *outputs])
    return model
