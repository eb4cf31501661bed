"""Writes the parts of the pages that are made from the recipes and from studies/results/.

    python docs/update.py

Such a part stands between two comments, `<!-- made: NAME -->` and `<!-- end -->`; everything else is written by hand.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cgnl.compare.statistics import Difference, Group, groups_of
from cgnl.measure.tables import Table, shape, tables_of, times_with_quartiles
from cgnl.recipes.registry import RECIPES, listed
from cgnl.recipes.rows import COSTS, pair
from cgnl.settings.words import counted
from cgnl.tasks import recipe_cost

ROOT = Path(__file__).parent.parent
_DOCS = (
    "paper-tables",
    "evidence",
    "reliability",
    *(
        f"measurements/{name}"
        for name in ("accuracy", "block", "demos", "explain", "forms", "networks", "reading", "table1")
    ),
)
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _DOCS))
_PART = re.compile(r"<!-- made: (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def result(name: str) -> dict[str, Any]:
    """Return a record of studies/results/."""
    return json.loads((ROOT / "studies" / "results" / f"{name}.json").read_text())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers."""
    return Table("", header, rows).markdown()


def source(name: str) -> str:
    """Return where a record comes from, as a line below its table."""
    record = result(name)
    machine = record["machine"]
    on_cpu = machine["device"] == "cpu"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    device = f"{machine['processor']}, {threads}" if on_cpu else machine["device"]
    return (
        f"`{record['command']}`, {record['date']}, {device}, "
        f"PyTorch {record['versions']['torch']}, commit {record['commit']}: `studies/results/{name}.json`."
    )


def against_published() -> str:
    """Tabulate the CGNL block beside the published formulation, in time and in bytes kept, on a CPU in float32."""
    rows = [
        (
            f"{shape(row['shape'])}, {row['kernel']}{row['candidate'].removeprefix('ours')}, "
            + row["memory_format"].replace("contiguous", "channels first").replace("_", " "),
            times_with_quartiles(row["training"]["published_over_this"]),
            times_with_quartiles(row["training"]["over_convolutions"]),
            times_with_quartiles(row["forward"]["published_over_this"]),
            f"{row['kept_over_published']:.2f}",
            f"{row['kept_over_published_with_parameters']:.2f}",
        )
        for row in result("against_published")["rows"]
    ]
    header = (
        "x, block",
        "training step: published / ours",
        "ours / its four bare convolutions",
        "forward: published / ours",
        "bytes kept: ours / published",
        "the same with parameters",
    )
    return table(header, rows) + "\n\n" + source("against_published")


_REWRITINGS = {
    "gram_form": "sums from K = X Xᵀ, whole block",
    "gram_form_in_inference": "the same in inference",
    "half_of_k": "half of K computed, not all",
    "norm_inside": "norm and residual inside the operation, whole block",
    "parts_of_the_batch": "a part of the batch at a time, whole block",
    "factor_after_conv_z": "sums applied after conv_z",
    "factor_in_conv_z": "sums in conv_z's weights, one set per sample",
    "one_product": "θ, φ, g by one product",
    "fuse": "`fuse()`, inference",
}


def algebra() -> str:
    """Tabulate what each rewriting of the block brings."""
    record = result("algebra")
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in record["rows"]))
    measured = {(row["rewriting"], tuple(row["shape"])): row for row in record["rows"]}
    rows = [
        (words, *(f"{measured[name, of]['times_as_fast']['median']:.2f}" for of in shapes))
        for name, words in _REWRITINGS.items()
    ]
    return table(("times as fast", *map(shape, shapes)), rows) + "\n\n" + source("algebra")


def gram_form() -> str:
    """Tabulate where the Gram form is cheaper and where the block takes it, by C and N, and B."""
    measured = {(tuple(row["shape"]), row["training"]): row for row in result("gram_form")["rows"]}
    shapes = list(dict.fromkeys(of for of, _ in measured))
    batches = sorted({of[0] for of in shapes})

    def cell(of: tuple[int, ...]) -> str:
        rows = [measured[of, training] for training in (True, False)] if of in shapes else []
        ratios = [(f"{row['features_over_gram']['median']:.2f}", row["takes_gram_form"]) for row in rows]
        return " / ".join(f"**{ratio}**" if taken else ratio for ratio, taken in ratios) or "–"

    rows = [
        (f"{channels}, {side} x {side}", *(cell((batch, channels, side, side)) for batch in batches))
        for channels, side in sorted({(of[1], of[2]) for of in shapes})
    ]
    return table(("C, N", *(f"B = {batch}" for batch in batches)), rows) + "\n\n" + source("gram_form")


