"""Training by episodes."""
