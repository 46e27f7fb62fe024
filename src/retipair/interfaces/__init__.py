"""The ways to use retipair: the command line, and Python."""
