"""Fast, many, safe: what the stages stand on.  Knows nothing of the method."""
