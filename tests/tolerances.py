"""The tolerances of the tests, in one place.

Relative ones are of norms: |a - b| / |b| over a whole tensor, unless the name says otherwise.
"""

# Golden data of public implementations, float64: outputs and every gradient.
GOLDEN = 1e-9
# A gradient there that is zero in truth, absolute: the public implementations leave up to 4e-12.
ZERO_GOLDEN = 1e-11

# The eager form against the naive form, float64: outputs and gradients.
EAGER_FLOAT64 = 1e-12
# The same for gradients through GroupNorm, whose cancellation costs digits.
EAGER_FLOAT64_GROUP_NORM = 1e-10
# And through BatchNorm, which divides by deviations that may be small.
EAGER_FLOAT64_BATCH_NORM = 1e-11
# A gradient that is zero in truth, absolute.
ZERO_FLOAT64 = 1e-12

# float32 sums of the dot product: units of eps·|theta_i|·(sum over j of |phi_j g_j|).
FLOAT32_SUM_UNITS = 8

# One sample alone against the same sample in a larger batch, float32.
BATCH_OF_ONE = 1e-6

# Outputs of a half-precision block against float32, relative to the norm: a few units of the type's rounding.
HALF = {"float16": 4e-3, "bfloat16": 3e-2}

# float32 results that go through other kernels (compiled, exported) than the eager ones.
FLOAT32_OTHER_KERNELS = 5e-5

# float32 gradients behind a norm over maps whose deviations are small beside their mean, against float64.
FLOAT32_SMALL_DEVIATIONS = 2e-5
