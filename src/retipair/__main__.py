"""`python -m retipair`."""

from retipair.interfaces.cli import run

run()
