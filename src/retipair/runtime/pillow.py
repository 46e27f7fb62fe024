"""Configure Pillow for the whole process."""

import warnings


def configure_pillow() -> None:
    """Remove Pillow's limit on pixels, and ignore its warnings about damaged metadata, which is not used.

    `data.pair.load_image` has a limit of its own. Only commands and their workers call this; a program that uses
    the Python API keeps its own settings.
    """
    from PIL import Image  # here, so that `--help` does not load it

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")
