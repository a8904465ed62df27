"""The words and tags of a split as numbers, kept beside its texts in the local cache.

The number of a word or tag is its place in the split's own list of them, so the numbers serve every
vocabulary: a table maps them to its ids. All workers of a node share what is mapped.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

FIELDS = [
    pa.field("words", pa.list_(pa.int32())),
    pa.field("lengths", pa.list_(pa.int32())),
    pa.field("tag_numbers", pa.list_(pa.int32())),
]
"""Of each image: its report's words, how many words each sentence has, and its tags."""
_KEY = b"raymed"
"""Of the lists in a schema's metadata."""


class Categories(NamedTuple):
    """The word and the tag of each number."""

    words: list[str]
    tags: list[str]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Categories":
        """All that the columns ``sentences`` and ``tags`` have, in the order of occurrence."""
        words: dict[str, None] = {}
        tags: dict[str, None] = {}
        for table in tables:
            for text in chain.from_iterable(table["sentences"].to_pylist()):
                words |= dict.fromkeys(text.split())
            tags |= dict.fromkeys(chain.from_iterable(table["tags"].to_pylist()))
        return cls(list(words), list(tags))

    def kept_in(self, schema: pa.Schema) -> pa.Schema:
        return schema.with_metadata({_KEY: json.dumps(self)})

    @classmethod
    def found_in(cls, schema: pa.Schema) -> "Categories":
        return cls(*json.loads(schema.metadata[_KEY]))

    def columns(self, table: pa.Table) -> list[pa.Array]:
        """The columns `FIELDS` of a table of sentences and tags."""
        word_of = {word: number for number, word in enumerate(self.words)}
        tag_of = {tag: number for number, tag in enumerate(self.tags)}
        reports = [[text.split() for text in report] for report in table["sentences"].to_pylist()]
        columns = (
            [[word_of[word] for words in report for word in words] for report in reports],
            [[len(words) for words in report] for report in reports],
            [[tag_of[tag] for tag in tags] for tags in table["tags"].to_pylist()],
        )
        return [pa.array(column, field.type) for column, field in zip(columns, FIELDS, strict=True)]


class Numbers(NamedTuple):
    """One image's."""

    words: np.ndarray
    """int32 [words of all sentences]."""
    lengths: np.ndarray
    """Of each sentence in words, int32 [S]."""
    tags: np.ndarray
    """int32 [tags]."""


class CodedRows:
    """The columns `FIELDS` as they lie in mapped memory.

    Args:
        batches: of the mapped file.
        block_rows: rows of every batch but the last.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], block_rows: int) -> None:
        self.lists = Categories.found_in(batches[0].schema)
        self._block_rows = block_rows
        columns = [[batch.column(field.name) for field in FIELDS] for batch in batches]
        self._blocks = [
            [(each.offsets.to_numpy(), each.values.to_numpy()) for each in block]
            for block in columns
        ]

    def __getitem__(self, row: int) -> Numbers:
        block, place = divmod(row, self._block_rows)
        return Numbers(
            *(values[ends[place] : ends[place + 1]] for ends, values in self._blocks[block])
        )

    def share_beyond(self, max_sentences: int, max_words: int) -> float:
        """Share of all words (0 to 1) past ``max_sentences`` of a report, ``max_words`` of one."""
        words = kept = 0
        for block in self._blocks:
            ends, lengths = block[1]
            lengths = lengths[ends[0] : ends[-1]]
            place = np.arange(len(lengths)) - np.repeat(ends[:-1] - ends[0], np.diff(ends))
            words += int(lengths.sum())
            kept += int(np.minimum(lengths, max_words)[place < max_sentences].sum())
        return (words - kept) / max(1, words)
