"""``no_attention``: the ablation Ours-no-Attention of Jing et al. (2018), section 4.3."""

from torch import Tensor, nn

from raymed.model.encoder import Encoder
from raymed.model.hierarchical import Attend, Hierarchical
from raymed.model.system import EncodedImages, init_glorot
from raymed.sections import ModelConfig


class Model(Hierarchical):
    """The context vector of every sentence comes from the overall image feature: ctx = W_fc f.

    The paper states the input (the 4,096-wide feature of VGG-19) but no equation; W_fc, which
    projects it to the sentence LSTM's width, takes the place of the one in eq. 4.
    """

    def __init__(self, config: ModelConfig, tags: int, words: int, encoder: Encoder | None) -> None:
        super().__init__(config, tags, words, encoder)
        self.w_fc = nn.Linear(self.tag_classifier.width, config.hidden_size, bias=False)
        init_glorot(self.w_fc)

    def attention(self, encoded: EncodedImages) -> tuple[Attend, Tensor | None]:
        ctx = self.w_fc(encoded.feature)
        return lambda _: (ctx, None, None), None
