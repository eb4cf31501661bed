"""What blocks do in training: numbers of each epoch, and the score without them."""

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cgnl import CGNL2d
from cgnl.blocks.diagnosis import ALL, Tally, diagnose, without
from cgnl.cli import main
from cgnl.insertion import inserted_blocks
from cgnl.tasks import diagnose as diagnose_trained
from cgnl.tasks import load_trained
from cgnl.training.watching import BlockWatch, _ratio_of_gradients

SETTINGS = [
    *"--data.size 32 --data.resize 36 --data.batch-size 8 --data.workers 0 --trainer.max-epochs 2".split(),
    *"--network.weights None --schedule.kind constant --optimizer.block-lr-factor 50".split(),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def block_and_batches():
    torch.manual_seed(0)
    block = CGNL2d(8, groups=2).eval()
    nn.init.normal_(block.norm.weight, std=1000)
    return block, [torch.randn(n, 8, 5, 4) + 1 for n in (3, 4, 1)]


def test_a_tally_has_the_numbers_of_the_diagnosis():
    block, batches = block_and_batches()
    network = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    expected = diagnose(network, [(x, torch.zeros(len(x), dtype=torch.long)) for x in batches])["0"]
    parts = Tally(), Tally()
    for number, x in enumerate(batches):
        with parts[number % 2].watch(block):
            block(x)
    found = (parts[0] + parts[1]).numbers()
    assert found == {name: pytest.approx(expected[name], rel=1e-6) for name in ("branch_over_x", "s_cv")}
    block(batches[0])
    assert parts[0].count == 4
    assert all(map(math.isnan, Tally().numbers().values()))


def test_blocks_are_left_out_for_a_while():
    block, (x, *_) = block_and_batches()
    with without([block]):
        assert torch.equal(block(x), x)
    assert not torch.equal(block(x), x)


def test_the_ratio_of_gradients():
    block, (x, *_) = block_and_batches()
    block(x).square().sum().backward()
    phi_g = torch.cat([block.phi.weight.grad.flatten(), block.g.weight.grad.flatten()])
    assert _ratio_of_gradients(block) == pytest.approx(float(phi_g.norm() / block.theta.weight.grad.norm()), rel=1e-5)
    assert math.isnan(_ratio_of_gradients(nn.Conv2d(1, 1, 1)))


def test_an_idle_block_is_named(tmp_path):
    block, (x, *_) = block_and_batches()
    busy, idle = block, CGNL2d(8).eval()
    watch = BlockWatch(tmp_path, {"a": busy, "b": idle})
    watch.on_validation_start(None, None)
    idle(busy(x))
    watch.on_validation_end(None, None)
    assert watch.idle() == ["the block at b changes its input by less than 0.1 %: see docs/when-it-helps.md"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cgnl", "se"])
def test_a_run_writes_what_its_block_does(class_folders, tmp_path, capsys, kind):
    run = tmp_path / "run"
    command = [
        "train",
        "birds-resnet18-cgnl",
        f"--data.root={class_folders}",
        "--data.format=auto",
        f"--run={run}",
        *SETTINGS,
    ]
    main([*command, f"--network.block={kind}"])
    first, last, end = rows(run / "blocks.csv")
    steps = [row["step"] for row in rows(run / "epochs.csv")]
    assert [(row["step"], row["epoch"]) for row in (first, last, end)] == [(steps[0], "0"), *[(steps[1], "1")] * 2]
    trained = load_trained(run / "last.ckpt")
    found = diagnose_trained(trained, trained.recipe.data)
    ((path, of_block),) = [(path, of_block) for path, of_block in found.items() if path != ALL]
    assert {first["block"], last["block"]} == {path}
    assert float(last["branch_over_x"]) == pytest.approx(of_block["branch_over_x"], rel=1e-3)
    assert float(end["score_without"]) == pytest.approx(of_block["removed"], abs=1e-3)
    said = capsys.readouterr().out
    assert f"without the block: top-1 {of_block['removed']:.2f} % (with it {of_block['as_is']:.2f} %)" in said
    if kind == "cgnl":
        assert float(last["s_cv"]) == pytest.approx(of_block["s_cv"], rel=1e-3)
        (block,) = inserted_blocks(trained.network).values()
        assert float(last["norm_weight"]) == pytest.approx(float(block.norm.weight.abs().mean()), rel=1e-4)
        assert float(last["phi_g_over_theta"]) > 0
    else:
        assert last["s_cv"] == last["phi_g_over_theta"] == ""
    # a longer run goes on, without a line that a crash has left
    lines = (run / "blocks.csv").read_text()
    (run / "blocks.csv").write_text(lines + "999,9,layer3.0,1,1,1,1,\n")
    main([*command, f"--network.block={kind}", "--trainer.max-epochs=3", "--resume"])
    assert (run / "blocks.csv").read_text().startswith(lines)
    assert [row["epoch"] for row in rows(run / "blocks.csv")] == ["0", "1", "1", "2", "2"]
