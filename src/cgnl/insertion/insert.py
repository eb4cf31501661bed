"""Putting blocks into any network, and taking them out again.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cgnl.insertion.check import check_blocks
from cgnl.insertion.hook import Layout, RunsBlocksOfVideos, apply, attach, detach, inserted_blocks
from cgnl.insertion.layouts import Shape, channels_last_shapes
from cgnl.insertion.nested import Select, keys_of
from cgnl.insertion.places import Places, find_places
from cgnl.insertion.probe import probe, undisturbed
from cgnl.insertion.targets import find_target, refuse_wrapped

ModelT = TypeVar("ModelT", bound=nn.Module)
MakeBlock = Callable[[int], nn.Module]

_logger = logging.getLogger("cgnl.insertion")


def insert_blocks(
    model: ModelT,
    blocks: Mapping[str, MakeBlock] | MakeBlock,
    *,
    example_input: Any,
    layout: Layout | None = None,
    num_blocks: int = 1,
    select: Select | Mapping[str, Select | None] | None = None,
) -> ModelT:
    """Put blocks into a network, each right after the module at its path, or at the paper's place, which is found.

    A block that starts as the identity leaves the network's output as it was, bit for bit. The host's state-dict keys
    do not change: its checkpoints load with ``strict=False``, and only block keys are missing. The network runs on
    ``example_input`` in eval mode to find the number of channels, and then forwards and backwards to check the result.
    Gradients, buffers, training flags and random state stay as they are; after an error, the network is as it was.

    A block takes the device, type and training flag of the module that it follows, runs before that module's other
    hooks, and is its child ``inserted_block``; see `cgnl.insertion` for containers and wrappers.

    Args:
        model: Any network; changed in place. Insert before ``torch.compile``, DDP and ``fully_shard``.
        blocks: For each module path, such as ``"layer3.4"``, a callable that takes the number of channels and
            returns the block: a class such as ``cgnl.CGNL2d``, a ``functools.partial`` of it, or a function.
            The block must keep the shape ``[B, C, *S]`` of its input. If you give a single callable instead, it goes to
            the paper's place: right before the last block of the stage at 1/16 of the input, see `cgnl.insertion`.
        example_input: The network's input, on its device: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments.
        layout: ``"channels_first"`` for feature maps ``[B, C, *S]`` of 1 to 3 axes; ``"channels_last"`` for
            maps ``[B, *S, C]`` and tokens ``[B, N, C]``, where a class token is one more position. Blocks see
            ``[B, C, *S]`` either way. The default is channels first for paths; for a single callable, the layout is
            found.
        num_blocks: Number of blocks for a single callable. With 5, three go into the stage of the first and two into
            the stage before, at most one after every second block of a stage; those that do not fit are not inserted.
        select: Where the feature map is in the output of the modules, if they return a tuple, list, dict or
            dataclass: an index or a key, or a tuple of them for nested outputs, ``(0, "features")``. It applies to all
            paths. A dict gives each path its own; leave out paths whose module returns the map itself.

    Returns:
        The same ``model``.

    Raises:
        ValueError: A path does not exist; its module does not run exactly once, returns no feature map, or already has
            a block; no place is found; the block cannot be made or run there, or changes the shape; the network cannot
            be differentiated with it, or its output does not depend on it; the network is compiled, scripted or
            wrapped.

    Example:
        >>> import torch, cgnl
        >>> host = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 3))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> before = host(x)
        >>> _ = cgnl.insert_blocks(host, {"1": cgnl.CGNL2d}, example_input=x)
        >>> torch.equal(host(x), before)
        True
        >>> [key for key in host.state_dict() if "theta" in key]
        ['1.inserted_block.theta.weight']
    """
    if not isinstance(blocks, Mapping) and callable(blocks):
        places = _find_places(model, blocks, example_input, layout, num_blocks, select)
        if _runs_it_itself(model, blocks):
            _let_insert(model, blocks, places, example_input)
        else:
            _insert(model, dict.fromkeys(places.paths, blocks), example_input, places.layout, places.select)
        _say(places.words)
        return model
    if num_blocks != 1:
        raise ValueError(
            f"num_blocks ({num_blocks}) applies only where blocks is a callable; paths already say how many"
        )
    _insert(model, blocks, example_input, layout, select)
    return model


def _insert(
    model: nn.Module,
    blocks: Mapping[str, MakeBlock],
    example_input: Any,
    layout: Layout | None,
    select: Select | Mapping[str, Select | None] | None,
) -> None:
    """Put blocks after the modules at their paths; after an error, the network is as before."""
    layout_is_given = layout is not None
    layout = layout or "channels_first"
    _check_arguments(model, blocks, example_input, layout, select)
    targets = {path: find_target(model, path) for path in blocks}
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"blocks: two of the paths {list(targets)} name the same module")
    keys = {path: keys_of(select.get(path) if isinstance(select, Mapping) else select) for path in blocks}
    with channels_last_shapes(model) as channels_last:
        maps, autocasts, owners = probe(model, targets, keys, example_input)
    if not layout_is_given:
        _warn_of_channels_last(maps, channels_last)
    made = {
        path: _make(path, blocks[path], maps.pop(path), model, targets[path], layout, autocasts.get(path))
        for path in targets
    }
    if len(set(made.values())) < len(made):
        raise ValueError("blocks: each path must get a block of its own, but two got the same module")

    with _undone_on_error(model, targets):
        for path, block in made.items():
            attach(targets[path], block, layout, keys[path], *owners[path])
        check_blocks(model, made, example_input)


@contextmanager
def _undone_on_error(model: nn.Module, targets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Take the blocks after the targets out again if the body fails."""
    try:
        yield
    except BaseException:
        for target in targets.values():
            detach(model, target)
        raise


