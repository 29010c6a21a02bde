"""A page to try a model on: name classes, show a few clips of each, ask about another clip, see why."""