def gram_digits() -> str:
    """Tabulate how many rounding units each way of computing the dot product's sums loses."""
    record = result("gram_digits")
    ways = list(record["rows"][0]["units"])
    titles = [way.translate(str.maketrans("<>", "⟨⟩")).replace("phi", "φ") for way in ways]
    rows = [
        (f"{row['maps']}, C = {row['channels']}, N = {row['positions']}", *(f"{row['units'][way]:.2g}" for way in ways))
        for row in record["rows"]
    ]
    return table(("maps", *titles), rows) + "\n\n" + source("gram_digits")


def cost_in_readme() -> str:
    """Tabulate one CGNL block in each kind of network over the plain network."""
    words = {
        "resnet50": "ResNet-50, images of 224 pixels",
        "c2d_resnet50": "C2D-ResNet-50, clips of 32 frames",
        "maskrcnn_resnet50": "Mask R-CNN with ResNet-50",
    }
    measured = {(row["network"], row["mode"]): row for row in result("networks_cpu")["rows"] if row["num_blocks"] == 1}
    rows = [
        (
            name,
            *(f"{measured[network, mode]['time_over_plain']['median']:.2f}" for mode in ("training", "inference")),
            f"{measured[network, 'training']['peak_over_plain']:.2f}",
        )
        for network, name in words.items()
    ]
    header = ("network", "time of a training step", "time of inference", "peak memory in training")
    return table(header, rows) + "\n\n" + source("networks_cpu")


def _if_measured(kind: str, device: str, make: Callable[[dict[str, Any]], str]) -> str:
    """Return the part of a record of `cgnl benchmark`, with source and plot, or the command that is still to run."""
    name = f"{kind}_{device}"
    if not (ROOT / "studies" / "results" / f"{name}.json").exists():
        options = " --device cuda" if device == "cuda" else ""
        return f"Not measured yet: `cgnl benchmark {kind}{options} --out studies/results`."
    plot = f"![{_PLOTS[kind]}](../../studies/results/{name}.png)"
    return f"{make(result(name))}\n\n{source(name)}\n\n{plot}"


_PLOTS = {
    "table1": "time and memory of NL, GNL and CGNL blocks against the number of positions",
    "block": "time of one block, in multiples of the floor",
    "networks": "time and memory of networks with CGNL blocks, over the plain networks'",
    "accuracy": "largest errors of every backend and type",
}


def _exponents(record: dict[str, Any]) -> str:
    """Return the operations' exponents, then those of the blocks."""
    _, blocks, *of_operations = tables_of("table1", record)
    if not of_operations:
        parts = ["The operations alone are not measured yet: `cgnl benchmark table1 --out studies/results`."]
    else:
        operations = record["operations"]
        pairs = [row for row in operations["rows"] if row["operation"] == "gnl_pairs" and "bytes" in row]
        most = max(pairs, key=lambda row: row["bytes"])
        elements = most["channels"] * most["positions"]
        parts = [
            of_operations[0].markdown(),
            f"GNL by explicit pairs holds {most['bytes'] / 1e9:.2f} GB for M = {elements} elements.",
        ]
        if "commit" in operations:
            parts.append(f"`{operations['command']}`, {operations['date']}, commit {operations['commit']}.")
    return "\n\n".join([*parts, "Whole blocks:", blocks.markdown()])


def table1() -> str:
    """Tabulate the exponents of Table 1, measured on a CPU."""
    return _if_measured("table1", "cpu", _exponents)


def table1_gpu() -> str:
    """Tabulate the same on a GPU."""
    return _if_measured("table1", "cuda", _exponents)