def _warn_of_channels_last(maps: Mapping[str, Tensor], channels_last: set[Shape]) -> None:
    """Warn if a block would mistake the positions of a map for its channels, which may show nowhere else."""
    for path, output in maps.items():
        if tuple(output.shape) in channels_last:
            warnings.warn(
                f"blocks[{path!r}]: the network's layers take the last axis of {list(output.shape)} for the "
                "channels, but the block takes the second; give layout='channels_last', or 'channels_first' if that "
                "is meant",
                stacklevel=4,
            )


def _find_places(
    model: nn.Module, make_block: MakeBlock, example_input: Any, layout: Layout | None, num_blocks: int, select: object
) -> Places:
    """Return the places for a callable alone."""
    if isinstance(make_block, nn.Module):
        raise ValueError(
            f"blocks must be a callable, such as the class {type(make_block).__name__} itself, not a block"
        )
    if select is not None:
        raise ValueError(f"select ({select!r}) must be left out where blocks is a callable: it is found with the place")
    if not isinstance(num_blocks, int) or isinstance(num_blocks, bool) or num_blocks < 1:
        raise ValueError(f"num_blocks ({num_blocks!r}) must be an integer of at least 1")
    _check_arguments(model, {"...": make_block}, example_input, layout or "channels_first", None)
    refuse_wrapped(model)
    num_axes = None if _runs_it_itself(model, make_block) else _num_axes(make_block)
    return find_places(model, example_input, num_blocks, num_axes=num_axes, layout=layout)


def _runs_it_itself(model: nn.Module, make_block: MakeBlock) -> bool:
    return isinstance(model, RunsBlocksOfVideos) and _num_axes(make_block) == 3


def _let_insert(model: nn.Module, make_block: MakeBlock, places: Places, example_input: Any) -> None:
    """Put blocks into a network that runs blocks on videos itself."""
    assert isinstance(model, RunsBlocksOfVideos)
    targets = {path: find_target(model, path) for path in places.paths}
    with _undone_on_error(model, targets):
        with torch.inference_mode(False):
            made = {path: model.insert_block(path, make_block) for path in targets}
        check_blocks(model, made, example_input)


def _say(words: str) -> None:
    if _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers():
        _logger.info(words)
    else:
        # Unlike a log line, this shows even if logging is not set up.
        print(f"cgnl: {words}", file=sys.stderr)


def _num_axes(make_block: MakeBlock) -> int | None:
    """Return the number of axes that a callable's blocks take, or None if it does not say."""
    block_type: Any = make_block
    while isinstance(block_type, partial):
        block_type = block_type.func
    return getattr(block_type, "num_axes", None)


