"""The module at a path, and the modules that may own a block after it."""

import difflib

import torch
from torch import nn

from cgnl.insertion.hook import BLOCK_NAME, block_after

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# By name, because importing torch.distributed.fsdp and torch._dynamo takes seconds.
_WRAPPERS = {
    "OptimizedModule": "torch.compile",
    "DistributedDataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "FullyShardedDataParallel",
    "FSDPModule": "fully_shard",
}


def find_target(model: nn.Module, path: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=5, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else f"its children: {', '.join(model._modules)}"
        raise ValueError(f"blocks[{path!r}]: {type(model).__name__} has no module of this path; {hint}")
    refuse_wrapped(*enclosing(model, path).values())
    if block_after(modules[path]) is not None:
        raise ValueError(f"blocks[{path!r}]: a block is already inserted there")
    return modules[path]


def refuse_wrapped(*modules: nn.Module) -> None:
    """Raise ValueError if one of the modules is compiled, traced, wrapped or sharded."""
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("model: insert blocks before torch.jit.script or torch.jit.trace, not into its result")
        wrapper = next((_WRAPPERS[c.__name__] for c in type(module).__mro__ if c.__name__ in _WRAPPERS), None)
        if module._compiled_call_impl is not None:
            wrapper = "torch.compile"
        if wrapper is not None:
            raise ValueError(f"model: insert blocks before {wrapper}, not into its result")


def enclosing(model: nn.Module, path: str) -> dict[str, nn.Module]:
    """Return the module at ``path`` and the modules around it, innermost first, by path."""
    parts = path.split(".") if path else []
    modules = dict(model.named_modules(remove_duplicate=False))  # get_submodule fails on scripted ones
    prefixes = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return {prefix: modules[prefix] for prefix in prefixes}


def possible_owners(model: nn.Module, path: str) -> dict[nn.Module, str]:
    """Return the modules that may own the block, best first, each with the block's name in it."""
    owners = {}
    for outer, module in enclosing(model, path).items():
        inner = path.removeprefix(outer).strip(".").replace(".", "_")
        owners[module] = f"{BLOCK_NAME}_after_{inner}" if inner else BLOCK_NAME
    leaves = (module for module in model.get_submodule(path).modules() if not module._modules)
    owners.setdefault(next(leaves), f"{BLOCK_NAME}_after_{path.replace('.', '_') or 'network'}")
    return {module: name for module, name in owners.items() if not isinstance(module, _CONTAINERS)}
