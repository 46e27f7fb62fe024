"""Sphinx settings of the documentation site, which `make docs` builds in site/.

The source directory is the repository, so links between pages are the same on the site as on GitHub. The site loads
nothing from other servers.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from docutils import nodes
from myst_parser.sphinx_ import Parser
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # autodoc imports it

project = "retipair"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "recipes/README.md"]
exclude_patterns = [".venv", "site", "results", "demo"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "retipair"
html_copy_source = False
html_show_copyright = False

default_role = "code"  # of single backticks in docstrings
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the README may begin sections at any level

TOCTREE = """
```{toctree}
:hidden:
docs/guide
docs/tutorial
docs/api
```

```{toctree}
:hidden:
:caption: Reference
docs/reference
docs/formats
docs/dicom
docs/metrics
docs/registration
docs/comfyui
docs/datasets
docs/app
docs/clusters
```

```{toctree}
:hidden:
:caption: Background
docs/data-protection
SECURITY
docs/layouts
docs/modalities
docs/guidance
docs/one_view
docs/utility
docs/benchmarks
recipes/README
CONTRIBUTING
CHANGELOG
```

```{toctree}
:hidden:
:caption: 中文
README.zh-CN
docs/guide.zh-CN
docs/app.zh-CN
```
"""


class NotebookParser(Parser):
    """Parse a notebook as Markdown with its code in fences."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(inputstring)["cells"]]
        texts = [source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells]
        super().parse("\n\n".join(texts), document)


def add_toctree(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the table of contents to the README. It is not in the file, because GitHub would show it as code."""
    if docname == root_doc:
        source[0] += TOCTREE


def copy_index(app: Sphinx, exception: Exception | None) -> None:
    """Make the README the first page of the site."""
    if exception is None:
        shutil.copyfile(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """Register the above."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("source-read", add_toctree)
    app.connect("build-finished", copy_index)
