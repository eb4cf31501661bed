"""What images and videos share: networks that give each sample one of K classes."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from cgnl.blocks.diagnosis import Diagnosis, diagnose
from cgnl.data.decoding import BadFileError
from cgnl.data.lists import Split
from cgnl.insertion import inserted_blocks
from cgnl.networks.cost import NetworkCost, network_cost
from cgnl.networks.libraries import Inputs, classifier_of
from cgnl.networks.named import named_network
from cgnl.settings.blocks import given_places
from cgnl.settings.image import ARCHITECTURES, DataConfig, Recipe
from cgnl.settings.training import TrainerConfig
from cgnl.training.processes import reporting_dead_readers
from cgnl.training.task import Prediction, Task, TestResult
from cgnl.training.trained import NOT_FINITE, TrainedNetwork, default_device

RecipeT = TypeVar("RecipeT", bound=Recipe)
_IMAGENET_CLASSES = 1000
MIN_TRACED = 64
"""Pixels that leave two positions on the last map; at one PyTorch may take the size for a constant."""


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most probable classes with their probabilities."""

    best: list[tuple[str, float]]

    def lines(self) -> list[str]:
        """Return a line for each class."""
        return [f"  {100 * p:6.2f} %  {name}" for name, p in self.best]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"top": [{"class": name, "probability": round(p, 6)} for name, p in self.best]}


