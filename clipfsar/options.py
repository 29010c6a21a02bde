"""Dataclasses of options as command lines."""

import argparse
from dataclasses import field

from transformers import HfArgumentParser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind the options, and the lines of the description as they are."""


def option(default, text: str, choices=None):
    """A field of a dataclass of options, with its help; a list as default is copied."""
    metadata = {"help": text} | ({"choices": list(choices)} if choices else {})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_options(options: type, description: str | None):
    """The command line as an instance of a dataclass of options."""
    parser = HfArgumentParser(options, description=description, formatter_class=HelpFormatter)
    return parser.parse_args_into_dataclasses()[0]


__all__ = ["HelpFormatter", "option", "parse_options"]
