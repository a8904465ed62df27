"""Ids of the special tokens: the contract between data, models and generation.

The word of rank r in the vocabulary (0 is the most frequent) has id ``r + len(SPECIAL)``.
"""

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
