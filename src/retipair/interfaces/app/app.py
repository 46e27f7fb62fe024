"""`retipair app`: a page in the browser of this machine, to draw, compare and review pairs."""

import os
import socket
import time
from importlib.util import find_spec
from pathlib import Path

from retipair.config import AppConfig
from retipair.data.review import REVIEW_NAME
from retipair.interfaces.app.temporary import temporary_folder
from retipair.interfaces.app.workbench import Workbench
from retipair.runtime.console import console
from retipair.runtime.errors import SettingError, Stopped, UserError
from retipair.runtime.signals import graceful_shutdown

HOST = "127.0.0.1"


def app(config: AppConfig) -> None:
    """Serve the page until a signal stops the command.

    Uploaded and drawn images are kept in a temporary folder, which is deleted at the end.
    Raises UserError if gradio is missing, if the port is in use, or for a folder, adapter or base that cannot be used.
    Raises Stopped at the end.
    """
    # Check
    if find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install 'retipair[app]'")
    check_port(config.port)

    # Set up
    with temporary_folder() as temporary:
        bench = Workbench(config, temporary)
        prepare_environment(temporary)
        from retipair.interfaces.app.page import Page

        page = Page(bench)
        page.launch(config.port)

        # Serve
        console.print(f"http://{HOST}:{config.port} (only on this machine; Ctrl-C ends it)")
        with graceful_shutdown("the current pair is finished") as stop:
            while not stop.requested:
                time.sleep(0.1)
            bench.drawer.close()
        page.blocks.close(verbose=False)
    raise Stopped(f"stopped; all decisions are saved in {REVIEW_NAME} in the reviewed folders", stop.number)


def check_port(port: int) -> None:
    """Raise SettingError if a port of this machine is out of range or in use."""
    if not 1024 <= port <= 65535:
        raise SettingError("port", port, "must be from 1024 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gradio does: a server has just ended
        try:
            probe.bind((HOST, port))
        except OSError:
            raise SettingError("port", port, "in use by another program; choose another port") from None


def prepare_environment(temporary: Path) -> None:
    """Set the environment variables that gradio reads when it is imported: no telemetry, and its temporary folder.

    Requests to 127.0.0.1 must not go through a proxy.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(temporary)
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
