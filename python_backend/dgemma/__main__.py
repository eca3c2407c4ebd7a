"""`python -m dgemma`, which is `dgemma`."""

from dgemma.cli import app

app(prog_name="dgemma")
