"""What the settings of data mean for its parts: paths that must exist, and training samples that are held out."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from cgnl.data.decoding import DataError
from cgnl.data.lists import SampleList, divided, fold, readable, shared
from cgnl.settings.words import counted


def check_relative_paths(config: Any) -> None:
    """Raise DataError for a relative path that leads nowhere, as when a run goes on in another working folder."""
    for field in fields(config):
        path = getattr(config, field.name)
        # the index of videos is written if need be
        if isinstance(path, Path) and field.name != "index":
            path = path.expanduser()
            if not (path.is_absolute() or path.exists()):
                raise DataError(
                    f"data.{field.name}: {path} does not exist in {Path.cwd()}, the working folder, which it is "
                    "relative to"
                )


def divides(config: Any) -> str | None:
    """Return the setting that holds some of the training samples out, with its value, or None."""
    if config.num_folds is not None:
        return f"data.num_folds ({config.num_folds})"
    return f"data.val_fraction ({config.val_fraction:g})" if config.val_fraction else None


def parted(samples: SampleList, config: Any, noun: str) -> tuple[list[int], list[int]]:
    """Return the numbers of the samples to train on, and of those held out by a fraction or as a fold.

    Raises DataError where none could be held out; ``noun`` is one sample.
    """
    labels = [sample.label for sample in samples.samples]
    if config.num_folds is None:
        kept, held = divided(labels, config.val_fraction, config.val_seed)
        reason = f"no class with two training {noun}s, so that {divides(config)} can hold none out"
    else:
        kept, held = fold(labels, config.num_folds, config.held_out_fold, config.val_seed)
        reason = f"{counted(len(samples), f'training {noun}')}, too few for {divides(config)}"
        held = held if len(samples) >= config.num_folds else []
    if not held:
        raise DataError(f"{samples.root} has {reason}")
    return kept, held


def untrained(samples: SampleList, config: Any) -> list[str]:
    """Return the classes of training samples of which a fold has held every sample out."""
    if config.num_folds is None:
        return []
    left = {sample.label for sample in samples.samples}
    return [name for label, name in enumerate(samples.classes) if label not in left]


def check_not_trained_on(samples: SampleList, trained_on: Mapping[str, torch.Tensor], config: Any, noun: str) -> None:
    """Raise DataError if held-out samples are among the training samples whose fingerprint a network's run has kept."""
    known = shared(bytes(trained_on["train"].numpy()), samples) if "train" in trained_on else []
    if known:
        raise DataError(
            f"{len(known)} of {len(samples)} held-out {noun}s were training {noun}s of this network, such as "
            f"{readable(known[0])}: the files, or the settings by which {divides(config)} divides them, have changed "
            "since then"
        )
