"""Writing reports: topics first, then all sentences of all images in parallel.

The words of a sentence depend on its topic alone, never on the stop threshold, and the LSTM's
state is kept, so no prefix is ever run again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raymed.config import GenerationConfig
from raymed.data.vocabulary import Vocabulary
from raymed.model.hierarchical import HierarchicalModel, Topics
from raymed.model.word_lstm import WordLSTM
from raymed.tokens import END, PAD, START, UNKNOWN


@dataclass(frozen=True)
class Generated:
    """Reports for B images.

    Attributes:
        topics: what the model said of the images, over S sentences (see `Topics`).
        stop_probability: p(STOP) of each sentence, [B, S].
        lengths: sentences of each report, [B], 1 to S.
        words: word ids [B, S, T], END and what follows left as PAD; all PAD past a report's
            length.
    """

    topics: Topics
    stop_probability: Tensor
    lengths: Tensor
    words: Tensor

    def reports(self, vocabulary: Vocabulary) -> list["Report"]:
        """The reports in words, one per image."""
        ranked = self.topics.tag_logits.float().softmax(dim=1).sort(dim=1, descending=True)
        return [
            Report(
                sentences=[vocabulary.decode(ids) for ids in words[:length]],
                tags=[(vocabulary.tags[i], p) for i, p in zip(ids, probabilities, strict=True)],
            )
            for words, length, ids, probabilities in zip(
                self.words.tolist(),
                self.lengths.tolist(),
                ranked.indices.tolist(),
                ranked.values.tolist(),
                strict=True,
            )
        ]


@dataclass(frozen=True)
class Report:
    """A generated report.

    Attributes:
        sentences: each its words joined by spaces.
        tags: every tag of the vocabulary with its probability, the likeliest first.
    """

    sentences: list[str]
    tags: list[tuple[str, float]]

    @property
    def text(self) -> str:
        """The whole report, the concatenation of its sentences, as it is scored."""
        return " ".join(sentence for sentence in self.sentences if sentence)


@torch.inference_mode()
def generate(model: HierarchicalModel, images: Tensor, settings: GenerationConfig) -> Generated:
    """Write the reports of uint8 images [B, H, W] greedily; the model must be in eval mode.

    A sentence whose p(STOP) is above the threshold is the last one, as in training, where the
    label STOP stands on the last sentence; without one the report has ``max_sentences``.
    """
    assert not model.training
    topics = model.read(images, settings.max_sentences)
    stop_probability = topics.stop_logits.softmax(dim=2)[:, :, 1]
    lengths = report_lengths(stop_probability, settings.stop_threshold)
    written = torch.arange(settings.max_sentences, device=images.device) < lengths.unsqueeze(1)
    words = torch.full((*written.shape, settings.max_words), PAD, device=images.device)
    words[written] = write_sentences(model.word_lstm, topics.topics[written], settings.max_words)
    return Generated(topics, stop_probability, lengths, words)


def report_lengths(stop_probability: Tensor, threshold: float) -> Tensor:
    """Sentences per report [B]: up to the first whose p(STOP) [B, S] is above the threshold."""
    stops = stop_probability > threshold
    first = stops.int().argmax(dim=1) + 1
    return torch.where(stops.any(dim=1), first, stop_probability.shape[1])


def write_sentences(word_lstm: WordLSTM, topics: Tensor, max_words: int) -> Tensor:
    """The likeliest word at each step for topics [K, E] -> ids [K, T], PAD from END on."""
    words = torch.full((len(topics), max_words), PAD, device=topics.device)
    logits, state = word_lstm.begin(topics)
    open_ = torch.ones(len(topics), dtype=torch.bool, device=topics.device)
    for t in range(max_words):
        # These three are no words of a report.
        logits[:, [PAD, START, UNKNOWN]] = -torch.inf
        next_word = logits.argmax(dim=1)
        open_ = open_ & (next_word != END)
        if not open_.any():
            break
        words[:, t] = torch.where(open_, next_word, PAD)
        logits, state = word_lstm.step(next_word, state)
    return words
