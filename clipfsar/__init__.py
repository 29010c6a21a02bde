"""CLIP-FSAR: what you work with at your desk, on the library of `*_clipfsar` modules."""
