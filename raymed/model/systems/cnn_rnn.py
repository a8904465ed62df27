"""``cnn_rnn``: Show and Tell (Vinyals, Toshev, Bengio and Erhan 2015)."""

from torch import Tensor, nn

from raymed.model.encoder import Encoder
from raymed.model.single_decoder import ReportDecoder, SingleDecoder
from raymed.model.system import Context, EncodedImages, init_glorot
from raymed.model.word_lstm import WordLSTM
from raymed.sections import ModelConfig


class ImageThenWords(WordLSTM, ReportDecoder):
    """The word LSTM as it is, eqs. 10 to 12 of Vinyals et al.: x_-1 = CNN(I), x_t = W_e S_t."""


class Model(SingleDecoder):
    """The image is the LSTM's first input and does not enter again: x_-1 = W_I f.

    Choices: f is the overall image feature, as in Ours-no-Attention, which according to the paper
    differs from this system only by its hierarchy; no dropout on the words and no ensemble.
    """

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        self.w_image = nn.Linear(self.tag_classifier.width, config.embedding_size, bias=False)
        self.writer = ImageThenWords(words, config.embedding_size, config.hidden_size)
        init_glorot(self.w_image, self.writer)

    def describe(self, encoded: EncodedImages) -> tuple[Context, Tensor | None]:
        return (self.w_image(encoded.feature),), None
