"""What is said in words about a block, beside its figures and on the page: its kind, and what is true of its maps."""

import torch

from cgnl.explain.trace import BlockTrace
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF, KernelFunction

_NON_LOCAL = {
    "embedded_gaussian": "embedded Gaussian",
    "gaussian": "Gaussian",
    "dot_product": "dot product",
    "concatenation": "concatenation",
}


def kind_in_words(block: BlockTrace) -> str:
    """The kind of a block with its kernel function and groups."""
    if block.kind == "residual":
        return "simple residual block"
    if block.kind == "nl":
        return f"non-local, {_NON_LOCAL[block.pairwise or '']}"
    name = "compact generalized non-local" if block.kind == "cgnl" else "generalized non-local"
    groups = "1 group" if block.groups == 1 else f"{block.groups} groups"
    return f"{name}, {_kernel_in_words(block)}, {groups}"


def _kernel_in_words(block: BlockTrace) -> str:
    kernel = block.kernel
    if isinstance(kernel, DotProduct):
        return "dot product"
    if isinstance(kernel, EmbeddedGaussian):
        name = "embedded Gaussian"
    elif isinstance(kernel, GaussianRBF):
        name = f"Gaussian RBF (gamma {kernel.gamma:g}, {kernel.beta} beta)"
    else:
        name = "kernel function of your own"
    assert kernel is not None
    return name if block.kind == "gnl" else f"{name} to order {len(kernel.coefficients) - 1}"


def statement(block: BlockTrace) -> str:
    """What is true of a block's affinity maps: how far they depend on the reference, and what is left out."""
    if block.kind == "residual":
        return "This block has no attention: it relates no element to another, so there is no affinity to show."
    if block.kind == "nl":
        return _non_local_statement(block)
    if _is_linear(block):
        return (
            "With the dot product all reference elements of one group whose theta has the same sign give the same map, "
            "up to its strength: it shows where phi is large, not what this spot prefers. What the block gathered is "
            "its evidence; what that changed is its effect." + _left_out(block)
        )
    if block.kind == "gnl":
        return (
            "The exact kernel function of the reference's theta and every phi of its group: one number a pair, so "
            "references of one group with equal theta give equal maps, wherever they lie."
            + _small_arguments(block)
            + _left_out(block)
        )
    return (
        "The series depends on the reference through one number, its theta: references of one group with equal theta "
        "give equal maps." + _small_arguments(block) + " Look at evidence and effect too." + _left_out(block)
    )


def _is_linear(block: BlockTrace) -> bool:
    """Whether the map is theta times phi, the constant term aside: the series of a compact block may be, too."""
    kernel = block.kernel
    if block.kind != "cgnl" or kernel is None:
        return isinstance(kernel, DotProduct)
    return not any(kernel.coefficients[2:]) and not _has_envelope(kernel)


def _has_envelope(kernel: KernelFunction) -> bool:
    return kernel.envelope(torch.zeros(())) is not None


def _small_arguments(block: BlockTrace) -> str:
    """When the map is practically that of the dot product."""
    kernel = block.kernel
    assert kernel is not None
    product = "2 gamma theta · phi" if isinstance(kernel, GaussianRBF) else "theta · phi"
    if block.kind == "gnl" and not isinstance(kernel, EmbeddedGaussian | GaussianRBF):
        return ""  # nothing is known of an exact function of one's own
    if len(kernel.coefficients) < 2 or not kernel.coefficients[1]:
        return ""
    if _has_envelope(kernel):
        shape = "times an envelope of phi that is the same for all references"
    else:
        shape = "the same for all references whose theta has the same sign"
    return f" While {product} is well below 1 it is practically the dot product's map, {shape}."


def _left_out(block: BlockTrace) -> str:
    """What `affinity` leaves out unless it is asked for the constant term."""
    kernel = block.kernel
    assert kernel is not None
    if block.kind == "gnl" and not isinstance(kernel, DotProduct | EmbeddedGaussian | GaussianRBF):
        zero = torch.zeros(())
        if not kernel.exact(zero, zero):
            return ""
        return " What theta and phi give each on their own, f(t, 0) f(0, u) / f(0, 0), is left out."
    if not kernel.coefficients[0]:
        return ""
    if _has_envelope(kernel):
        return " The part without theta · phi (p = 0), which is the product of the two envelopes, is left out."
    return " The part that is the same for all pairs (p = 0) is left out."


def _non_local_statement(block: BlockTrace) -> str:
    if block.pairwise in ("gaussian", "embedded_gaussian"):
        return (
            "A row is a softmax over all positions: it adds up to 1 and is the same for every channel. It says how "
            "much of g each position lends to the reference, not what that did to the prediction, which is the effect."
        )
    if block.pairwise == "dot_product":
        return (
            "The dot product of the channel vectors of two positions, over the number of positions; it may be "
            "negative, and is the same for every channel. What it did to the prediction is the effect."
        )
    return (
        "ReLU of one number of the reference plus one of the other position: where the sum is positive, all references "
        "give the same map up to a constant. What it did to the prediction is the effect."
    )
