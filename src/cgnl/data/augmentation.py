"""Random changes of training samples by name, with torchvision's transforms and their own strengths.

Shapes: T frames, H height, W width.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

# Those that change 8-bit pixels, between crop and normalisation.
_MADE: dict[str, Callable[[], v2.Transform]] = {
    "trivial": v2.TrivialAugmentWide,
    "rand": v2.RandAugment,
    "auto": v2.AutoAugment,
    "augmix": v2.AugMix,
    # torchvision has no strengths of its own here
    "jitter": lambda: v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    "vertical-flip": v2.RandomVerticalFlip,
    "rotate": lambda: v2.RandomRotation(15, v2.InterpolationMode.BILINEAR),
}
_ERASING = "erasing"


def augmented(
    names: Sequence[str], erased: float | Sequence[float] = 0.0
) -> tuple[list[v2.Transform], list[v2.Transform]]:
    """Return the transforms of names of ``data.augment``, in their order: those of 8-bit pixels, and the last ones.

    All draws come from torch's global generator. The last ones erase rectangles; they stand behind the normalisation,
    where the colour 0 of erased pixels is the mean. Elsewhere ``erased`` is that colour, a number for all channels or
    one for each.
    """
    last = [v2.RandomErasing(value=erased) for name in names if name == _ERASING]
    return [_MADE[name]() for name in names if name != _ERASING], last


def of_clips(transforms: Sequence[v2.Transform]) -> list[Callable[[Tensor], Tensor]]:
    """Return transforms of frames [T, 3, H, W] that change all frames of a clip in the same way."""
    # by the class, torchvision knows that the first axis is time
    return [tv_tensors.Video, *transforms, _as_tensor] if transforms else []


def _as_tensor(clip: Tensor) -> Tensor:
    return clip.as_subclass(Tensor)
