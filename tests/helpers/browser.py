"""The Chromium of the system, where there is one."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = shutil.which("chromium")


FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
