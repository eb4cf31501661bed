"""Import code from other packages, but only if the user names it.

A run folder, a checkpoint or a YAML file may name a class of another package, and importing it runs that package's
code. So cgnl imports only names from the command line of this call, or from ``trust=`` in Python.
"""

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@contextmanager
def trusting(*names: str) -> Iterator[None]:
    """Trust names while the body runs; the commands trust the names that the user typed.

    Args:
        names: Packages, modules, or the dotted names themselves.
    """
    token = _trusted.set((*_trusted.get(), *names))
    try:
        yield
    finally:
        _trusted.reset(token)


def trusted_names() -> tuple[str, ...]:
    """Return the names that are trusted here, for a process that is to trust the same."""
    return _trusted.get()


def import_named(name: str, trust: Collection[str] = ()) -> Any:
    """Import the object that a dotted name such as ``"mypackage.blocks.MyBlock"`` refers to, if it is trusted.

    Trusted are the packages, modules and dotted names in ``trust`` and those of :func:`trusting`. The module may be in
    the working directory. Raises ValueError if the name is not trusted, or its module or attribute cannot be found.

    >>> import_named("math.sqrt", trust=("math",))(4)
    2.0
    """
    if not any(name == trusted or name.startswith(f"{trusted}.") for trusted in (*trust, *_trusted.get())):
        package = name.partition(".")[0]
        raise ValueError(
            f"{name} is code from another package, and cgnl does not run it just because a file names it: "
            f"add --trust {package} to the command, or trust=({package!r},) in Python"
        )
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ValueError(f"{name} must be a module and a name in it, such as mypackage.{name}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that nothing there takes the place of an installed package
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but a module that it imports does not
        raise ValueError(f"{name} cannot be imported: there is no module {error.name}") from None
    if not hasattr(found, attribute):
        raise ValueError(f"{name} cannot be imported: the module {module} has no {attribute}")
    return getattr(found, attribute)
