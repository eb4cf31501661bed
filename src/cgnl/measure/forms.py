"""Which form of the dot product's sums a measurement takes."""

from contextlib import AbstractContextManager
from unittest import mock

from cgnl.ops.eager import gram


def gram_form(taken: bool) -> AbstractContextManager[object]:
    """Within this the eager operation takes the Gram form wherever it can, or nowhere, whatever pays."""

    def pays(*sizes: int, training: bool) -> bool:
        return taken

    return mock.patch.object(gram, "pays", pays)
