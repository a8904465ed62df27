"""The phantom's patients, with the tags and the report that a radiologist would write.

Every word of a report follows from what is drawn: the kinds, sides, zones and extents of the
abnormalities. No wording is random, so a model can derive the whole report from the image.
"""

from dataclasses import dataclass

import numpy as np

NORMAL_TAG = "normal"

_NORMAL_SHARE = 0.15
_COUNT_SHARES = (0.3, 0.4, 0.3)
"""Shares of one, two and three abnormalities among the abnormal studies."""

# The ranges leave gaps, so that the extent can be told from the image.
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
"""Normal ranges of a patient's build, which varies between films but is not reported."""

# Ranges of the distance from the midline and of the height (downwards) inside a lung, by zone. In
# the lower zone the height is relative to the diaphragm, which moves with the inspiration.
_NODULE_POSITIONS = {
    "upper": ((0.42, 0.52), (-0.46, -0.34)),
    "mid": ((0.46, 0.58), (-0.10, 0.02)),
    "lower": ((0.55, 0.63), (-0.44, -0.36)),
}
_POSITIONS = {
    "lung nodule": _NODULE_POSITIONS,
    "calcified granuloma": _NODULE_POSITIONS,
    "opacity": {
        "upper": ((0.42, 0.50), (-0.40, -0.28)),
        "lower": ((0.50, 0.58), (-0.50, -0.40)),
    },
}


@dataclass(frozen=True)
class Abnormality:
    """One abnormality, as needed to draw it and to report it.

    Positions and sizes are in patient coordinates: the image is 2 units wide, (0, 0) is its centre.
    """

    kind: str
    """A key of `_IMPRESSIONS`."""
    side: str = ""
    """The patient's ``left`` or ``right``; empty on the midline."""
    zone: str = ""
    """``upper``, ``mid`` or ``lower`` inside a lung, else empty."""
    extent: str = ""
    """The degree as the report states it, for kinds that have degrees."""
    size: float = 0.0
    """The drawn size that `extent` describes; by kind a radius, a height or a fraction."""
    position: tuple[float, float] = (0.0, 0.0)
    """Distance from the midline and height (downwards), inside a lung."""

    @property
    def tag(self) -> str:
        """Name and side in lower case."""
        if self.kind == "opacity":
            return f"{self.side} {self.zone} lobe opacity"
        if self.kind == "hemidiaphragm":
            return f"elevated {self.side} hemidiaphragm"
        return f"{self.side} {self.kind}".strip()


@dataclass(frozen=True)
class Patient:
    """A patient's build and abnormalities."""

    heart: float
    """Size of the heart; 1 is a cardiothoracic ratio of about 0.43."""
    aorta: float
    """Radius of the aortic knob."""
    inspiration: float
    """Level of the costophrenic angles."""
    spine: float
    """How far the spine curves to the left."""
    abnormalities: tuple[Abnormality, ...] = ()


# The most urgent abnormality alone makes the impression; keys are in order of urgency.
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
    """Sample a patient who is healthy (15 %) or has one to three abnormalities.

    No two abnormalities change the same part of the film, so each remains visible.
    """
    build = {part: rng.uniform(*limits) for part, limits in _BUILD.items()}
    chosen: list[Abnormality] = []
    occupied: set[str] = set()
    abnormal = rng.random() >= _NORMAL_SHARE
    wanted = 1 + rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES) if abnormal else 0
    while len(chosen) < wanted:
        kind, side, zone = CANDIDATES[rng.integers(len(CANDIDATES))]
        candidate = choose_abnormality(kind, side, zone, build["inspiration"], rng)
        regions = _occupied(candidate)
        if occupied.isdisjoint(regions):
            occupied |= regions
            chosen.append(candidate)
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
"""Kind, side and zone of every tag but `normal`; an empty zone is sampled where needed."""


def choose_abnormality(
    kind: str, side: str, zone: str, diaphragm: float, rng: np.random.Generator
) -> Abnormality:
    """Sample extent, size and position of an abnormality of a given kind and side.

    Args:
        diaphragm: Level of the costophrenic angles; the lower zones move with it.
    """
    extents = _EXTENTS.get(kind, {"": (0.0, 0.0)})
    extent = list(extents)[rng.integers(len(extents))]
    size = rng.uniform(*extents[extent])
    if kind not in _POSITIONS:
        return Abnormality(kind, side, zone, extent, size)
    positions = _POSITIONS[kind]
    zone = zone or list(positions)[rng.integers(len(positions))]
    away, height = (rng.uniform(*limits) for limits in positions[zone])
    if zone == "lower":
        height += diaphragm
    return Abnormality(kind, side, zone, extent, size, (away, height))


def _occupied(abnormality: Abnormality) -> set[str]:
    """Name the parts of the film that an abnormality changes; two must not share a part."""
    large, zone = abnormality.extent == "large", abnormality.zone
    zones = {
        "pleural effusion": ("mid", "lower") if large else ("lower",),
        "pneumothorax": ("upper", "mid", "lower") if large else ("upper", "mid"),
        "hemidiaphragm": ("lower",),
        "opacity": (zone, "mid") if large else (zone,),
    }.get(abnormality.kind, (zone,))
    occupied = {f"{abnormality.side} {each}" for each in zones if each}
    occupied.add(abnormality.tag)
    # A large heart hides what lies beside it.
    if abnormality.kind == "cardiomegaly":
        occupied |= {"beside the heart, left", "beside the heart, right"}
    elif zone in ("mid", "lower"):
        occupied.add(f"beside the heart, {abnormality.side}")
    if abnormality.kind == "pacemaker":
        occupied.add("left upper")
    return occupied


def write_tags(patient: Patient) -> tuple[str, ...]:
    """Return the tags of a study, most urgent first, or only `NORMAL_TAG`."""
    return tuple(abnormality.tag for abnormality in _by_urgency(patient)) or (NORMAL_TAG,)


def write_report(patient: Patient) -> str:
    """Write the report, with capitals and full stops.

    The impression comes first, then at least one sentence each on the heart, the lungs, the pleura
    and the bones or devices, and one on the diaphragm if it is abnormal.
    """
    ordered = _by_urgency(patient)

    def describe(*kinds: str) -> list[str]:
        return [_fill(_FINDINGS[each.kind], each) for each in ordered if each.kind in kinds]

    if ordered:
        sentences = [_fill(_IMPRESSIONS[ordered[0].kind], ordered[0])]
    else:
        sentences = ["No acute cardiopulmonary abnormality."]
    sentences += describe("cardiomegaly") or ["The heart is normal in size."]
    # Pleural air or fluid hides the lung behind it, so that lung is not reported as clear.
    hidden = {each.side for each in ordered if each.kind in _LUNG_KINDS + _PLEURAL_KINDS}
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
    # Films are read from the left of the image, which is the patient's right.
    return sorted(
        patient.abnormalities,
        key=lambda each: (KINDS.index(each.kind), each.side == "left", each.zone),
    )


def _fill(template: str, abnormality: Abnormality) -> str:
    text = template.format(side=abnormality.side, zone=abnormality.zone, extent=abnormality.extent)
    return text[0].upper() + text[1:]
