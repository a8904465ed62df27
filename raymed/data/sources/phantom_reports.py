"""What is wrong with the phantom's patients, and the tags and report a radiologist would write.

Every word of a report follows from what is drawn: the kinds, sides, zones and extents of the
abnormalities. Nothing is worded by chance, so a model that sees the image can write the report.
"""

from dataclasses import dataclass

import numpy as np

NORMAL_TAG = "normal"

_NORMAL_SHARE = 0.15
_COUNT_SHARES = (0.3, 0.4, 0.3)
"""Shares of one, two and three abnormalities among the abnormal studies."""

# Sizes leave a gap between two words, so that the word can be told from the image.
_EXTENTS = {
    "cardiomegaly": {"moderate": (1.32, 1.40), "marked": (1.56, 1.66)},
    "pleural effusion": {"small": (0.37, 0.43), "moderate": (0.57, 0.64), "large": (0.84, 0.96)},
    "opacity": {"small": (0.17, 0.20), "large": (0.29, 0.34)},
    "pneumothorax": {"small": (0.17, 0.22), "large": (0.36, 0.46)},
    "lung nodule": {"": (0.080, 0.105)},
    "calcified granuloma": {"": (0.040, 0.050)},
    "hemidiaphragm": {"": (0.26, 0.36)},
}
_BUILD = {
    "heart": (0.80, 1.08),
    "aorta": (0.09, 0.13),
    "inspiration": (0.62, 0.80),
    "spine": (-0.06, 0.06),
}
"""Ranges of a patient's build within the normal. It differs from film to film and is not worded."""

# Distance from the midline and height of what lies inside a lung, by zone; in the lower zone the
# height is counted from the diaphragm, which moves with the inspiration.
_NODULE_PLACES = {
    "upper": ((0.42, 0.52), (-0.46, -0.34)),
    "mid": ((0.46, 0.58), (-0.10, 0.02)),
    "lower": ((0.55, 0.63), (-0.44, -0.36)),
}
_PLACES = {
    "lung nodule": _NODULE_PLACES,
    "calcified granuloma": _NODULE_PLACES,
    "opacity": {
        "upper": ((0.42, 0.50), (-0.40, -0.28)),
        "lower": ((0.50, 0.58), (-0.50, -0.40)),
    },
}


@dataclass(frozen=True)
class Abnormality:
    """One abnormality as the drawing and the report need it.

    Places and sizes are in patient coordinates: the image is 2 units wide, (0, 0) is its centre.
    """

    kind: str
    """A key of `_IMPRESSIONS`."""
    side: str = ""
    """The patient's ``left`` or ``right``; empty on the midline."""
    zone: str = ""
    """``upper``, ``mid`` or ``lower`` for what lies inside a lung."""
    extent: str = ""
    """The degree as the report words it, for kinds that have degrees."""
    size: float = 0.0
    """The drawn size that `extent` words: a radius, a height or a fraction, by kind."""
    place: tuple[float, float] = (0.0, 0.0)
    """Distance from the midline, and height (downwards), of what lies inside a lung."""

    @property
    def tag(self) -> str:
        """The abnormality's name with its side, in lower case."""
        if self.kind == "opacity":
            return f"{self.side} {self.zone} lobe opacity"
        if self.kind == "hemidiaphragm":
            return f"elevated {self.side} hemidiaphragm"
        return f"{self.side} {self.kind}".strip()


@dataclass(frozen=True)
class Patient:
    """How a patient is built, and what is wrong."""

    heart: float
    """Size 1 is a cardiothoracic ratio of about 0.43."""
    aorta: float
    """The radius of the aortic knob."""
    inspiration: float
    """The level of the costophrenic angles."""
    spine: float
    """How far the spine curves to the left."""
    abnormalities: tuple[Abnormality, ...] = ()


# The leading abnormality alone makes the impression; the order of the keys is the order of urgency.
_IMPRESSIONS = {
    "pneumothorax": "Acute {side} pneumothorax with partial lung collapse.",
    "opacity": "{side} {zone} lobe opacity suggesting pneumonia.",
    "lung nodule": "{side} lung nodule requiring further imaging.",
    "pleural effusion": "{extent} {side} pleural effusion.",
    "cardiomegaly": "Cardiomegaly without acute lung disease.",
    "hemidiaphragm": "Elevated {side} hemidiaphragm of uncertain cause.",
    "pacemaker": "Pacemaker in place, no acute disease.",
    "sternal wires": "Prior heart surgery, no acute disease.",
    "calcified granuloma": "Old granulomatous disease, nothing acute.",
}

_FINDINGS = {
    "pneumothorax": "A {extent} {side} pneumothorax outlines the lung edge.",
    "opacity": "A {extent} {side} {zone} lobe opacity is seen.",
    "lung nodule": "A {side} lung nodule projects over the {zone} zone.",
    "pleural effusion": "A {extent} {side} pleural effusion blunts the costophrenic angle.",
    "cardiomegaly": "There is {extent} cardiomegaly.",
    "hemidiaphragm": "There is an elevated {side} hemidiaphragm.",
    "pacemaker": "A pacemaker overlies the left chest wall.",
    "sternal wires": "Midline sternal wires are intact.",
    "calcified granuloma": "A {side} calcified granuloma lies in the {zone} zone.",
}

KINDS = tuple(_IMPRESSIONS)

