"""Is an answer right?  Needs no torch."""
