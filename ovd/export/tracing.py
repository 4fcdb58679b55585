"""Export of a module as an ONNX file for inputs of any size.

torch's exporter of traced graphs is used (`dynamo=False`): the newer exporter takes minutes instead of seconds for one
of these detectors, since it follows every size as a symbol through the whole pyramid (torch 2.14). Operations that the
exporter of traced graphs lacks, or exports for the example's size only, are defined here.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import register_custom_op_symbolic, symbolic_helper, unregister_custom_op_symbolic

from ovd.extras import optional
from ovd.files import atomic_write

OPSET = 18
MAX_BYTES = 2_000_000_000
"""Maximum bytes of weights in one file: protobuf, ONNX's file format, is limited to 2 GiB, and the graph needs some."""
INT64 = 7
"""ONNX's number for the type int64."""
CUBIC = -0.5
"""Coefficient of torch's antialiased bicubic interpolation."""


def write_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str],
) -> None:
    """Write a module in eval mode on the CPU as an ONNX file.

    Args:
        example: inputs that the module is traced with; no size may be 1.
        inputs, outputs: names of inputs and outputs, each with the names of its dynamic axes.

    Raises:
        ValueError: the onnx package is missing, or the weights are too large for one file.
    """
    onnx = optional("onnx", "onnx")
    check_size(module, path)
    with atomic_write(path, "wb") as file, warnings.catch_warnings(), _exportable(), torch.no_grad():
        warnings.simplefilter("ignore")  # about shapes compared while tracing, and the exporter's age
        torch.onnx.export(
            module,
            example,
            file.name,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in {**inputs, **outputs}.items()},
        )
        model = onnx.load(file.name)
        onnx.helper.set_model_props(model, dict(metadata))
        file.write(model.SerializeToString())


def check_size(module: nn.Module, path: Path) -> None:
    """Check that a module's weights in float32 fit into one ONNX file.

    Raises:
        ValueError: the weights are too large.
    """
    size = 4 * sum(weights.numel() for weights in (*module.parameters(), *module.buffers()))
    if size > MAX_BYTES:
        raise ValueError(
            f"{path.name} would have {size / 1e9:.1f} GB of weights, but one ONNX file holds at most "
            f"{MAX_BYTES / 1e9:g} GB; export a detector with a smaller backbone"
        )


@contextmanager
def _exportable() -> Iterator[None]:
    """Let torch's exporter write all operations of the detectors within a context."""
    has_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation, which ONNX lacks
    for name, symbolic in _SYMBOLICS.items():
        register_custom_op_symbolic(name, symbolic, OPSET)
    try:
        yield
    finally:
        for name in _SYMBOLICS:
            unregister_custom_op_symbolic(name, OPSET)
        torch.backends.mha.set_fastpath_enabled(has_fast_path)


def _integers(graph: Any, values: Sequence[int]) -> Any:
    return graph.op("Constant", value_t=torch.tensor(list(values), dtype=torch.int64))


def _of_any_size(result: Any, like: Any, rank: int) -> Any:
    """Remove the example's sizes from a result's type; torch would take them for constants further on."""
    result.setType(like.type().with_sizes([None] * rank))
    return result


def _as_vector(graph: Any, sizes: Any) -> Any:
    """Return a list of sizes, known or computed, as one tensor."""
    if symbolic_helper._is_packed_list(sizes):
        parts = [_as_vector(graph, size) for size in symbolic_helper._unpack_list(sizes)]
        return graph.op("Concat", *parts, axis_i=0)
    return graph.op("Reshape", graph.op("Cast", sizes, to_i=INT64), _integers(graph, [-1]))


def _rank(value: Any) -> int:
    rank = symbolic_helper._get_tensor_rank(value)
    assert rank is not None
    return rank


def _unflatten(graph: Any, x: Any, dim: Any, sizes: Any) -> Any:
    """Export `unflatten` for any size; torch's own export keeps the example's sizes."""
    rank = _rank(x)
    at = symbolic_helper._get_const(dim, "i", "dim") % rank
    known = symbolic_helper._maybe_get_const(sizes, "is")
    number = len(symbolic_helper._unpack_list(sizes)) if symbolic_helper._is_packed_list(sizes) else len(known)
    vector = _as_vector(graph, sizes) if symbolic_helper._is_packed_list(sizes) else _integers(graph, known)
    shape = graph.op("Shape", x)
    before = graph.op("Slice", shape, _integers(graph, [0]), _integers(graph, [at]))
    after = graph.op("Slice", shape, _integers(graph, [at + 1]), _integers(graph, [rank]))
    reshaped = graph.op("Reshape", x, graph.op("Concat", before, vector, after, axis_i=0))
    return _of_any_size(reshaped, x, rank - 1 + number)


def _repeat_interleave(graph: Any, x: Any, repeats: Any, dim: Any, output_size: Any = None) -> Any:
    """Export `repeat_interleave` along the last dimension; torch's own export changes constants of other operations."""
    rank = _rank(x)
    number = symbolic_helper._get_const(repeats, "i", "repeats")
    assert symbolic_helper._get_const(dim, "i", "dim") % rank == rank - 1
    columns = graph.op("Unsqueeze", x, _integers(graph, [rank]))
    repeated = graph.op("Tile", columns, _integers(graph, [*[1] * rank, number]))
    return _of_any_size(graph.op("Reshape", repeated, _integers(graph, [*[0] * (rank - 1), -1])), x, rank)


def _bicubic(graph: Any, x: Any, size: Any, align_corners: Any, *scales: Any) -> Any:
    """Export antialiased bicubic interpolation, as of position embeddings, which torch's exporter lacks."""
    shape = graph.op("Slice", graph.op("Shape", x), _integers(graph, [0]), _integers(graph, [2]))
    sizes = graph.op("Concat", shape, _as_vector(graph, size), axis_i=0)
    none = graph.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    resized = graph.op(
        "Resize", x, none, none, sizes,
        mode_s="cubic", antialias_i=1, cubic_coeff_a_f=CUBIC, exclude_outside_i=1,
        coordinate_transformation_mode_s="half_pixel",
    )  # fmt: skip
    return _of_any_size(resized, x, 4)


_SYMBOLICS: dict[str, Callable[..., Any]] = {
    "aten::unflatten": _unflatten,
    "aten::repeat_interleave": _repeat_interleave,
    "aten::_upsample_bicubic2d_aa": _bicubic,
}
