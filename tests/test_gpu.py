"""What only a CUDA device can show: blocks and training there agree with the CPU."""

import csv
import dataclasses

import pytest
import torch

import cgnl
from cgnl.recipes import RECIPES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kernel", ["dot", "embedded_gaussian", "rbf"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_a_block_on_a_gpu_agrees_with_float64_on_a_cpu(kernel, dtype, tolerance):
    torch.manual_seed(0)
    block = cgnl.CGNL2d(64, groups=4, kernel=kernel)
    torch.nn.init.uniform_(block.norm.weight, 0.5, 1.5)
    x = torch.randn(3, 64, 9, 7)
    expected = block.double()(x.double())
    actual = block.to("cuda", dtype)(x.to("cuda", dtype)).double().cpu()
    assert (actual - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_trains(class_folders, tmp_path, precision):
    from cgnl.tasks import train

    recipe = RECIPES["birds-resnet18-cgnl"].make()
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, root=class_folders, format="folders", size=32, resize=36, batch_size=8),
        trainer=dataclasses.replace(recipe.trainer, max_epochs=2, precision=precision, devices=1, accelerator="gpu"),
    )
    train(recipe, tmp_path / "run", progress=False)
    with (tmp_path / "run" / "epochs.csv").open(newline="") as file:
        assert all(0 < float(row["train_loss"]) < 100 for row in csv.DictReader(file))
