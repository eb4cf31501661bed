"""Compiles every kernel for a device that need not be there, as the operators would launch it."""

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cgnl.ops.fused import branches, moments, narrow, polynomials, sums

CHANNELS, INNER, GROUPS, POSITIONS = 1024, 512, 8, 196
A2 = (1.0, 1.0, 0.5, 0.1)
POWERS = 0b1111
GAMMA = 0.1
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


def launches_of_every_operator(dtype: torch.dtype, layout: str) -> list[Launch]:
    recorded: list[Launch] = []

    def record(kernel: Any, num_programs: int, *arguments: Any, **settings: Any) -> None:
        recorded.append((kernel, arguments, settings))

    for module in (sums, moments, polynomials, narrow, branches):
        module.launch = record  # type: ignore[attr-defined]
    memory_format = {"first": torch.contiguous_format, "last": torch.channels_last}[layout]
    x = torch.zeros(1, CHANNELS, POSITIONS, 1, dtype=dtype).contiguous(memory_format=memory_format)
    features = torch.zeros(1, INNER, POSITIONS, 1, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.zeros(INNER, CHANNELS, 1, 1, dtype=dtype)
    z = torch.zeros(CHANNELS, INNER // GROUPS, 1, 1, dtype=dtype)
    z_p = torch.zeros(1, GROUPS, len(A2))
    vector = torch.zeros(CHANNELS)
    sums.power_sums(x, weight, weight, GROUPS, A2, GAMMA)
    sums.power_sums_backward(z_p, x, weight, weight, GROUPS, A2, GAMMA, True, True)
    moments.moments(x, weight, weight, GROUPS)
    moments.moments_backward(torch.zeros(1, GROUPS, 6), x, weight, weight, torch.ones(1, GROUPS, 6), True, True)
    sums.feature_sums(features, features, GROUPS, A2, GAMMA)
    sums.feature_sums_backward(z_p, features, features, GROUPS, A2, GAMMA)
    polynomials.polynomial(features, z_p, POWERS, GAMMA, torch.float32)
    polynomials.polynomial_backward(features, features, z_p, POWERS, GAMMA)
    branches.branch(x, weight, z, z_p, None, None, POWERS, GAMMA, dtype)
    branches.branch(x, weight, z, z_p, vector, vector, POWERS, GAMMA, dtype)
    branches.branch_batch_norm(x, weight, z, z_p, vector, vector, POWERS, GAMMA, 1e-5)
    branches.branch_backward(
        *(x, x, weight, z, z_p, vector, vector, vector, POWERS, GAMMA, True, True, True, True, True)
    )
    return recorded


def described(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
    """An argument's type, as triton finds it out when it launches."""
    if isinstance(value, tuple):
        return tuple(described(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, torch.Tensor) or value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"


def compiled(launch: Launch, capability: int) -> Any:
    kernel, arguments, settings = launch
    options = {name: settings[name] for name in ("num_warps", "num_stages") if name in settings}
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in settings:
            signature[name] = "constexpr"
            constants[(i,)] = settings[name]
        elif kernel.params[i].is_constexpr:
            signature[name] = "constexpr"
            constants[(i,)] = arguments[i]
        else:
            signature[name] = described(arguments[i], (i,), constants, attributes)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_all(capability: int, dtype: str, layout: str, precision: str | None = None) -> list[dict[str, Any]]:
    """Compile every kernel; call it in a process of its own, in which the kernels are not interpreted."""
    if precision:
        torch.backends.cuda.matmul.fp32_precision = precision
    results = []
    for launch in launches_of_every_operator(getattr(torch, dtype), layout):
        result = compiled(launch, capability)
        results.append(
            {"kernel": result.metadata.name, "shared": result.metadata.shared, "machine_code": len(result.asm["cubin"])}
        )
    return results
