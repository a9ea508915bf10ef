"""Is an answer right?  Needs no torch.  To be read in this order:

answers.py (what a completion's answer is, and the worker), boxes.py (what stands around a box); then, in the worker,
latex.py (an answer's text to a value), spelling.py, words.py, tokens.py, expressions.py and sets.py (what it stands
on), and values.py (when two values are the same).
"""
