"""Blocks of code in pages of the documentation, and what their commands need."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers import HOME

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    *(str(p.relative_to(HOME)) for p in sorted(HOME.glob("docs/**/*.md"))),
]

# What a block may need that a test does not have. The line directly above it says so: "Needs MNIST and a Ray cluster:".
# "a federation": tests/deployment/test_operations.py has one, and runs these commands.
NEEDS = {
    "MNIST", "CIFAR-10", "Python 3.11", "pip", "make", "GPUs", "a Ray cluster", "two machines", "an idle machine",
    "a federation",
}  # fmt: skip


class Commands(NamedTuple):
    """A block of commands, and the line of text directly above it."""

    page: str
    commands: list[str]
    above: str

    @property
    def needs(self) -> list[str]:
        """Return what the commands need, by the line above; empty if a test can run them."""
        found = re.search(r"\bNeeds (.+):$", self.above)
        return re.split(", and |, | and ", found[1]) if found else []


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (HOME / page).read_text(), re.DOTALL)


def commands_of(page: str) -> list[Commands]:
    """Return a page's blocks of commands for a shell."""
    text = (HOME / page).read_text()
    found = []
    for block in re.finditer(r"```(console|sh|bash|shell)\n(.*?)```", text, re.DOTALL):
        written = block[2].splitlines()
        if block[1] == "console":
            written = [line.split("$ ", 1)[1] for line in written if re.match(r"(\w+)?\$ ", line)]
        above = text[: block.start()].rstrip().splitlines()
        found.append(Commands(page, written, above[-1] if above else ""))
    return found