def _tables(record: dict[str, Any], kind: str) -> str:
    """Return the tables that `cgnl benchmark` prints, each with its title."""
    return "\n\n".join(f"**{part.title}**\n\n{part.markdown()}" for part in tables_of(kind, record))


def block_costs() -> str:
    """Tabulate one block beside others, on a CPU."""
    return _if_measured("block", "cpu", partial(_tables, kind="block"))


def block_costs_gpu() -> str:
    """Tabulate the same on a GPU."""
    return _if_measured("block", "cuda", partial(_tables, kind="block"))


def networks() -> str:
    """Tabulate networks with 0, 1 and 5 blocks, on a CPU."""
    return _if_measured("networks", "cpu", partial(_tables, kind="networks"))


def networks_gpu() -> str:
    """Tabulate the same on a GPU."""
    return _if_measured("networks", "cuda", partial(_tables, kind="networks"))


def _accuracies_of_backends(record: dict[str, Any]) -> str:
    kernels = list(record["settings"]["kernels"])
    measured = {(row["backend"], row["dtype"], row["case"], row["kernel"]): row for row in record["rows"]}
    rows = []
    for backend, dtype, case in dict.fromkeys(key[:3] for key in measured):
        cells = []
        for kernel in kernels:
            row = measured[backend, dtype, case, kernel]
            if "failed" in row or "not_finite" in row:
                cells.append("cannot run" if "failed" in row else "not finite")
                continue
            gradients = [error for name, error in row["errors"].items() if name != "output"]
            cells.append(f"{row['errors']['output']:.1f} / {max(gradients):.1f}")
        rows.append((f"{backend}, {dtype}, {case}", *cells))
    return table(("output / worst gradient", *kernels), rows)


def accuracy() -> str:
    """Tabulate errors of every backend and type, on a CPU."""
    return _if_measured("accuracy", "cpu", _accuracies_of_backends)


def varying_part() -> str:
    """Tabulate the share of a branch that varies over the positions, and its error in float32."""
    rows = [
        (
            f"`{row['kernel']}`, {row['backend']}",
            *(f"{row[key]:.1e}" for key in ("share", "share_of_result", "error", "rounding")),
        )
        for row in result("accuracy_cpu").get("varying_part", [])
    ]
    header = (
        "kernel function, form",
        "share of the branch",
        "share after the norm",
        "error",
        "error of rounding alone",
    )
    made = result("accuracy_cpu").get("varying_part_made")
    if made is None:
        return f"{table(header, rows)}\n\n{source('accuracy_cpu')}"
    return f"{table(header, rows)}\n\n`{made['command']}`, {made['date']}, commit {made['commit']}."


def accuracy_gpu() -> str:
    """Tabulate the same on a GPU."""
    return _if_measured("accuracy", "cuda", _accuracies_of_backends)


def against_plain_loop() -> str:
    """Tabulate `cgnl train` beside Lightning's bare Trainer and a plain PyTorch loop."""
    if not (ROOT / "studies" / "results" / "against_plain_loop.json").exists():
        return "Not measured yet: `python studies/against_plain_loop.py`."
    rows = [
        (
            row["training"],
            f"{row['images_per_second']['median']:.2f}",
            *(
                f"{row[key]['median']:.3f} ({row[key]['lower_quartile']:.3f} to {row[key]['upper_quartile']:.3f})"
                for key in ("speed_over_plain_loop", "cpu_seconds_over_plain_loop")
            ),
        )
        for row in result("against_plain_loop")["rows"]
    ]
    header = ("training", "images/s", "speed / plain loop", "CPU seconds / plain loop")
    return table(header, rows) + "\n\n" + source("against_plain_loop")


def non_local() -> str:
    """Tabulate the dot-product non-local operation in two orders."""
    timing, *memory = result("non_local")["rows"]
    ratio = times_with_quartiles(timing["map_over_cheaper_order"])
    head = f"At {shape(timing['shape'])}, forward and backward, the N x N map takes {ratio} times as long as ours."
    rows = [
        (
            str(row["positions"]),
            *(f"{row['largest_tensor_bytes'][name] / 1e6:.0f} MB" for name in ("cheaper_order", "through_the_map")),
        )
        for row in memory
    ]
    return (
        head
        + "\n\n"
        + table(("positions N", "largest tensor, ours", "largest tensor, N x N map"), rows)
        + "\n\n"
        + source("non_local")
    )


