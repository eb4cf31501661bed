"""Without a CUDA device the kernels run in triton's interpreter, for the tests of this folder alone."""

import os

import pytest
import torch

INTERPRETED = not torch.cuda.is_available()

if INTERPRETED:
    # read once, when the kernels are defined
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    import cgnl.ops.fused.kernels  # noqa: F401

    if before is None:
        del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
