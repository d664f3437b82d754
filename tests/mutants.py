"""Change the code in one small place, run the module's own tests, and count the changes that no test sees.

`make mutants` tries a random sample. Each result is a line of `.mutants/results.jsonl`; a later call goes on from
there, up to the whole with a large `--sample`. `--list` prints the changes that lived, `--again` tries those again.
Neither mutmut nor cosmic-ray fits: they have one test command for all modules, and change the files where they are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from changed import ROOT, tests_of

STORE = ROOT / ".mutants" / "results.jsonl"
MODULES = [
    *(f"fedkd/{room}/*.py" for room in ("core", "distillation", "learning", "methods", "messages")),
    *(f"strategies/{name}.py" for name in ("knfu", "fedftg", "fedx", "fedlgd", "scaffold", "feddyn")),
]
MAPPED = ("strategies", "simulations", "configs", "deploy")  # folders that are packages of fedkd
HEAVY = (
    "torch",
    "torchvision",
    "flwr",
    "ray",
    "sklearn",
    "scipy",
    "kornia",
    "matplotlib",
    "pydantic",
    "pytest",
)
LIMIT = 240  # seconds of a mutant's tests
LEFT = 3  # exit code of a child whose tests passed, but never imported the changed file

COMPARISONS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the text from a place to a place of a file becomes another text."""

    file: str
    text: str  # a hash of the whole file: a result of another version does not count
    line: int
    column: int  # in bytes, as `ast` counts
    end_line: int
    end_column: int
    old: str
    new: str


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a node is replaced by."""
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(new) for new in sorted({value + 1, value * 2} - {value}))
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                new = copy.deepcopy(node)
                new.ops[place] = COMPARISONS[type(op)]()
                yield new
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.AugAssign(target=target, op=op, value=value):
            yield ast.Pass()
            if type(op) in ARITHMETIC:
                yield ast.AugAssign(target, ARITHMETIC[type(op)](), value)


def code(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield the nodes that run: no types, no decorators, no texts, no `strict=` of a `zip`."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (
                isinstance(child, ast.JoinedStr) or (isinstance(child, ast.keyword) and child.arg == "strict")
            ):
                if isinstance(child, ast.expr | ast.stmt):
                    yield child
                yield from code(child)


def option_defaults(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the texts that are defaults: of an argument, of a field."""
    for node in ast.walk(tree):
        values: list[ast.expr | None] = []
        if isinstance(node, ast.arguments):
            values = [*node.defaults, *node.kw_defaults]
        elif isinstance(node, ast.ClassDef):
            values = [item.value for item in node.body if isinstance(item, ast.AnnAssign)]
        yield from (v for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def mutants_of(file: str, source: str) -> Iterator[Mutant]:
    """Yield every change of a file, in the order of its lines."""
    tree = ast.parse(source)
    text = hashlib.sha256(source.encode()).hexdigest()[:16]
    pairs: list[tuple[ast.expr | ast.stmt, ast.AST]]
    pairs = [(node, new) for node in code(tree) for new in changes(node)]
    pairs += [(node, ast.Constant(f"{node.value!s}x")) for node in option_defaults(tree)]
    for old, new in sorted(pairs, key=lambda pair: (pair[0].lineno, pair[0].col_offset)):
        place = (old.lineno, old.col_offset, old.end_lineno or 0, old.end_col_offset or 0)
        written = ast.unparse(new)
        yield Mutant(file, text, *place, ast.unparse(old), f"({written})" if isinstance(new, ast.expr) else written)


def mutated(source: str, mutant: Mutant) -> str:
    """Return a file's text with a change."""
    lines = source.encode().splitlines(keepends=True)
    start = sum(len(line) for line in lines[: mutant.line - 1]) + mutant.column
    end = sum(len(line) for line in lines[: mutant.end_line - 1]) + mutant.end_column
    whole = source.encode()
    return (whole[:start] + mutant.new.encode() + whole[end:]).decode()


def copy_tree(to: Path) -> None:
    """Copy the files that git knows or would add, with the mapped folders where Python looks first."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    for name in MAPPED:
        (to / "fedkd" / name).symlink_to(to / name)


def in_child(tree: Path, file: str, tests: list[str]) -> int:
    """Run tests in this process; return the exit code."""
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True  # two changes within a second look the same to the cache
    options = ["-x", "-m", "not slow", "-p", "no:cacheprovider", "--hypothesis-profile", "ci", "--basetemp", "tmp"]
    failed = int(pytest.main([*options, *tests]))
    seen = {Path(getattr(module, "__file__", None) or "/").resolve() for module in list(sys.modules.values())}
    return failed or (0 if tree / file in seen else LEFT)


def run_tests(tree: Path, file: str, tests: list[str]) -> int:
    """Run tests in a tree, in a fork of this process, which has the heavy imports already; return the exit code."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(in_child(tree, file, tests))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    end = time.monotonic() + LIMIT
    ended, status = 0, 0
    while not ended and time.monotonic() < end:
        time.sleep(0.05)
        ended, status = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also what the tests started and left
    if not ended:
        os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if ended else -signal.SIGALRM


def results() -> dict[Mutant, str]:
    """Return the last result of each change that was tried."""
    if not STORE.is_file():
        return {}
    rows = [json.loads(line) for line in STORE.read_text(encoding="utf-8").splitlines()]
    return {Mutant(**row["mutant"]): row["result"] for row in rows}


def tests_for(file: str) -> list[str]:
    """Return the test files of a module: its own, or else those of its room."""
    return [str(path) for path in tests_of(file)]


def try_all(wanted: list[Mutant]) -> None:
    """Try changes one after the other in a copy of the tree, and write down each result."""
    os.environ["OMP_NUM_THREADS"] = "1"  # threads that wait for each other are slow on a busy machine
    for name in HEAVY:
        importlib.import_module(name)
    STORE.parent.mkdir(exist_ok=True)
    sound: set[str] = set()  # modules whose tests pass without a change
    with tempfile.TemporaryDirectory() as folder, STORE.open("a", encoding="utf-8") as store:
        tree = Path(folder).resolve()
        copy_tree(tree)
        for number, mutant in enumerate(wanted, 1):
            path, tests = tree / mutant.file, tests_for(mutant.file)
            source = path.read_text(encoding="utf-8")
            if mutant.file not in sound and run_tests(tree, mutant.file, tests) not in (0, LEFT):
                sys.exit(f"{mutant.file}: its tests fail as it stands:\n{(tree / 'log.txt').read_text()}")
            sound.add(mutant.file)
            path.write_text(mutated(source, mutant), encoding="utf-8")
            began = time.monotonic()
            code = run_tests(tree, mutant.file, tests)
            path.write_text(source, encoding="utf-8")
            result = {0: "lived", LEFT: "not imported", -signal.SIGALRM: "too long"}.get(code, "killed")
            store.write(json.dumps({"result": result, "mutant": asdict(mutant)}) + "\n")
            store.flush()
            print(f"{number}/{len(wanted)} {time.monotonic() - began:.0f} s {shown(mutant, result)}", flush=True)


def shown(mutant: Mutant, result: str) -> str:
    """Return a line about a result."""
    return f"{result}: {mutant.file}:{mutant.line}:{mutant.column}: {mutant.old} -> {mutant.new}"


def main() -> None:
    """Try a sample, or list what lived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=120, help="how many changes, of those in --modules")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--modules", nargs="+", default=MODULES, help="patterns of files")
    parser.add_argument("--list", action="store_true", help="only list what lived")
    parser.add_argument("--again", action="store_true", help="also try again what lived")
    args = parser.parse_args()

    files = sorted({str(path.relative_to(ROOT)) for pattern in args.modules for path in ROOT.glob(pattern)})
    every = [mutant for file in files for mutant in mutants_of(file, (ROOT / file).read_text(encoding="utf-8"))]
    sample = random.Random(args.seed).sample(every, len(every))[: args.sample]  # a larger sample contains a smaller one
    if not args.list:
        known = results()
        try_all([m for m in sample if m not in known or (args.again and known[m] in ("lived", "not imported"))])
    known = results()
    lived = [m for m in sample if known.get(m) in ("lived", "not imported")]
    for mutant in sorted(lived, key=lambda m: (m.file, m.line)):
        print(shown(mutant, known[mutant]))
    tried = sum(m in known for m in sample)
    print(f"{len(every)} changes, {len(sample)} in the sample, {tried} tried, {tried - len(lived)} killed")


if __name__ == "__main__":
    main()
