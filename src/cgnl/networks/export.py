"""Blocks and networks as ONNX files, each checked in onnxruntime before it takes its place.

Shapes: B batch, C channels, S one to three spatial or space-time axes (L; H, W; T, H, W).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cgnl.networks.checkpoints import write_atomically

try:
    import onnx
    import onnxruntime
    import onnxscript
except ImportError as error:
    raise ImportError(f"cgnl.networks.export needs {error.name}: pip install 'cgnl[export]'") from error

OPSETS = range(18, 24)
"""Versions of ONNX's operator set that can be asked for; PyTorch's exporter is written for the first of them."""

TOLERANCE = 1e-4
"""Largest difference between onnxruntime and PyTorch, as a part of the largest output, that an export may have."""

_AXES = {3: ("batch", "length"), 4: ("batch", "height", "width"), 5: ("batch", "time", "height", "width")}
# One protocol buffer, which an ONNX file is, ends at 2 GiB.
_MAX_BYTES = 2**31 - 2**20


def export_onnx(
    network: nn.Module,
    path: str | os.PathLike[str],
    example_input: Tensor,
    *,
    dynamic: Sequence[str] | None = None,
    opset: int = OPSETS[0],
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Write a network, or a block alone, as an ONNX file whose batch and sizes are free.

    The file's input is named ``input``, its output ``output``. Before it is written, ONNX's checker reads it, and
    onnxruntime runs it beside PyTorch on normal noise, in another batch and at other sizes than it was traced at. It
    appears whole or not at all.

    Args:
        network: From one tensor [B, C, *S] to one tensor; float32, in eval mode.
        path: The ``.onnx`` file to write.
        example_input: [B, C, *S], on the network's device; only its shape matters. Sizes that are to stay free must be
            2 or more wherever they occur in the network: a ResNet needs 64 pixels.
        dynamic: Names of the axes that stay free, by default of all but the channels: ``"batch"`` and ``"length"`` of
            [B, C, L]; ``"batch"``, ``"height"`` and ``"width"`` of [B, C, H, W]; these and ``"time"`` of
            [B, C, T, H, W].
        opset: Version of ONNX's operator set, 18 to 23.
        metadata: Texts by name, to be put into the file.

    Returns:
        The largest difference between onnxruntime's output and PyTorch's, as a part of the largest output.

    Raises:
        ValueError: An argument has a value that it must not have, PyTorch cannot export the network, or the file does
            not compute what the network computes.
        CheckpointError: The file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from cgnl import CGNL2d
        >>> with TemporaryDirectory() as folder:
        ...     export_onnx(CGNL2d(16).eval(), f"{folder}/block.onnx", torch.zeros(1, 16, 7, 7)) < 1e-6
        True
    """
    path = Path(path)
    _check_arguments(network, path, example_input, opset)
    names = _axis_names(example_input, dynamic)
    model = _translate(_trace(network, example_input, names), network, names, opset)
    for key, text in (metadata or {}).items():
        model.metadata_props.add(key=key, value=text)
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)
    difference = _difference(network, content, example_input, names)
    write_atomically(path, content)
    return difference


def _check_arguments(network: nn.Module, path: Path, example_input: Tensor, opset: int) -> None:
    # by name: a block is exported without torchvision
    if "GeneralizedRCNN" in (kind.__name__ for kind in type(network).mro()):
        raise ValueError(
            f"network ({type(network).__name__}) is a detector, whose choice of boxes PyTorch's exporter cannot follow"
        )
    if path.suffix != ".onnx":
        raise ValueError(f"path ({path}) must end in .onnx")
    if opset not in OPSETS:
        raise ValueError(f"opset ({opset}) must be between {OPSETS[0]} and {OPSETS[-1]}")
    if example_input.dim() not in _AXES:
        raise ValueError(
            f"example_input {tuple(example_input.shape)} must be [batch, channels, 1 to 3 spatial or space-time axes]"
        )
    if example_input.dtype != torch.float32:
        raise ValueError(f"example_input must be float32, not {example_input.dtype}")
    weights = [*network.parameters(), *network.buffers()]
    if others := [w.dtype for w in weights if w.is_floating_point() and w.dtype != torch.float32]:
        raise ValueError(f"network must be float32, not {others[0]}")
    if any(module.training for module in network.modules()):
        raise ValueError("network must be in eval mode: call network.eval() first")
    size = sum(w.numel() * w.element_size() for w in weights)
    if size > _MAX_BYTES:
        raise ValueError(f"network has {size} bytes of weights, and an ONNX file holds {_MAX_BYTES} at most")


