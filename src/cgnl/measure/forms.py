"""Which form of the dot product's sums a measurement takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from cgnl.ops.eager import gram


@contextmanager
def replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Give a module's name another value within the context, or in each call of a function that it decorates."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def gram_form(taken: bool) -> Iterator[None]:
    """Make the eager operation take the Gram form wherever it can, or nowhere, within the context or in each call."""

    def pays(*sizes: int, training: bool) -> bool:
        return taken

    with replaced(gram, "pays", pays):
        yield
