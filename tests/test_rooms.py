"""The house: one public surface that all strategies import from, and a map in each room that names each file."""

import ast
import re
import subprocess
import sys
from importlib import import_module

import pytest
from helpers import HOME

import fedkd

ROOMS = sorted(path.parent for path in HOME.glob("fedkd/*/__init__.py"))


def test_every_name_of_the_surface_is_what_its_module_defines() -> None:
    assert len(fedkd.__all__) == len(set(fedkd.__all__)) > 60
    for name in fedkd.__all__:
        assert getattr(fedkd, name) is getattr(import_module(f"fedkd.{fedkd._HOMES[name]}"), name)
    with pytest.raises(AttributeError, match="no attribute 'Stratgy'"):
        _ = fedkd.Stratgy


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((HOME / "fedkd/__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: i.module for i in block.body if isinstance(i, ast.ImportFrom) for a in i.names}
    assert seen == fedkd._HOMES


def test_the_surface_is_all_that_our_strategies_need() -> None:
    for path in HOME.glob("strategies/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedkd":
                assert node.module == "fedkd", f"{path.name} imports from {node.module}"


@pytest.mark.parametrize("room", [*ROOMS, HOME / "simulations"], ids=lambda room: room.name)
def test_a_rooms_map_has_a_line_for_each_file(room) -> None:  # type: ignore[no-untyped-def]
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    named = set(re.findall(r"`(\w+)`:", text))
    assert named >= {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}


def test_the_page_on_architecture_names_what_exists() -> None:
    text = (HOME / "docs/architecture.md").read_text()
    for where, name in re.findall(r"\| `([\w/]+\.py)`: `([\w.]+)`", text):
        source = (HOME / where).read_text()
        assert re.search(rf"(def|class) {name.split('.')[-1]}\b", source), (where, name)
    for where in re.findall(r"`([\w/]+\.py)`", text):
        assert list(HOME.rglob(where)) or where.startswith("tests/"), where
    for room in ROOMS:
        assert re.search(rf"\b{room.name}\b", text)


def test_importing_fedkd_loads_neither_torch_nor_flower() -> None:
    code = "import sys, fedkd; print([m for m in ('torch', 'flwr', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
