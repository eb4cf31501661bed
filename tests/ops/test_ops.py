"""What the public operations refuse, and with which words."""

import pytest
import torch

from cgnl import ops

X = torch.zeros(2, 8, 3, 3)
FEATURES = (X, X, X)
WEIGHTS = (*(torch.zeros(4, 8, 1, 1) for _ in range(3)), torch.zeros(8, 2, 1, 1))


@pytest.mark.parametrize("operation", [ops.compact_generalized_non_local, ops.generalized_non_local])
@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {"groups": 3}, r"channels \(8\) must be divisible by groups \(3\)"),
        (FEATURES, {"groups": 0}, r"channels \(8\) must be divisible by groups \(0\)"),
        (FEATURES, {"kernel": "dots"}, r"kernel \('dots'\) must be one of"),
        (FEATURES, {"scale": "root"}, r"scale \('root'\) must be None, 'sqrt' or 'mean'"),
        (FEATURES, {"backend": "gpu"}, r"backend \('gpu'\) must be one of 'auto', 'eager', .*'naive'"),
        ((X, X[:, :4], X), {}, r"phi \(2, 4, 3, 3\) must have theta's shape \(2, 8, 3, 3\)"),
        ((X, X, X[..., :2]), {}, r"g \(2, 8, 3, 2\) must have theta's shape"),
        ((X[0, 0],) * 3, {}, r"theta \(3, 3\) must be \[batch, channels, 1 to 3 spatial or space-time axes\]"),
    ],
)
def test_group_operations_name_what_is_wrong(operation, features, options, message):
    with pytest.raises(ValueError, match=message):
        operation(*features, **{"groups": 2, "kernel": "dot", **options})


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        (FEATURES, {"pairwise": "dot"}, r"pairwise \('dot'\) must be one of 'embedded_gaussian'"),
        (FEATURES, {"pairwise": "concatenation"}, r"concat_weight is needed by pairwise 'concatenation'"),
        (FEATURES, {"concat_weight": torch.ones(16)}, r"concat_weight has no meaning for pairwise 'dot_product'"),
        (
            FEATURES,
            {"pairwise": "concatenation", "concat_weight": torch.ones(8)},
            r"concat_weight has 8 numbers, but must have twice theta's channels \(16\)",
        ),
        ((X, X[:, :4], X), {}, r"phi \(2, 4, 3, 3\) must have theta's batch, channels and number of axes"),
        ((X, X[..., :2], X), {}, r"g \(2, 8, 3, 3\) must have phi's batch and positions \(2, 8, 3, 2\)"),
    ],
)
def test_non_local_names_what_is_wrong(features, options, message):
    with pytest.raises(ValueError, match=message):
        ops.non_local(*features, **{"pairwise": "dot_product", **options})


@pytest.mark.parametrize(
    ("x", "weights", "groups", "message"),
    [
        (X, WEIGHTS, 4, r"z_weight \(8, 2, 1, 1\) must have shape \(8, 1, 1, 1\)"),
        (X[:, :6], WEIGHTS, 2, r"theta_weight \(4, 8, 1, 1\) must have shape \(4, 6, 1, 1\) for x \(2, 6, 3, 3\)"),
        (X, WEIGHTS, 3, r"inner channels \(4\) must be divisible by groups \(3\)"),
        (X.double(), WEIGHTS, 2, r"x is torch.float64, but theta_weight is torch.float32"),
    ],
)
def test_block_names_what_is_wrong(x, weights, groups, message):
    with pytest.raises(ValueError, match=message):
        ops.cgnl_block(x, *weights, groups=groups, kernel="dot")
