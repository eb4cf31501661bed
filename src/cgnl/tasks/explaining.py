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

    Args:
        trained: The network.
        path: Image file; for a video network a video file, or a folder of frames.

    Raises:
        DataError: The file cannot be read.
    """
    seen: SeenInput = task_of(trained.recipe).see(trained, path)
    return seen


def trace_file(networks: Mapping[str, TrainedNetwork], path: Path) -> tuple[SeenInput, dict[str, Trace]]:
    """Read an image or video and trace the blocks of several networks on it.

    Args:
        networks: The networks by name, for the same kind of input; each is moved to the GPU where there is one.
        path: As in :func:`see`.

    Returns:
        What the networks saw, and their traces by name; those of plain networks have no blocks.

    Raises:
        DataError: The file cannot be read.
        ValueError: The networks are tested on inputs of different sizes, or on different frames.
    """
    return trace_seen(networks, {name: see(trained, path) for name, trained in networks.items()})


def scored_block(trained: TrainedNetwork, path: str | None = None) -> str:
    """Return the path of the block whose maps are scored.

    Args:
        trained: A network.
        path: Where the block is; by default the last one.

    Raises:
        ValueError: The network does not classify images, or it has no such block.
    """
    from cgnl.explain import score

    task = task_of(trained.recipe)
    if not task.scores_parts:
        raise ValueError(f"parts are scored for image classifiers, and {trained.name} is {task.words}")
    return score.scored_block(trained, path)


def score_parts(
    trained: TrainedNetwork, root: str | os.PathLike[str], *, path: str | None = None, **options: Any
) -> "PartScores":
    """Score the maps of a block against the parts of a data set's test images.

    Args:
        trained: An image classifier with a block; it is moved to the GPU where there is one.
        root: A data set in the layout of CUB-200-2011 with part locations and bounding boxes, as the drawn birds are.
        path: Where the block is; by default the last one.
        options: ``limit``, ``threshold``, ``radius``, ``seed`` and ``progress`` of
            :func:`cgnl.explain.score.score_parts`.

    Raises:
        DataError: The data set lacks something, or no image has two parts to relate.
        ValueError: The network does not classify images, it has no such block, or a number is out of range.
    """
    from cgnl.explain import score

    return score.score_parts(trained, root, task_of(trained.recipe).see, path=scored_block(trained, path), **options)
