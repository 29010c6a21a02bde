"""Options of `clipfsar demo-page`. Imports nothing heavy, so that `--help` answers at once."""

import os
from dataclasses import dataclass

from choices_clipfsar import SECONDS_PER_VIDEO
from clipfsar.names import check_device, find_model
from clipfsar.options import option
from paths_clipfsar import check_path


@dataclass
class PageArguments:
    """Starts a page to try a model on: name classes, show a few clips of each, ask about another clip, see why.

        clipfsar demo-page --model runs/mine/best                       # a folder or Hub id: CLIP-FSAR, or a plain CLIP
        clipfsar demo-page --model runs/mine/best --examples EXAMPLES   # with example classes at a click

    EXAMPLES holds a folder of clips for every class, and may hold a folder `queries` of clips to ask about. Clips of
    visitors go to the machine that serves the page and nowhere else: no analytics, no public link, nothing loaded from
    other hosts (the browser is told to refuse it). A clip is deleted once its frames are encoded, the one in question
    when it is replaced or its visitor leaves. Nobody sees the classes of others. Requests of other sites, under other
    names than this machine's and those of --hosts, and for anything that the page does not use, are refused.
    """

    model: str | None = option(
        os.environ.get("CLIPFSAR_MODEL"),
        "Folder or Hub id of a CLIP-FSAR model or a plain CLIP. Default: the environment's CLIPFSAR_MODEL.",
    )
    examples: str | None = option(None, "Folder of example clips: EXAMPLES/CLASS/clips and EXAMPLES/queries/clips.")
    seconds_per_video: float = option(SECONDS_PER_VIDEO, "Time limit for reading a clip; then it is unreadable.")
    device: str | None = option(None, "cpu, cuda, ...; default: a GPU if there is one.")
    host: str | None = option(None, "Address to listen on; default: this machine alone (127.0.0.1).")
    hosts: list[str] = option([], "Names under which others reach the page, such as that of a proxy before it.")
    port: int | None = option(None, "Default: the first free one from 7860 on.")

    def __post_init__(self):
        check_device(self.device)
        if self.model is None:
            raise ValueError(
                "--model is missing: give a folder or Hub id, here or in the environment as CLIPFSAR_MODEL."
            )
        if not self.seconds_per_video > 0:
            raise ValueError(f"--seconds_per_video {self.seconds_per_video} must be greater than 0.")

    @property
    def served_as(self) -> list[str]:
        """Names that requests may be addressed to; a Space has its own in the environment."""
        names = ["localhost", self.host, os.environ.get("SPACE_HOST"), *self.hosts]
        return [name for name in names if name]

    def check_files(self):
        """Raises `FileNotFoundError` for what is not there."""
        check_path("examples", self.examples, is_local=True)
        self.model = find_model("model", self.model)


__all__ = ["PageArguments"]
