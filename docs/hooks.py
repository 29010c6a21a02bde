"""MkDocs hooks: insert the architecture picture, and reject pages that load anything from another host."""

import importlib.util
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[1]
HOUSE = "<!-- the house -->"
# Addresses that a browser loads automatically. Links may lead anywhere.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"' >]+|"
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))[^>]*\bhref=[\"']?(?:https?:)?//[^\"' >]+|"
    r"@import[^;]*//[^;]+|url\([\"']?(?:https?:)?//[^)]+\)"
)


@event_priority(100)  # before mkdocstrings reads the configuration
def on_config(config):
    """Tells mkdocstrings to load the library's modules: `clipfsar` exports most of its names from them."""
    handler = config.plugins["mkdocstrings"].config["handlers"]["python"]
    handler["options"]["preload_modules"] = sorted(path.stem for path in ROOT.glob("*_clipfsar.py"))
    return config


def on_page_markdown(markdown: str, **_) -> str:
    """Replaces the placeholder comment by the picture."""
    return markdown.replace(HOUSE, _house().draw()) if HOUSE in markdown else markdown


def on_post_build(config, **_) -> None:
    """Fails if pages or style sheets load anything from another host: the site must work offline."""
    found = loaded_from_elsewhere(Path(config["site_dir"]))
    if found:
        raise PluginError("The site loads from other hosts: " + "; ".join(found))


def loaded_from_elsewhere(folder: Path) -> list[str]:
    """Pages in a folder with the addresses that they load from other hosts."""
    pages = sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".css"))
    return [
        f"{page.relative_to(folder)}: {match[0]}"
        for page in pages
        for match in LOADED.finditer(page.read_text(encoding="utf-8"))
    ]


def _house():
    spec = importlib.util.spec_from_file_location("house", Path(__file__).with_name("house.py"))
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module
