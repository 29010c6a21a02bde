"""Videos from addresses, within limits: of the bytes kept in memory, and of the seconds that a download takes.

Nothing here needs torch.
"""

import importlib
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

try:
    from .limits_clipfsar import UnreadableError, check_limit, limit, variable_of
except ImportError:
    if __package__:
        raise
    from limits_clipfsar import UnreadableError, check_limit, limit, variable_of

try:
    from .paths_clipfsar import encoded_url
except ImportError:
    if __package__:
        raise
    from paths_clipfsar import encoded_url

SECONDS_BETWEEN_BYTES = 60  # a server that says nothing for longer has gone
_CHUNK_BYTES = 2**20


def download(url: str) -> bytes:
    """The bytes behind an address: HTTP, or whatever the user's fsspec knows (hf://, s3://, zip://...::).

    Raises:
        UnreadableError: When it has more bytes, or takes longer, than the limits allow.
        Exception: Whatever urllib or fsspec raise.
    """
    seconds = limit("download_seconds")
    end = time.monotonic() + seconds

    def fetch() -> bytes:
        with _open(url) as file:
            return _read_all(file, end, seconds)

    # A thread, because no library bounds the whole: a server may send its headers byte by byte.
    return _in_seconds(seconds, fetch)


def _open(url: str):
    if not url.startswith(("http://", "https://")):
        return importlib.import_module("fsspec").open(url, "rb")
    # some hosts refuse urllib's own name
    request = urllib.request.Request(encoded_url(url), headers={"User-Agent": "clipfsar"})
    return urllib.request.urlopen(request, timeout=SECONDS_BETWEEN_BYTES)


def _read_all(file, end: float, seconds: int) -> bytes:
    """Until there is no more; fails soon after `end`, when nobody waits any longer."""
    read = getattr(file, "read1", file.read)  # `read` waits for a full chunk
    chunks, num_bytes = [], 0
    while chunk := read(_CHUNK_BYTES):
        if time.monotonic() > end:
            _give_up(seconds)
        chunks.append(chunk)
        num_bytes += len(chunk)
        check_limit("file_bytes", num_bytes, f"it has {num_bytes} bytes or more")
    left = getattr(file, "length", None)  # of HTTP: what the server has announced and not sent
    if left:
        raise UnreadableError(f"the connection closed with {left} bytes still to come")
    return b"".join(chunks)


def _give_up(seconds: float):
    raise UnreadableError(f"it takes more than {seconds} s ({variable_of('download_seconds')} sets another limit)")


def _in_seconds(seconds: float, function: Callable[[], Any]) -> Any:
    """The result of a function. After `seconds` raises `UnreadableError`; the function then ends by itself."""
    outcome = {}

    def run():
        try:
            outcome["result"] = function()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _give_up(seconds)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


__all__ = ["download"]
