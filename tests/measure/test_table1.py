import pytest
import torch

from cgnl.measure import table1
from cgnl.measure.rooflines import Rooflines, block_work
from cgnl.ops.eager import gram


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0])
def test_exponents_of_known_power_laws(exponent):
    positions = [784, 3136, 12544, 50176]
    assert table1.fit_exponent(positions, [3e-4 * n**exponent for n in positions]) == pytest.approx(exponent, abs=1e-3)


def test_the_fit_is_least_squares_of_logarithms():
    # log2 of the values: 0, 2, 1 at 0, 1, 2; the line through them rises by a half
    assert table1.fit_exponent([1, 2, 4], [1.0, 4.0, 2.0]) == 0.5
    assert table1.fit_exponent([784], [1.0]) is None


@pytest.mark.parametrize("value", [0, -4096])
def test_bytes_that_do_not_grow_have_no_exponent(value):
    assert table1.fit_exponent([784, 3136], [value, 4096]) is None


def test_exponents_leave_out_few_positions_and_what_was_not_measured():
    rows = [
        {"method": "gnl", "channels": 64, "positions": n, "seconds": {"median": n**2.0}, "bytes": 7 * n}
        for n in (784, 3136)
    ]
    rows += [
        {"method": "gnl", "channels": 64, "positions": 49, "seconds": {"median": 1e9}, "bytes": 10**9},
        {"method": "gnl", "channels": 64, "positions": 12544, "skipped": "too much"},
        {"method": "gnl", "channels": 256, "positions": 784, "seconds": {"median": 1.0}, "bytes": 1},
    ]
    assert table1.exponents(rows) == [
        {"method": "gnl", "channels": 64, "positions": [784, 3136], "time": 2.0, "memory": 1.0},
        {"method": "gnl", "channels": 256, "positions": [784], "time": None, "memory": None},
    ]


def test_the_two_columns_of_table_1_are_the_forms_beside_them():
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(1, 4, 9, dtype=torch.float64, generator=generator) for _ in range(3)]
    for printed, ours in (("gnl_pairs", "gnl_chunks"), ("cgnl_stacked", "cgnl")):
        y, same = (table1.OPERATIONS[name](*features, order=3) for name in (printed, ours))
        torch.testing.assert_close(y, same, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("operation", table1.OPERATIONS)
def test_a_sweep_changes_one_number_by_factors_of_two(operation, device):
    lines = table1.sweeps(operation, device, smallest=False)
    assert lines.keys() == table1.EXPECTED[operation]["time"].keys() == table1.EXPECTED[operation]["memory"].keys()
    for variable, points in lines.items():
        numbers = [{"C": c, "N": n, "P + 1": p + 1} for c, n, p in points]
        first = numbers[0]
        assert [number[variable] // first[variable] for number in numbers] == [1, 2, 4, 8]
        assert all(len({number[name] for number in numbers}) == 1 for name in first if name != variable)


def test_a_point_that_cannot_run_is_left_out_of_the_fit(monkeypatch):
    def out_of_memory(*features, order):
        raise RuntimeError("no memory")

    monkeypatch.setitem(table1.OPERATIONS, "gnl_pairs", out_of_memory)
    for name in ("gnl_chunks", "cgnl_stacked"):
        monkeypatch.delitem(table1.OPERATIONS, name)
    measured = table1.measure_operations("cpu", repeats=2, seed=0, smallest=True)
    failed = [row for row in measured["rows"] if row["operation"] == "gnl_pairs"]
    assert {row["failed"] for row in failed} == {"RuntimeError: no memory"}
    fitted = {(row["operation"], row["of"]): row for row in measured["exponents"]}
    assert fitted["gnl_pairs", "N"] == {"operation": "gnl_pairs", "of": "N", "values": [], "time": None, "memory": None}
    assert fitted["cgnl", "C"]["values"] == [16, 32, 64]


def test_the_work_of_a_forward_pass_is_what_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for method in ("nl_map", "cgnl_dot"):
        module = table1.METHODS[method](32).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.randn(table1.BATCH, 32, 5, 6))
        counted = counter.get_total_flops() / 2
        # the norm's sums may be products of matrices, too
        assert table1.work_of_forward(method, 32, 30, 4)["multiplications"] == pytest.approx(counted, rel=0.01)
    assert table1.work_of_forward("gnl", 32, 30, 4)["pairs"] == table1.BATCH * 8 * (2 * 30) ** 2
    assert table1.work_of_forward("nl_map", 32, 30, 2)["map_bytes"] == table1.BATCH * 30 * 30 * 2


def test_through_features_means_never_in_the_gram_form():
    from torch.utils.flop_counter import FlopCounterMode

    channels, side = 256, 48
    assert gram.pays(table1.BATCH, channels, channels // 2, side**2, table1.GROUPS, training=False)
    counted = {}
    for method in ("cgnl_dot", "cgnl_dot_features"):
        module = table1.METHODS[method](channels).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.randn(table1.BATCH, channels, side, side))
        counted[method] = counter.get_total_flops() / 2
    products = table1.work_of_forward("cgnl_dot", channels, side**2, 4)["multiplications"]
    assert counted["cgnl_dot_features"] == pytest.approx(products, rel=0.02)
    assert counted["cgnl_dot"] < 0.9 * products
    assert gram.pays(table1.BATCH, channels, channels // 2, side**2, table1.GROUPS, training=False)


def test_a_first_call_does_not_count():
    calls = []

    def step():
        calls.append(torch.empty(1000 if calls else 9000))

    assert table1._peak(step, "cpu") == pytest.approx(4000, abs=256)


def test_a_floor_adds_products_and_copies():
    rooflines = Rooflines({"float32": 100.0}, bytes_per_second=10.0)
    assert rooflines.floor(300, 20, "float32") == 5.0
    products, num_bytes = block_work((2, 4, 3, 5), groups=2, element_size=2)["forward"]
    assert products == 2 * 15 * (3 * 4 * 2 + 2 * 2 * 1)
    assert num_bytes == 2 * (2 * 4 * 15) * 2
