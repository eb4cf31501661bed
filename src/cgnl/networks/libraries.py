"""Where named networks come from: timm, torchvision and users' own functions, behind one face.

Shapes: H and W height and width of the input in pixels, K classes.
"""

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cgnl.networks.checkpoints import CheckpointError, load_checkpoint_file, without_wrapper
from cgnl.networks.weights import Checkpoint, Weights, is_file, named_weights, read_weights
from cgnl.settings.checks import is_dotted_name
from cgnl.settings.trust import import_named


class Inputs(NamedTuple):
    """What a network's weights were trained on; the defaults are those of ImageNet.

    Attributes:
        size: Height and width of the input (pixels).
        resize: Length that an image's shorter side is resized to before the centre crop (pixels).
        mean: Mean of the input normalisation (of each channel, images in 0..1).
        std: Standard deviation of the input normalisation.
        interpolation: "bilinear", "bicubic", "nearest", ...
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def of_channels(self, channels: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> "Inputs":
        """Return the same for a number of channels, with other means and deviations where they are given.

        A single number is for all channels; for another number of channels than the weights', each has their average.

        >>> Inputs(std=(0.1, 0.2, 0.3)).of_channels(2, mean=[0.5])[2:4]
        ((0.5, 0.5), (0.2, 0.2))
        """
        return self._replace(mean=_spread(mean or self.mean, channels), std=_spread(std or self.std, channels))

    def of_data(self, data: Any) -> "Inputs":
        """Return the same as the settings of a recipe's data want it; those of detection do not set any of it."""
        names: dict[str, Any] = {"channels": 3, "mean": (), "std": ()}
        return self.of_channels(**{name: getattr(data, name, default) for name, default in names.items()})


