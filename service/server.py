"""The service behind a real port."""

import gc
import ipaddress
import logging
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from service import logs
from service.app import Equipoise, create_app
from service.errors import CannotStart
from service.protocol import DirectProtocol
from service.settings import Settings

log = logging.getLogger(__name__)

GC_THRESHOLDS = (100_000, 50, 100)
KEEP_ALIVE_SECONDS = 75  # longer than balancers and pools of clients keep a connection that is idle


def serve(settings: Settings, bundles: Sequence[Path] = ()) -> None:
    """Run the service in the foreground until a signal stops it.

    Raises: CannotStart when the address may not or cannot be used or the state cannot be opened; InvalidBundle.
    """
    listener = listen(settings)
    with listener:
        logs.configure(settings.log_format)
        app = create_app(settings, bundles)
        host, port = listener.getsockname()[:2]
        # uvicorn does not name the address of a socket that it was given
        log.info("Serving on http://%s:%d (described at /docs)", host, port)
        _settle()
        uvicorn.Server(config_of(app)).run(sockets=[listener])


def config_of(app: Equipoise) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=DirectProtocol,
        log_config=None,
        access_log=False,  # the application writes its own lines
        server_header=False,
        proxy_headers=False,  # who asks is known by keys and not by addresses
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=app.state.settings.stop_seconds,
    )


def _settle() -> None:
    """What is there by now stays: a collection that looks through the objects of the web framework again and again
    takes longer than a request (`docs/performance.md`)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def listen(settings: Settings) -> socket.socket:
    """A socket bound to the address of the settings, taken before the models are loaded. Raises: CannotStart."""
    if settings.keys_file is None and not settings.allow_anonymous and not _is_loopback(settings.host):
        raise CannotStart(
            f"requests carry no key, so the service listens on this machine only; got the host {settings.host}. Use "
            "127.0.0.1; or make a key with `equipoise keys create NAME --file FILE` and set EQUIPOISE_KEYS_FILE=FILE; "
            "or set EQUIPOISE_ALLOW_ANONYMOUS=true where the network around it keeps strangers away."
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise CannotStart(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}. Stop what uses the port, or set "
            "EQUIPOISE_PORT to another one; 0 takes a free one."
        ) from error
    return listener


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
