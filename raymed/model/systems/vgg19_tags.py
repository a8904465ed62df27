"""``vgg19_tags``: the tag classifier alone, the row VGG-19 of Table 3 in Jing et al. (2018)."""

from torch import Tensor

from raymed.image_tensors import Images
from raymed.model.passages import Passages
from raymed.model.system import Outputs, Reading, System


class Model(System):
    """Predicts tags and writes no reports; the network is the one that ``model.encoder`` names."""

    writes_reports = False

    def forward(self, images: Images, passages: Passages, seeds: Tensor | None = None) -> Outputs:  # noqa: ARG002
        return Outputs(self.encode(images, seeds).tag_logits)

    def read(self, images: Images, sentences: int) -> Reading:  # noqa: ARG002
        return Reading(self.encode(images, seeds=None).tag_logits)
