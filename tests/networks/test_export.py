"""ONNX files in onnxruntime, exported and compiled networks, all beside PyTorch."""

import copy
import importlib
import re
import sys
from functools import partial
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

import cgnl
import tolerances
from cgnl.kernel_functions import EmbeddedGaussian, GaussianRBF, SeriesKernel
from cgnl.networks import export
from cgnl.networks.checkpoints import CheckpointError
from cgnl.networks.detection import maskrcnn_resnet18
from cgnl.networks.export import export_onnx
from cgnl.networks.image import resnet18

DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
# 33 pixels leave two positions on the last map of a ResNet
RESNET_SIZES = {0: Dim("batch"), 2: Dim("height", min=33), 3: Dim("width", min=33)}


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def trained(network, std):
    """The network in eval mode with blocks that are not the identity."""
    generator = torch.Generator().manual_seed(0)
    for block in [m for m in network.modules() if isinstance(m, cgnl.blocks.shell.Block)]:
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=std, generator=generator)
    return network.eval()


def run(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"input": x.numpy()})
    return torch.from_numpy(output)


class SideBySide(nn.Module):
    """Blocks that see the same map: exported together, since each export takes seconds."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, x):
        return torch.cat([block(x) for block in self.blocks.values()], 1)


PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "dot_product_sum", "concatenation")
CGNL2D, CGNL1D, CGNL3D = (partial(kind, 8, groups=2) for kind in (cgnl.CGNL2d, cgnl.CGNL1d, cgnl.CGNL3d))
BLOCKS = {
    "1d": {"dot": CGNL1D, "nl": partial(cgnl.NonLocal1d, 8)},
    "2d, compact": {
        "dot": CGNL2D,
        "gaussian": partial(CGNL2D, kernel=EmbeddedGaussian(order=2), scale="sqrt"),
        "rbf": partial(CGNL2D, kernel=GaussianRBF(gamma=0.1), scale="mean"),
        "rbf_normalized": partial(CGNL2D, kernel=GaussianRBF(gamma=0.1, beta="normalized")),
        "rbf_exact": partial(CGNL2D, kernel=GaussianRBF(gamma=0.1, beta="exact")),
        "own": partial(CGNL2D, kernel=SeriesKernel(lambda t, u: (1 + t * u) ** 2, [1, 2, 1]), norm="group"),
    },
    "2d, pairs": {
        "exact": partial(cgnl.GeneralizedNonLocal2d, 8, groups=2),
        **{f"nl_{pairwise}": partial(cgnl.NonLocal2d, 8, pairwise=pairwise) for pairwise in PAIRWISE},
        "nl_subsampled": partial(cgnl.NonLocal2d, 8, subsample=True, scale=False, bias=True),
        "residual": partial(cgnl.ResidualBlock2d, 8, groups=2),
    },
    "3d": {
        "rbf": partial(CGNL3D, kernel=GaussianRBF(gamma=0.1)),
        "exact": partial(cgnl.GeneralizedNonLocal3d, 8, groups=2),
        "nl_subsampled": partial(cgnl.NonLocal3d, 8, subsample=True, pairwise="concatenation"),
        "residual": partial(cgnl.ResidualBlock3d, 8, groups=2),
    },
}
SIZES = {"1d": ((7,), (12,)), "2d": ((7, 5), (6, 9)), "3d": ((3, 4, 5), (2, 7, 6))}
SLOW = [pytest.param(which, marks=pytest.mark.slow) for which in ("2d, pairs", "3d")]


@pytest.mark.parametrize("which", ["1d", "2d, compact", *SLOW])
def test_every_block_is_in_onnxruntime_what_the_explicit_form_is(which, tmp_path):
    blocks = trained(SideBySide({name: make() for name, make in BLOCKS[which].items()}), 0.4)
    traced, other = SIZES[which[:2]]
    assert export_onnx(blocks, tmp_path / "blocks.onnx", torch.zeros(1, 8, *traced)) < export.TOLERANCE
    x = random(3, 8, *other)
    outputs = run(tmp_path / "blocks.onnx", x).chunk(len(blocks.blocks), 1)
    for (name, block), output in zip(blocks.blocks.items(), outputs, strict=True):
        explicit = copy.deepcopy(block).double()
        explicit.backend = "naive"
        branch, reference = output - x, explicit(x.double()) - x
        assert relative(branch, reference) < tolerances.FLOAT32_OTHER_KERNELS, name


def test_a_network_with_an_inserted_block_keeps_its_axes_free(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    insert = {"1": partial(cgnl.CGNL2d, groups=2)}
    network = trained(cgnl.insert_blocks(network, insert, example_input=torch.zeros(1, 3, 9, 9)), 0.4)
    path = tmp_path / "network.onnx"
    export_onnx(network, path, torch.zeros(1, 3, 16, 16), metadata={"classes": '["Star", "Möwe"]'})
    model = onnx.load(path)
    assert [(e.domain, e.version) for e in model.opset_import] == [("", 18)]
    assert {e.key: e.value for e in model.metadata_props} == {"classes": '["Star", "Möwe"]'}
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    for shape in ((1, 3, 16, 16), (3, 3, 9, 40), (2, 3, 64, 5)):
        x = random(*shape)
        with torch.no_grad():
            assert relative(run(path, x), network(x)) < tolerances.FLOAT32_OTHER_KERNELS


def test_other_opsets_and_axes_that_are_fixed(tmp_path):
    block = trained(cgnl.NonLocal2d(8), 0.4)
    path = tmp_path / "block.onnx"
    export_onnx(block, path, torch.zeros(1, 8, 6, 6), dynamic=["height"], opset=export.OPSETS[-1])
    assert onnx.load(path).opset_import[0].version == export.OPSETS[-1]
    x = random(1, 8, 9, 6)
    assert relative(run(path, x), block(x)) < tolerances.FLOAT32_OTHER_KERNELS
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="invalid dimensions"):
        run(path, random(2, 8, 9, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "block.pt"}, r"path \(.*block\.pt\) must end in \.onnx"),
        ({"opset": 17}, r"opset \(17\) must be between 18 and 23"),
        ({"example_input": torch.zeros(8, 7)}, r"example_input \(8, 7\) must be \[batch, channels, 1 to 3"),
        ({"example_input": torch.zeros(1, 8, 7, 7).double()}, "example_input must be float32, not torch.float64"),
        ({"network": lambda: cgnl.NonLocal2d(8).eval().half()}, "network must be float32, not torch.float16"),
        ({"network": lambda: cgnl.NonLocal2d(8)}, r"network must be in eval mode: call network\.eval\(\) first"),
        ({"dynamic": ["time"]}, r"dynamic \('time'\) must be of batch, height, width here"),
        (
            {"example_input": torch.zeros(1, 9, 7, 7)},
            r"network \(NonLocal2d\) cannot be exported by PyTorch with free .*x .*9",
        ),
        ({"network": lambda: nn.AdaptiveMaxPool2d(2, return_indices=True).eval()}, "must return one tensor, not 2"),
        ({"network": lambda: maskrcnn_resnet18(num_classes=3).eval()}, r"network \(MaskRCNN\) is a detector"),
        (
            {"network": lambda: nn.ReLU().eval(), "path": "no/such/folder/block.onnx"},
            "Cannot write .*block.onnx: No such file or directory",
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_mistakes_end_in_one_sentence(change, message, tmp_path):
    arguments = {
        "network": lambda: cgnl.NonLocal2d(8).eval(),
        "path": "block.onnx",
        "example_input": torch.zeros(1, 8, 7, 7),
        **change,
    }
    network, path = arguments.pop("network")(), tmp_path / arguments.pop("path")
    kind = CheckpointError if path.parent != tmp_path else ValueError
    with pytest.raises(kind, match=message) as caught:
        export_onnx(network, path, **arguments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class OtherAboveEight(nn.Module):
    """The trace at 8 positions knows nothing of what happens above."""

    def __init__(self, above):
        super().__init__()
        self.above = above

    def forward(self, x):
        return x * 1.0 if x.shape[2] <= 8 else self.above(x)


@pytest.mark.parametrize(
    ("above", "message"),
    [
        (
            lambda x: x * 1.001,
            r"traced at \[1, 8, 8\] and behaves differently at \[2, 8, 11\].*differ by 0\.001 of the largest",
        ),
        (lambda x: x * float("nan"), "differ by nan"),
        (lambda x: x[:, :, :9], r"outputs have shape \[2, 8, 11\] instead of \[2, 8, 9\]"),
        (lambda x: x.view(7), "shape '\\[7\\]' is invalid"),
    ],
    ids=["other", "nan", "shape", "error"],
)
def test_a_file_that_is_not_the_network_is_never_written(above, message, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the old file")
    with pytest.raises(ValueError, match=message):
        export_onnx(OtherAboveEight(above).eval(), path, torch.zeros(1, 8, 8))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the old file"]


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_an_import_without_the_extra_says_which_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "cgnl.networks.export")
    with pytest.raises(ImportError, match=rf"cgnl\.networks\.export needs {missing}: pip install 'cgnl\[export\]'"):
        importlib.import_module("cgnl.networks.export")


def test_a_whole_network_compiles_as_one_graph_for_all_sizes():
    network = trained(resnet18("cgnl", num_classes=5), 0.03)
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for shape in ((2, 3, 64, 64), (3, 3, 97, 80)):
            x = random(*shape)
            assert relative(compiled(x), network(x)) < tolerances.FLOAT32_OTHER_KERNELS


def test_a_whole_network_is_exported_with_free_sizes():
    network = trained(resnet18("cgnl", num_classes=5), 0.03)
    program = torch.export.export(network, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(RESNET_SIZES,)).module()
    for shape in ((1, 3, 64, 64), (3, 3, 97, 50)):
        x = random(*shape)
        with torch.no_grad():
            assert relative(program(x), network(x)) < tolerances.FLOAT32_OTHER_KERNELS


@pytest.mark.slow
def test_the_lines_of_the_page_on_deployment(tmp_path, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), cgnl.CGNL2d(16), cgnl.NonLocal2d(16))
    namespace = {"network": trained(network, 0.2), "images": random(2, 3, 64, 64)}
    monkeypatch.chdir(tmp_path)
    torch.compiler.reset()
    for lines in re.findall(r"^```python\n(.*?)^```", DEPLOYMENT.read_text(), re.DOTALL | re.MULTILINE):
        if "onnxruntime" not in lines:
            exec(compile(lines, str(DEPLOYMENT), "exec"), namespace)
    assert namespace["difference"] < 1e-5
    forms = {name: namespace[name] for name in ("compiled", "loaded")}
    forms["saved"] = torch.export.load("network.pt2").module()
    forms["onnx"] = partial(run, "network.onnx")
    for shape in ((2, 3, 64, 64), (3, 3, 33, 50)):
        x = random(*shape)
        with torch.no_grad():
            for name, form in forms.items():
                assert relative(form(x), network(x)) < tolerances.FLOAT32_OTHER_KERNELS, name
