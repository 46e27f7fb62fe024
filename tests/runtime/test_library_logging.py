"""Importing retipair changes nothing for the program around it; its commands silence the libraries while they run."""

import subprocess
import sys

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from retipair.runtime.library_logging import LEVELS, quiet_libraries

IMPORT_ALL = """
import os, pkgutil, importlib, warnings
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging
from huggingface_hub.utils import are_progress_bars_disabled

def settings():
    libraries = (diffusers_logging, transformers_logging)
    levels = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    return levels, are_progress_bars_disabled(), {name for name in os.environ if "VERBOSITY" in name or "BARS" in name}

before = settings()
import retipair.interfaces.api, retipair.interfaces.cli, retipair.models
for module in pkgutil.iter_modules(retipair.models.__path__, "retipair.models."):
    importlib.import_module(module.name)
assert settings() == before, (before, settings())
"""


@pytest.mark.nightly
def test_an_import_leaves_the_libraries_as_they_are() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, capture_output=True)


def test_the_libraries_are_silent_inside_and_as_before_after(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = {"diffusers": diffusers_logging, "transformers": transformers_logging}
    for name in libraries:
        monkeypatch.delenv(f"{name.upper()}_VERBOSITY", raising=False)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries.values()]
    with quiet_libraries():
        for name, library in libraries.items():
            assert library.get_verbosity() == library.log_levels[LEVELS[name]]
            assert not library.is_progress_bar_enabled()
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries.values()] == before


def test_a_level_that_the_user_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    with quiet_libraries():
        assert diffusers_logging.get_verbosity() == diffusers_logging.log_levels["info"]


@pytest.mark.nightly
def test_the_first_use_of_the_api_prints_nothing() -> None:
    program = "import logging, retipair; retipair.phantom; logging.getLogger('a').warning('later warnings are seen')"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout + done.stderr == "later warnings are seen\n"
