"""How good a model is: features once, then episodes."""
