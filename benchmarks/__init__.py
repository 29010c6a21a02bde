"""Benchmarks, one program each: `python -m benchmarks.NAME`."""

from clipfsar.options import end_quietly_when_interrupted

end_quietly_when_interrupted()
