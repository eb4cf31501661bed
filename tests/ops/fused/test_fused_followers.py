"""What comes after the fused form may change its result in place, and what goes in may lie in memory in any way."""

import pytest
import torch
from fused_cases import DEVICE, FORMS, Case, inputs_of, random
from torch import nn

from cgnl import CGNL1d, CGNL2d, CGNL3d
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF
from cgnl.ops.fused.series import WIDEST_GROUP

# The same numbers in another layout: only the order of the sums differs.
LAYOUTS_AGREE = 3e-6

FOLLOWERS = {
    "+= and ReLU": lambda y: nn.ReLU(inplace=True)(y.__iadd__(1.5)),
    "mul_": lambda y: y.mul_(y.detach().sigmoid()),
    "Dropout": lambda y: nn.Dropout(inplace=True)(y),
    "a part": lambda y: y[:, ::2].mul_(3.0) + y[:, 1::2],
}
CASES = [
    Case((2, 16, 5, 3), 8, 1),
    Case((2, 16, 5, 3), 8, 2, "last"),
    Case((2, 16, 5, 3), 8, 2, "transposed"),
    Case((2, 16, 5), 8, 2),
    Case((1, 8, 3, 2), 130, 1, "last"),
    Case((2, 16, 5, 3), 8, 2, dtype=torch.float16),
]


def with_gradients(run, inputs, follower):
    """What follows the result, and every gradient. Dropout draws the same each time."""
    torch.manual_seed(0)
    y = follower(run(*inputs))
    return [y, *torch.autograd.grad(y.sum(), inputs)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_result_can_be_changed_in_place(form, case):
    """Without and with a constant term, which is added last; every follower once, the rest with one that needs y."""
    inputs = inputs_of(form, case)
    followers = list(FOLLOWERS.values())
    if case is not CASES[0]:
        followers = followers[: 2 if case.inner > WIDEST_GROUP else 1]
    for i, follower in enumerate(followers):
        # without a constant term every second time: in wide groups nothing is added to conv_z's product then
        kernel = (EmbeddedGaussian(1), DotProduct())[i % 2]

        def run(*tensors, kernel=kernel):
            return FORMS[form][0](tensors, case.groups, kernel, 0.1)

        expected = with_gradients(lambda *t, run=run: run(*t).clone(), inputs, follower)
        assert all(map(torch.equal, with_gradients(run, inputs, follower), expected))


@pytest.mark.parametrize(
    ("follower", "kernel"), [("+= and ReLU", EmbeddedGaussian(1)), ("a part", DotProduct())], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_result_can_be_changed_in_place(form, follower, kernel):
    torch.compiler.reset()
    inputs = inputs_of(form, CASES[1])

    def run(*tensors):
        return FOLLOWERS[follower](FORMS[form][0](tensors, 2, kernel, 0.1))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = with_gradients(run, inputs, lambda y: y)
    assert all(map(torch.equal, with_gradients(compiled, inputs, lambda y: y), expected))


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_a_result_can_be_changed_in_place_without_gradients(inference):
    inputs = [t.detach() for t in inputs_of("plain", CASES[0])]
    with inference():
        y = FORMS["plain"][0](inputs, CASES[0].groups, DotProduct(), 0.1)
        assert torch.equal(y.clone().relu_(), y.relu_())


SHAPES = {CGNL1d: (2, 16, 11), CGNL2d: (2, 16, 5, 3), CGNL3d: (2, 16, 2, 3, 3)}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*((kind, "training") for kind in SHAPES), *((CGNL2d, m) for m in ("eval", "no norm", "group norm", "hooked"))],
)
def test_in_place_followers_of_a_block(kind, mode):
    norm = {"no norm": None, "group norm": "group"}.get(mode, "batch")
    block = kind(16, groups=2, kernel="embedded_gaussian", scale="mean", norm=norm, backend="fused").to(DEVICE)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    if mode == "hooked":
        block.theta.register_forward_hook(lambda module, arguments, output: None)
    block.train(mode != "eval")
    x = random(*SHAPES[kind], seed=20).to(DEVICE, torch.float32).requires_grad_()
    wanted = [x, *block.parameters()]
    results = []
    for in_place in (True, False):
        y = nn.Sequential(nn.Identity(), block)(x)
        y = nn.ReLU(in_place)(y.add_(x) if in_place else y + x)
        results.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
    assert all(map(torch.equal, *results))


