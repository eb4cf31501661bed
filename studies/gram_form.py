"""Where are the dot product's sums cheaper from K = X X^T than from phi and g, and what does the block choose?

The whole CGNL block in float32 at G = 8 on a CPU, in training and in inference, in turns within one process. Run on a
machine that does nothing else:

    python studies/gram_form.py
"""

from itertools import product

import torch
from torch import nn

import cgnl
from cgnl.measure.forms import gram_form
from cgnl.measure.timing import forward_only, ratios, side_by_side, spread, training_step
from cgnl.ops.eager import gram
from script import begin, study, write

CHANNELS = (64, 128, 256, 512, 1024, 2048)
SIDES = (7, 14, 28, 56, 112)
BATCHES = (1, 4, 8, 16)
GROUPS = 8
# Elements of x: fewer take microseconds, more take minutes.
LEAST_ELEMENTS, MOST_ELEMENTS = 2**17, 2**24


def main() -> None:
    """Measure every size and write the record."""
    arguments = begin(study(__file__, __doc__))
    rows = []
    for channels, side, batch in product(CHANNELS, SIDES, BATCHES):
        shape = (batch, channels, side, side)
        x = torch.empty(shape)
        if not LEAST_ELEMENTS <= x.numel() <= MOST_ELEMENTS:
            continue
        torch.manual_seed(arguments.seed)
        x.normal_().requires_grad_()
        block = cgnl.CGNL2d(channels, groups=GROUPS, backend="eager")
        nn.init.ones_(block.norm.weight)
        for training in (True, False):
            run = training_step(block.train(), x) if training else forward_only(block.eval(), x)
            forms = {"gram": gram_form(True)(run), "features": gram_form(False)(run)}
            seconds = side_by_side(forms, repeats=arguments.repeats, warmup=2, least_seconds=0.02)
            row = {
                "shape": shape,
                "training": training,
                "takes_gram_form": gram.pays(batch, channels, channels // 2, side * side, GROUPS, training=training),
                "seconds": {name: spread(values) for name, values in seconds.items()},
                "features_over_gram": ratios(seconds["features"], seconds["gram"]),
            }
            rows.append(row)
            print(
                f"{list(shape)} {'training' if training else 'inference'}: {row['features_over_gram']['median']:.2f}, "
                f"{'Gram form' if row['takes_gram_form'] else 'phi and g'}",
                flush=True,
            )
    write(arguments, rows, groups=GROUPS, repeats=arguments.repeats, dtype="float32")


if __name__ == "__main__":
    main()
