"""The house has its order: a room imports only rooms above it, and only training imports Lightning."""

import ast
from pathlib import Path

import cgnl

ROOMS = [
    "files",
    "settings",
    "kernel_functions",
    "ops",
    "blocks",
    "insertion",
    "networks",
    "data",
    "toy",
    "training",
    "explain",
    "tasks",
    "recipes",
    "measure",
    "cli",
]
SOURCE = Path(cgnl.__file__).parent


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    return name.split(".")[1]


def files():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            yield parts[0], path, imports(ast.parse(path.read_text()))


def test_rooms_import_only_rooms_above_them():
    seen = set()
    for own, path, names in files():
        assert own in ROOMS, f"{path} is in no room"
        seen.add(own)
        for name in names:
            if name.startswith("cgnl."):
                other = room(name)
                assert ROOMS.index(other) <= ROOMS.index(own), f"{path} imports {name}, which lies below it"
    assert seen == set(ROOMS)


def test_only_training_imports_lightning():
    users = {own for own, _, names in files() for name in names if name.split(".")[0] in ("lightning", "torchmetrics")}
    assert users == {"training"}


def test_no_file_is_too_long_or_a_grab_bag():
    for _, path, _ in files():
        assert len(path.read_text().splitlines()) <= 600, f"{path} should become a folder"
        assert path.stem not in ("utils", "util", "common", "helpers", "misc")