def made(*shape):
    return random(*shape, seed=3).to(DEVICE, torch.float32)


# [B, 16, *S]
ODD_MAPS = {
    "tokens with an axis of one": lambda: made(2, 10, 16).transpose(1, 2).unsqueeze(-1),
    "tokens": lambda: made(2, 10, 16).transpose(1, 2),
    "batch and channels last": lambda: made(5, 3, 2, 16).permute(2, 3, 0, 1),
    "batch last": lambda: made(16, 5, 3, 2).permute(3, 0, 1, 2),
    "channels between the axes": lambda: made(2, 5, 16, 3).transpose(1, 2),
    "axes exchanged": lambda: made(2, 16, 3, 5).transpose(2, 3),
    "expanded axis": lambda: made(2, 16, 1, 3).expand(2, 16, 5, 3),
    "expanded axes": lambda: made(2, 16, 1, 1).expand(2, 16, 5, 3),
    "expanded batch": lambda: made(1, 16, 5, 3).expand(2, 16, 5, 3),
    "expanded channels": lambda: made(2, 1, 5, 3).expand(2, 16, 5, 3),
    "one position of a map": lambda: made(4, 16, 3, 3)[:, :, 1:2, 1:2],
    "every second channel and column": lambda: made(2, 32, 5, 6)[:, ::2, :, ::2],
    "a part of the channels last": lambda: made(2, 5, 3, 48).permute(0, 3, 1, 2)[:, 16:32],
    "overlapping rows": lambda: torch.as_strided(made(1000), (2, 16, 5, 3), (3, 7, 11, 2)),
    "frames before channels": lambda: made(2, 4, 16, 3, 2).transpose(1, 2),
    "channels last in 3d, axes exchanged": lambda: made(2, 3, 2, 4, 16).permute(0, 4, 3, 1, 2),
}
ODD_GRADIENTS = {
    "expanded": lambda y: torch.tensor(0.5, device=y.device).expand(y.shape),
    "expanded axes": lambda y: made(*y.shape[:2], *(1,) * (y.dim() - 2)).expand(y.shape),
    "expanded channels": lambda y: made(y.shape[0], 1, *y.shape[2:]).expand(y.shape),
    "permuted": lambda y: made(*reversed(y.shape)).permute(*reversed(range(y.dim()))),
}


@pytest.mark.parametrize("number", range(len(ODD_MAPS)), ids=ODD_MAPS.keys())
@pytest.mark.parametrize("form", ["features", "batch_norm", "plain or affine"])
def test_strides_change_nothing(form, number):
    """Inputs and incoming gradients of every layout against contiguous copies."""
    form = ("plain", "affine")[number % 2] if form == "plain or affine" else form
    x = list(ODD_MAPS.values())[number]()
    of_gradient = list(ODD_GRADIENTS.values())[number % len(ODD_GRADIENTS)]
    if form == "features":
        inputs = [x, 0.5 - x.flip(0), made(*x.shape)]
    else:
        inner = 130 if number in (1, 14) else 8  # one wide group for each form
        inputs = [x, *inputs_of(form, Case(tuple(x.shape), inner, 1))[1:]]
    results = []
    for lay in (lambda t: t, lambda t: t.clone(memory_format=torch.contiguous_format)):
        own = [lay(t.detach()).requires_grad_() for t in inputs]
        y = FORMS[form][0](own, 1, GaussianRBF(gamma=0.3, order=1, beta="exact"), 0.01)
        results.append([y, *torch.autograd.grad(y, own, lay(of_gradient(y)))])
    for result, reference in zip(*results, strict=True):
        # a constant map has no gradient through a norm but for rounding
        assert (result - reference).norm().item() < LAYOUTS_AGREE * max(reference.norm().item(), 1.0)
