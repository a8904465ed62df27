"""``visual_only``: the ablation Ours-Visual-only of Jing et al. (2018), section 4.3."""

from raymed.model.hierarchical import Hierarchical


class Model(Hierarchical):
    """The context vector comes from the attended regions alone: ctx = W_fc v_att."""

    visual = True
