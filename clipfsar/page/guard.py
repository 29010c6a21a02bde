"""Protects the page: limits the origin, endpoint, size and duration of requests.

This is plain ASGI middleware. It needs neither gradio nor starlette.
"""

import asyncio
import contextlib
import ipaddress
import json
import re
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MEGABYTE = 10**6
MAX_UPLOAD_BYTES = 500 * MEGABYTE  # per request, which may contain several files
MAX_STORED_BYTES = 5000 * MEGABYTE  # all stored uploads together
MAX_MESSAGE_BYTES = MEGABYTE  # any other request
SECONDS_PER_BODY = 300
MAX_UNCLAIMED_SECONDS = 600

# The endpoints that the page in the browser uses. All other endpoints of gradio are refused.
_API = "/gradio_api"
READ = re.compile(
    r"/|/config/?|/(assets|static|svelte)/.+|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/pwa_icon(/\d+)?"
    rf"|{_API}/(startup-events|theme\.css|app_id/?|user/?|queue/data|upload_progress|heartbeat/\w+|file=.+)"
)
WRITE = re.compile(rf"{_API}/(queue/join|upload|cancel|reset/?)/?")
UPLOAD = re.compile(rf"{_API}/upload/?")

POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'"
)


class RefusedError(Exception):
    """Raised for a refused request, with an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class Guard:
    """Middleware that refuses foreign hosts and origins, unknown endpoints, and requests that are too large or slow.

    It also tells the browser to load nothing from, and send nothing to, any other host.

    Args:
        hosts: Host names, without ports, that requests may use. A request with another name comes from a site that
            directs a visitor's browser here. IP addresses such as 192.0.2.1 are always allowed.
        uploads: Folder of the uploaded files.
    """

    def __init__(self, app: Callable, hosts: Collection[str], uploads: Path):
        self.app, self.hosts, self.uploads = app, {host.casefold() for host in hosts}, Path(uploads)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        has_begun = False

        async def send_with_policy(part):
            nonlocal has_begun
            if part["type"] == "http.response.start":
                has_begun = True
                part = part | {"headers": [*part["headers"], (b"content-security-policy", POLICY)]}
            await send(part)

        try:
            if scope["type"] != "http":
                raise RefusedError(403, "The page uses HTTP only.")
            self._check_origin(headers)
            self._check_endpoint(scope["method"], scope["path"])
            receive = await self._bounded(scope, headers, receive)
            await self.app(scope, receive, send_with_policy)
        except RefusedError as error:
            if scope["type"] == "http" and not has_begun:
                await _answer(send, error)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})

    def _check_origin(self, headers: dict[bytes, str]):
        host = headers.get(b"host", "")
        if not self._is_ours(host):
            raise RefusedError(403, "The page is not served under this name: start it with --hosts NAME.")
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.casefold() != host.casefold():
            raise RefusedError(403, "The page does not answer requests from other sites.")

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").casefold()
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True

    @staticmethod
    def _check_endpoint(method: str, path: str):
        is_known = READ.fullmatch(path) if method in ("GET", "HEAD") else method == "POST" and WRITE.fullmatch(path)
        if not is_known or ".." in path.split("/"):
            raise RefusedError(404, "There is no such endpoint.")

    async def _bounded(self, scope, headers: dict[bytes, str], receive: Callable) -> Callable:
        """`receive` with limits on bytes and seconds. Messages are read and checked before they are passed on."""
        if scope["method"] != "POST":
            return receive
        is_upload = bool(UPLOAD.fullmatch(scope["path"]))
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_MESSAGE_BYTES
        announced = headers.get(b"content-length", "0")
        if not announced.isdecimal() or int(announced) > limit:
            raise _too_large(limit)
        if is_upload and stored_bytes(self.uploads) + int(announced) > MAX_STORED_BYTES:
            raise RefusedError(507, "The page has no room for more clips at the moment: try again in a few minutes.")
        body = _Body(receive, limit, time.monotonic() + SECONDS_PER_BODY)
        if is_upload:
            return body.next_part
        parts = [await body.next_part()]
        while parts[-1].get("more_body"):
            parts.append(await body.next_part())
        check_message(b"".join(part.get("body", b"") for part in parts))

        async def replay():
            return parts.pop(0) if parts else await receive()

        return replay


class _Body:
    """Receives the parts of a request's body, within limits on bytes and time."""

    def __init__(self, receive: Callable, limit: int, end: float):
        self._receive, self._limit, self._end, self._num_bytes, self._is_done = receive, limit, end, 0, False

    async def next_part(self) -> dict:
        if self._is_done:
            return await self._receive()  # the client may disconnect at any time
        try:
            part = await asyncio.wait_for(self._receive(), max(self._end - time.monotonic(), 0.001))
        except TimeoutError:
            raise RefusedError(408, f"The request did not arrive within {SECONDS_PER_BODY} s.") from None
        if part["type"] == "http.disconnect":  # a closed tab is no error of the page
            raise RefusedError(400, "The request was broken off.")
        self._num_bytes += len(part.get("body", b""))
        if self._num_bytes > self._limit:
            raise _too_large(self._limit)
        self._is_done = not part.get("more_body")
        return part


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"The request has more than {limit // MEGABYTE} MB, the limit for one request.")


def _no_json(constant: str):
    raise ValueError(constant)  # Python would read NaN, and fail to write it in an answer


def check_message(body: bytes) -> None:
    """Raises `RefusedError` for a message with a URL as the path of a file: gradio would download it."""
    try:
        message = json.loads(body, parse_constant=_no_json) if body.strip() else {}
    except (ValueError, RecursionError):
        raise RefusedError(400, "The message is not JSON.") from None
    pending = [message]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                raise RefusedError(400, "Clips must be uploaded; the page does not download them.")
            pending += value.values()
        elif isinstance(value, list):
            pending += value


async def _answer(send: Callable, error: RefusedError):
    text = str(error).encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send(
        {"type": "http.response.start", "status": error.status, "headers": [*headers, (b"connection", b"close")]}
    )
    await send({"type": "http.response.body", "body": text})


# --- uploads ----------------------------------------------------------------------------------------------------------


def _files_in(folder: Path) -> Iterable[tuple[Path, Any]]:
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:  # it was deleted meanwhile
            continue
        if not path.is_dir():
            yield path, status


def stored_bytes(folder: Path) -> int:
    return sum(status.st_size for _, status in _files_in(folder))


def remove_unclaimed(folder: Path, held: Collection[str], seconds: float = MAX_UNCLAIMED_SECONDS) -> list[Path]:
    """Deletes files that are not in `held` and older than `seconds`, and returns their paths. Deletes empty folders."""
    before, removed = time.time() - seconds, []
    for path, status in list(_files_in(folder)):
        if str(path) not in held and max(status.st_mtime, status.st_ctime) < before:
            with contextlib.suppress(OSError):  # the next look tries again; the other files go now
                path.unlink(missing_ok=True)
                removed.append(path)
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # it is no folder, not empty, or was deleted meanwhile
            if path.lstat().st_mtime < before:
                path.rmdir()
    return removed


__all__ = ["Guard", "RefusedError", "check_message", "remove_unclaimed", "stored_bytes"]
