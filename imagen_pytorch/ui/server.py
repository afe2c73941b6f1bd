"""The page as a server."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from .form import Studio
from .guard import Guard, hosts_of

USER = "imagen"
#: Variables of the environment by which gradio would do other things than its arguments say.
_LOOSE = ("GRADIO_LOCAL_DEV_MODE", "GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_MCP_SERVER", "GRADIO_SHARE")


def free_port(host: str, port: int) -> int:
    """Return the port, or any free one in place of 0.

    Raises:
        OSError: it is taken, or the address is not one of this machine.
    """
    family = socket.getaddrinfo(host, port)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}; port 0 takes a free one") from error
        return probe.getsockname()[1]


@contextmanager
def serving(studio: Studio, host: str, port: int, password: str | None = None) -> Iterator[str]:
    """Serve the page inside the block, which gets its address.

    Args:
        studio: the models, runs and files.
        host: address to listen at.
        port: its port; 0 takes a free one.
        password: asked for with the name `USER`; None lets everyone in who reaches the port.

    Raises:
        ImportError: gradio is not installed.
        OSError: the port is taken.
    """
    if find_spec("gradio") is None:
        raise ImportError('the page needs gradio: pip install "gradio>=6.31,<7" "pillow<13"')
    port = free_port(host, port)
    with TemporaryDirectory(prefix="imagen-ui-") as cache:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": cache}
        for name in _LOOSE:
            os.environ.pop(name, None)
        from .layout import build
        from .page import Page

        page = Page(studio)
        blocks = build(page).queue(max_size=8, default_concurrency_limit=1)
        try:
            auth = None if password is None else (USER, password)
            _, address, _ = blocks.launch(auth=auth, **_launch(studio, host, port))
            yield address
        finally:
            blocks.close(verbose=False)
            page.worker.close()


def _launch(studio: Studio, host: str, port: int) -> dict[str, Any]:
    """Return the arguments of ``gradio.Blocks.launch``. Those that the environment may state are all given."""
    import gradio

    from .layout import CSS

    return {
        "server_name": host,
        "server_port": port,
        "prevent_thread_lock": True,
        "quiet": True,
        "inbrowser": False,
        "share": False,
        "show_error": False,
        "_frontend": False,  # or it asks the page for 3 seconds, and takes a slow machine for one without a network
        "theme": gradio.themes.Default(font=("system-ui", "sans-serif"), font_mono=("monospace",)),
        "css": CSS,
        "footer_links": [],
        "run_history": False,
        "allowed_paths": [str(studio.output.absolute())],
        "max_file_size": "32mb",
        "enable_monitoring": False,
        "strict_cors": True,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "root_path": "",
        "app_kwargs": {"middleware": [(Guard, (), {"hosts": hosts_of(host, port)})], "openapi_url": None},
    }
