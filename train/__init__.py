"""Programs around the library: training, evaluation, features, synthetic data. Run from a checkout; not installed."""
