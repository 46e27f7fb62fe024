"""Configure Pillow for the whole process."""

import warnings


def configure_pillow() -> None:
    """Remove Pillow's limit on the number of pixels, and ignore all warnings of Pillow.

    `data.pair.load_image` has a limit of its own. The warnings concern damaged metadata, which retipair does not use.
    Only commands and their workers call this function; a program that uses the Python API keeps its own settings.
    """
    from PIL import Image  # imported here, so that `--help` does not load it

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")