def _check_arguments(
    model: nn.Module,
    blocks: Mapping[str, MakeBlock],
    example_input: Any,
    layout: Layout,
    select: Select | Mapping[str, Select | None] | None,
) -> None:
    if layout not in ("channels_first", "channels_last"):
        raise ValueError(f"layout ({layout!r}) must be 'channels_first' or 'channels_last'")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(blocks, Mapping) or not blocks:
        raise ValueError(
            'blocks must map at least one module path to a callable, such as {"layer3.4": cgnl.CGNL2d}, '
            "or be a callable"
        )
    for path, make_block in blocks.items():
        if isinstance(make_block, nn.Module) or not callable(make_block):
            given = f"the class {type(make_block).__name__} itself, not a block"
            raise ValueError(
                f"blocks[{path!r}] must be a callable that takes the number of channels and returns the block, such as "
                f"{given if isinstance(make_block, nn.Module) else f'cgnl.CGNL2d, not {make_block!r}'}"
            )
    if not isinstance(example_input, Tensor | tuple | dict):
        raise ValueError(
            "example_input must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
            f"not {type(example_input).__name__}"
        )
    if isinstance(select, Mapping) and not select.keys() <= blocks.keys():
        raise ValueError(f"select: its paths {list(select)} must be among those of blocks, {list(blocks)}")
    for chosen in select.values() if isinstance(select, Mapping) else [select]:
        if not all(isinstance(key, str | int) for key in keys_of(chosen)):
            raise ValueError(f"select ({chosen!r}) must be a key, an index or a tuple of them")


def remove_blocks(model: ModelT) -> ModelT:
    """Take out all inserted blocks, so that the host is as it was before :func:`insert_blocks`.

    Args:
        model: The network that has the blocks, or a copy of it; changed in place. A network without inserted blocks
            stays as it is.

    Returns:
        The same ``model``.

    Raises:
        ValueError: A block belongs to a module outside ``model``, so ``model`` is only a part of the network.

    Example:
        >>> import torch, cgnl
        >>> host = torch.nn.Sequential(torch.nn.Conv1d(3, 16, 3))
        >>> _ = cgnl.insert_blocks(host, {"0": cgnl.CGNL1d}, example_input=torch.randn(2, 3, 9))
        >>> list(cgnl.remove_blocks(host).state_dict())
        ['0.weight', '0.bias']
    """
    for path, block in inserted_blocks(model).items():
        if not any(block is module for module in model.modules()):
            raise ValueError(
                f"model: the block after {path!r} belongs to a module outside this {type(model).__name__}; "
                "pass the network that the blocks were inserted into"
            )
    # Inner modules first: a block that follows another block goes before its owner does.
    for module in reversed(list(model.modules())):
        detach(model, module)
    return model


def _make(
    path: str,
    make_block: MakeBlock,
    output: Tensor,
    model: nn.Module,
    target: nn.Module,
    layout: Layout,
    autocast: torch.dtype | None,
) -> nn.Module:
    """Make a block for a module's output and try it there, under autocast if the module runs under it."""
    try:
        with torch.inference_mode(False):  # parameters made in inference mode could never be trained
            block = make_block(output.shape[1 if layout == "channels_first" else -1])
            if not isinstance(block, nn.Module):
                raise ValueError(f"the callable must return a torch.nn.Module, not {type(block).__name__}")
            dtype = output.dtype if autocast is None else _dtype_of_parameters(target, model, output)
            block.to(device=output.device, dtype=dtype).train(target.training)
        casts = nullcontext() if autocast is None else torch.autocast(output.device.type, autocast)
        with undisturbed(block), casts:
            apply(block, output, layout)
    except Exception as error:
        raise ValueError(
            f"blocks[{path!r}]: {error} (the module's output has shape {list(output.shape)}, {layout})"
        ) from error
    return block


def _dtype_of_parameters(target: nn.Module, model: nn.Module, output: Tensor) -> torch.dtype:
    """Return the floating-point type of the target's first parameter, else of the host's first, else of the output."""
    parameters = itertools.chain(target.parameters(), model.parameters())
    return next((p.dtype for p in parameters if p.is_floating_point()), output.dtype)
