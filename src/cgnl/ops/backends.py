"""The choice of a form: eager, fused or naive."""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from cgnl.kernel_functions import KernelFunction
from cgnl.ops import eager, fused, naive
from cgnl.ops.fused import self_test
from cgnl.ops.parallel import ProcessGroup
from cgnl.ops.precision import feature_dtype, is_exporting
from cgnl.ops.statistics import Statistic
from cgnl.settings.checks import check_choice

Backend = Literal["auto", "eager", "fused", "naive"]
PairsBackend = Literal["auto", "eager", "naive"]

# Where "auto" takes the fused form.
AUTO_FUSED_DEVICES = ("cuda",)


def chosen_form(
    backend: str,
    *tensors: Tensor,
    kernel: KernelFunction,
    operation: self_test.Operation = "branch",
    statistic: Statistic = "sum",
    z_groups_apart: bool = False,
) -> ModuleType:
    """Return the module whose form of the compact operation a ``backend`` argument means for these tensors.

    ``"auto"`` takes the fused form on a device of `AUTO_FUSED_DEVICES`, where it can run and has passed its self-test.
    The tensors are theta, phi and g, or x and the four weights. The operation is ``"features"``: y from theta, phi and
    g; ``"branch"``: conv_z's output from x; ``"affine"`` or ``"batch_norm"``: the block with fixed statistics or with
    those of the batch; ``z_groups_apart`` says that conv_z has other groups than the sums. Raises ValueError where the
    name is unknown, or ``"fused"`` cannot run.
    """
    check_choice("backend", backend, get_args(Backend))
    if backend == "naive":
        return naive
    on_trial = backend == "auto"
    if backend == "eager" or (on_trial and (tensors[0].device.type not in AUTO_FUSED_DEVICES or is_exporting())):
        return eager
    dtype = feature_dtype(tensors[0])
    obstacle = fused.obstacle(*tensors, kernel=kernel, dtype=dtype)
    if obstacle is None and z_groups_apart and kernel.has_constant_term:
        obstacle = f"{type(kernel).__name__} has a constant term, and z_groups is not groups"
    if obstacle is None and (
        not on_trial
        or self_test.passes(
            operation, *tensors, kernel=kernel, dtype=dtype, moments=statistic != "sum", apart=z_groups_apart
        )
    ):
        return fused
    if backend == "fused":
        raise ValueError(f"backend 'fused' cannot run here: {obstacle}; take backend='auto' or 'eager'")
    return eager


def chosen_form_of_pairs(backend: str) -> ModuleType:
    """Return the module, eager or naive, whose form of an operation over pairs a ``backend`` argument means."""
    check_choice("backend", backend, get_args(PairsBackend))
    return naive if backend == "naive" else eager


def refuse_process_group(process_group: ProcessGroup | None) -> None:
    """Raise ValueError if the naive form is to share its sums with other processes."""
    if process_group is not None:
        raise ValueError("backend 'naive' does not support process_group; take backend='auto' or 'eager'")
