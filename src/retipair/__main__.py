"""`python -m retipair`."""

from retipair.cli import run

run()
