"""Options of a recipe on the command line: the kind of block first, old spellings, and help texts."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from cgnl.cli import main
from cgnl.cli.arguments import parse_fields, parts_of, take_trust
from cgnl.recipes import RECIPES
from cgnl.settings.blocks import CGNLOptions, NonLocalOptions
from cgnl.settings.reading import override


@dataclass(frozen=True)
class More:
    """What the command takes besides."""

    run: Path | None = None
    """Folder of the run."""


@pytest.mark.parametrize(
    "command",
    [
        "predict run http://127.0.0.1/x.mp4",
        "explain run a.jpg https://example.org/b.jpg",
        "evaluate s3://bucket/best.ckpt",
        "train video --data.root=ftp://example.org/videos",
        "train image --run file:///tmp/run",
        "train https://example.org/recipe.yaml",
        "data check rtsp://example.org/camera --workers 1",
        "convert http://example.org/weights.pth own.ckpt",
        "compare image --data.root http://example.org",
    ],
)
def test_an_address_is_named_as_one_whatever_it_is_given_for(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    (address,) = (word.rpartition("=")[2] for word in command.split() if "://" in word)
    error = capsys.readouterr().err
    assert re.fullmatch(rf"cgnl: .*{re.escape(address)}\)? is an address: .* files of this machine alone\n", error)


def test_an_address_in_a_file_is_named_as_one(tmp_path):
    with pytest.raises(ValueError, match=r"data.root \(http://example.org/a\) is an address"):
        override(RECIPES["video"].make(), {"data": {"root": "http://example.org/a"}}, "my.yaml")


def parsed(name, *arguments):
    return parse_fields(f"train {name}", More, RECIPES[name].make(), arguments)


@pytest.mark.parametrize(
    "name", ["cub-resnet50-cgnl", "actions-resnet18-cgnl", "coco-maskrcnn-resnet50-nl", "cub-resnet50"]
)
def test_without_options_the_recipe_stays_as_it_is(name):
    options = parsed(name, "--run", "there")
    assert {part: getattr(options, part) for part in parts_of(RECIPES[name].make())} == parts_of(RECIPES[name].make())
    assert options.run == Path("there")


@pytest.mark.parametrize(
    ("name", "arguments", "block"),
    [
        ("cub-resnet50-cgnl", ["--block.groups", "4", "--block.kernel=rbf"], CGNLOptions(groups=4, kernel="rbf")),
        ("cub-resnet50-cgnl", ["--network.groups", "4", "--network.kernel=rbf"], CGNLOptions(groups=4, kernel="rbf")),
        (
            "cub-resnet50-cgnl",
            ["--block.kernel=series", "--block.coefficients", "1", "2"],
            CGNLOptions(kernel="series", coefficients=(1.0, 2.0)),
        ),
        ("cub-resnet50-cgnl", ["--block.no-scale", "--network.block", "nl"], NonLocalOptions(scale=False)),
        ("cub-resnet50-cgnl", ["--network.block=nl", "--network.subsample"], NonLocalOptions(subsample=True)),
        ("cub-resnet101-cgnl-g4", ["--network.block=gnl", "--network.channel-reduction", "4"], None),
    ],
)
def test_the_kind_of_block_decides_which_options_there_are(name, arguments, block):
    found = parsed(name, *arguments).block
    if block is None:
        values = {"network": {"block": "gnl"}, "block": {"channel_reduction": 4}}
        block = override(RECIPES[name].make(), values, "test").block
        assert block.groups == 4
    assert found == block


def test_the_network_decides_which_values_of_the_recipe_stay():
    network = parsed("video", "--network.arch", "torchvision:r3d_18", "--network.dropout=0.1").network
    assert (network.weights, network.temporal_strides, network.dropout) == ("default", (2, 2, 2), 0.1)
    assert parsed("image", "--network.arch=resnet18").network.weights == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "arguments", "refused"),
    [
        (
            "cub-resnet50-nl",
            ["--network.kernel", "rbf", "--network.groups", "32"],
            "block.kernel is not an option of block nl",
        ),
        ("cub-resnet50-nl", ["--block.groups=32"], "block.groups is not an option of block nl, which has: .*pairwise"),
        ("cub-resnet50-cgnl", ["--block.no-subsample"], "block.subsample is not an option of block cgnl"),
        ("cub-resnet50-cgnl", ["--network.block=none", "--block.groups=8"], "block.groups is .* which has: none"),
        ("cub-resnet50", ["--network.block", "cgln"], "block .'cgln'. must be one of none, nl"),
    ],
)
def test_an_option_that_the_kind_does_not_have_is_refused_by_name(name, arguments, refused):
    with pytest.raises(ValueError, match=refused):
        parsed(name, *arguments)


def test_the_help_text_says_what_the_recipe_is_and_names_values(capsys):
    with pytest.raises(SystemExit):
        parsed("cub-resnet50-cgnl", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert 'Table 2a, "Dot Production"' in text
    assert "Paper: 85.14 / 96.88" in text
    assert "--data.root FOLDER" in text
    assert "--data.train-list FILE" in text
    assert "--run FOLDER" in text
    assert "--network.block {none,nl," in text
    assert "default: None" not in text
    assert "(default: )" not in text


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_list_of_recipes_says_what_each_is(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    words = dict(re.findall(r"^  (\S+) +(\S.*)$", capsys.readouterr().out, re.MULTILINE))
    assert words.keys() == RECIPES.keys()
    assert len(set(words.values())) == len(words)
    for name, said in words.items():
        assert "Net-" in said or "ResNet" in said or "Table 4c" in said or "R-CNN" in said, name
    data = {"cub": "CUB-200-2011: ", "ucf101": "UCF101: ", "mini": "Mini-Kinetics: ", "imagenet": "ImageNet: "}
    for name, said in words.items():
        assert said.startswith(data.get(name.partition("-")[0], "")), name
    assert words["cub-resnet50"] == "CUB-200-2011: ResNet-50 (Table 2a)"
    assert words["cub-resnet50-cgnlx"] == "CUB-200-2011: ResNet-50 + 1 CGNLx block, Gaussian RBF (Table 2a)"
    assert words["cub-resnet101-cgnl5"] == "CUB-200-2011: ResNet-101 + 5 CGNL blocks, 8 groups (Table 2c)"
    assert words["coco-maskrcnn-resnet50-nl"] == "COCO: Mask R-CNN with ResNet-50 + 1 NL block (Table 4c)"


@pytest.mark.parametrize("recipe", ["image", "video", "detection"])
def test_help_texts_break_lines_only_at_the_right_margin(recipe, capsys):
    with pytest.raises(SystemExit):
        main(["train", recipe, "--help"])
    lines = [re.match(r"[│ ] {7}(\S.*?)[│ ]*$", line) for line in capsys.readouterr().out.splitlines()]
    words = [line and line[1] for line in lines]
    pairs = [(line, then) for line, then in zip(words, words[1:], strict=False) if line and then]
    assert len(pairs) > 20
    width = max(len(line) for line, _ in pairs)
    early = [line for line, then in pairs if len(f"{line} {then.split()[0]}") <= width]
    assert not early


def test_trust_is_taken_from_any_place():
    rest, trusted = take_trust(["train", "--trust", "one", "x", "--network.block", "my.Block", "--trust=two"])
    assert rest == ["train", "x", "--network.block", "my.Block"]
    assert trusted == ["one", "two", "my.Block"]
    # a kind of ours, or a network, is no package of that name in the working directory
    assert take_trust(["train", "x", "--network.block", "se", "--network.arch=resnet50"])[1] == []
    assert take_trust(["train", "x", "--network.arch=timm:resnet10t.c3_in1k"])[1] == []


@pytest.mark.parametrize("arguments", [["--trust"], ["--trust="], ["--trust", "--smoke"], ["--trust=--smoke"]])
def test_trust_without_a_package_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "image", *arguments])
    assert "must be a package, such as mypackage" in capsys.readouterr().err
