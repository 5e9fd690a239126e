"""The folders of the package import one way: a room imports only those below it, and nothing goes round in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import drllm_adapter

PACKAGE = Path(drllm_adapter.__file__).parent

# From the ground up. A room imports from rooms further up in this list, also inside functions.
ROOMS = [
    ["errors"],
    ["decisions", "files", "registry"],
    ["reporting", "jobs", "demo"],
    ["tasks"],
    ["adapter"],
    ["supervision"],
    ["search"],
    ["models"],
    ["scoring"],
    ["training"],
    ["evaluation"],
    ["hub"],
    ["serving"],
    ["workflow", "bench"],
    ["app"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports() -> Iterator[tuple[str, str, bool]]:
    """Every import of one module of the package by another: who, whom, and whether for the type checker alone."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        tree = ast.parse(file.read_text(encoding="utf-8"))
        checking = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        package = parts if file.name == "__init__.py" else parts[:-1]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                names = [".".join(part for part in [*target, name.name] if part) for name in node.names]
                for name in names:
                    module = name if is_module(name) else name.rpartition(".")[0]
                    yield ".".join(parts), module, id(node) in checking


def is_module(name: str) -> bool:
    place = PACKAGE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def test_rooms_import_only_those_below() -> None:
    wrong = []
    for module, imported, _ in imports():
        here, there = module.split(".")[0], imported.split(".")[0]
        if here and there and here != "__main__" and here != there and FLOOR[there] >= FLOOR[here]:
            wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_no_circle_of_modules() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported, checking in imports():
        if module and imported and module != imported and not checking:
            graph.setdefault(module, set()).add(imported)
    # Raises CycleError with the modules of a circle.
    tuple(TopologicalSorter(graph).static_order())


def test_every_room_has_a_floor() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").is_file() or path.suffix == ".py"}
    assert found - {"__init__", "__main__", "recipes"} == set(FLOOR)
