"""The stage of the automatic place, in networks where it is not the plain one."""

from typing import Any

import pytest
import torch
from hosts import IMAGE, Mixing, make_1d, make_2d, small_resnet
from torch import Tensor, nn

import cgnl
from cgnl.insertion import inserted_blocks
from cgnl.insertion.places import find_places


class Tokens(nn.Module):
    """A layer on tokens, for maps of any kind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 9), nn.Linear(9, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)))


class Former(nn.Module):
    """Convolutions to 1/4, and tokens at 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(Residual2d(3, 8, 4), Residual2d(8, 8, 1))
        self.embed = nn.Conv2d(8, 16, 4, 4)
        self.tokens = nn.Sequential(Tokens(16), Tokens(16), Tokens(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.embed(self.convolutions(x)).flatten(2).mT)


class Residual2d(nn.Module):
    def __init__(self, old: int, new: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(old, new, 3, stride, 1)
        self.pool = nn.Conv2d(old, new, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + self.pool(x))


def test_the_stage_is_chosen_among_maps_of_all_kinds() -> None:
    host, x = Former(), torch.randn(1, 3, 64, 48)
    with pytest.raises(ValueError, match=r"they take 2 axes .* have 1, such as tokens .* give .* cgnl\.CGNL1d"):
        cgnl.insert_blocks(host, make_2d, example_input=x)
    cgnl.insert_blocks(host, make_1d, example_input=x)
    assert list(inserted_blocks(host)) == ["tokens.1"]


class Irregular(nn.Module):
    """Only its first stage repeats a block; ``feature_info`` names the others, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(Residual2d(3, 8, 4), Residual2d(8, 8, 1))
        self.second, self.third = (Strided(old, new) for old, new in ((8, 12), (12, 16)))
        self.feature_info = [{"module": "second", "reduction": 8}, {"module": "third", "reduction": 16}]

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


class Strided(nn.Module):
    def __init__(self, old: int, new: int) -> None:
        super().__init__()
        self.pool, self.conv = nn.Conv2d(old, new, 3, 2, 1), nn.Conv2d(new, new, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


def test_a_stage_that_timm_names_counts_without_blocks_in_it() -> None:
    host, x = Irregular(), torch.randn(1, 3, 64, 64)
    assert find_places(host, x).paths == ["third"]
    assert find_places(host, x, 5).paths == ["second", "third"]


class Unfolded(nn.Module):
    """Attention among pixels of one position in their patches, [B, C, pixels, patches], as in MobileViT v2."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Residual2d(8, 8, 1) for _ in range(3)))
        self.end = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 2, stride=2).unflatten(1, (8, 4))
        return self.end(nn.functional.fold(self.layers(patches).flatten(1, 2), x.shape[2:], 2, stride=2))


@pytest.mark.parametrize("size", [(256, 256), (128, 384), (250, 130)])
def test_pixels_times_patches_are_no_map(size: tuple[int, int]) -> None:
    body = [Residual2d(3, 8, 8), Residual2d(8, 8, 1), Residual2d(8, 8, 2), Unfolded()]
    host = nn.Sequential(*body, Residual2d(8, 8, 2))
    if size == (250, 130):
        host[3] = Residual2d(8, 8, 1)
    assert find_places(host, torch.randn(1, 3, *size), num_axes=2).paths == ["2"]


@pytest.mark.parametrize("make", [nn.TransformerEncoder, "rnn"])
def test_sequences_with_the_batch_second_are_refused(make: Any) -> None:
    if make == "rnn":
        host: nn.Module = nn.Sequential(Recurrent(batch_first=False), Recurrent(batch_first=False))
    else:
        host = make(nn.TransformerEncoderLayer(32, 2, 64), 3, enable_nested_tensor=False)
    with pytest.raises(ValueError, match=r"has batch_first=False, so the sequences .* mix the samples"):
        cgnl.insert_blocks(host, make_1d, example_input=torch.randn(9, 2, 32))
    for module in host.modules():
        if hasattr(module, "batch_first"):
            module.batch_first = True
    cgnl.insert_blocks(host, make_1d, example_input=torch.randn(9, 2, 32))
    assert len(inserted_blocks(host)) == 1


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.linear = nn.GRU(32, 32, batch_first=batch_first), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


def test_children_of_the_host_may_be_named_like_blocks() -> None:
    host = nn.ModuleDict({"inserted_block": small_resnet()})
    host.forward = lambda x: host["inserted_block"](x)
    assert find_places(host, torch.randn(IMAGE)).paths == ["inserted_block.layer3.0"]
    cgnl.insert_blocks(host, make_2d, example_input=torch.randn(IMAGE))
    assert find_places(host, torch.randn(IMAGE)).paths == ["inserted_block.layer3.0"]


def test_only_the_chosen_stage_must_tell_its_layout() -> None:
    """The first stage's maps have C = H = W, the second's have not."""
    first = [nn.Conv2d(3, 8, 8, 8), Mixing(8), Mixing(8)]
    second = [nn.Conv2d(8, 12, 2, 2), Residual2d(12, 12, 1), Residual2d(12, 12, 1)]
    places = find_places(nn.Sequential(*first, *second), torch.randn(1, 3, 64, 64))
    assert places[:2] == (["4"], "channels_first")
