"""The tables of Jing, Xie and Xing (2018): their systems and their figures."""

from collections.abc import Iterable, Mapping

from raymed.model.systems import system_class

TABLE_SYSTEMS = {
    "1": (
        "cnn_rnn",
        "lrcn",
        "soft_att",
        "att_rk",
        "no_attention",
        "semantic_only",
        "visual_only",
        "co_attention",
    ),
    "2": ("soft_att", "no_attention", "co_attention"),
    "3": ("vgg19_tags", "co_attention"),
    "attention": ("soft_att", "semantic_only", "visual_only", "co_attention"),
}
"""The systems of each table, in the order of its rows. The lower half of the paper's Table 1 lacks
no_attention; the table of attention is not the paper's."""

COLUMNS = {
    "1": ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider"),
    "2": ("normality", "abnormality"),
    "3": ("recall_5", "recall_10", "recall_20"),
}
"""The metrics of the paper's tables, by key."""

TRUTH = "ground truth"

_TABLE_1 = {
    "iu_xray": {
        "cnn_rnn": (0.316, 0.211, 0.140, 0.095, 0.159, 0.267, 0.111),
        "lrcn": (0.369, 0.229, 0.149, 0.099, 0.155, 0.278, 0.190),
        "soft_att": (0.399, 0.251, 0.168, 0.118, 0.167, 0.323, 0.302),
        "att_rk": (0.369, 0.226, 0.151, 0.108, 0.171, 0.323, 0.155),
        "no_attention": (0.505, 0.383, 0.290, 0.224, 0.200, 0.420, 0.259),
        "semantic_only": (0.504, 0.371, 0.291, 0.230, 0.207, 0.418, 0.286),
        "visual_only": (0.507, 0.373, 0.297, 0.238, 0.211, 0.426, 0.300),
        "co_attention": (0.517, 0.386, 0.306, 0.247, 0.217, 0.447, 0.327),
    },
    "peir_gross": {
        "cnn_rnn": (0.247, 0.178, 0.134, 0.092, 0.129, 0.247, 0.205),
        "lrcn": (0.261, 0.184, 0.136, 0.088, 0.135, 0.254, 0.203),
        "soft_att": (0.283, 0.212, 0.163, 0.113, 0.147, 0.271, 0.276),
        "att_rk": (0.274, 0.201, 0.154, 0.104, 0.141, 0.264, 0.279),
        "semantic_only": (0.263, 0.191, 0.145, 0.098, 0.138, 0.261, 0.274),
        "visual_only": (0.284, 0.209, 0.156, 0.105, 0.149, 0.274, 0.280),
        "co_attention": (0.300, 0.218, 0.165, 0.113, 0.149, 0.279, 0.329),
    },
}
_TABLE_2 = {
    "iu_xray": {
        "soft_att": (0.510, 0.490),
        "no_attention": (0.753, 0.247),
        "co_attention": (0.471, 0.529),
        TRUTH: (0.385, 0.615),
    },
    "peir_gross": {},
}
_TABLE_3 = {
    "iu_xray": {"vgg19_tags": (0.643, 0.719, 0.793), "co_attention": (0.644, 0.716, 0.792)},
    "peir_gross": {"vgg19_tags": (0.392, 0.506, 0.595), "co_attention": (0.398, 0.494, 0.596)},
}
_FIGURES: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]] = {
    "1": _TABLE_1,
    "2": _TABLE_2,
    "3": _TABLE_3,
}


def table_systems(table: str, others: Iterable[str]) -> list[str]:
    """The systems of a table: those it is known for, then others that it can score.

    Args:
        table: ``1``, ``2``, ``3`` or ``attention``.
        others: Further systems, such as the configuration's ``table.systems``. Those of the
            paper stay in the paper's tables, and those that write no reports stay in Table 3.
    """
    known = {system for systems in TABLE_SYSTEMS.values() for system in systems}
    further = [
        system
        for system in others
        if system not in known and (table == "3" or system_class(system).writes_reports)
    ]
    return [*TABLE_SYSTEMS[table], *further]


def paper_figures(table: str, half: str) -> dict[str, dict[str, float]]:
    """The paper's figures: system (or ``ground truth``) -> metric -> value.

    Args:
        table: ``1``, ``2`` or ``3``; any other table is not the paper's, and has no figures.
        half: ``iu_xray`` or ``peir_gross``.
    """
    rows = _FIGURES.get(table, {}).get(half, {})
    return {name: dict(zip(COLUMNS[table], values, strict=True)) for name, values in rows.items()}