def reading() -> str:
    """Tabulate reading images beside torchvision's ImageFolder."""
    rows = [
        (
            f"{row['transform']}, {row['size']} px",
            f"{row['images_per_second']['cgnl']['median']:.0f}",
            f"{row['images_per_second']['ImageFolder']['median']:.0f}",
            times_with_quartiles(row["times_as_fast_as_ImageFolder"]),
        )
        for row in result("reading")["rows"]
    ]
    header = ("transform", "cgnl, images/s", "ImageFolder, images/s", "cgnl / ImageFolder")
    return table(header, rows) + "\n\n" + source("reading")


def demo() -> str:
    """Tabulate the accuracies of the demo of drawn birds."""
    return _demo("demo")


def demo_in_readme() -> str:
    """Tabulate what the demos of drawn birds and actions saw."""
    found = {
        (row["set"], row["kind"]): f"{row['top1']:.1f} %"
        for name in ("demo", "demo_video")
        for row in result(name)["rows"]
    }
    kinds = [kind for kind in dict.fromkeys(kind for _, kind in found) if "twice" not in kind]
    sets = {"relations": "birds, relations", "parts": "birds, parts", "actions": "actions"}
    rows = [(kind, *(found.get((name, kind), "") for name in sets)) for kind in kinds]
    sources = " and ".join(f"`studies/results/{name}.json`" for name in ("demo", "demo_video"))
    return table(("top-1", *sets.values()), rows) + f"\n\n`python studies/demo.py`: {sources}."


def demo_video() -> str:
    """Tabulate the accuracies of the demo of drawn actions."""
    return _demo("demo_video")


def _demo(name: str) -> str:
    rows = [
        (
            row["set"],
            row["kind"],
            f"{row['top1']:.1f} %",
            str(Difference(row["against_plain"], row["half_width"], ())) if row["against_plain"] is not None else "",
            str(row["seeds"]),
        )
        for row in result(name)["rows"]
    ]
    return table(("set", "kind", "top-1", "against plain", "seeds"), rows) + "\n\n" + source(name)


def demo_detection() -> str:
    """Tabulate the average precisions of the demo of drawn flocks."""
    kinds = [(kind, measure) for kind in ("box", "mask") for measure in ("AP", "AP50", "AP75")]
    rows = [
        (row["network"], *(f"{row[kind][measure]:.1f} %" for kind, measure in kinds))
        for row in result("demo_detection")["rows"]
    ]
    header = ("network", *(f"{kind} {measure}" for kind, measure in kinds))
    return table(header, rows) + "\n\n" + source("demo_detection")


_VIDEO_NETWORKS = {
    "cgnl": "CGNL",
    "nl_embedded_gaussian": "NL, embedded Gaussian",
    "nl_embedded_gaussian_subsampled": "NL, embedded Gaussian, sub-sampled",
    "nl_dot_product": "NL, dot product",
    "nl_dot_product_subsampled": "NL, dot product, sub-sampled",
}


def evidence(name: str) -> str:
    """Tabulate a comparison: the fixed number of epochs, each kind's own, and the diagnosis of the blocks."""
    record = result(f"evidence/{name}")
    runs = [row for row in record["rows"] if row["length"] != "tuning"]
    groups = {(group.block, group.length): group for group in groups_of(runs, record["settings"]["blocks"])}

    def cells(group: Group | None) -> tuple[str, str]:
        if group is None:
            return "", ""
        return f"{group.mean('top1'):.1f} %", f"{group.plain} ({len(group.runs)})" if group.plain else ""

    def after(group: Group, key: str) -> str:
        found = [(run["diagnosis"] or {}).get(key) for run in group.runs.values()]
        return f"{sum(found) / len(found):.1f} %" if None not in found else ""

    rows = []
    for (block, length), group in groups.items():
        if length == "own":
            continue
        own = groups.get((block, "own")) if length == "fixed" else None
        epochs = f"{next(iter(own.runs.values()))['epochs']}" if own else ""
        losses = (f"{group.mean(key):.2f}" for key in ("train_loss", "test_loss"))
        rows.append(
            (group.name, *cells(group), *cells(own), epochs, *losses, after(group, "removed"), after(group, "mean_s"))
        )
    header = (
        "kind", "top-1", "against plain (seeds)", "own length", "against plain (seeds)", "its epochs", "training loss",
        "test loss", "block removed", "s set to its mean",
    )  # fmt: skip
    return table(header, rows) + "\n\n" + source(f"evidence/{name}")


