"""Extension of griffe: docstrings in transformers' way, read as Markdown.

Transformers writes a link to a class as [`Name`]; Markdown needs to be told where it leads.
"""

import re

import griffe

PUBLIC = "clipfsar"
LINK = re.compile(r"\[`(\w+)`\](?![\[(])")


class TransformersLinks(griffe.Extension):
    """Turns [`Name`] into a link to `clipfsar.Name`."""

    def on_instance(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = LINK.sub(rf"[`\1`][{PUBLIC}.\1]", obj.docstring.value)
