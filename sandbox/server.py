"""Serves an ASGI application over HTTPS to clients that use it as their HTTPS proxy.

A CONNECT listener on the loopback interface passes bytes to a uvicorn server with a throw-away
certificate for the wanted hosts. No connection ever leaves the loopback interface.
"""

import asyncio
import logging
import socket
import tempfile
import threading
from collections.abc import Collection
from concurrent.futures import Future
from pathlib import Path

import trustme
import uvicorn
from starlette.types import ASGIApp

_LOOPBACK = "127.0.0.1"
_BUFFER = 256 * 1024


class DroppedConnectionError(Exception):
    """Raised by the application in the middle of a body to close the connection there."""


class HttpsProxy:
    """A context manager that runs the proxy and the application in one background thread.

    Args:
        app: the application; it sees the host it was asked for in the Host header.
        hosts: the only hosts that CONNECT is answered for, on port 443. Others get 502.
        port: the proxy's port; 0 picks a free one.
    """

    url: str
    ca_file: Path

    def __init__(self, app: ASGIApp, hosts: Collection[str], port: int = 0) -> None:
        self._app, self._hosts, self._port = app, hosts, port
        self._targets = {f"{host}:443" for host in hosts}
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
        self._tunnels: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self.refused: list[str] = []

    def __enter__(self) -> "HttpsProxy":
        self._directory = tempfile.TemporaryDirectory(prefix="amplitude-sandbox-")
        self.ca_file = Path(self._directory.name, "ca.pem")
        self._certificate = Path(self._directory.name, "server.pem")
        authority = trustme.CA(organization_name="Amplitude sandbox")
        authority.cert_pem.write_to_path(self.ca_file)
        leaf = authority.issue_cert(*self._hosts)
        leaf.private_key_and_cert_chain_pem.write_to_path(self._certificate)
        logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
        self._thread.start()
        try:
            self._loop, self._stop, port = self._started.result()
        except BaseException:
            self._clean_up()
            raise
        self.url = f"http://{_LOOPBACK}:{port}"  # ignore-https-check: how clients name a proxy
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._clean_up()

    def _clean_up(self) -> None:
        self._thread.join()
        logging.getLogger("uvicorn.error").removeFilter(_is_unexpected)
        self._directory.cleanup()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app,
            ssl_certfile=self._certificate,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
        config.load()
        server = uvicorn.Server(config)
        with socket.create_server((_LOOPBACK, 0)) as listener:
            self._https_port: int = listener.getsockname()[1]
            proxy = await asyncio.start_server(
                self._accept, _LOOPBACK, self._port, limit=_BUFFER, backlog=512
            )
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            stop = asyncio.Event()
            port = proxy.sockets[0].getsockname()[1]
            self._started.set_result((asyncio.get_running_loop(), stop, port))
            await stop.wait()
            proxy.close()
            # With their tunnels gone, requests that are still being answered end by themselves.
            for tunnel in self._tunnels:
                tunnel.cancel()
            await asyncio.gather(*self._tunnels, return_exceptions=True)
            server.should_exit = True
            await serving

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnel = asyncio.create_task(self._tunnel(reader, writer))
        self._tunnels.add(tunnel)
        tunnel.add_done_callback(self._tunnels.discard)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, *_ = head.decode("latin-1").split(" ")
            if method != "CONNECT" or target not in self._targets:
                self.refused.append(target)
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            upstream = await asyncio.open_connection(_LOOPBACK, self._https_port, limit=_BUFFER)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _join((reader, writer), upstream)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left: there is nobody to answer
        finally:
            writer.close()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(client: _Stream, server: _Stream) -> None:
    """Pass bytes both ways until either side ends."""
    pumps = [
        asyncio.create_task(_pump(client[0], server[1])),
        asyncio.create_task(_pump(server[0], client[1])),
    ]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        server[1].close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(_BUFFER):
        sink.write(data)
        await sink.drain()


def _is_unexpected(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DroppedConnectionError))
