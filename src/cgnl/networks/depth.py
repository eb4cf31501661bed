"""How far the layers of a network lie from its classifier, for learning rates that fall from layer to layer."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from cgnl.insertion import inserted_blocks

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def depths(network: nn.Module, head: Sequence[nn.Module]) -> dict[str, int]:
    """Return for each parameter, by its name, how many layers lie between it and the classifier, whose depth is 0.

    timm's networks say themselves what a layer is. In others it is the stem, each residual block, and what is between
    two stages; a norm behind the last block belongs to that block. In a network without blocks it is each module with a
    weight, and the norm behind it. An inserted block has the depth of the module that it follows.

    Args:
        network: The network.
        head: Its classifier.
    """
    names = {id(p): name for name, p in network.named_parameters()}
    inserted = {path: [names[id(p)] for p in block.parameters()] for path, block in inserted_blocks(network).items()}
    own = [name for name in names.values() if not any(name in block for block in inserted.values())]
    if hasattr(network, "group_matcher"):
        layers = _layers_of_timm(network, own)
    else:
        of_head = [names[id(p)] for module in head for p in module.parameters()]
        layers = [*_layers_by_structure(network, [name for name in own if name not in of_head]), of_head]
    numbers = {name: number for number, layer in enumerate(layers) for name in layer}
    in_order = list(names.values())
    for path, block in inserted.items():
        host = [numbers[name] for name in own if name.startswith(f"{path}." if path else "")]
        # a module without parameters, such as a pool, belongs to the layer in front of it
        before = [numbers[name] for name in in_order[: in_order.index(block[0])] if name in own] if block else []
        numbers |= dict.fromkeys(block, max(host) if host else (before or [0])[-1])
    return {name: len(layers) - 1 - numbers[name] for name in in_order}


def _layers_of_timm(network: Any, names: Sequence[str]) -> list[list[str]]:
    from timm.models._manipulate import group_with_matcher

    layers = group_with_matcher(((name, None) for name in names), network.group_matcher(coarse=False))
    return [layers[number] for number in sorted(layers)]


def _layers_by_structure(network: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Return the layers from the input on, as the names of their parameters; ``names`` are those that count."""
    layers: list[list[str]] = []
    blocks: list[bool] = []
    for part, is_block in _parts(network):
        found = [name for name in names if name == part or name.startswith(f"{part}.")]
        if found and layers and not is_block and not blocks[-1]:
            layers[-1] += found
        elif found:
            layers.append(found)
            blocks.append(is_block)
    if any(blocks):
        if len(layers) > 1 and not blocks[-1]:
            layers[-2:] = [layers[-2] + layers[-1]]
        return layers
    parameters = dict(network.named_parameters())
    layers = []
    for name in names:
        if parameters[name].dim() > 1 or not layers:
            layers.append([])
        layers[-1].append(name)
    return layers


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Give the paths of a network's blocks and of the modules and parameters between them, and which are blocks."""
    yield from ((f"{prefix}{name}", False) for name, _ in module.named_parameters(recurse=False))
    for name, child in module.named_children():
        if _is_single(child):
            yield f"{prefix}{name}", False
        elif isinstance(child, _CHAINS) or _holds_blocks(child):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", True


def _is_single(module: nn.Module) -> bool:
    """Return whether a module has one weight at most, or is a chain of such modules: a convolution with its norm."""
    if sum(p.dim() > 1 for p in module.parameters()) <= 1:
        return True
    return isinstance(module, _CHAINS) and all(map(_is_single, module.children()))


def _holds_blocks(module: nn.Module) -> bool:
    """Return whether a module, such as an encoder, has a chain of several blocks of one kind in it."""
    chains = [child for child in module.children() if isinstance(child, _CHAINS)]
    return any(_holds_blocks(chain) for chain in chains) or (
        isinstance(module, _CHAINS)
        and max(Counter(type(child) for child in module.children() if not _is_single(child)).values(), default=0) > 1
    )
