"""Copies, compiled, exported, traced and checkpointed networks keep their blocks."""

import copy
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hosts import HOSTS, Host, all_hosts, assert_close, assert_same_step, awaken, hosts_of_all_kinds
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

import cgnl
from cgnl.insertion import inserted_blocks


@all_hosts
def test_copies_and_saved_networks_are_independent(host: Host, tmp_path: Path) -> None:
    model, x = host.make_inserted()
    expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    cgnl.remove_blocks(model)
    for network in copies:
        assert torch.equal(network(x), expected)
        (block,) = inserted_blocks(network).values()
        assert block is network.get_submodule(host.block_key)
        nn.init.ones_(block.z.weight)
        assert not torch.equal(network(x), expected)
    plain = model(x)
    assert not torch.equal(plain, expected)
    assert torch.equal(cgnl.remove_blocks(copies[0])(x), plain)


IN_A_FRESH_PROCESS = """
import pickle, sys, torch
from pathlib import Path
from cgnl.insertion import inserted_blocks, remove_blocks

def distance(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()

for name in sys.argv[1:]:
    if name.endswith(".pt"):
        model, x, expected, plain = torch.load(name, weights_only=False)
    else:
        model, x, expected, plain = pickle.loads(Path(name).read_bytes())
    (path,) = inserted_blocks(model)
    target = model.get_submodule(path)
    seen = []
    for _ in range(2 + max(target._forward_hooks)):  # until one has surely had the chance to take the block's id
        target.register_forward_hook(lambda *_: seen.append(1))
    assert distance(plain, expected) > 1e-3, name
    assert distance(model(x), expected) < 1e-5, name
    assert len(seen) == len(target._forward_hooks) - 1, name
    assert distance(remove_blocks(model)(x), plain) < 1e-5, name
"""


def test_block_fires_after_unpickling_in_a_fresh_process(tmp_path: Path) -> None:
    files = []
    for name in ("audio", "vit", "sequential-stage"):
        model, x = HOSTS[name].make()
        plain = model(x).detach()
        model = awaken(HOSTS[name].insert(model, x))
        content = (model, x, model(x).detach(), plain)
        files.append(tmp_path / f"{name}.pkl")
        files[-1].write_bytes(pickle.dumps(content))
        files.append(tmp_path / f"{name}.pt")
        torch.save(content, files[-1])
    # The AudioNet class lives in this module.
    result = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *map(str, files)],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@hosts_of_all_kinds
def test_compile_without_graph_breaks(host: Host) -> None:
    model, x = host.make_inserted()
    torch.compiler.reset()
    assert_same_step(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x)


@hosts_of_all_kinds
def test_networks_pickled_by_older_versions(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = host.make_inserted()
    expected = model(x)
    target = model.get_submodule(host.path)
    (hook,) = target._forward_hooks.values()
    del vars(hook)["keys"]
    if hook.block is None and "." in hook.name:  # the block of a leaf inside was held by the hook
        hook.block = target.get_submodule(hook.name)
        hook.name = hook.name.rpartition(".")[2]
    for module in model.modules():  # no replicas
        module._forward_pre_hooks.clear()
        vars(module).pop("_inserted_block_replica_handle", None)
    monkeypatch.setattr(cgnl.insertion._BlockHook, "__module__", "cgnl.insertion")
    content = pickle.dumps(model)
    assert b"cgnl.insertion\x94\x8c\n_BlockHook" in content
    monkeypatch.undo()
    old = pickle.loads(content)
    assert torch.equal(old(x), expected)
    assert list(inserted_blocks(old)) == [host.path]
    assert "inserted_block" not in str(cgnl.remove_blocks(old).state_dict().keys())


@pytest.mark.parametrize("strict", [False, True])
@hosts_of_all_kinds
def test_export(host: Host, strict: bool) -> None:
    model, x = host.make_inserted()
    exported = torch.export.export(model, (x,), strict=strict)
    assert_close(exported.module()(x), model(x))
    assert f"{host.block_key}.theta.weight" in exported.state_dict


def test_export_with_a_dynamic_batch() -> None:
    model, x = HOSTS["swin"].make_inserted()
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    more = torch.randn(5, *x.shape[1:])
    assert_close(exported.module()(more), model(more))


@hosts_of_all_kinds
def test_symbolic_tracing_for_feature_extraction(host: Host) -> None:
    model, x = host.make_inserted()
    seen = []
    with model.get_submodule(host.path).register_forward_hook(lambda *args: seen.append(args[2])):
        model(x)
    extract = create_feature_extractor(model, {host.path: "features"})
    assert_close(extract(x)["features"], *seen)


@pytest.mark.parametrize("use_reentrant", [False, True])
@hosts_of_all_kinds
def test_activation_checkpointing_around_the_network(host: Host, use_reentrant: bool) -> None:
    model, x = host.make_inserted()
    x.requires_grad_()
    assert_same_step(model, partial(checkpoint, model, use_reentrant=use_reentrant), x)


@pytest.mark.parametrize("name", ["timm-convnext", "timm-regnet", "timm-regnet-stage", "timm-vit"])
def test_activation_checkpointing_by_timm(name: str) -> None:
    model, x = HOSTS[name].make_inserted()
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing(True)
    assert_same_step(plain, model, x)


@hosts_of_all_kinds
def test_functional_call_sees_the_block(host: Host) -> None:
    model, x = host.make_inserted()
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = model(x)
    for block in inserted_blocks(model).values():
        nn.init.zeros_(block.norm.weight)
    assert not torch.equal(model(x), expected)
    assert_close(torch.func.functional_call(model, trained, (x,)), expected)
