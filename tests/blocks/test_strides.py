"""A block gives the same for an input of any strides as for a contiguous copy, every gradient included."""

import copy

import pytest
import torch
from torch import nn

import cgnl

KERNELS = {
    "dot": cgnl.DotProduct(),
    "embedded-gaussian": cgnl.EmbeddedGaussian(),
    "rbf": cgnl.GaussianRBF(gamma=0.3),
    "rbf-exact": cgnl.GaussianRBF(gamma=0.3, beta="exact"),
    "rbf-normalized": cgnl.GaussianRBF(gamma=0.3, beta="normalized"),
}


class OwnNorm2d(nn.BatchNorm2d):
    """A norm that the operations do not know: it runs as a module."""


BLOCKS = {
    **{f"CGNL-{name}": {"kernel": kernel} for name, kernel in KERNELS.items()},
    **{f"CGNL-group-{name}": {"kernel": kernel, "norm": "group"} for name, kernel in KERNELS.items()},
    "CGNL-saving": {"kernel": "embedded_gaussian", "memory_efficient": True},
    "CGNL-saving-exact": {"kernel": KERNELS["rbf-exact"], "memory_efficient": True},
    "CGNL-naive": {"backend": "naive"},
    "CGNL-own": {"norm": OwnNorm2d, "kernel": KERNELS["rbf-exact"]},
    "GeneralizedNonLocal": {},
    **{
        f"NonLocal-{pairwise}": {"pairwise": pairwise}
        for pairwise in ("embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation")
    },
    "ResidualBlock": {},
}


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


INPUTS = {
    "tokens": random(2, 10, 8).transpose(1, 2),
    "tokens-1": random(2, 10, 8).transpose(1, 2).unsqueeze(-1),
    "1-tokens": random(2, 10, 8).transpose(1, 2).unsqueeze(2),
    "1-tokens-1": random(2, 10, 8).transpose(1, 2)[:, :, None, :, None],
    "one-position": random(3, 8, 1, 1).expand(3, 8, 1, 1),
    "one-position-last": random(3, 1, 1, 8).permute(0, 3, 1, 2),
    "permuted": random(4, 2, 3, 8).permute(1, 3, 2, 0),
    "batch-last": random(8, 4, 3, 2).permute(3, 0, 1, 2),
    "one-number": random(2, 8, 1, 1).expand(2, 8, 3, 4),
    "one-row": random(2, 8, 1, 4).expand(2, 8, 3, 4),
    "one-sample": random(1, 8, 3, 4).expand(3, 8, 3, 4),
    "one-channel": random(3, 1, 3, 4).expand(3, 8, 3, 4),
    "every-other": random(3, 12, 6, 8)[:, 2:10, ::2, ::2],
    "video-last": random(2, 2, 3, 4, 8).permute(0, 4, 1, 2, 3),
    "video-back": random(2, 8, 4, 3, 2).transpose(2, 4),
}


def block_for(name, num_axes):
    options = dict(BLOCKS[name])
    kind = name.partition("-")[0]
    if kind != "NonLocal":
        options["groups"] = 2
    if options.get("norm") is OwnNorm2d and num_axes != 2:
        pytest.skip("the norm of one's own is for two axes")
    torch.manual_seed(0)
    block = getattr(cgnl, f"{kind}{num_axes}d")(8, **options).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def gradients_like(shape):
    """Gradients of the output: contiguous, channels last, and one number for a row."""
    plain = random(*shape, seed=7)
    return plain, plain.movedim(1, -1).contiguous().movedim(-1, 1), plain.mean(-1, keepdim=True).expand(shape)


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("name", BLOCKS)
def test_equals_a_contiguous_copy(name, x):
    block = block_for(name, x.dim() - 2)
    for training in (True, False):
        for d_out in gradients_like(x.shape):
            results = []
            for own in (x.detach(), x.clone(memory_format=torch.contiguous_format)):
                module = copy.deepcopy(block).train(training)
                own = own.requires_grad_()
                out = module(own)
                found = torch.autograd.grad(out, [own, *module.parameters()], d_out)
                results.append([out, *found, *module.buffers()])
            torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9, check_stride=False)
