"""What does `cgnl demo` end with, and how long does it take?

python benchmarks/demo.py
"""

import json
import tempfile
from pathlib import Path

from cgnl.cli.demo import run_demo
from timing import common_arguments, write_result


def main() -> None:
    """Runs the demo and writes its accuracies."""
    parser = common_arguments(__doc__, default_out="demo.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder) / "demo", seed=arguments.seed)
        ended = json.loads((Path(folder) / "demo" / "accuracies.json").read_text())
    rows = [
        {"network": name, **{key: values[key] for key in ("top1", "top1_interval", "top5", "count")}}
        for name, values in ended["networks"].items()
    ]
    write_result(arguments.out, seed=arguments.seed, settings={"seconds": ended["seconds"]}, rows=rows)


if __name__ == "__main__":
    main()
