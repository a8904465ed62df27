"""Systems of a few units in float64, with weights wide enough that their decisions differ."""

import torch

from raymed.model.encoder import build_encoder
from raymed.model.system import System
from raymed.model.systems import build_system
from raymed.sections import ModelConfig

TAGS = 6
IMAGES = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(2)).to(
    torch.uint8
)


def build_tiny(system: str, words: int, seed: int = 4, images_per_study: int = 1) -> System:
    """A system in training mode, for `words` word ids and `TAGS` tags."""
    torch.manual_seed(seed)
    config = ModelConfig(
        system=system, encoder="small", hidden_size=8, embedding_size=6, top_tags=3, dropout=0.5
    )
    encoder = build_encoder("small", dropout=0.5)
    model = build_system(config, TAGS, words, encoder, images_per_study).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("encoder."):
                p.normal_(std=1.5 / p.shape[-1] ** 0.5)
    return model.train()
