"""What the block of a demo's network relates: figures in the report, and a page to click in beside it."""

from collections.abc import Sequence
from pathlib import Path

from cgnl.cli.explanation import write_maps_page
from cgnl.explain import report
from cgnl.explain.figures import figure5, figure6
from cgnl.explain.inputs import parts_of, strongest_position
from cgnl.tasks import trace_file
from cgnl.training.trained import TrainedNetwork


def maps_section(trained: TrainedNetwork, samples: Sequence[tuple[Path, str | None]], page: Path) -> tuple[str, str]:
    """Write the page of some samples, with their classes where they have one, beside the report.

    Return the heading and body (HTML) of the report's section on what the network's one block relates in them.
    """
    networks = {"CGNL": trained}
    body = report.paragraph(
        "Green marks the reference, the spot where the block's g is strongest; a map shows how strongly each element "
        "is related to it. The text below each map says how to read it. No map shows that the answer comes from there."
    )
    for path, _ in samples:
        seen, traces = trace_file(networks, path)
        chosen = {name: (trace, next(iter(trace.blocks))) for name, trace in traces.items()}
        (trace, where) = chosen["CGNL"]
        at = strongest_position(trace.blocks[where], seen)
        if len(seen.frames) > 1:
            drawn = figure6(seen.frames, chosen, at, seen.view)
        else:
            drawn = figure5(seen.frames[0], chosen, at[:2], seen.view, parts=parts_of(path))
        body += report.figure(drawn, f"Maps of the block in {path.name}.")
    write_maps_page(networks, dict(samples), None, page)
    body += report.link(page.name, "Click these images to see every map of the block")
    return "Maps of the block", body
