"""Makes data sets from video files."""
