"""Effects against networks from which the block, or what one group of it adds, was taken out."""

import copy

import pytest
import torch
from torch import Tensor, nn

import cgnl
from cgnl.explain.effect import effect
from cgnl.networks import image, video


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def awake(network: nn.Module) -> nn.Module:
    """Weights and norms as after training: every block and group matters."""
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and "block" in name:
                module.weight.uniform_(0.5, 1)
                module.bias.uniform_(-1, 1)
                module.running_mean.uniform_(-1, 1)
            elif isinstance(module, nn.modules.conv._ConvNd) and "block" in name:
                module.weight.normal_(std=0.2)
    return network


def image_network(block: str = "cgnl", **settings: object) -> nn.Module:
    return awake(image.resnet18(block, num_classes=5, **settings))


def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)[0]


def test_bypassed_is_the_network_without_the_block():
    network, x = image_network(), torch.randn(1, 3, 48, 64)
    result = effect(network, x, "layer3.0")
    torch.testing.assert_close(result.logits, logits_of(network, x), rtol=0, atol=0)
    bare = cgnl.remove_blocks(copy.deepcopy(network))
    torch.testing.assert_close(result.logits_bypassed, logits_of(bare, x))
    assert (result.logits - result.logits_bypassed).abs().max() > 1e-2


def silence(block: nn.Module, groups: list[int]) -> None:
    """What a group adds becomes zero: its weights of conv_z, and what the norm makes of zero."""
    for group in groups:
        for tensor in (block.z.weight, block.norm.bias, block.norm.running_mean):
            tensor.data.chunk(block.groups)[group].zero_()


@pytest.mark.parametrize("kernel", ["dot", "rbf"])
def test_a_group_left_out_is_a_group_that_adds_nothing(kernel):
    network, x = image_network(groups=4, kernel=kernel), torch.randn(1, 3, 48, 64)
    result = effect(network, x, "layer3.0")
    assert result.logits_without.shape == (4, 5)
    for group in range(4):
        other = copy.deepcopy(network)
        silence(other.layer3[0].inserted_block, [group])
        torch.testing.assert_close(result.logits_without[group], logits_of(other, x))
        assert (result.logits_without[group] - result.logits).abs().max() > 1e-3


def test_all_groups_left_out_together_are_the_bypass():
    network, x = image_network(groups=4), torch.randn(1, 3, 48, 64)
    silenced = copy.deepcopy(network)
    silence(silenced.layer3[0].inserted_block, [0, 1, 2])
    # the last group left out of a block whose others add nothing
    torch.testing.assert_close(
        effect(silenced, x, "layer3.0").logits_without[3], effect(network, x, "layer3.0").logits_bypassed
    )


def test_a_non_local_block_has_one_group_the_bypass():
    result = effect(image_network("nl"), torch.randn(1, 3, 48, 64), "layer3.0")
    assert torch.equal(result.logits_without, result.logits_bypassed[None])
    assert (result.logits_without[0] - result.logits).abs().max() > 1e-3


def test_videos():
    network = awake(video.c2d_resnet18("cgnl", num_classes=5, groups=2))
    x = torch.randn(1, 3, 8, 32, 32)
    result = effect(network, x, "layer3.0")
    torch.testing.assert_close(result.logits_bypassed, logits_of(cgnl.remove_blocks(copy.deepcopy(network)), x))
    assert result.logits_without.shape == (2, 5)


def test_probabilities():
    result = effect(image_network(), torch.randn(1, 3, 32, 32), "layer3.0", groups=False)
    assert result.logits_without.shape == result.probabilities_without.shape == (0, 5)
    torch.testing.assert_close(result.probabilities, result.logits.exp() / result.logits.exp().sum())
    torch.testing.assert_close(result.probabilities_bypassed.sum(), torch.tensor(1.0))


class Detector(nn.Module):
    """Takes a list of images and gives a dict, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.block = awake(nn.ModuleDict({"block": cgnl.CGNL2d(8, groups=2)}))["block"]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"scores": self.block(image[None]).mean((0, 2, 3))} for image in images]


def test_outputs_that_are_no_logits():
    network, x = Detector(), [torch.randn(8, 5, 5)]
    result = effect(network, x, "block", vector=lambda output: output[0]["scores"])
    torch.testing.assert_close(result.logits_bypassed, x[0].mean((1, 2)))
    with pytest.raises(ValueError, match=r"output must be logits \[1, K\].*vector=.*is a list"):
        effect(network, x, "block")


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fails):
    tail = Fails() if fails else nn.Identity()
    network = nn.Sequential(nn.BatchNorm2d(8), cgnl.CGNL2d(8, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), tail)
    network[0].eval()
    before = copy.deepcopy(network.state_dict())
    try:
        effect(network, torch.randn(1, 8, 4, 4), "1")
    except RuntimeError:
        assert fails
    assert [module.training for module in network[:3]] == [False, True, True]
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_wrong_arguments():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), cgnl.CGNL2d(8, groups=2))
    with pytest.raises(ValueError, match=r"path \('2'\) must be that of a block; the network's blocks: '1'"):
        effect(network, torch.randn(1, 3, 4, 4), "2")
    with pytest.raises(ValueError, match="one sample, not 2"):
        effect(network, torch.randn(2, 3, 4, 4), "1")
    with pytest.raises(ValueError, match=r"is \(8, 4, 4\)"):
        effect(network, torch.randn(1, 3, 4, 4), "1")
