"""Classifying images."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cgnl.data.pixels import open_pixels, picture_in_words, picture_of
from cgnl.data.transforms import test_transform
from cgnl.explain.geometry import view_of
from cgnl.explain.inputs import SeenInput
from cgnl.networks.image import resnet
from cgnl.settings.image import ARCHITECTURES, DataConfig, Recipe
from cgnl.tasks.classification import MIN_TRACED, ClassificationTask, probabilities
from cgnl.training.task import Export
from cgnl.training.trained import TrainedNetwork


class ImageTask(ClassificationTask[Recipe]):
    """Classifying images with a residual network."""

    words = "an image classifier"
    scores_parts = True
    drawn = "birds"

    @staticmethod
    def build_resnet(**settings: Any) -> nn.Module:
        """Build one of the paper's networks."""
        return resnet(**settings)

    def network_settings(self, recipe: Recipe) -> dict[str, Any]:
        """Return the settings of the network, its blocks and its input by name."""
        return super().network_settings(recipe) | {"channels": recipe.data.channels}

    def make_data(self, config: DataConfig, **options: Any) -> Any:
        """Return a :class:`cgnl.training.ImageData`."""
        from cgnl.training.data import ImageData

        return ImageData(config, **options)

    def see(self, trained: TrainedNetwork, path: Path) -> SeenInput:
        """Return an image as the network is tested on it."""
        config = trained.recipe.data
        pixels = open_pixels(path, config.channels)
        picture = picture_of(pixels)
        interpolation = trained.interpolation or self.inputs(trained.recipe).interpolation
        size, resize = config.pixels
        x = test_transform(size, resize, mean=trained.mean, std=trained.std, interpolation=interpolation)(pixels)
        view = view_of(picture.width, picture.height, size=size, resize=resize)
        return SeenInput(path, (picture,), view, x[None], picture_in_words(config.channels))

    def page_note(self, recipe: Recipe) -> str | None:
        """Say which channels are drawn."""
        return picture_in_words(recipe.data.channels)

    def probabilities(self, trained: TrainedNetwork, path: Path) -> Tensor:
        """Return the probabilities [K] for an image file."""
        x: Any = self.see(trained, path).x
        return probabilities(trained, x, path)[0]

    def export(self, trained: TrainedNetwork) -> Export:
        """Return the shape to trace the network at, its free axes and its description."""
        (size, _), channels = trained.recipe.data.pixels, trained.recipe.data.channels
        if trained.recipe.network.arch not in ARCHITECTURES:
            # attention and position embeddings of many networks are for one size
            return Export((1, channels, size, size), ("batch",), self.metadata(trained, size))
        traced = max(size, MIN_TRACED)
        return Export((1, channels, traced, traced), ("batch", "height", "width"), self.metadata(trained, size))

    def draw(self, folder: Path) -> None:
        """Draw birds of four species."""
        from cgnl.toy.birds import draw_birds

        draw_birds(folder, num_species=4, train_images=2, test_images=1, size=96)

    def num_classes(self, layout: str) -> int | None:
        """Return the number of classes of the data set that a layout is named after."""
        return 200 if layout == "cub" else None

    def input_shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Return [1, C, H, W]."""
        size, _ = recipe.data.pixels
        return 1, recipe.data.channels, size, size


TASK = ImageTask()
