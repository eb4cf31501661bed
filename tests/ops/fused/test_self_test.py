"""Backend 'auto' on a device where the fused operators have never run: it tries them once, and says why not."""

import re
import threading
import warnings

import pytest
import torch
from fused_cases import DEVICE, Case, assert_close, block_inputs, feature_inputs, gradients_of, random

from cgnl import CGNL2d, ops
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.measure import accuracy, tables
from cgnl.ops import backends
from cgnl.ops.fused import branches, narrow, polynomials, self_test, sums
from cgnl.ops.fused.launching import launches
from cgnl.ops.fused.self_test import Kind, errors_of, tolerance_of
from cgnl.ops.maps import as_map, is_channels_last

# float32 against the naive form in float64, relative to the norm.
FLOAT32 = 3e-6
CASE = Case((2, 16, 5, 3), 8, 2)
OPERATIONS = {"features": ops.compact_generalized_non_local, "branch": ops.cgnl_block}


@pytest.fixture(autouse=True)
def _untried_device(monkeypatch):
    """Nothing is known of any device, and 'auto' considers the fused form on this one."""
    monkeypatch.setattr(self_test, "_reasons", {})
    monkeypatch.setattr(backends, "AUTO_FUSED_DEVICES", ("cuda", "cpu"))
    if DEVICE == "cpu":  # one tile of positions: the interpreter is slow
        monkeypatch.setattr(self_test, "_BATCH_AND_AXES", (2, (5, 5)))
    launches.clear()


def inputs_of(operation):
    return feature_inputs(CASE) if operation == "features" else block_inputs(CASE)


def call(operation, inputs, backend="auto", kernel="dot"):
    return OPERATIONS[operation](*inputs, groups=CASE.groups, kernel=kernel, backend=backend)


def check_result(operation):
    """A call of 'auto' gives what the explicit matrices do, with every gradient; and tells which form it took."""
    inputs = inputs_of(operation)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    launches.clear()
    y = call(operation, inputs)
    results = [y, *gradients_of(y, inputs)]
    took_fused = bool(launches)
    expected = call(operation, exact, "naive")
    assert_close(results, [expected, *gradients_of(expected, exact)], FLOAT32)
    return took_fused


