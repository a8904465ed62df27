"""``co_attention``: the full model of Jing et al. (2018), Ours-CoAttention in its tables."""

from raymed.model.hierarchical import Hierarchical


class Model(Hierarchical):
    """The context vector combines regions and tags: ctx = W_fc [v_att ; a_att], eq. 4."""

    visual = True
    semantic = True
