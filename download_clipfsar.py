"""Downloads videos within two limits, bytes in memory and seconds, and asks the Hub whether a name exists.

This module does not need torch.
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

SECONDS_BETWEEN_BYTES = 60  # a server that is silent for longer has gone
HUB_TIMEOUT_SECONDS = 5.0
_CHUNK_BYTES = 2**20


def download(url: str) -> bytes:
    """Returns the bytes at a URL: HTTP, or any protocol of the installed fsspec (hf://, s3://, zip://...::).

    Raises:
        UnreadableError: If the file is larger, or the download takes longer, than the limits allow.
        Exception: Any error of urllib or fsspec.
    """
    seconds = limit("download_seconds")
    end = time.monotonic() + seconds

    def fetch() -> bytes:
        with _open(url) as file:
            return _read_all(file, end, seconds)

    # In a thread, because no library limits the total time: a server may send its headers byte by byte.
    return _in_seconds(seconds, fetch)


def _open(url: str):
    if not url.startswith(("http://", "https://")):
        return importlib.import_module("fsspec").open(url, "rb")
    # some hosts refuse urllib's own name
    request = urllib.request.Request(encoded_url(url), headers={"User-Agent": "clipfsar"})
    return urllib.request.urlopen(request, timeout=SECONDS_BETWEEN_BYTES)


def _read_all(file, end: float, seconds: int) -> bytes:
    """The whole content. Fails soon after `end`: by then nobody waits for it."""
    read = getattr(file, "read1", file.read)  # `read` waits for a full chunk
    chunks, num_bytes = [], 0
    while chunk := read(_CHUNK_BYTES):
        if time.monotonic() > end:
            _give_up(seconds)
        chunks.append(chunk)
        num_bytes += len(chunk)
        check_limit("file_bytes", num_bytes, f"it has {num_bytes} bytes or more")
    left = getattr(file, "length", None)  # HTTP: bytes that the server announced but did not send
    if left:
        raise UnreadableError(f"the connection closed with {left} bytes still to come")
    return b"".join(chunks)


def _give_up(seconds: float):
    raise UnreadableError(f"it takes more than {seconds} s (set {variable_of('download_seconds')} to change the limit)")


def _in_seconds(seconds: float, function: Callable[[], Any]) -> Any:
    """The result of a function. Raises `UnreadableError` after `seconds`; the function then runs on until it fails."""
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


def why_not_on_hub(
    name: str, kind: str = "model", revision: str | None = None, token: str | bool | None = None
) -> str | None:
    """Asks the Hub once, for at most `HUB_TIMEOUT_SECONDS`, whether a repository exists that is not in the cache.

    Loading a file from it would try for most of a minute if the Hub cannot be reached, and then would not name it.

    Args:
        name: OWNER/NAME.
        kind: `"model"` or `"dataset"`, as the Hub calls its repositories.

    Returns:
        Half a sentence for an error message. None if the repository exists, or may exist.
    """
    # This import takes half a second. Only names that are not local paths need it.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        HfApi(token=token).repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError:
        return f"the Hub has no such {kind} that you may see"
    except HfHubHTTPError:
        return None  # the Hub answers something else, such as "too many requests": loading will report it
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; it is not in the cache either"
    except (OSError, http_error) as error:  # base class of the HTTP library's errors
        return f"the Hub cannot be reached ({type(error).__name__}); it is not in the cache either"
    return None


__all__ = ["HUB_TIMEOUT_SECONDS", "download", "why_not_on_hub"]
