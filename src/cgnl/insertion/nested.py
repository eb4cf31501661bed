"""Values inside nested outputs: tuples, lists, dicts and dataclasses."""

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx

Key = str | int
Select = Key | tuple[Key, ...]
"""Where a tensor is in a nested output: a key or an index, or a tuple with one for each level, outermost first."""

_SHOWN = 6


def keys_of(select: Select | None) -> tuple[Key, ...]:
    """Return the keys of ``select``, outermost first; no keys if the output itself is the tensor."""
    if select is None:
        return ()
    return select if isinstance(select, tuple) else (select,)


def pick(output: Any, keys: tuple[Key, ...]) -> Any:
    """Return the value at ``keys``.

    Raises:
        ValueError: There is none.
    """
    key: Any
    for key in keys:
        if isinstance(output, fx.Proxy):
            output = _pick_when_run(output, key)
            continue
        if isinstance(output, Tensor):
            raise ValueError(f"select: there is no {key!r} in {describe(output)}")
        try:
            output = getattr(output, key) if _has_fields(output, key) else output[key]
        except (AttributeError, IndexError, KeyError, TypeError):
            raise ValueError(f"select: there is no {key!r} in {describe(output)}") from None
    return output


def put(output: Any, keys: tuple[Key, ...], value: Any) -> Any:
    """Return a copy of the output, of the same kind, with another value at ``keys``."""
    if not keys:
        return value
    key, *inner = keys
    return _replace(output, key, put(pick(output, (key,)), tuple(inner), value))


def _has_fields(output: Any, key: Any) -> bool:
    """Tell whether the key names an attribute, as in named tuples and in dataclasses that are not dicts."""
    if not isinstance(key, str) or isinstance(output, Mapping):
        return False
    return not isinstance(output, tuple) or _names_of(output) is not None


def _names_of(output: Any) -> tuple[str, ...] | None:
    """Return the names of the items of a named tuple, also of PyTorch's own (``torch.return_types``), or None."""
    if hasattr(output, "n_sequence_fields"):
        return type(output).__match_args__
    return getattr(output, "_fields", None)


def _replace(output: Any, key: Any, value: Any) -> Any:
    if isinstance(output, fx.Proxy):
        return _replace_when_run(output, key, value)
    if isinstance(output, Mapping) and dataclasses.is_dataclass(output):  # a ModelOutput, which also takes an index
        name = key if isinstance(key, str) else list(output)[key]
        return type(output)(**{**output, name: value})
    if isinstance(output, tuple):
        position = (_names_of(output) or ()).index(key) if isinstance(key, str) else key
        items = list(output)
        items[position] = value
        return output._make(items) if hasattr(output, "_make") else type(output)(items)
    # torch.compile supports only the method copy, which loses the class of other subclasses
    result = output.copy() if type(output) in (dict, list, OrderedDict) else copy.copy(output)
    if _has_fields(output, key):
        object.__setattr__(result, key, value)  # also in frozen dataclasses
    else:
        result[key] = value
    return result


# In a traced network, the kind of an output may be unknown until the network runs.
@fx.wrap
def _pick_when_run(output: Any, key: Key) -> Any:
    return pick(output, (key,))


@fx.wrap
def _replace_when_run(output: Any, key: Key, value: Any) -> Any:
    return _replace(output, key, value)


def leaves_in(output: Any) -> Iterator[Any]:
    """Yield all values in an output, at any depth of tuples, lists, dicts and dataclasses."""
    if isinstance(output, Mapping):
        values = list(output.values())
    elif isinstance(output, list | tuple | set):
        values = list(output)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        values = [getattr(output, field.name, None) for field in dataclasses.fields(output)]
    else:
        yield output
        return
    for value in values:
        yield from leaves_in(value)


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield all tensors in an output, at any depth."""
    return (leaf for leaf in leaves_in(output) if isinstance(leaf, Tensor))


def describe(output: Any) -> str:
    """Describe an output: its kind and, one level deep, the shapes in it."""
    if isinstance(output, Mapping):
        items = [f"{key!r}: {_describe_item(value)}" for key, value in output.items()]
    elif isinstance(output, list | tuple):
        names = _names_of(output) or range(len(output))
        items = [f"{name}: {_describe_item(value)}" for name, value in zip(names, output, strict=True)]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        fields = [(field.name, getattr(output, field.name, None)) for field in dataclasses.fields(output)]
        items = [f"{name}: {_describe_item(value)}" for name, value in fields]
    else:
        return _describe_item(output)
    if not items:
        return f"an empty {type(output).__name__}"
    more = "" if len(items) <= _SHOWN else f" and {len(items) - _SHOWN} more"
    return f"{_kind(output)} of {', '.join(items[:_SHOWN])}{more}"


def _describe_item(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = f"a {value.dtype} tensor of"
        return f"{kind} nested shapes" if value.is_nested else f"{kind} shape {list(value.shape)}"
    return _kind(value)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"
