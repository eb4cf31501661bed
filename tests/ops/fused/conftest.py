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

    import triton.language as tl
    from triton.runtime import interpreter

    patch_language = interpreter._patch_lang

    def call_within_a_kernel(function, *args, **kwargs):
        """Call a function of a kernel as the interpreter does, which replaces the language anew for each call."""
        languages = [value for value in function.fn.__globals__.values() if value is tl or value is tl.core]
        if any(tl.core.is_builtin(language.program_id) for language in languages):
            patch_language(function.fn)
        return function.rewrite()(*args, **kwargs)

    # two fifths of the time of these tests: the kernel that calls has replaced the language already
    interpreter.InterpretedFunction.__call__ = call_within_a_kernel


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
