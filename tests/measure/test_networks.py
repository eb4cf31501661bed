import pytest
import torch

from cgnl.measure import networks
from cgnl.networks.cost import network_cost
from cgnl.networks.image import resnet18


@pytest.mark.parametrize("name", ["resnet50", "c2d_resnet50", "maskrcnn_resnet50"])
def test_blocks_add_to_the_multiplications_and_nothing_else(name):
    setting = networks.SMALLEST[name]
    counts = {}
    for num_blocks in setting.num_blocks:
        network, run = networks.run_of(name, setting, "inference", num_blocks, "cpu", 0)
        counts[num_blocks] = networks.multiplications_of(network, run)
    assert counts[0] < counts[1] < 1.2 * counts[0]


def test_multiplications_of_inference_are_those_of_the_network():
    setting = networks.SMALLEST["resnet50"]
    _, run = networks.run_of("resnet50", setting, "inference", 0, "cpu", 0)
    expected = network_cost(resnet18, (1, 3, setting.size, setting.size)).multiplications
    assert networks.multiplications_of(torch.nn.Identity(), run) == setting.batch_size * expected


def test_counting_leaves_the_backends_as_they_are():
    network, run = networks.run_of("resnet50", networks.SMALLEST["resnet50"], "inference", 1, "cpu", 0)
    (block,) = [module for module in network.modules() if isinstance(module, networks.GroupedBlock)]
    block.backend = "naive"
    networks.multiplications_of(network, run)
    assert block.backend == "naive"


def test_a_detector_trains_on_the_same_regions_each_time():
    network, run = networks.run_of("maskrcnn_resnet50", networks.SMALLEST["maskrcnn_resnet50"], "training", 1, "cpu", 0)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    run()
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
