"""The hierarchical systems in plain loops: eqs. 2 to 7 and 9 of Jing et al. (2018)."""

from collections.abc import Callable
from functools import partial

from tests.support.by_hand import (
    CELL,
    Answer,
    Image,
    Passage,
    Vector,
    Weights,
    attend,
    classify,
    linear,
    lstm,
    plus,
    tanh,
    uncovered,
    words_after,
)


def hierarchical(w: Weights, image: Image, visual: bool, semantic: bool) -> Answer:
    tag_logits, feature, tag_ids = classify(w, image)
    tag_ids = tag_ids if semantic else []
    a = [w["semantic_features.embedding.weight"][i] for i in tag_ids]
    size = len(w["sentence_lstm.w_t_h.weight"][0])
    h, c = [0.0] * size, [0.0] * size
    topics, stops, alphas, betas, words = [], [], [], [], []
    for number, sentence in enumerate(image.report):
        attended: Vector = []
        if visual:
            found, alpha = attend(w, "co_attention.visual", image.regions, h)
            attended += found
            alphas.append(alpha)
        if semantic:
            found, beta = attend(w, "co_attention.semantic", a, h)
            attended += found
            betas.append(beta)
        if attended:
            ctx = linear(w["co_attention.w_fc.weight"], attended)  # eq. 4
        else:
            ctx = linear(w["w_fc.weight"], feature)
        h_previous = h
        h, c = lstm(*(w[f"sentence_lstm.cell.{n}"] for n in CELL), ctx, h, c)
        topic = tanh(  # eq. 5
            plus(
                linear(w["sentence_lstm.w_t_h.weight"], h),
                linear(w["sentence_lstm.w_t_ctx.weight"], ctx),
            )
        )
        stop = linear(  # eq. 6
            w["sentence_lstm.w_stop.weight"],
            tanh(
                plus(
                    linear(w["sentence_lstm.w_stop_previous.weight"], h_previous),
                    linear(w["sentence_lstm.w_stop_current.weight"], h),
                )
            ),
        )
        topics.append(topic)
        stops.append(stop)
        words += words_after(w, topic, sentence[:-1], Passage(image.seed, number))
    targets = [word for sentence in image.report for word in sentence[1:]]
    # Eq. 9
    attention = sum(uncovered(rows) for rows in (alphas, betas) if rows)
    return Answer(
        tag_logits, tag_ids, topics, stops, alphas, betas, words, targets, attention, image
    )


SYSTEMS: dict[str, Callable[[Weights, Image], Answer]] = {
    "co_attention": partial(hierarchical, visual=True, semantic=True),
    "visual_only": partial(hierarchical, visual=True, semantic=False),
    "semantic_only": partial(hierarchical, visual=False, semantic=True),
    "no_attention": partial(hierarchical, visual=False, semantic=False),
}
