"""Blocks of code in pages of the documentation."""

from __future__ import annotations

import re

from helpers import HOME


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (HOME / page).read_text(), re.DOTALL)
