"""What does `cgnl demo` end with, and how long does it take?

python benchmarks/demo.py
python benchmarks/demo.py --video
"""

import json
import tempfile
from pathlib import Path

from cgnl.cli.demo import run_demo
from cgnl.cli.demo.actions import actions
from cgnl.cli.demo.birds import birds
from timing import common_arguments, write_result


def main() -> None:
    """Runs the demo and writes its accuracies."""
    parser = common_arguments(__doc__, default_out="demo.json")
    parser.add_argument("--video", action="store_true", help="drawn actions instead of drawn birds")
    arguments = parser.parse_args()
    if arguments.video and arguments.out == parser.get_default("out"):
        arguments.out = arguments.out.with_name("demo_video.json")
    with tempfile.TemporaryDirectory() as folder:
        run_demo(actions() if arguments.video else birds(), Path(folder) / "demo", seed=arguments.seed)
        ended = json.loads((Path(folder) / "demo" / "accuracies.json").read_text())
    rows = [
        {"network": name, **{key: values[key] for key in ("top1", "top1_interval", "top5", "count")}}
        for name, values in ended["networks"].items()
    ]
    write_result(arguments.out, seed=arguments.seed, settings={"seconds": ended["seconds"]}, rows=rows)


if __name__ == "__main__":
    main()
