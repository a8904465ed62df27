"""Write the reports of image files: python read_exported.py FOLDER IMAGE...

Needs the folder that `raymed export` wrote, torch and Pillow, but not raymed.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps


def read_image(file, size):
    with Image.open(file, formats=["PNG", "JPEG", "TIFF"]) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode[0] in "IF":
        sys.exit(f"{file}: has more than 8 bits per channel; scale its values to 0..255 first")
    if image.mode not in ("1", "L") and image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    image = image.convert("L") if image.mode in ("1", "L") else image.convert("RGB").convert("L")
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = Image.new("L", (size, size))
    canvas.paste(scaled, ((size - width) // 2, (size - height) // 2))
    return torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8).view(size, size)


@torch.inference_mode()
def write_reports(read, step, images, settings, ids):
    """Greedy reports of images, uint8 [B, size, size]: each a list of sentences of word ids."""
    found = read(images)
    sentences = torch.arange(found["context"][0].shape[1])
    lengths = torch.ones(len(images), dtype=torch.long)
    if "stop_probabilities" in found:  # the first sentence above the threshold is the last
        stops = found["stop_probabilities"] > settings["stop_threshold"]
        lengths = torch.where(stops.any(1), stops.int().argmax(1) + 1, len(sentences))
    kept = sentences < lengths.unsqueeze(1)
    context, state = ([each[kept] for each in found[name]] for name in ("context", "state"))
    last, passages = torch.full((int(kept.sum()),), ids["start"]), [[] for _ in kept.nonzero()]
    finished = torch.zeros_like(last, dtype=torch.bool)
    for _ in range(settings["max_passage_words"]):
        logits, state = step(last, state, context)
        logits[:, settings["forbidden_ids"]] = -torch.inf
        last = logits.argmax(1)
        finished |= last == ids["end"]
        if finished.all():
            break
        for row in (~finished).nonzero().flatten().tolist():
            passages[row].append(int(last[row]))
    reports = [[[]] for _ in images]
    for image, passage in zip(kept.nonzero()[:, 0].tolist(), passages, strict=True):
        for word in [*passage, ids["start"]]:  # in systems without planned sentences, START
            reports[image].append([]) if word == ids["start"] else reports[image][-1].append(word)
    return [report[:-1][: settings["max_sentences"]] for report in reports]


def main(folder, *files):
    facts = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    settings, words, tags = facts["generation"], vocabulary["words"], vocabulary["tags"]
    if settings and (settings["beam_width"] > 1 or settings["block_ngrams"]):
        sys.exit("decodes greedily: export with generation.beam_width=1 generation.block_ngrams=0")
    read = torch.export.load(folder / "read.pt2").module()
    step = torch.export.load(folder / "step.pt2").module() if settings else None
    for start in range(0, len(files), 16):
        names = files[start : start + 16]
        images = torch.stack([read_image(name, facts["image"]["size"]) for name in names])
        likely = read(images)["tag_probabilities"].topk(min(5, len(tags))).indices.tolist()
        reports = [[] for _ in names]
        if step:
            reports = write_reports(read, step, images, settings, vocabulary["special"])
        for name, ranked, report in zip(names, likely, reports, strict=True):
            sentences = [" ".join(words[i] for i in sentence) for sentence in report]
            line = {"image": name, "tags": [tags[i] for i in ranked], "sentences": sentences}
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
