"""Answers about videos, from files and for other programs."""
