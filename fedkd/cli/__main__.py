"""`python -m fedkd.cli`."""

from . import app

app()
