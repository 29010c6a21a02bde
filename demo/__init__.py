"""A page on which people name classes, show clips of them and ask about another clip."""
