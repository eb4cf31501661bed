"""What does `cgnl demo` end with, and how long does it take?

python studies/demo.py
python studies/demo.py --video
python studies/demo.py --detection
"""

import json
import tempfile
from pathlib import Path

from cgnl.cli.demo import run_demo
from cgnl.cli.demo.actions import actions
from cgnl.cli.demo.birds import birds
from cgnl.cli.demo.flock import run as run_flock_demo
from script import begin, study, write


def main() -> None:
    """Run the demo and write the record."""
    parser = study(__file__, __doc__)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--video", action="store_true", help="drawn actions instead of drawn birds")
    kind.add_argument("--detection", action="store_true", help="drawn flocks instead of drawn birds")
    arguments = begin(parser)
    suffix = "_video" * arguments.video + "_detection" * arguments.detection
    if arguments.out == parser.get_default("out"):
        arguments.out = arguments.out.with_name(f"demo{suffix}.json")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        if arguments.detection:
            run_flock_demo(out, seed=arguments.seed)
            ended = json.loads((out / "average_precision.json").read_text())
        else:
            run_demo(actions() if arguments.video else birds(), out, seed=arguments.seed)
            ended = json.loads((out / "accuracies.json").read_text())
    if arguments.detection:
        kept = ("box", "mask", "count")
        rows = [{"network": name, **{key: values[key] for key in kept}} for name, values in ended["networks"].items()]
    else:
        rows = [
            {"set": name, "kind": kind, **row} for name, kinds in ended["sets"].items() for kind, row in kinds.items()
        ]
    write(arguments, rows, seconds=ended["seconds"])


if __name__ == "__main__":
    main()
