"""Which rewritings of the block pay on a CPU?

Each is measured beside what it replaces, in turns within one process, in float32 at G = 8. Where a row is of the whole
block it is forward and backward, else what its name says. Run on a machine that does nothing else:

    python studies/algebra.py
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import cgnl
from cgnl.measure.forms import gram_form as taking_gram_form
from cgnl.measure.forms import replaced
from cgnl.measure.timing import forward_only, ratios, side_by_side, spread, training_step
from cgnl.ops import maps
from cgnl.ops.eager import gram
from script import begin, study, write

SHAPES = ((4, 1024, 14, 14), (4, 1024, 28, 28), (8, 512, 28, 28), (8, 256, 28, 28), (2, 512, 16, 28, 28))
GROUPS = 8
_PARTS = "_ELEMENTS_OF_A_PART"

Candidates = dict[str, Callable[[], object]]


def block_for(x: Tensor) -> nn.Module:
    """A CGNL block that is not the identity."""
    make = cgnl.CGNL2d if x.dim() == 4 else cgnl.CGNL3d
    block = make(x.shape[1], groups=GROUPS)
    nn.init.ones_(block.norm.weight)
    return block


def gram_form(x: Tensor) -> Candidates:
    """The sums of the dot product from K = X X^T, beside phi and g."""
    step = training_step(block_for(x), x)
    return {"new": taking_gram_form(True)(step), "old": taking_gram_form(False)(step)}


def gram_form_in_inference(x: Tensor) -> Candidates:
    """The same without gradients, where K serves the sums alone."""
    run = forward_only(block_for(x).eval(), x)
    return {"new": taking_gram_form(True)(run), "old": taking_gram_form(False)(run)}


def half_of_k(x: Tensor) -> Candidates:
    """K from bands right of its diagonal, beside the whole product."""
    flat = x.detach().flatten(2)
    mean = flat.mean(-1)
    return {"new": lambda: gram.second_moments(flat, mean), "old": lambda: flat @ flat.transpose(1, 2)}


def one_product(x: Tensor) -> Candidates:
    """theta, phi and g by one matrix product, beside three."""
    flat = x.detach().flatten(2)
    weights = torch.randn(3, x.shape[1] // 2, x.shape[1])
    joined = weights.flatten(0, 1)
    return {"new": lambda: joined @ flat, "old": lambda: [weight @ flat for weight in weights]}


def factor_after_conv_z(x: Tensor) -> Candidates:
    """The dot product's sums applied to conv_z's output with the norm's scale, beside y = sums · theta."""
    batch, channels = x.shape[:2]
    theta = torch.randn(batch, channels // 2, x[0, 0].numel())
    sums, scale, shift = (torch.randn(batch, count, 1) for count in (channels // 2, channels, channels))
    z = torch.randn(GROUPS, channels // GROUPS, channels // 2 // GROUPS)

    def new() -> Tensor:
        out = maps.multiply(z, theta)
        return torch.addcmul(shift, out, scale, out=out)

    def old() -> Tensor:
        out = maps.multiply(z, theta * sums)
        return torch.addcmul(shift, out, scale, out=out)

    return {"new": new, "old": old}


def factor_in_conv_z(x: Tensor) -> Candidates:
    """The dot product's sums applied to conv_z's weights, one set a sample, beside y = sums · theta."""
    batch, channels = x.shape[:2]
    theta = torch.randn(batch, GROUPS, channels // 2 // GROUPS, x[0, 0].numel())
    sums = torch.randn(batch, GROUPS, 1, 1)
    z = torch.randn(GROUPS, channels // GROUPS, channels // 2 // GROUPS)
    return {"new": lambda: (z * sums) @ theta, "old": lambda: z @ (theta * sums)}


def norm_inside(x: Tensor) -> Candidates:
    """Norm and residual inside one function, beside the norm as a module behind the operation."""
    block = block_for(x)
    outside = copy.deepcopy(block)
    # a hook makes the block call its norm
    outside.norm.register_forward_hook(lambda module, args, output: None)
    return {"new": training_step(block, x), "old": training_step(outside, x)}


def parts_of_the_batch(x: Tensor) -> Candidates:
    """A part of the batch after the other, beside the whole batch at once."""
    step = training_step(block_for(x), x)
    return {"new": step, "old": replaced(maps, _PARTS, x.numel())(step)}


def fuse(x: Tensor) -> Candidates:
    """Inference with the norm folded into conv_z, beside inference with the norm."""
    block = block_for(x).eval()
    fused = copy.deepcopy(block).fuse()
    return {"new": forward_only(fused, x), "old": forward_only(block, x)}


REWRITINGS = (
    gram_form,
    gram_form_in_inference,
    half_of_k,
    one_product,
    factor_after_conv_z,
    factor_in_conv_z,
    norm_inside,
    parts_of_the_batch,
    fuse,
)


def main() -> None:
    """Measure every rewriting at every shape and write the record."""
    arguments = begin(study(__file__, __doc__))
    rows = []
    for rewriting in REWRITINGS:
        for shape in SHAPES:
            torch.manual_seed(arguments.seed)
            candidates = rewriting(torch.randn(shape).requires_grad_())
            seconds = side_by_side(candidates, repeats=arguments.repeats, least_seconds=0.02)
            row = {
                "rewriting": rewriting.__name__,
                "what": (rewriting.__doc__ or "").strip(),
                "shape": shape,
                "seconds": {name: spread(values) for name, values in seconds.items()},
                "times_as_fast": ratios(seconds["old"], seconds["new"]),
            }
            rows.append(row)
            print(f"{row['rewriting']} {list(shape)}: {row['times_as_fast']['median']:.2f} times as fast", flush=True)
    write(arguments, rows, groups=GROUPS, repeats=arguments.repeats, dtype="float32")


if __name__ == "__main__":
    main()
