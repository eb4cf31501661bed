"""Networks for other inputs than RGB: their first convolution and its weights for another number of channels.

Shapes: C channels in, O channels out, H and W height and width of a kernel.
"""

import torch
from torch import Tensor, nn

from cgnl.insertion.probe import undisturbed
from cgnl.networks.weights import Checkpoint

_RGB = 3


def adapted(weight: Tensor, channels: int) -> Tensor:
    """Return the weights of a convolution of RGB images [O, 3, H, W] for another number of channels C: [O, C, H, W].

    Of a single channel they are the sum over the three, so that grey images give what they gave in RGB; of more, the
    three repeated and scaled by 3 / C, so that inputs that are alike in all channels do.

    Source: ``adapt_input_conv`` of timm.

    >>> adapted(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 5).flatten() * 5 / 3
    tensor([1., 2., 3., 1., 2.])
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // _RGB), 1, 1)[:, :channels] * (_RGB / channels)


def set_channels(network: nn.Module, input_shape: tuple[int, ...], name: str) -> None:
    """Give the first convolution of a network of RGB images, in place, adapted weights for the channels of its inputs.

    A network that takes so many channels already is left as it is. ``input_shape`` is [B, C, H, W]; ``name``, of the
    network, is for messages. Raises ValueError where the first layer with weights is no convolution of three or of C
    channels, or the network does not run on such an input afterwards.
    """
    example = torch.zeros(input_shape, device=next(network.parameters()).device)
    path, first = _first_layer(network, example, name)
    channels = input_shape[1]
    taken = first.in_channels if isinstance(first, nn.Conv2d) else None
    if taken == channels:
        return
    if not isinstance(first, nn.Conv2d) or taken != _RGB or first.groups != 1:
        kind = f"a {type(first).__name__}" + (f" of {taken} channels" if taken else "")
        raise ValueError(
            f"data.channels ({channels}) must be 3 for {name}: its first layer, {path}, is {kind}, and no convolution "
            "of 3 channels whose weights cgnl could adapt"
        )
    first.in_channels = channels
    first.weight = nn.Parameter(adapted(first.weight.detach(), channels), first.weight.requires_grad)
    _run(network, example, name)


def fitted(checkpoint: Checkpoint, network: nn.Module, channels: int) -> Checkpoint:
    """Return weights whose first convolutions are adapted to a network of so many channels, where they are of RGB."""
    expected = network.state_dict()

    def fits_adapted(key: str, value: Tensor) -> bool:
        shape = list(value.shape)
        return len(shape) == 4 and shape[1] == _RGB and [shape[0], channels, *shape[2:]] == _shape(expected.get(key))

    state_dict = {
        key: adapted(value, channels) if fits_adapted(key, value) else value
        for key, value in checkpoint.state_dict.items()
    }
    return checkpoint._replace(state_dict=state_dict)


def _shape(tensor: Tensor | None) -> list[int]:
    return [] if tensor is None else list(tensor.shape)


class _Found(Exception):
    """The first layer is about to run."""


def _first_layer(network: nn.Module, example: Tensor, name: str) -> tuple[str, nn.Module]:
    """Return the first layer with weights that runs, and its path; it need not be the first that is named."""
    found: list[nn.Module] = []

    def stop(module: nn.Module, _: object) -> None:
        found.append(module)
        raise _Found

    layers = {
        module: path
        for path, module in network.named_modules()
        if not any(module.children()) and any(True for _ in module.parameters())
    }
    handles = [module.register_forward_pre_hook(stop) for module in layers]
    try:
        _run(network, example, name)
    except _Found:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError(f"data.channels ({example.shape[1]}) must be 3 for {name}, in which cgnl finds no first layer")
    return layers[found[0]], found[0]


def _run(network: nn.Module, example: Tensor, name: str) -> None:
    try:
        with undisturbed(network):
            network(example)
    except _Found:
        raise
    except Exception as error:  # the network's own layers
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"arch ({name}) cannot run on an input of {[*example.shape]}: {reason}") from error
