"""A page on which people name classes, show clips of them and ask about another clip."""

from clipfsar.options import end_quietly_when_interrupted

end_quietly_when_interrupted()
