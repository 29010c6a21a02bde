"""Converts official checkpoints and OpenAI's weights, and uploads models to the Hub."""
