"""What several tests use."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    # a sixth of the time of many tests went to looking through the objects of all imported libraries for garbage
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    # libraries report what they find alive when the process ends
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    # two test processes share the cores
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def draw_class_folders(
    root: Path, *, classes: int = 3, train: int = 8, test: int = 4, size: int = 40, seed: int = 0
) -> Path:
    """Write train/ and val/ folders of JPEGs whose mean colour tells the class, with noise on top."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(40, 216, size=(classes, 3))
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.normal(0, 25, size=(size, size + 4, 3))
                pixels = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    return root


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of class folders; tests must not change it."""
    return draw_class_folders(tmp_path_factory.mktemp("folders"))
