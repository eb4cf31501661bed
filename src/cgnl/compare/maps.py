"""Feature maps in front of a block, of every sample and its mirror image (if the recipe flips), kept on disk.

Legend: n samples, C channels, S spatial or space-time axes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cgnl.compare.cut import Front, built
from cgnl.data.lists import SampleList, path_below
from cgnl.files import write_text
from cgnl.insertion import inserted_blocks
from cgnl.settings.image import Recipe
from cgnl.tasks.registry import task_of
from cgnl.training.processes import reporting_dead_readers
from cgnl.training.trained import default_device

# Settings that the network up to its block, and the samples as in a test, do not depend on; or by which samples are
# chosen, whose list has a digest of its own.
_OF_TRAINING = {
    *("augment", "balanced_sampler", "batch_size", "block", "crop_area", "crop_aspect", "cutmix", "dropout", "flip"),
    *("held_out_fold", "mixup", "num_folds"),
}


@dataclass(frozen=True)
class Maps:
    """The maps of a split.

    Attributes:
        maps: [n, 2, C, *S]: of each sample, and of its mirror image; [n, 1, C, *S] if the recipe never flips.
        labels: [n].
    """

    maps: Tensor
    labels: Tensor

    def of(self, numbers: Any) -> "Maps":
        """Return those of some samples."""
        return Maps(self.maps[numbers], self.labels[numbers])


@dataclass(frozen=True)
class Features:
    """What is cached of a data set."""

    train: Maps
    test: Maps
    classes: tuple[str, ...]
    place: str
    words: str


def cached(recipe: Recipe, folder: Path, say: Callable[[str], None] = print) -> Features:
    """Return the maps in front of the block of a recipe's network, from a folder if they are there.

    The folder's name holds a hash of the weights, the transform, and the names, sizes and dates of all files below the
    data set's root.

    Raises:
        ValueError: The recipe has several blocks, or a network that makes no map.
        DataError: Something is wrong with the data.
    """
    task: Any = task_of(recipe)
    recipe = task.sized(recipe)
    if recipe.network.num_blocks != 1 or len(recipe.network.places) > 1:
        raise ValueError("--freeze below-block needs one block: leave network.num_blocks and network.places at one")
    data = task.make_data(recipe.data, inputs=task.inputs(recipe), run=folder)
    # a residual block is the identity at the start, and stands where any block would
    network = built(recipe, "residual", len(data.classes)).to(default_device())
    (place,) = inserted_blocks(network)
    splits = {"train": data.train_samples, "test": data.test_samples}
    home = folder / f"maps-{_fingerprint(network, task, recipe, splits)}"
    if not (home / "maps.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        front = Front(network)
        for split, samples in splits.items():
            say(f"computing the maps of {len(samples)} {split} {data.noun}s after {place}")
            with reporting_dead_readers():
                _write(home, split, data.tested_batches(split), front, (len(samples), 1 + bool(recipe.data.flip)))
        write_text(home / "maps.json", json.dumps({"place": place, "classes": data.classes}))
    maps = {split: _read(home, split) for split in splits}
    return Features(maps["train"], maps["test"], tuple(data.classes), place, data.summary())


@torch.inference_mode()
def _write(home: Path, split: str, batches: Iterator[Mapping[str, Any]], front: Front, counts: tuple[int, int]) -> None:
    store: Any = None
    labels: list[Tensor] = []
    done = 0
    device = next(front.parameters()).device
    for batch in batches:
        if not len(batch["label"]):  # none of its files could be read
            continue
        x = batch["image"].to(device)
        for flipped in range(counts[1]):
            found = front(x.flip(-1) if flipped else x).float().cpu().numpy()
            if store is None:
                shape = (*counts, *found.shape[1:])
                store = np.lib.format.open_memmap(home / f"{split}.npy", "w+", np.float32, shape)
            store[done : done + len(found), flipped] = found
        done += len(found)
        labels.append(batch["label"].cpu())
    store.flush()
    np.save(home / f"{split}-labels.npy", torch.cat(labels).numpy())


def _read(home: Path, split: str) -> Maps:
    # copied when written to: a layer that changes its input must not change the file
    maps = np.load(home / f"{split}.npy", mmap_mode="c")
    labels = torch.from_numpy(np.load(home / f"{split}-labels.npy"))
    # files that could not be read have no maps
    return Maps(torch.from_numpy(maps)[: len(labels)], labels)


def _fingerprint(network: nn.Module, task: Any, recipe: Any, splits: Mapping[str, SampleList]) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    settings = {
        field.name: getattr(part, field.name)
        for part in (recipe.network, recipe.data)
        for field in fields(part)
        if not field.metadata.keys() & {"free", "for_tests"} and field.name not in _OF_TRAINING
    }
    digest.update(json.dumps([settings, task.inputs(recipe)], sort_keys=True, default=str).encode())
    digest.update(samples_digest(splits, dates=True).encode())
    if not recipe.data.flip:
        digest.update(b"no mirror images")
    return digest.hexdigest()[:16]


def samples_digest(splits: Mapping[str, SampleList], *, dates: bool = False) -> str:
    """Return a hash of the samples' files (paths below the root, sizes, and dates if wanted) and labels."""
    digest = hashlib.sha256()
    for split, samples in splits.items():
        for sample in samples.samples:
            state = sample.path.stat() if sample.path.exists() else None
            path = path_below(samples, sample.path)
            # a folder of frames has no size of its own
            size = state.st_size if state and S_ISREG(state.st_mode) else None
            digest.update(f"{split} {path} {sample.label} {size} {dates and state and state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
