"""What people look at: the pages of runs and tables, and the model card.  Knows runs and figures, no method."""
