"""What the report page says in words about a block: its kind, and what is true of its pictures."""

from cgnl.explain.trace import BlockTrace
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF

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
    """What is true of a block's affinity pictures: how far they depend on the reference."""
    if block.kind == "residual":
        return "This block has no attention: it relates no element to another, so there is no affinity to show."
    if block.kind == "nl":
        return _non_local_statement(block)
    if isinstance(block.kernel, DotProduct):
        return (
            "With the dot product all reference elements of one group whose theta has the same sign give the same map, "
            "up to its strength: it shows where phi is large, not what this spot prefers. What the block gathered is "
            "under Evidence; what that changed is under Effect."
        )
    constant = " The part that is the same for all pairs (p = 0) is left out."
    if block.kind == "gnl":
        return (
            "The exact kernel function of the reference's theta and every phi of its group: one number a pair, so "
            "references of one group with equal theta give equal maps, wherever they lie." + constant
        )
    return (
        "The series depends on the reference through one number, its theta: references of one group with equal theta "
        "give equal maps, and where theta · phi (times 2 gamma for the RBF) is small the linear term rules, so that "
        "all of one sign look alike. Look at Evidence and Effect too." + constant
    )


def _non_local_statement(block: BlockTrace) -> str:
    if block.pairwise in ("gaussian", "embedded_gaussian"):
        return (
            "A row is a softmax over all positions: it adds up to 1 and is the same for every channel. It says how "
            "much of g each position lends to the reference, not what that did to the prediction: see Effect."
        )
    if block.pairwise == "dot_product":
        return (
            "The dot product of the channel vectors of two positions, over the number of positions; it may be "
            "negative, and is the same for every channel. What it did to the prediction is under Effect."
        )
    return (
        "ReLU of one number of the reference plus one of the other position: where the sum is positive, all references "
        "give the same map up to a constant. What it did to the prediction is under Effect."
    )
