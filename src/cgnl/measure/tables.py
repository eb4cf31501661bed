"""Tables of records: as ``cgnl benchmark`` prints them, and as the pages show them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rich.console
import rich.table

from cgnl.measure.accuracy import TENSORS, self_test
from cgnl.measure.table1 import EXPECTED

Record = Mapping[str, Any]
Spread = Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """A table of cells as they are written; the first ``num_texts`` columns hold text, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_texts: int = 1

    def markdown(self) -> str:
        """Return the table without its title, as a page shows it."""
        rule = [*["---"] * self.num_texts, *["---:"] * (len(self.header) - self.num_texts)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows))

    def show(self) -> None:
        """Print the table: in the terminal's width, or as wide as it is where the output goes to a file or a pipe."""
        drawn = rich.table.Table(title=self.title, title_justify="left")
        for number, column in enumerate(self.header):
            drawn.add_column(column, justify="left" if number < self.num_texts else "right")
        for row in self.rows:
            drawn.add_row(*row)
        _console().print(drawn)


def _console() -> rich.console.Console:
    console = rich.console.Console()
    return console if console.is_terminal else rich.console.Console(width=160)


def tables_of(kind: str, record: Record) -> list[Table]:
    """Return the tables of a record of the ``kind`` "table1", "block", "networks" or "accuracy"."""
    return _TABLES[kind](record)


def print_tables(kind: str, record: Record) -> None:
    """Print the tables of a record, as `tables_of` returns them, and what the machine can do at best."""
    for table in tables_of(kind, record):
        table.show()
    rates = record.get("rooflines")
    if rates:
        products = ", ".join(
            f"{rate / 1e9:.0f} G multiplications/s in {dtype}"
            for dtype, rate in rates["multiplications_per_second"].items()
        )
        print(f"this machine: {products}; copies {rates['bytes_per_second'] / 1e9:.1f} GB/s")


def print_self_test(device: str, *, smallest: bool) -> None:
    """Run the self-test of the fused operators and print its table, or why they cannot run; see `self_test`."""
    try:
        rows = [
            (str(kind), result, f"{error:.1e}", f"{tolerance:.0e}")
            for kind, error, tolerance, result in self_test(device, smallest=smallest)
        ]
    except ValueError as obstacle:
        print(f"no self-test of the fused operators: {obstacle}")
        return
    title = "Self-test of the fused operators against the eager form"
    Table(title, ("kind of call", "result", "largest difference", "at most"), rows, num_texts=2).show()


def seconds(values: Spread) -> str:
    """Return a median time as tables show it."""
    median = values["median"]
    return (
        f"{median:.2f} s" if median >= 1 else f"{median * 1e3:.3g} ms" if median >= 1e-3 else f"{median * 1e6:.3g} µs"
    )


def megabytes(num_bytes: int | None) -> str:
    """Return a number of bytes as tables show it; nothing for None."""
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.3g} GB"


def times(values: Spread) -> str:
    """Return a median ratio as tables show it."""
    return f"{values['median']:.2f}"


def times_with_quartiles(values: Spread) -> str:
    """Return a ratio's median and quartiles as tables show them."""
    return f"{values['median']:.2f} ({values['lower_quartile']:.2f} to {values['upper_quartile']:.2f})"


def shape(values: Iterable[int]) -> str:
    """Return a shape as tables show it."""
    return "[" + ", ".join(map(str, values)) + "]"


METHODS = {
    "nl_attention": ("NL, fused attention", "2", "1"),
    "nl_map": ("NL, N × N map", "2", "2"),
    "gnl": ("GNL, exact, in chunks", "2", "at most 1"),
    "cgnl_dot": ("CGNL, dot product", "1", "1"),
    "cgnl_dot_features": ("CGNL, dot product, through φ and g", "1", "1"),
    "cgnl_rbf": ("CGNL, RBF of order 3", "1", "1"),
}
"""Words for the blocks of table1, and the exponents of N that their time and their memory should have."""
_OPERATIONS = {
    "gnl_pairs": "f(ΘΦᵀ)g by explicit pairs: Table 1's general NL",
    "gnl_chunks": "the same in chunks of rows: our GNL",
    "cgnl_stacked": "ΘΦᵀg with stored powers: Table 1's CGNL",
    "cgnl": "the same by sums and a polynomial: our CGNL",
}
_VARIABLES = ("N", "C", "P + 1")
CANDIDATES = {
    "convolutions": "CGNL's four convolutions alone",
    "cgnl_eager": "CGNL, eager",
    "cgnl_eager_memory_efficient": "CGNL, eager, memory-efficient",
    "cgnl_compiled": "CGNL, torch.compile",
    "cgnl_fused": "CGNL, fused",
    "cgnl_fused_cuda_graph": "CGNL, fused, CUDA graph",
    "published": "CGNL as published",
    "cgnl_eager_rbf": "CGNL, RBF, eager",
    "published_rbf": "CGNL, RBF, as published",
    "nl_softmax": "NL, softmax",
    "nl_dot_product": "NL, dot product",
    "global_context": "global context",
    "squeeze_excitation": "squeeze and excitation",
}
"""Words for the blocks of block."""
NETWORKS = {"resnet50": "ResNet-50", "c2d_resnet50": "C2D-ResNet-50", "maskrcnn_resnet50": "Mask R-CNN"}
"""Words for the networks of networks."""


