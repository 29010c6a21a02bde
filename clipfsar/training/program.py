"""Shim: overwritten at merge."""

from clipfsar.training.trainer import main

__all__ = ["main"]
