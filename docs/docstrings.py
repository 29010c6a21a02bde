"""Griffe extension that makes links of transformers' docstrings work in Markdown.

In transformers' docstrings a link to a class is [`Name`]; Markdown needs the link's target as well.
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
