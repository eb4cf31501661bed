"""Blocks into any network, by module path, and out again.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.

A block runs in a forward hook of the module it stands after, and is a registered submodule: ``parameters()``,
``state_dict()``, ``to()`` and ``train()`` see it, and the host's own keys stay as they are.
"""

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

BLOCK_NAME = "inserted_block"
"""Name of an inserted block in the module it stands after: ``layer3.4.inserted_block.theta.weight``."""

Layout = Literal["channels_first", "channels_last"]
ModelT = TypeVar("ModelT", bound=nn.Module)

_HANDLE_NAME = "_inserted_block_handle"
_STAND_IN_NAME = "_inserted_block_stand_in"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# By name, because importing torch.distributed.fsdp and torch._dynamo takes seconds.
_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
}


def insert_blocks(
    model: ModelT,
    blocks: Mapping[str, Callable[[int], nn.Module]],
    *,
    example_input: Any,
    layout: Layout = "channels_first",
) -> ModelT:
    """Put blocks into a network, each right after the module at its path.

    A block that starts as the identity, as ours do, leaves the network's output as it was, bit for bit. The
    host's state-dict keys do not change: its checkpoints load with ``strict=False``, only block keys missing.
    The number of channels is found by running the network on ``example_input`` in eval mode, which leaves
    gradients, buffers, training flags and random state untouched; on any error the network stays as it was.
    Blocks take the device, type and training flag of the module they stand after.

    A block is the child ``inserted_block`` of the module it stands after. Containers (``nn.Sequential``,
    ``nn.ModuleList``, ``nn.ModuleDict``) would run a child as one of their elements: after such a module, say
    ``layer3``, the block belongs to the nearest enclosing module that is no container, as
    ``inserted_block_after_layer3`` (or to the first leaf module inside, where all the enclosing ones are
    containers, as in a network that is one ``nn.Sequential``).

    Where a host may run the elements of a container one by one, as timm does with gradient checkpointing, the
    container itself does not run, nor does a block after it: let the block stand after the last element.

    Insert before ``torch.compile``, ``DistributedDataParallel`` and ``fully_shard``: compiled code does not
    see later hooks, and the wrappers collect the parameters when they wrap. To shard parts of a network that
    is one ``nn.Sequential``, let the blocks stand after modules that are not containers.

    Args:
        model: Any network; changed in place.
        blocks: For each module path, such as ``"layer3.4"``, a callable that takes the number of channels and
            returns the block: a class such as ``cgnl.CGNL2d``, a ``functools.partial`` of it, or a function.
            The block must keep the shape ``[B, C, *S]`` of its input.
        example_input: What the network is called with, on its device: a tensor, a tuple of positional
            arguments, or a dict of keyword arguments.
        layout: ``"channels_first"`` for feature maps ``[B, C, *S]`` of 1 to 3 axes; ``"channels_last"`` for
            maps ``[B, *S, C]`` and tokens ``[B, N, C]``, where a class token is one more position. Blocks see
            ``[B, C, *S]`` either way.

    Returns:
        The same ``model``.

    Raises:
        ValueError: A path does not exist; its module does not run exactly once in a forward pass, or its
            output is no feature map; it has a block already; the block cannot be made or run there, or
            changes the shape; the network is already compiled, wrapped or sharded.

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
    if layout not in ("channels_first", "channels_last"):
        raise ValueError(f"layout ({layout!r}) must be 'channels_first' or 'channels_last'")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(blocks, Mapping) or not blocks:
        raise ValueError('blocks must map at least one module path to a callable, such as {"layer3.4": cgnl.CGNL2d}')
    for path, make_block in blocks.items():
        if isinstance(make_block, nn.Module):
            raise ValueError(
                f"blocks[{path!r}] must be a callable that takes the number of channels and returns the block, such as "
                f"the class {type(make_block).__name__} itself, not a block"
            )
    if not isinstance(example_input, Tensor | tuple | dict):
        raise ValueError(
            "example_input must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
            f"not {type(example_input).__name__}"
        )
    targets = {path: _target(model, path) for path in blocks}
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"blocks: two of the paths {list(targets)} name the same module")
    outputs, owners = _probe(model, targets, example_input)
    made = {path: _make(path, blocks[path], outputs.pop(path), targets[path], layout) for path in targets}
    if len(set(made.values())) < len(made):
        raise ValueError("blocks: each path must get a block of its own, but two got the same module")

    try:
        for path, block in made.items():
            _attach(targets[path], block, layout, *owners[path])
        runs = _runs(model, made.values(), example_input)
        for path, block in made.items():
            if len(runs[block]) != 1:
                raise ValueError(
                    f"blocks[{path!r}]: the block must run exactly once in a forward pass, but ran "
                    f"{len(runs[block])} times"
                )
    except BaseException:
        for target in targets.values():
            _detach(model, target)
        raise
    return model


def attach_without_hook(module: nn.Module, block: nn.Module) -> None:
    """Make a block a module's child ``inserted_block``, for a network that runs the block itself.

    :func:`inserted_blocks` lists it and :func:`remove_blocks` takes it out, like one of :func:`insert_blocks`.

    Args:
        module: The module that the block stands after; one without a block.
        block: The block.
    """
    module.add_module(BLOCK_NAME, block)
    setattr(module, _HANDLE_NAME, None)


def block_without_hook(module: nn.Module) -> nn.Module | None:
    """Return the block of a module that :func:`attach_without_hook` put there, None where there is none.

    Args:
        module: Any module.
    """
    return module.get_submodule(BLOCK_NAME) if getattr(module, _HANDLE_NAME, False) is None else None


def remove_blocks(model: ModelT) -> ModelT:
    """Take all inserted blocks out, so that the host is as it was before :func:`insert_blocks`.

    Args:
        model: The network that blocks were inserted in, or a copy of it; changed in place. A network without
            inserted blocks is returned as it is.

    Returns:
        The same ``model``.

    Raises:
        ValueError: A block belongs to a module outside ``model``, which is then only a part of the network.

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
                "pass the network that the blocks were inserted in"
            )
    # Inner modules first: a block that stands after another block goes before its owner does.
    for module in reversed(list(model.modules())):
        _detach(model, module)
    return model


