"""What is said in words about a block, beside its figures and on the page: its kind, and what is true of its maps."""

import torch

from cgnl.explain.maps import DOT_PRODUCTS, View
from cgnl.explain.trace import BlockTrace
from cgnl.kernel_functions import DotProduct, EmbeddedGaussian, GaussianRBF

_NON_LOCAL = {
    "embedded_gaussian": "embedded Gaussian",
    "gaussian": "Gaussian",
    "dot_product": "dot product",
    "dot_product_sum": "dot product, not divided by the positions",
    "concatenation": "concatenation",
}


def kind_in_words(block: BlockTrace) -> str:
    """Return the kind of a block with its kernel function and groups."""
    if block.phrase:
        return block.phrase
    if block.kind == "nl":
        return f"non-local, {_NON_LOCAL[block.pairwise or '']}"
    name = "compact generalized non-local" if block.kind == "cgnl" else "generalized non-local"
    groups = "1 group" if block.groups == 1 else f"{block.groups} groups"
    statistic = "" if block.statistic == "sum" else f", {block.statistic}"
    return f"{name}, {_kernel_in_words(block)}{statistic}, {groups}"


def _kernel_in_words(block: BlockTrace) -> str:
    kernel = block.kernel
    assert kernel is not None
    # the series of the dot product is the dot product
    whole = block.kind == "gnl" or isinstance(kernel, DotProduct)
    return kernel.words if whole else f"{kernel.words} to order {len(kernel.coefficients) - 1}"


def statement(block: BlockTrace, view: View = "row") -> str:
    """Return what is true of a block's affinity maps: how far they depend on the reference, and what is left out.

    ``view`` is that of `cgnl.explain.maps.affinity`: a row holds the reference's theta against phi, a column the
    reverse.
    """
    if block.kind == "residual":
        if "your own" in block.phrase:
            return "cgnl does not know how this block relates elements, so there is no affinity to show."
        return "This block has no attention: it relates no element to another, so there is no affinity to show."
    if block.kind == "nl":
        return _non_local_statement(block, view)
    own, other = ("theta", "phi") if view == "row" else ("phi", "theta")
    if block.kind == "cgnl" and block.kernel is not None and not any(block.kernel.coefficients[1:]):
        return "The series has only the power p = 0 of theta · phi, which is left out, so the map is empty."
    if _is_linear(block):
        return _linear_statement(block, own, other) + _left_out(block)
    if block.kind == "gnl":
        return (
            f"The exact kernel function of the reference's {own} and each {other} of its group gives one number, so "
            f"references of one group with equal {own} give equal maps, wherever they lie."
            + _small_arguments(block, own, other)
            + _left_out(block)
        )
    return (
        f"The series depends on the reference through one number, its {own}: references of one group with equal {own} "
        f"give equal maps.{_small_arguments(block, own, other)} Look at evidence and effect too." + _left_out(block)
    )


def _linear_statement(block: BlockTrace, own: str, other: str) -> str:
    lead = "With the dot product" if isinstance(block.kernel, DotProduct) else "As the series ends with theta · phi,"
    shows = "what this spot prefers" if own == "theta" else "which spots prefer this one"
    after = "The effect shows the change that this made."
    if block.kind == "cgnl":
        after = (
            "The evidence shows the amounts that the block gathered, and the effect shows the change that they made."
        )
    centred = block.statistic != "sum" and other == "phi"
    return (
        f"{lead} all reference elements of one group whose {own} has the same sign give the same map, up to its "
        f"strength: it shows where {other} is {'far from its mean' if centred else 'large'}, not {shows}. {after}"
    )


def _is_linear(block: BlockTrace) -> bool:
    """Return whether the map is theta times phi, the constant term aside: the series of a compact block may be, too."""
    kernel = block.kernel
    if block.kind != "cgnl" or kernel is None:
        return isinstance(kernel, DotProduct)
    return not any(kernel.coefficients[2:]) and not _has_envelope(block)


def _has_envelope(block: BlockTrace) -> bool:
    """Return whether affinities have factors of theta alone and of phi alone; the exact Gaussian RBF always has."""
    kernel = block.kernel
    assert kernel is not None
    if block.kind == "gnl" and isinstance(kernel, GaussianRBF):
        return True
    return kernel.envelope(torch.zeros(())) is not None


def _small_arguments(block: BlockTrace, own: str, other: str) -> str:
    """Return when the map is practically that of the dot product."""
    kernel = block.kernel
    assert kernel is not None
    product = "2 gamma theta · phi" if isinstance(kernel, GaussianRBF) else "theta · phi"
    if block.kind == "gnl":
        if not isinstance(kernel, EmbeddedGaussian | GaussianRBF):
            return ""  # nothing is known of an exact function of one's own
    elif not kernel.coefficients[1]:
        return ""
    if _has_envelope(block):
        shape = f"times an envelope of {other} that is the same for all references"
    else:
        shape = f"the same for all references whose {own} has the same sign"
    return f" While {product} is well below 1 it is practically the dot product's map, {shape}."


def _left_out(block: BlockTrace) -> str:
    """Return what `affinity` leaves out unless it is asked for the constant term."""
    kernel = block.kernel
    assert kernel is not None
    if block.kind == "gnl" and not isinstance(kernel, DotProduct | EmbeddedGaussian | GaussianRBF):
        zero = torch.zeros(())
        if not kernel.exact(zero, zero):
            return ""
        return " The contribution of theta and phi each on their own, f(t, 0) f(0, u) / f(0, 0), is left out."
    if not kernel.coefficients[0]:
        return ""
    if _has_envelope(block):
        return " The part without theta · phi (p = 0), which is the product of the two envelopes, is left out."
    return " The part that is the same for all pairs (p = 0) is left out."


def _non_local_statement(block: BlockTrace, view: View) -> str:
    if block.pairwise in ("gaussian", "embedded_gaussian"):
        if view == "column":
            return (
                "This is the share that the softmax of every position gives to the reference. It is the same for every "
                "channel, and a column does not add up to 1. It shows how much of its g the reference lends. The "
                "effect shows the change in the prediction."
            )
        return (
            "A row is a softmax over all positions: it adds up to 1 and is the same for every channel. It shows how "
            "much of g each position lends to the reference. The effect shows the change in the prediction."
        )
    if block.pairwise in DOT_PRODUCTS:
        divided = ", over the number of positions" if block.pairwise == "dot_product" else ""
        return (
            f"The dot product of the channel vectors of two positions{divided}; it may be negative and is the same "
            "for every channel. The effect shows the change in the prediction."
        )
    return (
        "ReLU of one number of the reference plus one of the other position: where the sum is positive, all references "
        "give the same map up to a constant. The effect shows the change in the prediction."
    )
