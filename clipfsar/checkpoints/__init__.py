"""Weights in and out: official checkpoints, OpenAI's files, the Hub."""
