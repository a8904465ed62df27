"""``semantic_only``: the ablation Ours-Semantic-only of Jing et al. (2018), section 4.3."""

from raymed.model.hierarchical import Hierarchical


class Model(Hierarchical):
    """The context vector comes from the attended tags alone: ctx = W_fc a_att."""

    semantic = True
