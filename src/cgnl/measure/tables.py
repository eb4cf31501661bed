"""The tables that ``cgnl benchmark`` prints, from its records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cgnl.measure.accuracy import TENSORS

Record = Mapping[str, Any]


def print_tables(kind: str, record: Record) -> None:
    """Prints the tables of a record.

    Args:
        kind: which measurement it is of: "table1", "block", "networks" or "accuracy".
        record: as it was written.
    """
    # as wide as its content where the output goes to a file or a pipe
    console = Console() if Console().is_terminal else Console(width=160)
    for table in _TABLES[kind](record):
        console.print(table)
    rates = record.get("rooflines")
    if rates:
        products = ", ".join(
            f"{rate / 1e9:.0f} G multiplications/s in {dtype}"
            for dtype, rate in rates["multiplications_per_second"].items()
        )
        console.print(f"this machine: {products}; copies {rates['bytes_per_second'] / 1e9:.1f} GB/s", highlight=False)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in texts:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def seconds(values: Mapping[str, float]) -> str:
    """A median time as it is written in tables."""
    median = values["median"]
    return (
        f"{median:.2f} s" if median >= 1 else f"{median * 1e3:.3g} ms" if median >= 1e-3 else f"{median * 1e6:.3g} µs"
    )


def megabytes(num_bytes: int | None) -> str:
    """A number of bytes as it is written in tables; nothing for None."""
    if num_bytes is None:
        return ""
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.3g} GB"


def times(values: Mapping[str, float]) -> str:
    """A median ratio as it is written in tables."""
    return f"{values['median']:.2f}"


def _table1(record: Record) -> list[Table]:
    measured = _table("Training step of one block", ("method",), ("C", "N", "time", "/ floor", "bytes that grow"))
    for row in record["rows"]:
        if "seconds" in row:
            numbers = (seconds(row["seconds"]), times(row["over_floor"]), megabytes(row["bytes"]))
        else:
            numbers = ("left out" if "skipped" in row else "failed", "", "")
        measured.add_row(row["method"], str(row["channels"]), str(row["positions"]), *numbers)
    fitted = _table("Exponents of N", ("method",), ("C", "time", "memory", "over N"))
    for row in record["exponents"]:
        exponents = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("time", "memory"))
        fitted.add_row(row["method"], str(row["channels"]), *exponents, ", ".join(map(str, row["positions"])))
    return [measured, fitted, *_operations(record)]


def _operations(record: Record) -> list[Table]:
    """The exponents of the operations; an earlier record has none."""
    if "operations" not in record:
        return []
    table = _table("Exponents of the operations", ("operation",), ("of", "time", "memory", "over"))
    for row in record["operations"]["exponents"]:
        exponents = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("time", "memory"))
        table.add_row(row["operation"], row["of"], *exponents, ", ".join(map(str, row["values"])))
    return [table]


def _block(record: Record) -> list[Table]:
    tables: dict[str, Table] = {}
    numbers = ("forward", "/ floor", "training", "/ floor", "kept", "without parameters", "peak")
    for row in record["rows"]:
        title = f"x {row['shape']}, {row['dtype']}, {row['memory_format']}"
        table = tables.setdefault(title, _table(title, ("block",), numbers))
        if "failed" in row:
            table.add_row(row["candidate"], "cannot run")
            continue
        modes = (row["forward"], row["training"])
        table.add_row(
            row["candidate"],
            *(cell for mode in modes for cell in (seconds(mode["seconds"]), times(mode["over_floor"]))),
            *(megabytes(row.get(key)) for key in ("bytes_kept", "bytes_kept_without_parameters", "peak_bytes")),
        )
    return list(tables.values())


def _networks(record: Record) -> list[Table]:
    numbers = ("blocks", "time", "/ floor", "/ plain", "multiplications / plain", "peak", "peak / plain")
    table = _table("Networks with CGNL blocks", ("network", "mode"), numbers)
    for row in record["rows"]:
        head = (row["network"], row["mode"], str(row["num_blocks"]))
        if "failed" in row:
            table.add_row(*head, "cannot run")
            continue
        table.add_row(
            *head,
            seconds(row["seconds"]),
            times(row["over_floor"]),
            times(row["time_over_plain"]) if "time_over_plain" in row else "",
            f"{row['multiplications_over_plain']:.3f}" if "multiplications_over_plain" in row else "",
            megabytes(row.get("peak_bytes")),
            f"{row['peak_over_plain']:.3f}" if "peak_over_plain" in row else "",
        )
    return [table]


def _accuracy(record: Record) -> list[Table]:
    table = _table(
        "Largest errors, in units of the type's rounding", ("backend", "type", "case", "kernel function"), TENSORS
    )
    for row in record["rows"]:
        head = (row["backend"], row["dtype"], row["case"], row["kernel"])
        if "failed" in row:
            table.add_row(*head, "cannot run")
            continue
        table.add_row(
            *head, *(f"{row['errors'][key]:.2f}" if key in row["errors"] else "not finite" for key in TENSORS)
        )
    return [table]


_TABLES: dict[str, Callable[[Record], list[Table]]] = {
    "table1": _table1,
    "block": _block,
    "networks": _networks,
    "accuracy": _accuracy,
}