def reliability(part: str) -> str:
    """Tabulate a part of the reliability campaign: what was tried, how often, and what was lost or said."""
    record = result(f"reliability/{part}")
    rows, moments = [], Counter[str]()
    for row in record["rows"]:
        failed = row["tried"] - row["equal"]
        lost = f"{failed} went wrong" if failed else "nothing lost"
        sentences = {line: count for line, count in row["said"].items() if line.startswith(("cgnl: ", "problems: "))}
        if sentences:
            line, count = max(sentences.items(), key=lambda said: said[1])
            first = line.removeprefix("cgnl: ").partition(". ")[0].rstrip(".")
            lost += f"; “{first}”, {counted(count, 'time')}"
        rows.append((row["what"], str(row["tried"]), lost))
        moments.update(row.get("phases", {}))
    parts = [Table("", ("what was tried", "times", "what was lost, and said most often"), rows, num_texts=3).markdown()]
    if part == "kills":
        parts.append(f"Moments: {', '.join(f'{moment} {count}' for moment, count in moments.most_common())}.")
    return "\n\n".join([*parts, source(f"reliability/{part}")])


def video_network() -> str:
    """Tabulate a training step of C2D-ResNet-50 with blocks over the plain one, and folding over 3d convolutions."""
    record = result("video_network")
    rows = []
    for row in record["rows"]:
        if "network" in row and row["network"] != "plain":
            number, name = row["network"].split("_", 1)
            rows.append(
                (
                    f"+ {number} {_VIDEO_NETWORKS[name]}",
                    times_with_quartiles(row["time_over_plain"]),
                    f"{row['multiplications_over_plain']:.3f}",
                    f"{row['peak_over_plain']:.3f}",
                )
            )
    folding = {
        row["folding_against_3d_convolutions"]: times_with_quartiles(row["folded_over_conv3d"])
        for row in record["rows"]
        if "folded_over_conv3d" in row
    }
    header = ("network", "time / plain", "multiplications / plain", "peak memory / plain")
    return (
        table(header, rows)
        + f"\n\nWith channels last, folding the frames into the batch takes {folding['channels_last']} times as long "
        + f"as 3d convolutions with the same weights; with channels first, {folding['contiguous']} times.\n\n"
        + source("video_network")
    )


def detection() -> str:
    """Tabulate Mask R-CNN with ResNet-50 and a block beside the plain network."""
    rows = [
        (
            f"{row['neck'].upper()}, {row['mode']}, + {row['block'].upper()}",
            times_with_quartiles(row["time_over_plain"]),
            f"{row['peak_over_plain']:.3f}",
        )
        for row in result("detection")["rows"]
        if row["block"] != "plain"
    ]
    return table(("network", "time / plain", "peak memory / plain"), rows) + "\n\n" + source("detection")


def explain() -> str:
    """Tabulate what the maps of one block cost beyond the forward pass."""
    *cases, non_local, compact = result("explain")["rows"]
    rows = [
        (
            f"{row['name']}, block at {shape(row['features'])}",
            f"{row['maps']['median'] * 1000:.1f} ms",
            f"{row['beyond_forward']['median'] * 1000:.0f} ms",
            f"{row['bound'] * 1000:.0f} ms",
            f"{row['effect']['median']:.1f} s",
        )
        for row in cases
    ]
    header = ("input", "maps of a reference", "with the trace, beyond the forward pass", "bound", "effect")
    needed = "Trace and maps together need at most {:.0f} bytes per position and inner channel (NL: {:.0f}).".format(
        *(memory["bytes_per_position_and_inner_channel"] for memory in (compact, non_local))
    )
    return table(header, rows) + f"\n\n{needed}\n\n" + source("explain")


