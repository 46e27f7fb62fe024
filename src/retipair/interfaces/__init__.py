"""The ways to use retipair: the command line, Python, and a page in the browser."""