def inserted_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """List the inserted blocks of a network.

    Args:
        model: Any network; also a copy, or one that was saved and loaded.

    Returns:
        For each path that a block stands after, the block; in the order of ``model.named_modules()``.
    """
    blocks = ((path, _block_after(module)) for path, module in model.named_modules())
    return {path: block for path, block in blocks if block is not None}


class _BlockHook:
    """Forward hook that passes a module's output through a block.

    Args:
        name: The block's name among its owner's children.
        layout: Layout of the module's output.
        block: The block, where another module than the hooked one owns it. One that the hooked module owns is
            looked up at each call, so that replicas (DataParallel) and wrappers put around it are followed.
    """

    def __init__(self, name: str, layout: Layout, block: nn.Module | None) -> None:
        self.name = name
        self.layout = layout
        self.block = block

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return _apply(self.block_after(module), output, self.layout)

    def block_after(self, module: nn.Module) -> nn.Module:
        return getattr(module, self.name) if self.block is None else self.block


def _apply(block: nn.Module, output: Tensor, layout: Layout) -> Tensor:
    if layout == "channels_last":
        return _as_in_host(block(output.movedim(-1, 1)).movedim(1, -1), output)
    return _as_in_host(block(output), output)


@torch.fx.wrap
def _as_in_host(refined: Tensor, output: Tensor) -> Tensor:
    """Give a block's result the type and strides of the host's output: a later ``view`` may count on them."""
    if refined.shape != output.shape:
        raise ValueError(
            f"the block must keep its input's shape, but made {list(refined.shape)} of {list(output.shape)}"
        )
    if refined.dtype == output.dtype and refined.stride() == output.stride():
        return refined
    if torch._C._are_functorch_transforms_active():
        # the block alone may be mapped over (its parameters are, the host's are not): so is the copy then
        strides = torch.empty_like(output, device="meta").stride()
        return refined.new_empty_strided(output.shape, strides, dtype=output.dtype).copy_(refined)
    return torch.empty_like(output).copy_(refined)


def _hook_of(module: nn.Module) -> _BlockHook | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _BlockHook)), None)


def _block_after(module: nn.Module) -> nn.Module | None:
    hook = _hook_of(module)
    return block_without_hook(module) if hook is None else hook.block_after(module)