def _table1(record: Record) -> list[Table]:
    return [_measured_blocks(record), _exponents_of_blocks(record), *_exponents_of_operations(record)]


def _measured_blocks(record: Record) -> Table:
    rows = []
    for row in record["rows"]:
        if "seconds" in row:
            cells = (seconds(row["seconds"]), times(row["over_floor"]), megabytes(row["bytes"]))
        else:
            cells = ("skipped" if "skipped" in row else "failed", "", "")
        rows.append((METHODS[row["method"]][0], str(row["channels"]), str(row["positions"]), *cells))
    return Table("Training step of one block", ("block", "C", "N", "time", "/ floor", "bytes that grow"), rows)


def _exponents_of_blocks(record: Record) -> Table:
    all_channels = list(dict.fromkeys(row["channels"] for row in record["exponents"]))
    fitted = {(row["method"], row["channels"]): row for row in record["exponents"]}
    rows = []
    for method in dict.fromkeys(method for method, _ in fitted):
        words, *expected = METHODS[method]
        cells = []
        for measure, exponent in zip(("time", "memory"), expected, strict=True):
            cells += [*(_exponent(fitted[method, channels][measure]) for channels in all_channels), exponent]
        rows.append((words, *cells))
    header = ["block"]
    for measure in ("time", "memory"):
        header += [*(f"{measure}, C = {channels}" for channels in all_channels), f"{measure}, expected"]
    return Table("Exponents of N", header, rows)


def _exponents_of_operations(record: Record) -> list[Table]:
    """Return the table of the operations' exponents; an earlier record has none."""
    if "operations" not in record:
        return []
    fitted = {(row["operation"], row["of"]): row for row in record["operations"]["exponents"]}
    rows = []
    for operation, words in _OPERATIONS.items():
        cells = []
        for measure in ("time", "memory"):
            for of in _VARIABLES:
                expected = EXPECTED[operation][measure].get(of)
                cells.append("–" if expected is None else f"{_exponent(fitted[operation, of][measure])} ({expected})")
        rows.append((words, *cells))
    header = ("measured (expected)", *(f"{measure}, {of}" for measure in ("time", "memory") for of in _VARIABLES))
    return [Table("Exponents of the operations", header, rows)]


def _exponent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _block(record: Record) -> list[Table]:
    groups: dict[str, list[list[str]]] = {}
    rows = sorted(record["rows"], key=lambda row: list(CANDIDATES).index(row["candidate"]))
    for title in dict.fromkeys(_title(row) for row in record["rows"]):
        groups[title] = [_cells_of_block(row) for row in rows if _title(row) == title]
    header = ("block", "forward", "/ floor", "training", "/ floor", "kept", "kept without parameters", "peak")
    return [Table(title, header, cells) for title, cells in groups.items()]


def _title(row: Record) -> str:
    return f"x {shape(row['shape'])}, {row['dtype']}, {row['memory_format'].replace('_', ' ')}"


def _cells_of_block(row: Record) -> list[str]:
    words = CANDIDATES[row["candidate"]]
    if "failed" in row:
        return [words, "cannot run", *[""] * 6]
    costs = [cell for mode in ("forward", "training") for cell in _time_and_floor(row[mode])]
    kept = [megabytes(row.get(key)) for key in ("bytes_kept", "bytes_kept_without_parameters", "peak_bytes")]
    return [words, *costs, *kept]


def _time_and_floor(row: Record) -> tuple[str, str]:
    return seconds(row["seconds"]), times(row["over_floor"])


def _networks(record: Record) -> list[Table]:
    rows = []
    for row in record["rows"]:
        head = (NETWORKS[row["network"]], row["mode"], str(row["num_blocks"]))
        if "failed" in row:
            rows.append((*head, "cannot run", *[""] * 5))
            continue
        over_plain = (
            times_with_quartiles(row["time_over_plain"]) if "time_over_plain" in row else "",
            f"{row['multiplications_over_plain']:.3f}" if "multiplications_over_plain" in row else "",
            megabytes(row.get("peak_bytes")),
            f"{row['peak_over_plain']:.3f}" if "peak_over_plain" in row else "",
        )
        rows.append((*head, *_time_and_floor(row), *over_plain))
    columns = ("blocks", "time", "/ floor", "/ plain", "multiplications / plain", "peak", "peak / plain")
    return [Table("Networks with CGNL blocks", ("network", "mode", *columns), rows, num_texts=2)]


def _accuracy(record: Record) -> list[Table]:
    rows = []
    for row in record["rows"]:
        head = (row["backend"], row["dtype"], row["case"], row["kernel"])
        if "failed" in row:
            rows.append((*head, "cannot run", *[""] * (len(TENSORS) - 1)))
            continue
        rows.append(
            (*head, *(f"{row['errors'][key]:.2f}" if key in row["errors"] else "not finite" for key in TENSORS))
        )
    title = "Largest errors, in units of the type's rounding"
    return [Table(title, ("backend", "type", "case", "kernel function", *TENSORS), rows, num_texts=4)]


_TABLES: dict[str, Callable[[Record], list[Table]]] = {
    "table1": _table1,
    "block": _block,
    "networks": _networks,
    "accuracy": _accuracy,
}
