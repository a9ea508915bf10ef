"""A file a scale: how its base models and problems are made, and by what rule, fixed beforehand."""
