"""The hook that runs a block after its module, and the list of a network's blocks.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cgnl.insertion.nested import Key, pick, put

BLOCK_NAME = "inserted_block"
"""Name of an inserted block in the module that it follows: ``layer3.4.inserted_block.theta.weight``."""

Layout = Literal["channels_first", "channels_last"]

_HANDLE_NAME = "_inserted_block_handle"
_REPLICA_HANDLE_NAME = "_inserted_block_replica_handle"
_REPLICA_NAME = "_inserted_block_of_replica"


class _Hook:
    @property
    def __name__(self) -> str:
        """torch.jit.script reads this name; nothing else needs it."""
        raise AttributeError("torch.jit.script cannot compile inserted blocks; torch.export and torch.compile can")


class _BlockHook(_Hook):
    """Forward hook that passes a module's output, or one tensor in it, through a block.

    Args:
        name: The block's name among its owner's children; if the owner lies inside the hooked module, the block's path
            there.
        layout: Layout of the module's output.
        block: The block, if a module around the hooked one owns it. If the hooked module or one inside it owns the
            block, each call looks it up, and so finds replicas (DataParallel) and wrappers around it.
        keys: Where the tensor is in the module's output.
    """

    keys: tuple[Key, ...] = ()  # for networks that older versions pickled

    def __init__(self, name: str, layout: Layout, block: nn.Module | None, keys: tuple[Key, ...] = ()) -> None:
        self.name = name
        self.layout = layout
        self.block = block
        self.keys = keys

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        refined = apply(self.block_after(module), pick(output, self.keys), self.layout)
        return put(output, self.keys, refined)

    def block_after(self, module: nn.Module) -> nn.Module:
        if self.block is None:
            return module.get_submodule(self.name)
        return getattr(module, _REPLICA_NAME, self.block)


class _ReplicaHook(_Hook):
    """Forward pre-hook of a block's owner: in a DataParallel replica, gives the hooked module its block's replica."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name

    def __call__(self, owner: nn.Module, args: tuple[Any, ...]) -> None:
        if getattr(owner, "_is_replica", False):
            # setattr would make it a child, and a container runs its children
            vars(owner.get_submodule(self.path))[_REPLICA_NAME] = getattr(owner, self.name)


def apply(block: nn.Module, output: Tensor, layout: Layout) -> Tensor:
    if layout == "channels_last":
        return _as_in_host(block(output.movedim(-1, 1)).movedim(1, -1), output)
    return _as_in_host(block(output), output)


@torch.fx.wrap
def _as_in_host(refined: Tensor, output: Tensor) -> Tensor:
    """Give a block's result the type and strides of the host's output: a later ``view`` may rely on them."""
    if refined.shape != output.shape:
        raise ValueError(
            f"the block must keep its input's shape, but made {list(refined.shape)} of {list(output.shape)}"
        )
    if refined.dtype == output.dtype and refined.stride() == output.stride():
        return refined
    if torch._C._are_functorch_transforms_active():
        # torch.func may map over the block's parameters and not over the host's: then it must map over the copy too
        strides = torch.empty_like(output, device="meta").stride()
        return refined.new_empty_strided(output.shape, strides, dtype=output.dtype).copy_(refined)
    return torch.empty_like(output).copy_(refined)


def attach(
    target: nn.Module, block: nn.Module, layout: Layout, keys: tuple[Key, ...], owner: nn.Module, name: str
) -> None:
    """Make a block a child of its owner, and its hook the first of the module that the block follows.

    The hook runs before hooks that are already there, so that they see the refined map: networks that collect feature
    maps through hooks register these when they are built or first called.
    """
    while hasattr(owner, name):
        name += "_"
    owner.add_module(name, block)
    inside = _path_in(target, owner)
    if inside is None:
        hook = _BlockHook(name, layout, block, keys)
        path = _path_in(owner, target)
        assert path is not None
        setattr(target, _REPLICA_HANDLE_NAME, owner.register_forward_pre_hook(_ReplicaHook(path, name)))
    else:
        hook = _BlockHook(f"{inside}.{name}".lstrip("."), layout, None, keys)
    # Unpickling restores the handle too, so that no new hook of a fresh process gets this hook's id and replaces it.
    setattr(target, _HANDLE_NAME, target.register_forward_hook(hook, prepend=True))


def _path_in(outer: nn.Module, inner: nn.Module) -> str | None:
    return next((path for path, module in outer.named_modules() if module is inner), None)


def detach(model: nn.Module, target: nn.Module) -> None:
    hook = hook_of(target)
    if hook is None:
        if block_without_hook(target) is not None:
            delattr(target, BLOCK_NAME)
            delattr(target, _HANDLE_NAME)
        return
    block = hook.block_after(target)
    name = hook.name.rpartition(".")[2]
    owner = next(module for module in model.modules() if getattr(module, name, None) is block)
    delattr(owner, name)
    for handle_name in (_HANDLE_NAME, _REPLICA_HANDLE_NAME):
        if hasattr(target, handle_name):
            getattr(target, handle_name).remove()
            delattr(target, handle_name)


class RunsBlocksOfVideos:
    """Base class of networks that fold frames into the batch and run blocks on videos themselves."""

    def insert_block(self, path: str, make_block: Callable[[int], nn.Module]) -> nn.Module:
        """Put a block for videos after the module at a path."""
        raise NotImplementedError


def attach_without_hook(module: nn.Module, block: nn.Module) -> None:
    """Make a block a module's child ``inserted_block``, for a network that runs the block itself.

    :func:`inserted_blocks` lists it and :func:`remove_blocks` takes it out, like one of :func:`insert_blocks`.
    """
    module.add_module(BLOCK_NAME, block)
    setattr(module, _HANDLE_NAME, None)


def block_without_hook(module: nn.Module) -> nn.Module | None:
    """Return the block that :func:`attach_without_hook` put into a module, or None."""
    return module.get_submodule(BLOCK_NAME) if getattr(module, _HANDLE_NAME, False) is None else None


def inserted_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """List the inserted blocks of a network.

    Args:
        model: Any network, including a copy, or a network that was saved and loaded.

    Returns:
        The blocks by the path of the module that each follows, in the order of ``model.named_modules()``.
    """
    blocks = ((path, block_after(module)) for path, module in model.named_modules())
    return {path: block for path, block in blocks if block is not None}


def hook_of(module: nn.Module) -> _BlockHook | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _BlockHook)), None)


def block_after(module: nn.Module) -> nn.Module | None:
    hook = hook_of(module)
    return block_without_hook(module) if hook is None else hook.block_after(module)
