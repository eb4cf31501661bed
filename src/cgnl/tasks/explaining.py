"""What the blocks of a network of any task relate: its inputs, traces and scores."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgnl.explain.inputs import SeenInput, trace_seen
from cgnl.explain.trace import Trace
from cgnl.tasks.registry import task_of
from cgnl.training.trained import TrainedNetwork

if TYPE_CHECKING:
    from cgnl.explain.score import PartScores


def see(trained: TrainedNetwork, path: Path) -> SeenInput:
    """Read an image or video as a network is tested on it: of a video one clip from the middle, and its middle crop.

    The path is that of an image, or for a video network of a video or a folder of frames; DataError where it cannot be
    read.
    """
    seen: SeenInput = task_of(trained.recipe).see(trained, path)
    return seen


def trace_file(networks: Mapping[str, TrainedNetwork], path: Path) -> tuple[SeenInput, dict[str, Trace]]:
    """Read an image or video, as :func:`see` does, and trace the blocks of several networks, by name, on it.

    Results and errors are those of :func:`cgnl.explain.inputs.trace_seen`.
    """
    return trace_seen(networks, {name: see(trained, path) for name, trained in networks.items()})


def scored_block(trained: TrainedNetwork, path: str | None = None) -> str:
    """Return the path of the block whose maps are scored, by default the last one; ValueError where there is none."""
    from cgnl.explain import score

    task = task_of(trained.recipe)
    if not task.scores_parts:
        raise ValueError(f"parts are scored for image classifiers, and {trained.name} is {task.words}")
    return score.scored_block(trained, path)


def score_parts(
    trained: TrainedNetwork, root: str | os.PathLike[str], *, path: str | None = None, **options: Any
) -> "PartScores":
    """Score the maps of a block against the parts of a data set's test images.

    Arguments and errors are those of :func:`cgnl.explain.score.score_parts`; ValueError where the network does not
    classify images.
    """
    from cgnl.explain import score

    return score.score_parts(trained, root, task_of(trained.recipe).see, path=scored_block(trained, path), **options)
