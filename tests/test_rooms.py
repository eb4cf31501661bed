"""The house has its order: rooms import only rooms above them, no two files each other, and nothing grows too long."""

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
    "compare",
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
        assert len(path.read_text().splitlines()) <= 500, f"{path} should become a folder"
        assert path.stem not in ("utils", "util", "common", "helpers", "misc")


def modules():
    """The files of the package by module name, with their trees."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, ast.parse(path.read_text())


def where(path):
    """A file in the package, for messages."""
    return path.relative_to(SOURCE).as_posix()


def circles(graph):
    """The circles of a graph, each as the sorted names in it: what can reach each other."""

    def reachable(start):
        seen, waiting = set(), [start]
        while waiting:
            for name in graph.get(waiting.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
        return seen

    reach = {name: reachable(name) for name in graph}
    return {tuple(sorted(b for b in graph if b in reach[a] and a in reach[b])) for a in graph if a in reach[a]}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {("b", "c")}


def test_no_two_files_import_each_other():
    names = {name for name, _, _ in modules()}

    def file_of(name):
        while name not in names:
            name = name.rpartition(".")[0]
        return name

    # imports inside functions and for type checkers count too
    graph = {
        own: {file_of(name) for name in imports(tree) if name.split(".")[0] == "cgnl"} - {own}
        for own, _, tree in modules()
    }
    assert circles(graph) == set()


def tells_tasks_apart(tree):
    """Lines that ask a recipe, its settings or a task object which task they are of."""
    for node in ast.walk(tree):
        asked = []
        match node:
            case ast.Attribute(attr="task") | ast.Call(func=ast.Name("getattr"), args=[_, ast.Constant("task"), *_]):
                yield node.lineno
            case ast.Call(func=ast.Name("isinstance" | "issubclass"), args=[_, *asked]):
                pass
            case ast.Compare(left=left, comparators=others):
                asked = [left, *others]
            case ast.MatchClass(cls=kind):
                asked = [kind]
        kinds = {getattr(part, "id", getattr(part, "attr", "")) for one in asked for part in ast.walk(one)}
        if any(kind.endswith(("Recipe", "NetworkConfig", "DataConfig", "Task")) for kind in kinds):
            yield node.lineno


def test_asking_for_a_task_is_found():
    lines = """
isinstance(a, VideoRecipe)
if b.task == 'video': isinstance(c, int | s.DetectionDataConfig)
issubclass(type(d), s.VideoRecipe)
type(e) is VideoRecipe
getattr(f, "task", None)
match g: case VideoNetworkConfig(): pass
isinstance(h, VideoTask)
i = Task()
""".strip().replace(": case", ":\n case")
    assert sorted(tells_tasks_apart(ast.parse(lines))) == [1, 2, 2, 3, 4, 5, 7, 8]


def test_tasks_are_told_apart_in_settings_and_tasks_alone():
    found = [
        f"{where(path)}:{line}"
        for name, path, tree in modules()
        if name != "cgnl" and room(name) not in ("settings", "tasks")
        for line in tells_tasks_apart(tree)
    ]
    assert found == []


def test_no_function_is_too_long():
    long = [
        f"{where(path)}:{node.name}"
        for name, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 80
    ]
    assert long == []
