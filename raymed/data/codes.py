"""The words and tags of a split as integer codes, stored beside its texts in the local cache.

A code is an index into the split's own list of words or tags. The codes are therefore independent
of any vocabulary; a lookup table converts them to its ids. All processes of a node share them.
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
"""For each image: the words of its report, the number of words per sentence, and its tags."""
_KEY = b"raymed"
"""Key of the categories in the metadata of a schema."""


class Categories(NamedTuple):
    """The words and tags that codes refer to."""

    words: list[str]
    tags: list[str]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "Categories":
        """Collect the columns ``sentences`` and ``tags``, in order of first occurrence."""
        words: dict[str, None] = {}
        tags: dict[str, None] = {}
        for table in tables:
            for text in chain.from_iterable(table["sentences"].to_pylist()):
                words |= dict.fromkeys(text.split())
            tags |= dict.fromkeys(chain.from_iterable(table["tags"].to_pylist()))
        return cls(list(words), list(tags))

    def add_to(self, schema: pa.Schema) -> pa.Schema:
        """Store the categories in the metadata of a schema."""
        return schema.with_metadata({_KEY: json.dumps(self)})

    @classmethod
    def read_from(cls, schema: pa.Schema) -> "Categories":
        """Read the categories from the metadata of a schema."""
        return cls(*json.loads(schema.metadata[_KEY]))

    def encode(self, table: pa.Table) -> list[pa.Array]:
        """Return the columns `FIELDS` for a table with sentences and tags."""
        code_of_word = {word: code for code, word in enumerate(self.words)}
        code_of_tag = {tag: code for code, tag in enumerate(self.tags)}
        reports = [[text.split() for text in report] for report in table["sentences"].to_pylist()]
        columns = (
            [[code_of_word[word] for words in report for word in words] for report in reports],
            [[len(words) for words in report] for report in reports],
            [[code_of_tag[tag] for tag in tags] for tags in table["tags"].to_pylist()],
        )
        return [pa.array(column, field.type) for column, field in zip(columns, FIELDS, strict=True)]


class ImageCodes(NamedTuple):
    """The codes of one image."""

    words: np.ndarray
    """Words of all sentences, int32 [words]."""
    lengths: np.ndarray
    """Number of words per sentence, int32 [S]."""
    tags: np.ndarray
    """Tags, int32 [tags]."""


class CodedRows:
    """The columns `FIELDS` in mapped memory.

    Args:
        batches: Record batches of the mapped file.
        block_rows: Number of rows in every batch but the last.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], block_rows: int) -> None:
        self.categories = Categories.read_from(batches[0].schema)
        self._block_rows = block_rows
        columns = [[batch.column(field.name) for field in FIELDS] for batch in batches]
        self._blocks = [
            [(column.offsets.to_numpy(), column.values.to_numpy()) for column in block]
            for block in columns
        ]

    def __getitem__(self, row: int) -> ImageCodes:
        block, offset = divmod(row, self._block_rows)
        return ImageCodes(
            *(values[ends[offset] : ends[offset + 1]] for ends, values in self._blocks[block])
        )

    def share_beyond(self, max_sentences: int, max_words: int) -> float:
        """Return the share of words (0 to 1) that the limits on reports and sentences cut off."""
        words = kept = 0
        for block in self._blocks:
            ends, lengths = block[1]
            lengths = lengths[ends[0] : ends[-1]]
            position = np.arange(len(lengths)) - np.repeat(ends[:-1] - ends[0], np.diff(ends))
            words += int(lengths.sum())
            kept += int(np.minimum(lengths, max_words)[position < max_sentences].sum())
        return (words - kept) / max(1, words)
