"""The demo page: name classes, add a few clips of each, and classify another clip."""

from clipfsar.options import end_quietly_when_interrupted

end_quietly_when_interrupted()
