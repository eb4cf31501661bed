"""Networks out of ONNX files, run by onnxruntime in the place of PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from cgnl.networks.checkpoints import CheckpointError

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("a network in an ONNX file needs onnxruntime: pip install 'cgnl[export]'") from error


class ExportedNetwork(nn.Module):
    """A network as :func:`cgnl.networks.export.export_onnx` writes it, of one input and one output, on the CPU.

    Args:
        path: The ``.onnx`` file.

    Attributes:
        path: The same.
        metadata: The texts in the file by name.
        num_outputs: Size of the output's last axis, None where the file leaves it open.

    Raises:
        CheckpointError: There is no such file, or it is no network of one input and one output.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it would log is raised as well
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each of its states
            raise CheckpointError(f"{path} cannot be read as an ONNX file: {_first_line(error)}") from error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each")
        last = outputs[0].shape[-1] if outputs[0].shape else None
        self.path, self.num_outputs = path, last if isinstance(last, int) else None
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self._session, self._input = session, inputs[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output for an input of the shape that it was exported for."""
        try:
            (output,) = self._session.run(None, {self._input: x.cpu().numpy()})
        except Exception as error:  # as above
            raise CheckpointError(f"{self.path} cannot be run on {list(x.shape)}: {_first_line(error)}") from error
        return torch.from_numpy(output)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
