"""Every kernel compiles for the devices it is meant for, and fits into their shared memory."""

import os

import pytest
from compile_kernels import compile_all

from cgnl.ops.fused import kernels
from processes import in_a_process

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "options"),
    [(80, "bfloat16 first"), (80, "float32 last ieee"), (90, "float16 last"), (90, "float32 first tf32")],
)
def test_every_kernel_compiles(capability, options, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    results = in_a_process(compile_all, capability, *options.split(), environment=environment)
    assert {result["kernel"] for result in results} == set(kernels.__all__)
    for result in results:
        assert result["machine_code"]
        assert result["shared"] <= SHARED_BYTES[capability], result
