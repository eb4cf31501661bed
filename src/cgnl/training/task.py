"""The protocol of a task: all that a run asks it for. The tasks themselves are in ``cgnl.tasks``.

Nothing here imports Lightning, so that a trained network can be used without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from PIL import Image
from torch import Tensor, nn

from cgnl.blocks.kinds import block_maker
from cgnl.data.decoding import DataError, following_links
from cgnl.data.lists import SPLIT_WORDS, Split, differences, pictures_below, seen_in
from cgnl.networks.checkpoints import stored_run
from cgnl.networks.cost import NetworkCost
from cgnl.networks.libraries import Inputs, inputs_of, start_weights
from cgnl.networks.named import BlocksByAxes
from cgnl.networks.weights import is_file
from cgnl.settings.image import ARCHITECTURES, Recipe
from cgnl.settings.training import TrainerConfig
from cgnl.training.trained import TrainedNetwork

if TYPE_CHECKING:
    from cgnl.training.data import SampleData
    from cgnl.training.module import TrainingModule

RecipeT = TypeVar("RecipeT", bound=Recipe)


class Prediction(ABC):
    """A network's prediction for one file."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Return it for people."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""

    def picture(self) -> Image.Image:
        """Return the file with the prediction drawn in, where a task draws."""
        raise NotImplementedError


