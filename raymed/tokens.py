"""Ids of the special word tokens: the contract between the data, the models and generation.

The word with rank r in the vocabulary (0 is the most frequent) has id ``r + len(SPECIAL)``.
"""

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
