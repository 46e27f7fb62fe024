"""retipair: registered pairs of colour fundus photographs and fluorescein angiograms, from a hundred to thousands."""

__version__ = "0.1.0"