def _target(model: nn.Module, path: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else f"its children: {', '.join(model._modules)}"
        raise ValueError(f"blocks[{path!r}]: {type(model).__name__} has no module of this path; {hint}")
    for module in _enclosing(model, path).values():
        wrapper = next((_WRAPPERS[c.__name__] for c in type(module).__mro__ if c.__name__ in _WRAPPERS), None)
        if module._compiled_call_impl is not None:
            wrapper = "torch.compile"
        if wrapper is not None:
            raise ValueError(f"model: insert blocks before {wrapper}, not into its result")
    if _block_after(modules[path]) is not None:
        raise ValueError(f"blocks[{path!r}]: a block is already inserted there")
    return modules[path]


def _enclosing(model: nn.Module, path: str) -> dict[str, nn.Module]:
    """The module at ``path`` and those around it, from the inside out, by path."""
    parts = path.split(".") if path else []
    prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return {prefix: model.get_submodule(prefix) for prefix in prefixes}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode without gradients; afterwards restore flags, buffers and random state."""
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    device_type = accelerators[0].type if accelerators else "cuda"
    try:
        with torch.random.fork_rng(accelerators, device_type=device_type), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, flag in training.items():
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, saved in buffers:
                if buffer.device.type != "meta" and not torch.equal(buffer, saved):
                    buffer.copy_(saved)
                module._buffers[name] = buffer


def _runs(model: nn.Module, modules: Iterable[nn.Module], example_input: Any) -> dict[nn.Module, list[Any]]:
    """Run the model once; for each of the modules, its outputs, one for each time it ran."""
    outputs: dict[nn.Module, list[Any]] = {module: [] for module in modules}

    def record(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module].append(output)

    with ExitStack() as stack:
        for module in outputs:
            stack.enter_context(module.register_forward_hook(record))
        stack.enter_context(undisturbed(model))
        if isinstance(example_input, dict):
            model(**example_input)
        elif isinstance(example_input, tuple):
            model(*example_input)
        else:
            model(example_input)
    return outputs


def _probe(
    model: nn.Module, targets: Mapping[str, nn.Module], example_input: Any
) -> tuple[dict[str, Tensor], dict[str, tuple[nn.Module, str]]]:
    """Run the host once to find each target's feature map, and the owner and name for its block.

    Some modules that are no containers run all of their children too (``for layer in self.children()``): the
    possible owners get a stand-in child for the run, and one whose stand-in ran cannot own a block.
    """
    candidates = {path: _possible_owners(model, path) for path in targets}
    stand_ins = {owner: nn.Identity() for owner in itertools.chain(*candidates.values())}
    try:
        for owner, stand_in in stand_ins.items():
            owner.add_module(_STAND_IN_NAME, stand_in)
        runs = _runs(model, [*targets.values(), *stand_ins.values()], example_input)
    finally:
        for owner in stand_ins:
            owner._modules.pop(_STAND_IN_NAME, None)

    outputs = {path: _feature_map(path, runs[target]) for path, target in targets.items()}
    owners = {}
    for path in targets:
        usable = [(owner, name) for owner, name in candidates[path].items() if not runs[stand_ins[owner]]]
        if not usable:
            raise ValueError(
                f"blocks[{path!r}]: no module in or around it can hold the block without running it as well, "
                "all are containers or iterate over their children"
            )
        owners[path] = usable[0]
    return outputs, owners


def _feature_map(path: str, runs: list[Any]) -> Tensor:
    if len(runs) != 1:
        raise ValueError(
            f"blocks[{path!r}]: the module must run exactly once in a forward pass, "
            f"but ran {len(runs)} times on example_input"
        )
    output = runs[0]
    if not isinstance(output, Tensor):
        seen = f"a {type(output).__name__}"
    elif not output.is_floating_point() or not 3 <= output.ndim <= 5:
        seen = f"{output.dtype} of shape {list(output.shape)}"
    else:
        return output
    raise ValueError(
        f"blocks[{path!r}]: the module's output must be a feature map, one floating-point tensor "
        f"with 1 to 3 axes besides batch and channels, but is {seen}"
    )


def _make(
    path: str, make_block: Callable[[int], nn.Module], output: Tensor, target: nn.Module, layout: Layout
) -> nn.Module:
    """Make a block for a module's output and try it there."""
    try:
        block = make_block(output.shape[1 if layout == "channels_first" else -1])
        if not isinstance(block, nn.Module):
            raise ValueError(f"the callable must return a torch.nn.Module, not {type(block).__name__}")
        block.to(device=output.device, dtype=output.dtype).train(target.training)
        with undisturbed(block):
            _apply(block, output, layout)
    except Exception as error:
        raise ValueError(
            f"blocks[{path!r}]: {error} (the module's output has shape {list(output.shape)}, {layout})"
        ) from error
    return block


def _possible_owners(model: nn.Module, path: str) -> dict[nn.Module, str]:
    """Modules that may have the block as a child, best first, and the child's name there."""
    owners = {}
    for outer, module in _enclosing(model, path).items():
        inner = path.removeprefix(outer).strip(".").replace(".", "_")
        owners[module] = f"{BLOCK_NAME}_after_{inner}" if inner else BLOCK_NAME
    leaves = (module for module in model.get_submodule(path).modules() if not module._modules)
    owners.setdefault(next(leaves), f"{BLOCK_NAME}_after_{path.replace('.', '_') or 'network'}")
    return {module: name for module, name in owners.items() if not isinstance(module, _CONTAINERS)}


def _attach(target: nn.Module, block: nn.Module, layout: Layout, owner: nn.Module, name: str) -> None:
    while hasattr(owner, name):
        name += "_"
    owner.add_module(name, block)
    hook = _BlockHook(name, layout, None if owner is target else block)
    # Unpickling the handle keeps new hooks of a fresh process from taking this hook's id and replacing it.
    setattr(target, _HANDLE_NAME, target.register_forward_hook(hook))


def _detach(model: nn.Module, target: nn.Module) -> None:
    hook = _hook_of(target)
    if hook is None:
        if block_without_hook(target) is not None:
            delattr(target, BLOCK_NAME)
            delattr(target, _HANDLE_NAME)
        return
    block = hook.block_after(target)
    owner = next(module for module in model.modules() if module._modules.get(hook.name) is block)
    delattr(owner, hook.name)
    getattr(target, _HANDLE_NAME).remove()
    delattr(target, _HANDLE_NAME)
