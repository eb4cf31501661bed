"""``cgnl benchmark`` as a user meets it: the record, the plot, and one plain sentence for each mistake."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from cgnl.cli import main
from cgnl.measure import accuracy, block, table1, varying_part

SPREAD = {"median", "lower_quartile", "upper_quartile"}


def run(capsys, *arguments):
    """Exit code, output and errors of a command."""
    code = 0
    try:
        main(["benchmark", *map(str, arguments)])
    except SystemExit as exit:
        code = exit.code or 0
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return code, output.out, output.err


def record_and_plot_of(capsys, tmp_path, kind, *arguments):
    """The record of the smallest run, once what all records have in common is found in it; and the printed tables."""
    out = tmp_path / "new folder"
    code, printed, _ = run(capsys, kind, "--smallest", "--threads=1", "--out", out, *arguments)
    assert code == 0
    record = json.loads((out / f"{kind}_cpu.json").read_text())
    interpreted = "TRITON_INTERPRET=1 " if os.environ.get("TRITON_INTERPRET") == "1" else ""
    assert record["command"].startswith(f"{interpreted}cgnl benchmark {kind} --smallest --threads=1 --out '")
    assert record["machine"]["threads"] == 1
    assert record["machine"]["device"] == "cpu"
    assert {"commit", "date", "versions", "seed", "settings"} <= set(record)
    with Image.open(out / f"{kind}_cpu.png") as plot:
        assert min(plot.size) > 200
        assert len(plot.convert("RGB").getcolors(2**24)) > 10
    assert sorted(path.name for path in out.iterdir()) == [f"{kind}_cpu.json", f"{kind}_cpu.png"]
    return record, printed


def test_table1(capsys, tmp_path):
    record, printed = record_and_plot_of(capsys, tmp_path, "table1", "--repeats=3")
    assert record["settings"]["repeats"] == 3
    assert set(record["rooflines"]) == {"multiplications_per_second", "bytes_per_second"}
    assert {row["method"] for row in record["rows"]} == set(table1.METHODS)
    for row in record["rows"]:
        assert ("skipped" in row) != ("seconds" in row)
        if "seconds" in row:
            assert set(row["seconds"]) == set(row["over_floor"]) == SPREAD
            assert row["bytes"] > 0
    skipped = [row for row in record["rows"] if "skipped" in row]
    assert {row["method"] for row in skipped} == {"gnl"}
    assert all("pairs of at most" in row["skipped"] for row in skipped)
    memory = {row["method"]: row["memory"] for row in record["exponents"] if row["channels"] == 32}
    assert memory["cgnl_dot"] < memory["nl_map"]
    operations = {(row["operation"], row["of"]): row for row in record["operations"]["exponents"]}
    assert {name for name, _ in operations} == set(table1.OPERATIONS)
    # of so small sizes the times say nothing, and bytes are counted
    assert all(row["time"] is not None for row in operations.values())
    for (name, of), expected in {
        ("gnl_pairs", "N"): 2,
        ("gnl_pairs", "C"): 2,
        ("cgnl_stacked", "N"): 1,
        ("cgnl_stacked", "C"): 1,
        ("cgnl", "N"): 1,
        ("cgnl", "C"): 1,
    }.items():
        assert operations[name, of]["memory"] == pytest.approx(expected, abs=0.02)
    assert operations["cgnl", "P + 1"]["memory"] < 0.2
    assert operations["cgnl_stacked", "P + 1"]["memory"] > 0.8
    assert "Exponents of the operations" in printed
    assert "Exponents of N" in printed
    assert "GB/s" in printed


def test_accuracy(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "KERNELS", {name: accuracy.KERNELS[name] for name in ("dot", "rbf_exact")})
    record, printed = record_and_plot_of(capsys, tmp_path, "accuracy")
    rows = {(row["backend"], row["dtype"], row["case"], row["kernel"]): row for row in record["rows"]}
    # the Gram form and saving memory are of the eager form alone
    assert len(rows) == len(record["rows"]) == (4 + 2) * 3 * 2
    for (backend, *_), row in rows.items():
        # the fused operators run on a CPU under Triton's interpreter only
        if backend == "eager" or record["settings"]["triton_interpreter"]:
            assert max(row["errors"].values()) < 20
        else:
            assert "backend" in row["failed"]
    assert "d_theta" in printed
    assert "one wide group" in printed


def test_where_nothing_can_run_the_record_says_so_and_there_is_no_plot(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(accuracy, "BACKENDS", ("fused",))
    code, printed, _ = run(capsys, "accuracy", "--smallest", "--threads=1", "--out", tmp_path)
    assert code == 0
    assert printed.splitlines()[-1].endswith("accuracy_cpu.json; no plot, because no row has values for it")
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy_cpu.json"]


def test_the_command_says_that_it_was_interpreted(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "BACKENDS", ("eager",))
    monkeypatch.setattr(varying_part, "KERNELS", varying_part.KERNELS[:1])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    record, _ = record_and_plot_of(capsys, tmp_path, "accuracy")
    assert record["command"].startswith("TRITON_INTERPRET=1 cgnl benchmark accuracy")


def test_what_is_not_finite_fails_once_it_is_recorded(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "BACKENDS", ("eager",))
    exact = accuracy.results_of

    def with_nan(inputs, case, kernel, backend):
        results = exact(inputs, case, kernel, backend)
        if inputs[0].dtype == torch.float16:
            results["d_g"][0, 0] = torch.nan
        return results

    monkeypatch.setattr(accuracy, "results_of", with_nan)
    code, _, errors = run(capsys, "accuracy", "--smallest", "--threads=1", "--out", tmp_path)
    assert code == 1
    assert "cgnl: eager, float16, through features, dot: d_g: 1 of 128 elements are not finite" in errors
    record = json.loads((tmp_path / "accuracy_cpu.json").read_text())
    bad = [row for row in record["rows"] if "not_finite" in row]
    assert {(row["backend"], row["dtype"]) for row in bad} == {("eager", "float16")}
    assert all("d_g" not in row["errors"] for row in bad)


@pytest.mark.slow
def test_block(capsys, tmp_path):
    record, printed = record_and_plot_of(capsys, tmp_path, "block", "--no-compiled")
    assert set(record["rooflines"]["multiplications_per_second"]) == {"float32", "bfloat16"}
    rows = {(row["candidate"], row["dtype"], row["memory_format"]): row for row in record["rows"]}
    for memory_format in block.MEMORY_FORMATS:
        for name in block.candidates("cpu", memory_format, compiled=False):
            for dtype in ("float32", "bfloat16"):
                row = rows[name, dtype, memory_format]
                assert "failed" not in row, row
                for mode in block.MODES:
                    assert set(row[mode]) == {"seconds", "over_floor", "over_convolutions", "published_over_this"}
                    assert set(row[mode]["seconds"]) == SPREAD
                    assert row["floor_seconds"][mode] > 0
                assert 0 < row["bytes_kept_without_parameters"] < row["bytes_kept"]
                assert row["peak_bytes"] >= 0
    assert rows["nl_softmax", "float32", "contiguous"]["attention"] == "FLASH_ATTENTION"
    assert "squeeze and excitation" in printed


@pytest.mark.slow
def test_networks(capsys, tmp_path):
    record, printed = record_and_plot_of(capsys, tmp_path, "networks", "--networks", "resnet50")
    rows = {(row["mode"], row["num_blocks"]): row for row in record["rows"]}
    assert set(rows) == {(mode, num_blocks) for mode in ("training", "inference") for num_blocks in (0, 1)}
    for row in rows.values():
        assert {"seconds", "over_floor", "time_over_plain", "peak_over_plain"} <= set(row)
    assert rows["training", 0]["multiplications_over_plain"] == 1
    assert rows["training", 1]["multiplications_over_plain"] > 1
    # a forward pass and two products of its size for the gradients, but none for the input's
    assert 2 < rows["training", 0]["multiplications"] / rows["inference", 0]["multiplications"] < 3
    assert "peak / plain" in printed


MISTAKES = {
    "threads (0) must be at least 1": ["table1", "--threads=0"],
    "repeats (1) must be at least 2": ["block", "--repeats=1"],
    "networks () must name at least one": ["networks", "--networks"],
    "must be a folder or a file that ends in .json": ["accuracy", "--out", __file__],
    "must be a place where a folder can be made: Not a directory": ["accuracy", "--smallest", "--out", f"{__file__}/x"],
    "must be a place where a folder can be made: File exists": [
        "accuracy",
        "--smallest",
        "--out",
        f"{__file__}/x.json",
    ],
    "threads (2) is for CPUs": ["table1", "--device=cuda", "--threads=2"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_plain_sentence(capsys, message):
    code, printed, errors = run(capsys, *MISTAKES[message])
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert not printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_said(capsys):
    code, _, errors = run(capsys, "block", "--device=cuda")
    assert code == 2
    assert errors == "cgnl: device ('cuda') needs a GPU that PyTorch can use, and it finds none\n"


@pytest.mark.parametrize("arguments", [["accuracy", "--repeats=3"], ["table1", "--compiled"], ["table2"]])
def test_options_that_do_nothing_are_refused(capsys, arguments):
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert arguments[-1].split("=")[0] in errors


def test_an_interrupt_leaves_no_half_written_record(capsys, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cgnl.measure.table1._rows", interrupted)
    code, _, errors = run(capsys, "table1", "--smallest", "--threads=1", "--out", tmp_path)
    assert code == 130
    assert errors == "cgnl: stopped\n"
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch():
    code = (
        "import sys; from cgnl.cli import main\ntry: main(['benchmark', 'block', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'matplotlib', 'torchvision'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--compiled" in done.stdout


@pytest.mark.gpu
def test_the_smallest_runs_on_a_gpu(capsys, tmp_path):
    for kind in ("table1", "block", "accuracy", "networks"):
        code, _, _ = run(capsys, kind, "--device=cuda", "--smallest", "--out", tmp_path)
        assert code == 0
        record = json.loads((tmp_path / f"{kind}_cuda.json").read_text())
        assert record["machine"]["device"] == torch.cuda.get_device_name()
        assert not [row["failed"] for row in record["rows"] if "failed" in row]
