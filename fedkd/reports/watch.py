"""`fedkd watch`: the report of one run, live, served to this machine only."""

from __future__ import annotations

import hashlib
import socket
import threading
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware

from ..errors import InputError
from ..runs.results import Run, left_out, read_run
from ..runs.run_folder import METRICS, SUMMARY
from .report import render

_LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def make_app(path: Path) -> FastAPI:
    """Return the web application that shows a run folder. Raises InputError if there is no run.

    It only answers requests for names of the loopback address, so that no page of another site can read it.
    """
    read_run(path)
    lock = threading.Lock()  # requests run in threads, but the settings of charts are shared by the process
    kept = {"version": "", "page": ""}
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_LOOPBACK, "localhost"])

    @app.get("/")
    def page() -> Response:
        version = version_of(path)
        with lock:
            if kept["version"] != version:
                try:
                    run = read_run(path)
                except InputError as error:  # such as a folder that has been deleted
                    return Response(f"{error}\n", 503, _HEADERS, "text/plain")
                title = f"fedkd: {path.resolve().name}"
                kept["page"], _ = render(
                    [run] if run.lines else [], left_out(path), title, live=_told(run), version=version
                )
                kept["version"] = version
            return Response(kept["page"], 200, _HEADERS, "text/html")

    @app.get("/version")
    def version() -> Response:
        return Response(version_of(path), 200, _HEADERS, "text/plain")

    return app


def version_of(path: Path) -> str:
    """Return a text that changes when a run's files change."""
    seen = []
    for name in (METRICS, SUMMARY):
        try:
            status = (path / name).stat()
            seen.append(f"{status.st_mtime_ns} {status.st_size}")
        except OSError:
            seen.append("none")
    return hashlib.blake2b(" ".join(seen).encode(), digest_size=8).hexdigest()


def _told(run: Run) -> str:
    text = f"{run.status}: round {run.reached} of {run.config['rounds']}"
    return text if run.status == "completed" else f"{text}; this page follows it."


def listen(port: int) -> socket.socket:
    """Return a socket on this port of the loopback address; 0: on a free port. Raises InputError if it is in use."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((_LOOPBACK, port))
        listening.listen()  # clients that connect before the server has started wait for it
    except OSError as error:
        listening.close()
        raise InputError(f"--port {port}: cannot be listened on: {error.strerror}; 0 takes a free one.") from error
    return listening


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C."""
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