def _axis_names(example_input: Tensor, dynamic: Sequence[str] | None) -> dict[int, str]:
    """Names of the free axes by number; axis 1 holds the channels."""
    names = dict(zip((0, 2, 3, 4), _AXES[example_input.dim()], strict=False))
    for name in dynamic or ():
        if name not in names.values():
            raise ValueError(f"dynamic ({name!r}) must be of {', '.join(names.values())} here")
    return {axis: name for axis, name in names.items() if dynamic is None or name in dynamic}


def _trace(network: nn.Module, example_input: Tensor, names: Mapping[int, str]) -> ExportedProgram:
    if 0 in names and len(example_input) == 1:
        # a traced size of 1 would be taken for a constant
        example_input = example_input.repeat_interleave(2, 0)
    try:
        with torch.no_grad():
            program = torch.export.export(
                network, (example_input,), dynamic_shapes=(dict.fromkeys(names, Dim.DYNAMIC),)
            )
    except Exception as error:  # the network's own, and those of each part of PyTorch's exporter
        raise _cannot_be_exported(network, names, error) from error
    outputs = len(program.graph_signature.user_outputs)
    if outputs != 1:
        raise ValueError(f"network must return one tensor, not {outputs}")
    return program


def _translate(program: ExportedProgram, network: nn.Module, names: Mapping[int, str], opset: int) -> onnx.ModelProto:
    try:
        translated = torch.onnx.export(
            program,
            input_names=["input"],
            output_names=["output"],
            opset_version=opset,
            dynamic_shapes=(dict(names),),
            custom_translation_table={
                torch.ops.aten.matmul.default: _matmul,
                torch.ops.aten.searchsorted.Tensor: _searchsorted,
            },
            verbose=False,
        )
    except Exception as error:  # as above
        raise _cannot_be_exported(network, names, error) from error
    assert translated is not None
    return translated.model_proto


def _matmul(left: Any, right: Any) -> Any:
    """``torch.matmul``, by a vector as by a matrix of one column.

    onnxruntime's optimiser joins a transpose with the product after it, and gets the product with a vector wrong.
    """
    op: Any = onnxscript.opset18
    if len(right.shape) > 1:
        return op.MatMul(left, right)
    return op.Squeeze(op.MatMul(left, op.Unsqueeze(right, [-1])), [-1])


def _searchsorted(sorted_sequence: Any, values: Any, **_: Any) -> Any:
    """``torch.searchsorted``, which ONNX lacks: for each value the count of smaller numbers, over all pairs."""
    op: Any = onnxscript.opset18
    smaller = op.Less(op.Unsqueeze(sorted_sequence, [-2]), op.Unsqueeze(values, [-1]))
    return op.ReduceSum(op.Cast(smaller, to=onnx.TensorProto.INT64), [-1], keepdims=0)


def _difference(network: nn.Module, content: bytes, example_input: Tensor, names: Mapping[int, str]) -> float:
    """How far onnxruntime is from PyTorch where free axes are a quarter and one larger than the example's."""
    shape = [size + (size // 4 + 1) * (axis in names) for axis, size in enumerate(example_input.shape)]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log is raised as well
    try:
        with torch.no_grad():
            expected = network(x.to(example_input.device)).cpu()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {"input": x.numpy()})
    except Exception as error:  # the network's own, and those of onnxruntime
        raise _is_not_the_network(network, example_input, shape, _reason(error)) from error
    if output.shape != expected.shape:
        reason = f"outputs have shape {list(output.shape)} instead of {list(expected.shape)}"
        raise _is_not_the_network(network, example_input, shape, reason)
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((torch.from_numpy(output) - expected).abs().max() / largest)
    # also where it is not a number
    if not difference <= TOLERANCE:
        reason = f"outputs differ by {difference:.1g} of the largest one"
        raise _is_not_the_network(network, example_input, shape, reason)
    return difference


def _is_not_the_network(network: nn.Module, example_input: Tensor, shape: list[int], reason: str) -> ValueError:
    return ValueError(
        f"network ({type(network).__name__}) was traced at {list(example_input.shape)} and behaves differently at "
        f"{shape}; use a larger example_input or fewer dynamic axes: {reason}"
    )


def _cannot_be_exported(network: nn.Module, names: Mapping[int, str], error: Exception) -> ValueError:
    free = f" with free {', '.join(names.values())}" if names else ""
    return ValueError(f"network ({type(network).__name__}) cannot be exported by PyTorch{free}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The first line of what the innermost error says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