class TestResult(ABC):
    """The result of testing a network."""

    __test__ = False
    troubles: tuple[str, ...]
    """What could not be read, in a few words each."""
    split: Split
    """The part of the data that was tested."""

    @property
    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The scores (%) by name."""

    @abstractmethod
    def lines(self, tested: str, out: Path) -> list[str]:
        """Return the result for people; ``tested`` follows a number ("images"), ``out`` is the folder of the tables."""

    def pooled(self, others: Sequence["TestResult"]) -> "TestResult | None":
        """Return the result over the samples of several tests, or None where there is none."""
        return None

    def write(self, out: Path) -> None:
        """Write the tables into a folder, for a result that :meth:`pooled` gives."""
        raise NotImplementedError

    def on_split(self) -> str:
        """Return the part of the data that was tested, for the end of a line."""
        return f"on the {SPLIT_WORDS[self.split]} split"

    def trouble_lines(self, out: Path) -> list[str]:
        """Return the line about what could not be read, if there is something."""
        return [f"problems: {', '.join(self.troubles)} (lists are in {out})"] * bool(self.troubles)


class Export(NamedTuple):
    """How a network becomes an ONNX file.

    Attributes:
        shape: Shape of the input that the network is traced with.
        dynamic: Names of the axes that stay free.
        metadata: What a user of the file needs to know, by name.
    """

    shape: tuple[int, ...]
    dynamic: tuple[str, ...]
    metadata: dict[str, str]


class Task(ABC, Generic[RecipeT]):
    """Everything that one task does differently from the others; objects have no state."""

    noun: ClassVar[str] = "image"
    """One sample."""
    words: ClassVar[str]
    """A network of this task, with its article: ``an image classifier``."""
    scores: ClassVar[tuple[str, ...]]
    """Names of the scores that a test gives."""
    num_axes: ClassVar[int] = 2
    """Axes of an input besides batch and channels."""
    classifies: ClassVar[bool] = True
    """Whether a network gives logits [B, K]."""
    start_weights: ClassVar[tuple[str, ...]] = ("weights",)
    """Fields of the network's settings that name weights to start from."""

    # Networks

    @abstractmethod
    def build_network(self, recipe: RecipeT, num_classes: int) -> nn.Module:
        """Build the network that a recipe describes; ``num_classes`` leaves a detector's background out."""

    def network_settings(self, recipe: RecipeT) -> dict[str, Any]:
        """Return the settings of the network and its blocks by name."""
        settings = {
            field.name: getattr(part, field.name) for part in (recipe.network, recipe.block) for field in fields(part)
        }
        if recipe.network.weights is None:
            settings["new_classifier"] = False
        return settings

    def without_start_weights(self, recipe: RecipeT) -> RecipeT:
        """Return a recipe whose network starts from nothing: other weights are about to be loaded into it."""
        none: dict[str, Any] = dict.fromkeys(self.start_weights)
        return replace(recipe, network=replace(recipe.network, **none, new_classifier=False))

    def start(self, recipe: RecipeT) -> str:
        """Say which weights a recipe's network starts from."""
        return start_weights(recipe.network.arch, self.num_axes, recipe.network.weights)

    def inputs(self, recipe: RecipeT) -> Inputs:
        """Return how a network's input is normalised and resized: as its weights were trained."""
        if recipe.network.arch in ARCHITECTURES:
            return Inputs()
        return inputs_of(recipe.network.arch, self.num_axes, recipe.network.weights)

    def sized(self, recipe: RecipeT) -> RecipeT:
        """Return a recipe with the network's own input size (pixels) in place of sizes that are None."""
        return recipe

    def blocks(self, recipe: RecipeT) -> BlocksByAxes | None:
        """Return what makes a recipe's blocks for maps of each number of axes, None for no blocks."""
        if recipe.network.block == "none":
            return None
        options = {field.name: getattr(recipe.block, field.name) for field in fields(recipe.block)}

        def of_axes(num_axes: int) -> Any:
            return block_maker(recipe.network.block, options, num_axes=num_axes)

        return of_axes

    def check_start_weights(self, recipe: RecipeT, classes: tuple[str, ...]) -> None:
        """Raise ValueError where the outputs of start weights mean other classes than the data has.

        A checkpoint of ``cgnl train`` knows its classes; those of a list are compared where they have names.
        """
        weights = recipe.network.weights
        if recipe.network.new_classifier or not is_file(weights):
            return
        known = tuple(stored_run(str(weights)).get("classes", ()))
        numbers = tuple(map(str, range(len(known))))
        if len(known) == len(classes) and known != tuple(classes) and numbers not in (known, tuple(classes)):
            raise ValueError(
                f"network.weights ({weights}) was trained on other classes than the data has; "
                f"{differences(classes, known)}. To train on them, add --network.new-classifier"
            )

    # Training

    def check(self, recipe: RecipeT) -> None:
        """Raise ValueError for a recipe that PyTorch cannot run."""

    def note(self, recipe: RecipeT) -> str | None:
        """Return a line that the user should read before the run starts, or None."""
        return None

    @abstractmethod
    def make_data(self, config: Any, **options: Any) -> "SampleData[Any]":
        """Return the data module for a recipe's data; options as :class:`cgnl.training.data.SampleData` takes them."""

    @abstractmethod
    def make_module(
        self, recipe: RecipeT, network: nn.Module, data: "SampleData[Any]", **options: Any
    ) -> "TrainingModule":
        """Return the module that trains and tests a network; ``options`` are those of ``TrainingModule``."""

    # Testing

    @abstractmethod
    def evaluate(
        self,
        trained: TrainedNetwork,
        data: Any,
        *,
        split: Split,
        trainer: TrainerConfig | None,
        out: Path | None,
        stay: bool,
    ) -> TestResult:
        """Test a network on a split; see :func:`cgnl.tasks.evaluate`."""

    def tested(self, data: Any) -> str:
        """Return what a test is made of, after a number: ``images``."""
        return f"{self.noun}s"

    def set_test_options(self, network: nn.Module, options: dict[str, Any]) -> None:
        """Change how a network is tested: the fields of its settings that are marked so."""

    # Using

    prediction_options: ClassVar[Sequence[str]]
    """Options of ``cgnl predict`` that do something for this task."""

    def files_in(self, path: Path) -> list[Path]:
        """Return the files to predict in a folder and those below it, by sorted name; of a file itself.

        Raises DataError where there are none.
        """
        if not path.is_dir():
            return [path]
        with following_links(True):
            files = list(pictures_below(path))
        if not files:
            raise DataError(f"{path} holds no {self.noun}s. {seen_in(path)}")
        return files

    @abstractmethod
    def predict(self, trained: TrainedNetwork, path: Path, *, top: int = 5, score: float = 0.5) -> Prediction:
        """Return what a network says about a file: the ``top`` classes, or the objects from ``score`` on.

        It runs on the GPU where there is one. Raises DataError where the file cannot be read.
        """

    def features(self, trained: TrainedNetwork, path: Path) -> Tensor:
        """Return the features [D] of a file; ValueError for a network that has none of whole files."""
        raise ValueError(f"{trained.name} is {self.words}, which has no features of whole files")

    @abstractmethod
    def export(self, trained: TrainedNetwork) -> Export:
        """Return how a network becomes an ONNX file; ValueError where it cannot."""

    # Explaining

    scores_parts: ClassVar[bool] = False
    """Whether the maps of a block can be scored against the parts of a data set of images."""

    @abstractmethod
    def see(self, trained: TrainedNetwork, path: Path) -> Any:
        """Return a file as the network sees it, a :class:`cgnl.explain.inputs.SeenInput`; DataError for a bad file."""

    def page_note(self, recipe: RecipeT) -> str | None:
        """Return what the reader of a page of maps should know about the inputs, or None."""
        return None

    # Smoke variant and cost

    drawn: ClassVar[str]
    """Name of the drawn data: of their folder in a smoke run, and of the demo's file in ``cgnl.cli.demo``."""

    @abstractmethod
    def draw(self, folder: Path) -> None:
        """Draw the data of a smoke run into a folder."""

    @abstractmethod
    def smoke(self, recipe: RecipeT, root: Path, *, size: int | None, batch_size: int | None, steps: int) -> RecipeT:
        """Return a recipe that runs in seconds on a CPU; see :func:`cgnl.tasks.smoke`."""

    @staticmethod
    def smoke_trainer(config: TrainerConfig, steps: int) -> TrainerConfig:
        """Return the trainer's settings for a smoke run of so many optimizer steps."""
        return replace(config, max_steps=steps, devices=1, accelerator="cpu")

    @abstractmethod
    def cost(self, recipe: RecipeT) -> NetworkCost:
        """Count the parameters and multiplications of a recipe's network; see :func:`cgnl.tasks.recipe_cost`."""