class ClassificationTask(Task[RecipeT]):
    """A task whose networks give logits [B, K]."""

    scores = ("top-1", "top-5", "balanced accuracy", "macro-F1")
    prediction_options: ClassVar[tuple[str, ...]] = ("top",)

    def build_network(self, recipe: RecipeT, num_classes: int) -> nn.Module:
        """Build the network that a recipe describes."""
        config = recipe.network
        if config.arch in ARCHITECTURES:
            settings = self.network_settings(recipe)
            settings |= {"places": given_places(config.places), "dropout": config.dropout or 0.0}
            return self.build_resnet(**settings, num_classes=num_classes)
        return named_network(
            config.arch,
            num_classes,
            self.input_shape(recipe),
            blocks=self.blocks(recipe),
            places=config.places,
            num_blocks=config.num_blocks,
            weights=config.weights,
            new_classifier=config.new_classifier and config.weights is not None,
            dropout=config.dropout,
        ).network

    def inputs(self, recipe: RecipeT) -> Inputs:
        """Return how a network's input is normalised and resized: as its weights were trained, or as the data says."""
        return super().inputs(recipe).of_data(recipe.data)

    @staticmethod
    @abstractmethod
    def build_resnet(**settings: Any) -> nn.Module:
        """Build one of the paper's networks."""

    def make_module(self, recipe: RecipeT, network: nn.Module, data: Any, **options: Any) -> Any:
        """Return a :class:`cgnl.training.ClassificationModule`."""
        from cgnl.training.class_scores import weights_of
        from cgnl.training.classification import ClassificationModule

        return ClassificationModule(
            network,
            num_classes=len(data.classes),
            mixup=recipe.data.mixup,
            cutmix=recipe.data.cutmix,
            seed=recipe.trainer.seed,
            class_weights=weights_of(recipe, data.train_labels, len(data.classes), data.named_classes),
            best_by=recipe.trainer.best_by or "top1",
            classifier=self.classifier(recipe, network, len(data.classes)),
            **options,
        )

    def classifier(self, recipe: RecipeT, network: nn.Module, num_classes: int) -> tuple[str, ...]:
        """Return the module paths of a network's classifier."""
        if recipe.network.arch in ARCHITECTURES:
            return ("fc",)
        return classifier_of(recipe.network.arch, network, num_classes, self.num_axes)

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
        """Measure the accuracy on a split."""
        from cgnl.training.evaluation import evaluate

        samples = self._test_data(trained, data, run=out, tested=split)
        samples.check_held_out(trained.files)
        return evaluate(trained, samples, trainer=trainer, out=out, stay=stay)

    def diagnose(
        self, trained: TrainedNetwork, data: Any, *, split: Split = "test", part: Any = None
    ) -> dict[str, Diagnosis]:
        """Test a network with its blocks as they are and changed; see :func:`cgnl.tasks.diagnose`."""
        samples, network = self._test_data(trained, data, tested=split, part=part), trained.network.to(default_device())

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            read = ((batch["image"], batch["label"]) for batch in samples.tested_batches(samples.tested))
            return (pair for pair in read if len(pair[1]))  # a batch of files that cannot be read is empty

        with reporting_dead_readers():
            return diagnose(network, batches, blocks=inserted_blocks(network))

    def _test_data(self, trained: TrainedNetwork, data: Any, **options: Any) -> Any:
        recipe: Any = trained.recipe
        if data.channels != recipe.data.channels:
            raise ValueError(
                f"data.channels ({data.channels}) comes from the checkpoint and cannot be changed: its network sees "
                f"{recipe.data.channels}"
            )
        inputs = self.inputs(recipe)._replace(mean=trained.mean, std=trained.std)
        # those of the checkpoint, unless others are given
        mean, std = (
            getattr(data, name) * (getattr(data, name) != getattr(recipe.data, name)) for name in ("mean", "std")
        )
        inputs = inputs.of_channels(data.channels, mean, std)
        data = self.sized(replace(recipe, data=data)).data
        return self.make_data(data, classes=trained.classes, num_classes=trained.num_classes, inputs=inputs, **options)

    @abstractmethod
    def probabilities(self, trained: TrainedNetwork, path: Path) -> Tensor:
        """Return the probabilities [K] of the outputs for one file."""

    def features(self, trained: TrainedNetwork, path: Path) -> Tensor:
        """Return the classifier's input [D] for one file, the mean over a video's views; errors as of `predict`."""
        seen: list[Tensor] = []
        paths = self.classifier(trained.recipe, trained.network, len(trained.classes))  # type: ignore[arg-type]
        handle = trained.network.get_submodule(paths[0]).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].flatten(1).float())
        )
        try:
            self.probabilities(trained, path)
        finally:
            handle.remove()
        return torch.cat(seen).mean(0).cpu()

    def predict(self, trained: TrainedNetwork, path: Path, *, top: int = 5, score: float = 0.5) -> ClassPrediction:
        """Return the most probable classes of one file."""
        return ClassPrediction(most_probable(trained, self.probabilities(trained, path), top))

    def metadata(self, trained: TrainedNetwork, size: int) -> dict[str, str]:
        """Return what an ONNX file says about the network with inputs of ``size`` (pixels)."""
        recipe: Any = trained.recipe
        return {
            "recipe": trained.name,
            "classes": json.dumps(trained.classes, ensure_ascii=False),
            "mean": json.dumps(trained.mean),
            "std": json.dumps(trained.std),
            "size": str(size),
            "resize": str(recipe.data.resize),
            "interpolation": self.inputs(recipe).interpolation,
            "settings": json.dumps({"task": recipe.task, "data": _settings_of_files(recipe.data)}),
        }

    def smoke(self, recipe: RecipeT, root: Path, *, size: int | None, batch_size: int | None, steps: int) -> RecipeT:
        """Return a recipe that runs in seconds on a CPU."""
        size, (own_size, own_resize) = size or 64, recipe.data.pixels
        data = replace(
            recipe.data,
            root=root,
            size=size,
            resize=round(own_resize / own_size * size),
            batch_size=batch_size or 4,
            workers=0,
        )
        trainer = self.smoke_trainer(recipe.trainer, steps)
        return replace(recipe, network=replace(recipe.network, weights=None), data=data, trainer=trainer)

    def sized(self, recipe: RecipeT) -> RecipeT:
        """Return a recipe with the network's own input size (pixels) in place of sizes that are None."""
        data = recipe.data
        if data.size is not None and data.resize is not None:
            return recipe
        own = self.inputs(recipe)
        size = data.size or own.size
        resize = data.resize or round(own.resize / own.size * size)
        return replace(recipe, data=replace(data, size=size, resize=resize))

    def note(self, recipe: RecipeT) -> str | None:
        """Say that the network's weights were trained with inputs of another size."""
        own, (size, _) = self.inputs(recipe).size, recipe.data.pixels
        if recipe.network.arch in ARCHITECTURES or recipe.network.weights is None or size == own:
            return None
        return f"note: data.size is {size}; {recipe.network.arch} was trained with {own} (data.size None takes that)"

    @abstractmethod
    def input_shape(self, recipe: RecipeT) -> tuple[int, ...]:
        """Return the shape of one input as in training."""

    @abstractmethod
    def num_classes(self, layout: str) -> int | None:
        """Return the number of classes of the data set that a layout is named after."""

    def cost(self, recipe: RecipeT) -> NetworkCost:
        """Count parameters, and multiplications for one image or clip as in training."""
        data = recipe.data
        num_classes = data.num_outputs or data.num_classes or self.num_classes(data.format) or _IMAGENET_CLASSES
        plain = self.without_start_weights(recipe)
        return network_cost(lambda: self.build_network(plain, num_classes), self.input_shape(recipe))


def _settings_of_files(config: DataConfig) -> dict[str, Any]:
    """Return by which settings files are read and cut, without the places of anyone's data."""
    plain: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: value for name, value in plain.items() if value is not None and not isinstance(value, Path)}


@torch.inference_mode()
def probabilities(trained: TrainedNetwork, batch: Tensor, path: Path) -> Tensor:
    """Return the probabilities [B, K] for a batch from a file; the network is moved to the GPU where there is one.

    Raises BadFileError where they are not finite.
    """
    device = default_device()
    values = trained.network.to(device)(batch.to(device)).float().softmax(-1)
    if not values.isfinite().all():
        raise BadFileError(path, NOT_FINITE)
    return values


def most_probable(trained: TrainedNetwork, values: Tensor, top: int) -> list[tuple[str, float]]:
    """Return the names and probabilities of the most probable classes; ``values`` are probabilities [K]."""
    values, classes = values.topk(min(top, len(trained.classes)))
    return [(trained.classes[k], p) for k, p in zip(classes.tolist(), values.tolist(), strict=True)]
