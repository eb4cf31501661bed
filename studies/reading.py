"""How fast are JPEG files read into a normalised batch on one core, next to torchvision's ImageFolder?

Both read the same class folder of JPEGs with the same crops, flips, sizes and normalisation; ImageFolder resizes
with Pillow. No worker processes: seconds of one process with one thread.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from cgnl.data.images import ImageDataset, collate, read_images
from cgnl.data.transforms import IMAGENET_MEAN, IMAGENET_STD, test_transform, train_transform
from cgnl.measure.timing import ratios, side_by_side, spread
from script import begin, study, write

HEIGHT, WIDTH = 375, 500


def draw_jpegs(root: Path, number: int, seed: int) -> int:
    """Draw JPEGs of photographic detail (clouds of all sizes, and grain) of CUB's usual size.

    Returns:
        The bytes of all files.
    """
    rng = np.random.default_rng(seed)
    folder = root / "train" / "bird"
    folder.mkdir(parents=True)
    for index in range(number):
        image = rng.normal(0, 4, (HEIGHT, WIDTH, 3)) + 128
        for cells in (3, 8, 20, 60):
            cloud = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            large = cloud.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            image += (np.asarray(large, dtype=float) - 128) / cells**0.5
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir())


def pillow_transform(size: int, resize: int, *, training: bool) -> v2.Compose:
    """Return the transforms of :mod:`cgnl.data.transforms`, on Pillow's images until the end."""
    cut = (
        [v2.RandomResizedCrop(size, scale=(0.08, 1.25), ratio=(3 / 4, 4 / 3)), v2.RandomHorizontalFlip()]
        if training
        else [v2.Resize(resize), v2.CenterCrop(size)]
    )
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    return v2.Compose([*cut, *end])


def main() -> None:
    """Time reading batches and write the record."""
    parser = study(__file__, __doc__, threads=1)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = begin(parser)
    keys = range(arguments.batch_size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        num_bytes = draw_jpegs(Path(folder), arguments.batch_size, arguments.seed)
        images = read_images(folder)
        for size, resize in ((224, 256), (448, 512)):
            for training in (True, False):
                ours = ImageDataset(images, train_transform(size) if training else test_transform(size, resize))
                theirs = ImageFolder(f"{folder}/train", pillow_transform(size, resize, training=training))

                def read_ours(dataset: ImageDataset = ours) -> dict:
                    return collate([dataset[index] for index in keys])

                def read_theirs(dataset: ImageFolder = theirs) -> list:
                    return default_collate([dataset[index] for index in keys])

                if not training:
                    difference = (read_ours()["image"] - read_theirs()[0]).abs().max() * min(IMAGENET_STD) * 255
                    assert difference < 3, f"the two read different pixels: up to {difference} of 255"
                seconds = side_by_side({"cgnl": read_ours, "ImageFolder": read_theirs}, repeats=arguments.repeats)
                per_second = {
                    name: spread([arguments.batch_size / value for value in values]) for name, values in seconds.items()
                }
                ratio = ratios(seconds["ImageFolder"], to=seconds["cgnl"])
                rows.append(
                    {
                        "transform": "train" if training else "test",
                        "size": size,
                        "images_per_second": per_second,
                        "times_as_fast_as_ImageFolder": ratio,
                    }
                )
                print(f"{rows[-1]['transform']} {size}: {per_second['cgnl']['median']:.0f} images/s,", end=" ")
                print(f"ImageFolder {per_second['ImageFolder']['median']:.0f}; {ratio['median']:.2f} times as fast")
    jpeg = {"height": HEIGHT, "width": WIDTH, "quality": 90, "mean_bytes": num_bytes // arguments.batch_size}
    write(arguments, rows, batch_size=arguments.batch_size, repeats=arguments.repeats, jpeg=jpeg)


if __name__ == "__main__":
    main()
