"""Video files to data sets."""