def part_scores() -> str:
    """Tabulate how well the maps of NL and CGNL blocks cover the parts of the drawn birds."""
    rows = []
    for network in result("part_scores")["rows"]:
        for row in network["rows"]:
            who = f"{network['network']}, {row['maps']}" if row["by"] == "block" else f"same area: {row['by']}"
            rows.append((who, *(_share(row[measure]) for measure in ("pointing", "coverage", "area"))))
    header = ("maps", "pointing game", "parts inside", "area of the region")
    return table(header, rows) + "\n\n" + source("part_scores")


def _share(mean: dict[str, float]) -> str:
    return f"{100 * mean['mean']:.1f} % ({100 * mean['low']:.1f} to {100 * mean['high']:.1f})"


def video_reading() -> str:
    """Tabulate reading clips beside other readers."""
    rows = []
    for row in result("video_reading")["rows"]:
        for reader, ratio in row["cgnl_times_as_fast_as"].items():
            per_second = row["clips_per_second"]
            rows.append(
                (
                    f"{row['format']}, {reader}" + ("" if row["gives_the_right_frames"][reader] else " (wrong frames)"),
                    f"{per_second['cgnl']['median']:.1f}",
                    f"{per_second[reader]['median']:.1f}",
                    times_with_quartiles(ratio),
                )
            )
    header = ("format, other reader", "cgnl, clips/s", "other, clips/s", "cgnl / other")
    return table(header, rows) + "\n\n" + source("video_reading")


_ACCURACIES = ("paper", "released code")
_AVERAGE_PRECISIONS = ("paper AP", "paper AP50", "paper AP75", "released code AP")


def recipes() -> str:
    """Tabulate every row of the paper that has a recipe."""
    parts = []
    for name, lines in listed().items():
        if name is None:
            continue
        detection = any(entry.base.backbone_alone for _, entry in lines)
        rows = []
        for row, entry in lines:
            assert row is not None
            paper = [pair(row.paper[k::3]) for k in range(3)] if detection else [pair(row.paper)]
            rows.append(
                (
                    row.row,
                    f"`{entry.name}`",
                    *paper,
                    pair(row.released, 1 if detection else 2),
                    "not run",
                    f"{entry.cost.parameters / 1e6:.1f} M",
                    f"{entry.cost.multiplications / 1e9:.1f} G",
                )
            )
        numbers = _AVERAGE_PRECISIONS if detection else _ACCURACIES
        header = ("row", "recipe", *numbers, "ours", "parameters", "multiplications")
        parts.append(f"### Table {name}\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def write_costs() -> None:
    """Count what every recipe's network costs, and write the file that is read everywhere else."""
    lines = (
        f"  {json.dumps(name)}: {json.dumps(recipe_cost(entry.make())._asdict())}" for name, entry in RECIPES.items()
    )
    COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


MADE: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        against_published,
        algebra,
        gram_form,
        gram_digits,
        cost_in_readme,
        against_plain_loop,
        table1,
        table1_gpu,
        block_costs,
        block_costs_gpu,
        networks,
        networks_gpu,
        accuracy,
        varying_part,
        accuracy_gpu,
        non_local,
        reading,
        demo,
        demo_in_readme,
        demo_video,
        demo_detection,
        video_network,
        video_reading,
        detection,
        explain,
        part_scores,
        recipes,
    )
}
MADE |= {
    f"evidence_{path.stem.replace('-', '_')}": partial(evidence, path.stem)
    for path in (ROOT / "studies" / "results" / "evidence").glob("*.json")
}

MADE |= {
    f"reliability_{path.stem}": partial(reliability, path.stem)
    for path in (ROOT / "studies" / "results" / "reliability").glob("*.json")
}


def updated(text: str) -> str:
    """Return a page with its made parts made again."""
    return _PART.sub(lambda match: f"<!-- made: {match[1]} -->\n{MADE[match[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    write_costs()
    for page in PAGES:
        page.write_text(updated(page.read_text()))
