"""Inference: classifies video files and windows, quantizes models, exports them to other programs."""
