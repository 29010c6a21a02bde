"""One command that prepares, trains, evaluates and reports a benchmark."""
