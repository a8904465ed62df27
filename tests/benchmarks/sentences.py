"""Writing all sentences in one call against one sentence at a time, and a kept LSTM state against
running the prefix again for every word. Prints seconds and ratios, measured in turn in one run.

    python -m tests.benchmarks.sentences
"""

import time
from collections.abc import Callable

import torch

from raymed.generation import decode_passages
from raymed.model.word_lstm import WordLSTM
from raymed.sections import GenerationConfig
from raymed.tokens import START

IMAGES, SENTENCES, WORDS, SIZE, VOCABULARY, ROUNDS = 16, 6, 12, 512, 1004, 3


def greedy(word_lstm: WordLSTM, topics: torch.Tensor) -> torch.Tensor:
    return decode_passages(word_lstm, (topics,), WORDS, GenerationConfig())


def rerun_prefix(word_lstm: WordLSTM, topics: torch.Tensor) -> torch.Tensor:
    """Greedy words with the whole prefix run again for every word."""
    sentences = torch.full((len(topics), 1), START)
    for _ in range(WORDS):
        x = torch.cat([topics.unsqueeze(1), word_lstm.embedding(sentences)], dim=1)
        h, _ = word_lstm.lstm(x)
        logits = word_lstm.w_out(h[:, -1])
        logits[:, :4] = -torch.inf
        sentences = torch.cat([sentences, logits.argmax(dim=1, keepdim=True)], dim=1)
    return sentences[:, 1:]


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    word_lstm = WordLSTM(VOCABULARY, SIZE, SIZE).eval()
    # So that END is never the likeliest: every way then writes the same number of words.
    word_lstm.w_out.weight[:4] = 0
    topics = torch.randn(IMAGES * SENTENCES, SIZE)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "all sentences in one call, state kept": lambda: greedy(word_lstm, topics),
        "one sentence at a time, state kept": lambda: torch.cat(
            [greedy(word_lstm, topic[None]) for topic in topics]
        ),
        "all sentences in one call, prefix run again": lambda: rerun_prefix(word_lstm, topics),
    }
    results = {name: way() for name, way in ways.items()}
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    fastest = seconds[next(iter(ways))]
    same = next(iter(results.values()))
    for name, value in seconds.items():
        equal = (results[name] == same).float().mean()
        print(f"{name:45s} {value:8.3f} s   {value / fastest:5.1f} x   words equal {equal:.3f}")


if __name__ == "__main__":
    main()
