"""Networks by name: a classifier of timm or torchvision, or one's own, with blocks at found or given places.

``timm:convnext_tiny.fb_in22k``, ``torchvision:regnet_y_400mf`` and ``mypackage.make_network``, which is called with
``num_classes=``. The paper's ResNets have names without a prefix and code of their own in ``image`` and ``video``.

Shapes: B batch, C channels, K classes, S spatial or space-time axes.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cgnl.insertion import Layout, insert_blocks
from cgnl.insertion.nested import Select, keys_of
from cgnl.insertion.places import find_places
from cgnl.insertion.probe import probe
from cgnl.insertion.recording import Run
from cgnl.insertion.targets import find_target
from cgnl.networks.channels import fitted, set_channels
from cgnl.networks.image import DropoutLinear, MakeBlock
from cgnl.networks.libraries import library_of
from cgnl.networks.weights import Weights, load_checked
from cgnl.settings.checks import within

BlocksByAxes = Callable[[int], MakeBlock]
"""From the number of axes of a map (1 for tokens, 2 for images, 3 for videos) to the function that makes a block."""


class NamedNetwork(NamedTuple):
    """A network and what its training needs to know about it.

    Attributes:
        network: From images [B, C, H, W] or videos [B, 3, T, H, W] to logits [B, K].
        classifier: Module paths of the layers whose shapes follow from the number of classes.
        places: Module paths that blocks stand after.
    """

    network: nn.Module
    classifier: tuple[str, ...]
    places: tuple[str, ...]


def named_network(
    name: str,
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    blocks: BlocksByAxes | None = None,
    places: Sequence[str] | Literal["auto"] = "auto",
    num_blocks: int = 1,
    weights: Weights = None,
    new_classifier: bool = False,
    dropout: float | None = None,
    trust: Sequence[str] = (),
) -> NamedNetwork:
    """Build a classifier by its name and put blocks into it.

    Args:
        name: ``timm:`` or ``torchvision:`` and the name of a classifier there, or the dotted name of a function that
            takes ``num_classes`` and returns one.
        num_classes: Number of classes K.
        input_shape: Shape of one input with its batch axis, (1, 3, H, W) or (1, 3, T, H, W). A network for one size
            is made for this one, where its library can. With another number of channels than 3, for images, the first
            convolution is replaced, with adapted weights.
        blocks: For each number of axes the function from the channel count to a block; None for no blocks.
        places: Module paths that blocks stand after; "auto" (or none) finds them as :func:`cgnl.insert_blocks` does.
        num_blocks: Number of blocks where the places are found.
        weights: None; "default" for the library's own; a name (a member of torchvision's enum, a tag of timm's); or a
            file, of this network without or with these blocks.
        new_classifier: Leave the classifier of the weights out and start a new one. Without it a file with other
            classes is an error; named weights get a new classifier for other classes by themselves.
        dropout: Dropout probability before the classifier; None leaves the library's.
        trust: Packages and modules that may be imported for a dotted name.

    Returns:
        The network, its classifier and the blocks' places.

    Raises:
        ValueError: The name is unknown or not trusted, or another argument has a value that it must not have.
        CheckpointError: The weights cannot be had, or do not fit; every key that does not is listed.
    """
    within("num_classes", num_classes, 1)
    library = library_of(name, len(input_shape) - 2, trust)
    channels = input_shape[1]
    network, checkpoint = library.build(num_classes, input_shape[-1], weights, new_classifier, channels)
    if channels != 3:
        set_channels(network, input_shape, name)
    classifier = library.classifier(network, num_classes)
    if dropout is not None:
        for path in classifier:
            _set_dropout(network, path, dropout, name)
    paths: tuple[str, ...] = ()
    if blocks is not None:
        example = torch.zeros(input_shape, device=next(network.parameters()).device)
        try:
            paths = put_blocks(network, blocks, example, places, num_blocks)
        except RuntimeError as error:  # the network's own layers
            reason = str(error).partition("\n")[0]
            raise ValueError(f"arch ({name}) cannot run on an input of {[*input_shape]}: {reason}") from error
    if checkpoint is not None:
        checkpoint = fitted(checkpoint, network, channels) if channels != 3 else checkpoint
        state_dict = checkpoint.state_dict
        starts = tuple(f"{path}." for path in classifier)
        own = {key: value for key, value in network.state_dict().items() if key.startswith(starts)}
        given = {key: value.shape for key, value in state_dict.items() if key.startswith(starts)}
        fits = given == {key: value.shape for key, value in own.items()}
        if new_classifier or (checkpoint.by_name and not fits):
            state_dict = {key: value for key, value in state_dict.items() if key not in given} | own
        load_checked(network, state_dict, checkpoint.source, starts)
    return NamedNetwork(network, classifier, paths)


def put_blocks(
    network: nn.Module,
    blocks: BlocksByAxes,
    example_input: Tensor,
    places: Sequence[str] | Literal["auto"] = "auto",
    num_blocks: int = 1,
) -> tuple[str, ...]:
    """Put blocks into any network, in place, and return the module paths that they stand after.

    ``blocks`` has a function from the channel count to a block for each number of axes of the maps, channels first or
    last; the rest, and the errors, are as in :func:`named_network` and :func:`cgnl.insert_blocks`.
    """
    layout: Layout | None = None
    select: dict[str, Select | None] = {}
    if to_find(places):
        found = find_places(network, example_input, num_blocks, num_axes=None, layout=None)
        places, layout, select = found.paths, found.layout, found.select
    keys = {path: keys_of(select.get(path)) for path in places}
    maps, _, _ = probe(network, {path: find_target(network, path) for path in places}, keys, example_input)
    run = None if layout else Run(network, example_input)
    alike: dict[tuple[Layout, int], list[str]] = {}
    for path, feature_map in maps.items():
        of_map = layout or (run and run.layout(tuple(feature_map.shape))) or "channels_first"
        alike.setdefault((of_map, feature_map.ndim - 2), []).append(path)
    for (of_maps, num_axes), paths in alike.items():
        insert_blocks(
            network,
            dict.fromkeys(paths, blocks(num_axes)),
            example_input=example_input,
            layout=of_maps,
            select={path: select.get(path) for path in paths},
        )
    return tuple(places)


def to_find(places: Sequence[str]) -> bool:
    """Return whether places are to be found: "auto", or none given.

    Raises:
        ValueError: They are neither "auto" nor module paths, each of them once.
    """
    if isinstance(places, str) and places != "auto":
        raise ValueError(f"places ({places!r}) must be 'auto' or module paths")
    found = places == "auto" or [*places] in ([], ["auto"])
    if not found and len(set(places)) < len(places):
        raise ValueError(f"places ({' '.join(places)}) must name each path once")
    return found


def _set_dropout(network: nn.Module, path: str, dropout: float, name: str) -> None:
    """Drop features right before a classifier: in the dropout that stands there, or in the classifier itself."""
    parent_path, _, attribute = path.rpartition(".")
    parent, classifier = network.get_submodule(parent_path), network.get_submodule(path)
    before = [child for key, child in parent.named_children() if key != attribute][-1:]
    if isinstance(parent, nn.Sequential) and before and isinstance(before[0], nn.Dropout):
        before[0].p = dropout
    elif type(classifier) is nn.Linear:
        linear = DropoutLinear(classifier.in_features, classifier.out_features, dropout)
        linear.weight, linear.bias = classifier.weight, classifier.bias
        setattr(parent, attribute, linear)
    else:
        kind = type(classifier).__name__
        raise ValueError(f"dropout ({dropout}) must be left out for {name}, whose classifier {path} is a {kind}")
