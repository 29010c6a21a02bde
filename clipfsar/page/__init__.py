"""A web page for trying a model: name classes, show a few clips of each, classify another clip, see why."""
