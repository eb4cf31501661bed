"""The hook that runs a block after its module, and what is known of blocks that are there.

Shapes: B batch, C channels, S spatial or space-time axes, N positions of a token sequence.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

BLOCK_NAME = "inserted_block"
"""Name of an inserted block in the module it stands after: ``layer3.4.inserted_block.theta.weight``."""

Layout = Literal["channels_first", "channels_last"]

_HANDLE_NAME = "_inserted_block_handle"


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
        return apply(self.block_after(module), output, self.layout)

    def block_after(self, module: nn.Module) -> nn.Module:
        return getattr(module, self.name) if self.block is None else self.block


def apply(block: nn.Module, output: Tensor, layout: Layout) -> Tensor:
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


def attach(target: nn.Module, block: nn.Module, layout: Layout, owner: nn.Module, name: str) -> None:
    while hasattr(owner, name):
        name += "_"
    owner.add_module(name, block)
    hook = _BlockHook(name, layout, None if owner is target else block)
    # Unpickling the handle keeps new hooks of a fresh process from taking this hook's id and replacing it.
    setattr(target, _HANDLE_NAME, target.register_forward_hook(hook))


def detach(model: nn.Module, target: nn.Module) -> None:
    hook = hook_of(target)
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


def inserted_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """List the inserted blocks of a network.

    Args:
        model: Any network; also a copy, or one that was saved and loaded.

    Returns:
        For each path that a block stands after, the block; in the order of ``model.named_modules()``.
    """
    blocks = ((path, block_after(module)) for path, module in model.named_modules())
    return {path: block for path, block in blocks if block is not None}


def hook_of(module: nn.Module) -> _BlockHook | None:
    return next((hook for hook in module._forward_hooks.values() if isinstance(hook, _BlockHook)), None)


def block_after(module: nn.Module) -> nn.Module | None:
    hook = hook_of(module)
    return block_without_hook(module) if hook is None else hook.block_after(module)
