"""Options of `clipfsar demo-page`. Imports only light modules, so that `--help` is fast."""

import errno
import math
import os
import socket
from dataclasses import dataclass

from choices_clipfsar import SECONDS_PER_VIDEO
from clipfsar.names import check_device, find_model
from clipfsar.options import option
from paths_clipfsar import check_path


@dataclass
class PageArguments:
    """Starts a web page for trying a model: name classes, show a few clips of each, classify another clip, see why.

        clipfsar demo-page --model runs/mine/best                       # folder or Hub id: CLIP-FSAR or plain CLIP
        clipfsar demo-page --model runs/mine/best --examples EXAMPLES   # adds a button for example classes

    EXAMPLES holds a folder of clips for every class, and optionally a folder `queries` of clips to classify.

    Clips of visitors go only to the machine that serves the page. There are no analytics and no public link, and the
    browser is told to load nothing from other hosts. A clip is deleted once its frames are encoded; the clip to
    classify is deleted when it is replaced or its visitor leaves. Visitors do not see each other's classes. The page
    refuses requests from other sites, under host names other than this machine's and those of --hosts, and for
    endpoints that it does not use.
    """

    model: str = option(
        os.environ.get("CLIPFSAR_MODEL"),
        "Folder or Hub id of a CLIP-FSAR model or a plain CLIP. Default: the environment variable CLIPFSAR_MODEL.",
    )
    examples: str | None = option(None, "Folder of example clips: EXAMPLES/CLASS/clips and EXAMPLES/queries/clips.")
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a clip; slower ones are unreadable.")
    device: str | None = option(None, "Device, such as cpu or cuda. Default: a GPU if there is one.")
    host: str | None = option(None, "Address to listen on. Default: 127.0.0.1, which only this machine can reach.")
    hosts: list[str] = option([], "Host names under which others reach the page, such as the name of a proxy.")
    port: int | None = option(None, "Port to listen on. Default: the first free port from 7860.")

    def __post_init__(self):
        check_device(self.device)
        if self.model is None:
            raise ValueError(
                "--model is missing: give a folder or Hub id, here or in the environment variable CLIPFSAR_MODEL."
            )
        if not (self.seconds_per_video > 0 and math.isfinite(self.seconds_per_video)):
            raise ValueError(f"--seconds_per_video {self.seconds_per_video} must be greater than 0, and not infinite.")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} must be between 1 and 65535.")

    @property
    def served_as(self) -> list[str]:
        """Host names that requests may use. A Space has its own in the environment."""
        names = ["localhost", self.host, os.environ.get("SPACE_HOST"), *self.hosts]
        return [name for name in names if name]

    def check_files(self):
        """Raises `OSError` if a given folder or model does not exist, or if nothing can listen at the address."""
        check_path("examples", self.examples, is_local=True)
        if self.examples and not os.path.isdir(self.examples):
            raise NotADirectoryError(f"--examples {self.examples} is a file: give a folder with one folder per class.")
        self._check_address()
        self.model = find_model("model", self.model)

    def _check_address(self):
        """Tries to listen: a model is not loaded in vain, and the message names the option."""
        host = self.host or "127.0.0.1"
        try:
            family, *_, address = socket.getaddrinfo(host, self.port or 0, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise OSError(f"--host {host}: there is no such address ({error.strerror}).") from None
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":  # the port of a page that has just ended counts as free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                option = "host" if self.port is None or error.errno == errno.EADDRNOTAVAIL else "port"
                value = host if option == "host" else self.port
                raise OSError(f"--{option} {value} cannot be used ({error.strerror}): choose another one.") from None


__all__ = ["PageArguments"]