def _spread(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    return (round(sum(values) / len(values), 12),) * channels


def inputs_of(name: str, num_axes: int = 2, weights: Weights = None) -> Inputs:
    """Return the input size, normalisation and interpolation that a network's weights were trained with.

    They are the library's own data config, and ImageNet's for other networks; no code of a user runs. ``name`` is as in
    :func:`cgnl.networks.named.named_network` (a ResNet without a prefix is torchvision's), ``num_axes`` 2 for images
    and 3 for videos; weights that have no name (None, a file) mean the default. Raises ValueError for an unknown name.

    >>> inputs_of("torchvision:regnet_y_400mf")
    Inputs(size=224, resize=232, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bilinear')
    """
    return _library(name, num_axes, ()).inputs(weights)


def start_weights(name: str, num_axes: int = 2, weights: Weights = None) -> str:
    """Return a line that says which weights a network starts from; arguments and errors are those of :func:`inputs_of`.

    >>> start_weights("torchvision:regnet_y_400mf", weights="default")
    'start weights: torchvision IMAGENET1K_V2 of regnet_y_400mf'
    """
    library = _library(name, num_axes, ())
    if weights is None:
        return "start weights: none (random)"
    return f"start weights: {library.words(weights)}"


def classifier_of(name: str, network: nn.Module, num_classes: int, num_axes: int = 2) -> tuple[str, ...]:
    """Return the module paths of the layers of a named network whose shapes follow from the number of classes."""
    return _library(name, num_axes, ()).classifier(network, num_classes)


class Library(ABC):
    """One network of a library, by its name there."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(
        self, num_classes: int, size: int, weights: Weights, new_classifier: bool, channels: int = 3
    ) -> tuple[nn.Module, Checkpoint | None]:
        """Return the network, for inputs of ``size`` pixels if made for one, and the weights still to be loaded.

        The network takes ``channels`` where the library can; else :func:`cgnl.networks.channels.set_channels` changes
        it.
        """

    @abstractmethod
    def words(self, weights: Weights) -> str:
        """Return the words for weights that are not None."""

    def inputs(self, weights: Weights) -> Inputs:
        """Return the data config."""
        return Inputs()

    def classifier(self, network: nn.Module, num_classes: int) -> tuple[str, ...]:
        """Return the module paths of the classifier: the last layer that gives K numbers."""
        wide = [
            path
            for path, module in network.named_modules()
            if num_classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
        ]
        return tuple(wide[-1:])


def library_of(name: str, num_axes: int, trust: Sequence[str]) -> Library:
    """Return the library's network of a name; a user's own function is imported if it is in ``trust``.

    ``name`` and ``num_axes`` are as in :func:`inputs_of`. Raises ValueError for an unknown or untrusted name.
    """
    library = _library(name, num_axes, trust)
    if isinstance(library, _Own):
        library.import_it()
    return library


def _library(name: str, num_axes: int, trust: Sequence[str]) -> Library:
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "timm":
        if num_axes != 2:
            raise ValueError(f"arch ({name}): timm has networks for images, not for videos")
        return _Timm(rest)
    if not colon and is_dotted_name(name):
        return _Own(name, trust)
    # the paper's ResNets have no prefix
    if (colon and prefix == "torchvision") or (not colon and name.startswith("resnet")):
        return _Torchvision(rest if colon else name, num_axes if colon else 2)
    raise ValueError(
        f"arch ({name}) must be a ResNet, timm:NAME, torchvision:NAME, or the dotted name of a function of yours"
    )


def _check_known(library: str, name: str, known: Sequence[str], kind: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ValueError(f"arch ({library}:{name}) must be one of {library}'s {kind}{hint}")


def _read_file(weights: Any) -> Checkpoint:
    return Checkpoint(without_wrapper(load_checkpoint_file(weights)), str(weights), by_name=False)


class _Torchvision(Library):
    def __init__(self, name: str, num_axes: int) -> None:
        super().__init__(name)
        from torchvision import models

        self.models = models
        kind, module = ("video classifiers", models.video) if num_axes == 3 else ("image classifiers", models)
        _check_known("torchvision", name, models.list_models(module=module), kind)
        self.weights = models.get_model_weights(name)

    def build(
        self, num_classes: int, size: int, weights: Weights, new_classifier: bool, channels: int = 3
    ) -> tuple[nn.Module, Checkpoint | None]:
        options: dict[str, Any] = {}
        # classifiers at the side, which give several outputs in training
        sides = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}.get(self.name, ())
        if sides:
            options = {"aux_logits": False, "init_weights": weights is None}
        if self.name.startswith("vit_"):
            options["image_size"] = size
        checkpoint = _read_file(weights) if is_file(weights) else read_weights(self.weights, weights, self.name)
        if checkpoint is not None and sides:
            kept = {key: value for key, value in checkpoint.state_dict.items() if not key.startswith(sides)}
            checkpoint = checkpoint._replace(state_dict=kept)
        return self.models.get_model(self.name, num_classes=num_classes, **options), checkpoint

    def words(self, weights: Weights) -> str:
        member = named_weights(self.weights, weights)
        return str(weights) if member is None else f"torchvision {member.name} of {self.name}"

    def inputs(self, weights: Weights) -> Inputs:
        preset = (named_weights(self.weights, weights) or self.weights.DEFAULT).transforms()
        size, resize = preset.crop_size[0], preset.resize_size[0]
        return Inputs(size, resize, tuple(preset.mean), tuple(preset.std), preset.interpolation.value)


class _Timm(Library):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"timm:{name} needs timm: pip install 'cgnl[timm]'") from error

        self.timm: Any = timm
        self.arch, _, self.tag = name.partition(".")
        _check_known("timm", self.arch, timm.list_models(), "image classifiers")
        tags = self._tags()
        if self.tag and self.tag not in tags:
            raise ValueError(f"arch (timm:{name}) has no weights {self.tag}; timm has {', '.join(tags) or 'none'}")

    def _tags(self) -> list[str]:
        return [name.partition(".")[2] for name in self.timm.list_models(f"{self.arch}.*", pretrained=True)]

    def _tag_of(self, weights: Weights) -> str:
        tags = self._tags()
        tag = self.tag or self.timm.get_pretrained_cfg(self.arch).tag if weights == "default" else weights
        if tag not in tags:
            raise ValueError(f"weights ({weights}) must be a file or one of {', '.join(tags)} for timm:{self.arch}")
        return str(tag)

    def build(
        self, num_classes: int, size: int, weights: Weights, new_classifier: bool, channels: int = 3
    ) -> tuple[nn.Module, Checkpoint | None]:
        options: dict[str, Any] = {} if channels == 3 else {"in_chans": channels}
        if self.timm.get_pretrained_cfg(self.arch).fixed_input_size and size != self.inputs(weights).size:
            options["img_size"] = size
        if weights is None or is_file(weights):
            try:
                network = self.timm.create_model(self.name, num_classes=num_classes, **options)
            except Exception as error:  # whatever a network of timm that takes RGB alone makes of it
                if channels == 3:
                    raise
                raise ValueError(f"data.channels ({channels}) must be 3 for timm:{self.name}: {error}") from error
            return network, None if weights is None else _read_file(weights)
        tag = self._tag_of(weights)
        try:
            network = self.timm.create_model(f"{self.arch}.{tag}", pretrained=True, num_classes=num_classes, **options)
        except Exception as error:  # the hub, urllib, SSL, a full disk and a damaged cache all have their own
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"Cannot get timm's weights {tag} of {self.arch}: {reason}. Without a connection, give the path of a "
                "file as weights."
            ) from error
        if new_classifier:
            network.reset_classifier(num_classes)
        return network, None

    def words(self, weights: Weights) -> str:
        return str(weights) if is_file(weights) else f"timm {self._tag_of(weights)} of {self.arch}"

    def inputs(self, weights: Weights) -> Inputs:
        tag = self.tag if weights is None or is_file(weights) else self._tag_of(weights)
        config = self.timm.get_pretrained_cfg(f"{self.arch}.{tag}" if tag else self.arch)
        size = config.input_size[-1]
        return Inputs(size, math.floor(size / config.crop_pct), config.mean, config.std, config.interpolation)

    def classifier(self, network: nn.Module, num_classes: int) -> tuple[str, ...]:
        names = self.timm.get_pretrained_cfg(self.arch).classifier
        paths = (names,) if isinstance(names, str) else tuple(names or ())
        modules = dict(network.named_modules())
        return paths if paths and all(path in modules for path in paths) else super().classifier(network, num_classes)


class _Own(Library):
    """A user's function or class; imported only by :meth:`import_it`."""

    def __init__(self, name: str, trust: Sequence[str]) -> None:
        super().__init__(name)
        self.trust = trust
        self.function: Any = None

    def import_it(self) -> None:
        """Import the function; ValueError where it is not trusted, or cannot be imported."""
        self.function = import_named(self.name, self.trust)

    def build(
        self, num_classes: int, size: int, weights: Weights, new_classifier: bool, channels: int = 3
    ) -> tuple[nn.Module, Checkpoint | None]:
        self._check(weights)
        try:
            network = self.function(num_classes=num_classes)
        except Exception as error:  # the user's own code
            raise ValueError(
                f"arch ({self.name}) failed with num_classes={num_classes}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"arch ({self.name}) must return a torch.nn.Module, not {type(network).__name__}")
        return network, None if weights is None else _read_file(weights)

    def _check(self, weights: Weights) -> None:
        if weights is not None and not is_file(weights):
            raise ValueError(f"weights ({weights}) must be a file for {self.name}, which brings none of its own")

    def words(self, weights: Weights) -> str:
        self._check(weights)
        return str(Path(str(weights)))