_LUNG_KINDS = ("opacity", "lung nodule", "calcified granuloma")
_PLEURAL_KINDS = ("pneumothorax", "pleural effusion")


def choose_patient(rng: np.random.Generator) -> Patient:
    """A patient with nothing wrong (15 %), or one to three abnormalities.

    No two of them change the same part of the film, so that each can be seen.
    """
    build = {part: rng.uniform(*limits) for part, limits in _BUILD.items()}
    chosen: list[Abnormality] = []
    taken: set[str] = set()
    abnormal = rng.random() >= _NORMAL_SHARE
    wanted = 1 + rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES) if abnormal else 0
    while len(chosen) < wanted:
        kind, side, zone = CANDIDATES[rng.integers(len(CANDIDATES))]
        one = choose_abnormality(kind, side, zone, build["inspiration"], rng)
        if taken.isdisjoint(_occupied(one)):
            taken |= _occupied(one)
            chosen.append(one)
    return Patient(**build, abnormalities=tuple(chosen))


CANDIDATES = (
    [("cardiomegaly", "", ""), ("pacemaker", "", ""), ("sternal wires", "", "")]
    + [
        (kind, side, "")
        for kind in (
            "pleural effusion",
            "pneumothorax",
            "hemidiaphragm",
            "lung nodule",
            "calcified granuloma",
        )
        for side in ("right", "left")
    ]
    + [("opacity", side, zone) for side in ("right", "left") for zone in ("upper", "lower")]
)
"""Kind, side and zone of every tag but `normal`; a zone left open here is chosen by chance."""


def choose_abnormality(
    kind: str, side: str, zone: str, diaphragm: float, rng: np.random.Generator
) -> Abnormality:
    """An abnormality of this kind and side, its extent, size and place by chance.

    `diaphragm` is the level of the costophrenic angles: the lower zones move with it.
    """
    extents = _EXTENTS.get(kind, {"": (0.0, 0.0)})
    extent = list(extents)[rng.integers(len(extents))]
    size = rng.uniform(*extents[extent])
    if kind not in _PLACES:
        return Abnormality(kind, side, zone, extent, size)
    places = _PLACES[kind]
    zone = zone or list(places)[rng.integers(len(places))]
    away, height = (rng.uniform(*limits) for limits in places[zone])
    if zone == "lower":
        height += diaphragm
    return Abnormality(kind, side, zone, extent, size, (away, height))


def _occupied(one: Abnormality) -> set[str]:
    """The parts of the film that an abnormality changes: two may not share a part."""
    zones = {
        "pleural effusion": ("mid", "lower") if one.extent == "large" else ("lower",),
        "pneumothorax": ("upper", "mid", "lower") if one.extent == "large" else ("upper", "mid"),
        "hemidiaphragm": ("lower",),
        "opacity": (one.zone, "mid") if one.extent == "large" else (one.zone,),
    }.get(one.kind, (one.zone,))
    occupied = {f"{one.side} {zone}" for zone in zones if zone}
    occupied.add(one.tag)
    # A large heart hides what lies beside it.
    if one.kind == "cardiomegaly":
        occupied |= {"beside the heart, left", "beside the heart, right"}
    elif one.zone in ("mid", "lower"):
        occupied.add(f"beside the heart, {one.side}")
    if one.kind == "pacemaker":
        occupied.add("left upper")
    return occupied


def write_tags(patient: Patient) -> tuple[str, ...]:
    """The study's tags, most urgent first; `NORMAL_TAG` alone when nothing is abnormal."""
    return tuple(one.tag for one in _by_urgency(patient)) or (NORMAL_TAG,)


def write_report(patient: Patient) -> str:
    """The report with capitals and full stops: the impression, then one sentence or more on
    the heart, the lungs, the pleura, the diaphragm, the bones and the devices.
    """
    ordered = _by_urgency(patient)

    def describe(*kinds: str) -> list[str]:
        return [_fill(_FINDINGS[one.kind], one) for one in ordered if one.kind in kinds]

    if ordered:
        sentences = [_fill(_IMPRESSIONS[ordered[0].kind], ordered[0])]
    else:
        sentences = ["No acute cardiopulmonary abnormality."]
    sentences += describe("cardiomegaly") or ["The heart is normal in size."]
    # Air or fluid in the pleura hides the lung behind it, so that lung is not called clear.
    hidden = {one.side for one in ordered if one.kind in _LUNG_KINDS + _PLEURAL_KINDS}
    sentences += describe(*_LUNG_KINDS)
    if hidden:
        sentences += [f"The {side} lung is clear." for side in {"right", "left"} - hidden]
    else:
        sentences.append("The lungs are clear.")
    sentences += describe(*_PLEURAL_KINDS) or ["No pneumothorax or pleural effusion."]
    sentences += describe("hemidiaphragm")
    sentences += describe("pacemaker", "sternal wires") or ["The bones are intact."]
    return " ".join(sentences)


def _by_urgency(patient: Patient) -> list[Abnormality]:
    # A film is read from the image's left, which is the patient's right.
    return sorted(
        patient.abnormalities,
        key=lambda one: (KINDS.index(one.kind), one.side == "left", one.zone),
    )


def _fill(template: str, one: Abnormality) -> str:
    text = template.format(side=one.side, zone=one.zone, extent=one.extent)
    return text[0].upper() + text[1:]