def noted(run):
    """What a run gives, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return result, [str(w.message) for w in caught]


def raising(*arguments, **settings):
    raise RuntimeError("out of resource: shared memory\nmore lines")


def wrong_last(function, factor):
    """The function with its last result made wrong."""

    def run(*arguments, **settings):
        *others, last = function(*arguments, **settings)
        return *others, last * factor

    return run


def wrong_map(function):
    """A function that writes a map, which is then wrong by a tenth."""

    def run(flat, series, out, *arguments):
        function(flat, series, out, *arguments)
        out.mul_(1.1)

    return run


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_test_then_fused(operation):
    inputs = inputs_of(operation)
    _, messages = noted(lambda: call(operation, inputs))
    tried = sum(launches.values())
    assert check_result(operation)
    assert not messages
    launches.clear()
    call(operation, inputs, kernel=DotProduct())
    assert 0 < sum(launches.values()) < tried


FAULTS = {
    "raises in forward": ("branch", branches, "narrow.write_branch", lambda f: raising),
    "raises in backward": ("branch", sums, "weight_gradient", lambda f: raising),
    "wrong in forward": ("branch", narrow, "write_branch", wrong_map),
    "wrong in backward": ("branch", narrow, "branch_gradients", lambda f: wrong_last(f, 0.5)),
    "not finite": ("branch", narrow, "branch_gradients", lambda f: wrong_last(f, torch.nan)),
    "raises, features": ("features", polynomials, "write_polynomial", lambda f: raising),
}
REASONS = {
    "raises": "RuntimeError: out of resource: shared memory$",
    "wrong": r"the .* differs from the eager form's by .*e-0\d of its norm, more than 1e-04$",
    "not fi": "the gradient of .* differs from the eager form's by nan of its norm, more than 1e-04$",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_operator_is_left_alone_and_named_once(fault, monkeypatch):
    operation, module, name, make_faulty = FAULTS[fault]
    *owner, name = name.split(".")
    owner = getattr(module, owner[0]) if owner else module
    monkeypatch.setattr(owner, name, make_faulty(getattr(owner, name)))
    inputs = inputs_of(operation)
    _, messages = noted(lambda: call(operation, inputs))
    assert len(messages) == 1
    assert messages[0].startswith(
        "backend 'auto' takes the eager form from here on: the fused operators failed their self-test on "
    )
    assert "float32, channels first, groups of up to 16 features, powers 1): " in messages[0]
    pattern = next(reason for start, reason in REASONS.items() if fault.startswith(start))
    assert re.search(pattern, messages[0]), messages[0]
    took_fused, messages = noted(lambda: check_result(operation))
    assert not took_fused
    assert not messages


def block_of(backend="auto"):
    block = CGNL2d(16, groups=2, kernel="embedded_gaussian", scale="mean", backend=backend)
    for seed, parameter in enumerate(block.parameters()):
        parameter.data.copy_(0.4 * random(*parameter.shape, seed=seed))
    return block.to(DEVICE)


def test_a_block_tries_its_own_operators(monkeypatch):
    """Those with the norm inside: a fault in the pass of training leaves inference alone."""
    finish = branches._finish
    monkeypatch.setattr(branches, "_finish", lambda *arguments: 1.1 * finish(*arguments))
    x = random(*CASE.shape, seed=1).to(DEVICE, torch.float32)
    block, exact = block_of(), block_of("naive").double()
    y, messages = noted(lambda: block(x))
    assert_close([y], [exact(x.double())], 1e-5)
    assert len(messages) == 1
    assert "(batch_norm in float32" in messages[0]
    launches.clear()
    y, messages = noted(lambda: block.eval()(x))
    assert_close([y], [exact.eval()(x.double())], FLOAT32)
    assert not messages
    assert launches


def test_backend_fused_runs_without_a_test(monkeypatch):
    monkeypatch.setattr(self_test, "outcome_of", raising)
    call("branch", inputs_of("branch"), "fused")
    assert launches


def test_other_kinds_are_tried_apart(monkeypatch):
    tried = []
    monkeypatch.setattr(
        self_test, "outcome_of", lambda kind, device: tried.append(kind) or self_test.Outcome(0.0, None)
    )
    x, *weights = (t.detach() for t in block_inputs(CASE))
    narrow_groups = [x, *weights]
    last = [x.contiguous(memory_format=torch.channels_last), *weights]
    wide = [t.detach() for t in block_inputs(Case((2, 16, 5, 3), 260, 2))]
    exact = GaussianRBF(gamma=0.3, beta="exact")
    for tensors, kernel in ((narrow_groups, DotProduct()), (last, DotProduct()), (wide, exact)):
        for _ in range(2):
            assert ops.chosen_form("auto", *tensors, kernel=kernel, operation="affine") is ops.fused
    # gamma and coefficients choose no other kernels
    ops.chosen_form("auto", *wide, kernel=GaussianRBF(gamma=0.1, beta="exact"), operation="affine")
    with torch.autocast(DEVICE, torch.bfloat16):
        ops.chosen_form("auto", *narrow_groups, kernel=EmbeddedGaussian(2))
    assert tried == [
        Kind("affine", torch.float32, "first", 0b10, False, 16),
        Kind("affine", torch.float32, "last", 0b10, False, 16),
        Kind("affine", torch.float32, "first", 0b1111, True, self_test.WIDTHS[-1]),
        Kind("branch", torch.bfloat16, "first", 0b111, False, 16),
    ]


def test_layouts_are_those_of_the_operators():
    x = random(2, 16, 5, 3, seed=0)
    for t in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x[:, :, :1, :1],
        x[:, :1],
        x.flatten(2),
        x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2),
        x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2)[..., None],
        x.transpose(2, 3),
    ):
        assert self_test._layout_of(t) == ("last" if is_channels_last(as_map(t)) else "first")


@pytest.mark.parametrize(
    ("dtype", "layout", "powers", "envelope"),
    [
        (torch.float32, "first", 0b1111, True),
        (torch.float16, "last", 0b111, False),
        (torch.bfloat16, "last", 0b1111, True),
    ],
    ids=str,
)
def test_sound_operators_pass_with_room(dtype, layout, powers, envelope, monkeypatch):
    """And every operation stores in the type of its inputs, as calls do."""
    form, stored = {}, []
    for operation, run in self_test._FUSED.items():
        form[operation] = lambda *t, run=run, **options: (y := run(*t, **options), stored.append(y.dtype))[0]
    monkeypatch.setattr(self_test, "_FUSED", form)
    for operation in ("features", "branch", "batch_norm"):
        kind = Kind(operation, dtype, layout, powers, envelope, 16)
        assert max(errors_of(kind, torch.device(DEVICE)).values()) < tolerance_of(kind) / 4
    assert stored == 3 * [dtype]


def test_the_state_of_the_caller_stays_outside():
    """Autocast, gradient mode, hooks on saved tensors, default type and random numbers."""
    x, *weights = (t.detach() for t in block_inputs(CASE))
    state = torch.get_rng_state()
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    try:
        torch.set_default_dtype(torch.float64)
        for context in (torch.no_grad(), torch.inference_mode(), hooks, torch.autocast(DEVICE, torch.bfloat16)):
            self_test._reasons.clear()
            launches.clear()
            with context:
                form, messages = noted(lambda: ops.chosen_form("auto", x, *weights, kernel=DotProduct()))
            assert form is ops.fused
            assert not messages
            assert launches["branch_backward_kernel"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert not saved
    assert torch.equal(torch.get_rng_state(), state)


def test_threads_share_one_test(monkeypatch):
    tried = []
    outcome_of = self_test.outcome_of
    monkeypatch.setattr(self_test, "outcome_of", lambda *a: tried.append(1) or outcome_of(*a))
    inputs = [t.detach() for t in inputs_of("features")]
    results = []

    def ask():  # the interpreter itself runs one kernel at a time
        results.append(ops.chosen_form("auto", *inputs, kernel=DotProduct(), operation="features"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tried) == 1
    assert results == 4 * [ops.fused]


def test_no_test_inside_a_backward_pass():
    forms = []
    inputs = [t.detach() for t in inputs_of("features")]

    def look(gradient):
        forms.append(ops.chosen_form("auto", *inputs, kernel=DotProduct(), operation="features"))

    x = torch.ones(3, requires_grad=True)
    x.register_hook(look)
    x.sum().backward()
    assert forms == [ops.eager]
    assert not launches
    assert ops.chosen_form("auto", *inputs, kernel=DotProduct(), operation="features") is ops.fused


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("works", [True, False])
def test_a_trace_asks_outside_its_graph(works, dynamic, monkeypatch):
    torch.compiler.reset()
    inputs = inputs_of("branch")
    expected = call("branch", inputs, "eager")
    if not works:
        monkeypatch.setattr(narrow, "write_branch", raising)
    targets = set()

    def backend(graph, example_inputs):
        targets.update(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    compiled = torch.compile(lambda *t: call("branch", t), fullgraph=True, backend=backend, dynamic=dynamic)
    y, messages = noted(lambda: compiled(*inputs))
    assert_close([y], [expected.double()], FLOAT32)
    assert any("cgnl" in target for target in targets) == works
    assert len(messages) == (not works)


def test_the_accuracy_benchmark_prints_it(capsys, monkeypatch):
    tables.print_self_test(DEVICE, smallest=True)
    printed = capsys.readouterr().out
    assert printed.count("passed") == 4
    assert "batch_norm in float32, channels first, groups of up to 16 features, powers 1" in printed
    monkeypatch.setattr(polynomials, "write_polynomial", raising)
    kind = Kind("features", torch.float32, "first", 0b10, False, 16)
    monkeypatch.setattr(accuracy, "_kinds_for_self_test", lambda *arguments: [kind])
    tables.print_self_test(DEVICE, smallest=True)
    assert "RuntimeError: out of resource: shared memory" in capsys.readouterr().out


def test_the_accuracy_benchmark_says_why_there_is_none(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    tables.print_self_test("cpu", smallest=True)
    assert capsys.readouterr().out == (
        "no self-test of the fused operators: it needs a CUDA device, and the tensors are on cpu\n"
    )
