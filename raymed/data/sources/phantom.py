"""The phantom: chest radiographs drawn by the program, with findings of known place.

The film is drawn in patient coordinates, so it shows the same anatomy at any image size: the
image is 2 units wide, (0, 0) is its centre, u grows towards the patient's left (the image's
right) and v downwards. Brightness is 0 (black: air) to 1 (white: metal), layer upon layer from
the soft tissue to the devices. Findings change the shape of a layer (heart, diaphragm) or add one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np

from raymed.data.examples import Example, Finding
from raymed.data.sources.phantom_reports import (
    Abnormality,
    Patient,
    choose_patient,
    write_report,
    write_tags,
)
from raymed.errors import UsageError

SMALLEST_IMAGE = 32

_PACEMAKER = (0.54, -0.44)
_LEAD = (
    (0.46, -0.44), (0.38, -0.53), (0.25, -0.57), (0.08, -0.53), (-0.05, -0.42), (-0.11, -0.20),
    (-0.11, 0.12), (-0.05, 0.32), (0.08, 0.43), (0.26, 0.48),
)  # fmt: skip

_INSIDE = ("pleural effusion", "pneumothorax", "opacity", "lung nodule", "calcified granuloma")
"""Kinds drawn inside a lung, before the ribs and the heart."""


def _between(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Anatomy:
    """One patient and one exposure: all that varies between films and is no abnormality."""

    rotation: float = _between(-0.07, 0.07)  # radians
    scale: float = _between(0.92, 1.06)
    shift_u: float = _between(-0.05, 0.05)
    shift_v: float = _between(-0.05, 0.05)
    lung_width: float = _between(0.76, 0.85)  # midline to the lateral wall
    lung_height: float = _between(0.96, 1.06)  # apex to the widest place
    heart_tilt: float = _between(0.5, 0.8)  # radians below the horizontal
    dome: float = _between(0.16, 0.24)  # height of the domes above them
    right_dome: float = _between(0.01, 0.05)  # how much the right one is higher
    mediastinum: float = _between(0.11, 0.14)
    rib_spacing: float = _between(0.150, 0.185)
    rib_phase: float = _between(0.0, 1.0)
    rib_slope: float = _between(0.30, 0.48)
    rib_strength: float = _between(0.05, 0.10)
    clavicle: float = _between(-0.68, -0.60)  # level of the sternal ends
    clavicle_rise: float = _between(0.10, 0.24)
    texture: float = _between(1.0, 100.0)  # which one of the lungs' patterns
    vessel_strength: float = _between(0.05, 0.10)
    stomach_air: float = _between(0.0, 0.25)
    lung_level: float = _between(0.24, 0.30)
    tissue_level: float = _between(0.50, 0.62)
    brightness: float = _between(-0.05, 0.05)
    contrast: float = _between(0.85, 1.08)
    gradient_u: float = _between(-0.05, 0.05)
    gradient_v: float = _between(-0.05, 0.05)
    noise: float = _between(0.008, 0.028)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Anatomy":
        """An anatomy with every value uniform within its normal range."""
        return cls(**{one.name: rng.uniform(*one.metadata["range"]) for one in fields(cls)})


def draw(studies: int, seed: int = 0, image_size: int = 224) -> Iterator[Example]:
    """Draw phantom studies of one image each.

    Study i depends on `seed` and i alone: not on how many studies are drawn.

    Parameters
    ----------
    studies
        How many studies.
    seed
        Not negative; another seed gives other studies.
    image_size
        Pixels per side. The same study at two sizes shows the same anatomy.

    Yields
    ------
    Example
        Image uint8 [image_size, image_size], report, tags, and the places of the findings.

    Raises
    ------
    UsageError
        When `studies` or `seed` is negative or `image_size` is below `SMALLEST_IMAGE`.
    """
    for name, value, least in (
        ("studies", studies, 0),
        ("seed", seed, 0),
        ("image_size", image_size, SMALLEST_IMAGE),
    ):
        if value < least:
            raise UsageError(f"phantom: {name} must be at least {least}, found {value}")
    return (_draw_study(index, seed, image_size) for index in range(studies))


def _draw_study(index: int, seed: int, image_size: int) -> Example:
    choices, anatomy, grain = (np.random.default_rng([seed, index, part]) for part in range(3))
    patient = choose_patient(choices)
    image, findings = render(Anatomy.sample(anatomy), patient, image_size, grain)
    name = f"phantom-{index:06d}"
    return Example(
        image_id=name,
        study=name,
        image=image,
        report=write_report(patient),
        tags=write_tags(patient),
        findings=findings,
    )


def render(
    anatomy: Anatomy,
    patient: Patient,
    image_size: int,
    grain: np.random.Generator,
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Draw one film: the same anatomy and grain with or without the patient's abnormalities.

    Parameters
    ----------
    anatomy, patient
        What to draw; `patient.abnormalities` may be any set that does not overlap.
    image_size
        Pixels per side.
    grain
        The film's noise is drawn from it.

    Returns
    -------
    tuple
        The image, uint8 [image_size, image_size], and one `Finding` per abnormality, in order.
    """
    film = _Film(anatomy, patient, image_size)
    abnormalities = patient.abnormalities
    film.draw_lungs()
    regions = {one: film.draw_inside_lung(one) for one in abnormalities if one.kind in _INSIDE}
    film.draw_chest()
    regions |= {one: film.draw_over_chest(one) for one in abnormalities if one.kind not in _INSIDE}
    findings = tuple(Finding(one.tag, *_box(regions[one])) for one in abnormalities)
    return film.expose(grain), findings


def _box(region: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is clearly inside a region [H, W], in fractions."""
    inside = region > 0.2 * region.max()
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    height, width = region.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


class _Film:
    """The layers of one film; every array is float32 [H, W]."""

    def __init__(self, anatomy: Anatomy, patient: Patient, image_size: int) -> None:
        self.anatomy, self.patient = anatomy, patient
        self.pixel = 2 / (image_size * anatomy.scale)
        axis = (np.arange(image_size, dtype=np.float32) + 0.5) * np.float32(2 / image_size) - 1
        self.x, self.y = axis[None, :], axis[:, None]
        x, y = self.x - anatomy.shift_u, self.y - anatomy.shift_v
        turn = anatomy.rotation
        cos, sin = math.cos(turn) / anatomy.scale, math.sin(turn) / anatomy.scale
        self.u, self.v = cos * x + sin * y, cos * y - sin * x
        self.away = np.abs(self.u)  # from the midline
        self.left = (self.u > 0).astype(np.float32)
        self.light = np.zeros_like(self.u)  # brightness so far
        self._shape_chest()

    def _shape_chest(self) -> None:
        anatomy, patient, away = self.anatomy, self.patient, self.away
        self.diaphragm = patient.inspiration
        self.axis = self.u - patient.spine * np.cos(2 * self.v)  # from the bent spine
        self.thorax = self.outline_gap(0.0)
        self.cavity = self.within(self.thorax, 0.03)
        half = anatomy.lung_width / 2
        arch = self.diaphragm - anatomy.dome * (1 - ((away - half) / half) ** 2)
        self.resting_dome = arch - anatomy.right_dome * (1 - self.left)
        self.dome, heart_size = self.resting_dome, patient.heart
        for one in patient.abnormalities:
            if one.kind == "hemidiaphragm":
                self.dome = self.dome - one.size * self.side(one) * self.cavity
            elif one.kind == "cardiomegaly":
                heart_size = one.size
        self.lungs = self.cavity * self.within(self.v - self.dome, 0.025)
        heart = self.ellipse_gap(
            0.12 + 0.1 * (heart_size - 1) + 0.3 * patient.spine,
            self.diaphragm - 0.35,
            0.40 * heart_size,
            0.28 * heart_size,
            anatomy.heart_tilt,
        )
        self.heart = self.within(heart, 0.03)
        radius = patient.aorta
        knob_away = self.axis - (anatomy.mediastinum + 0.5 * radius - 0.08)
        knob = np.hypot(knob_away, self.v + 0.27) - radius
        trunk = _blend(np.abs(self.axis) - anatomy.mediastinum, knob, 0.08)
        self.central_shadow = self.within(_blend(trunk, heart, 0.12), 0.03)

    def side(self, one: Abnormality) -> np.ndarray:
        """1 on the abnormality's side of the midline, 0 on the other."""
        return self.left if one.side == "left" else 1 - self.left

    # Shapes: a gap is the distance outside a shape, negative inside.

    def within(self, gap: np.ndarray, blur: float) -> np.ndarray:
        """How much of each pixel is inside, 0 to 1, with an edge as soft as `blur`."""
        return np.clip(0.5 - gap / (blur + self.pixel), 0, 1)

    def disc_gap(self, u: float, v: float, radius: float) -> np.ndarray:
        return np.hypot(self.u - u, self.v - v) - radius

    def ellipse_gap(self, u: float, v: float, long: float, short: float, tilt: float) -> np.ndarray:
        cos, sin = math.cos(tilt), math.sin(tilt)
        du, dv = self.u - u, self.v - v
        along, across = (cos * du + sin * dv) / long, (cos * dv - sin * du) / short
        return (np.hypot(along, across) - 1) * short

    def outline_gap(self, collapse: float) -> np.ndarray:
        """Both lungs' outline, shrunk towards the hila by the fraction `collapse`."""
        away = 0.2 + (self.away - 0.2) / (1 - collapse)
        down = 0.15 + (self.v - 0.15) / (1 - collapse)
        half = self.anatomy.lung_width / 2
        return (np.hypot((away - half) / half, (down - 0.25) / self.anatomy.lung_height) - 1) * half

    def line(self, points: Sequence[tuple[float, float]], width: float) -> np.ndarray:
        """A bent line through the points."""
        gap = np.full_like(self.u, np.inf)
        for (u, v), (next_u, next_v) in pairwise(points):
            du, dv = next_u - u, next_v - v
            along = np.clip(((self.u - u) * du + (self.v - v) * dv) / (du**2 + dv**2), 0, 1)
            gap = np.minimum(gap, np.hypot(self.u - u - along * du, self.v - v - along * dv))
        return self.within(gap - width / 2, 0.01)

    def texture(self) -> np.ndarray:
        """An irregular pattern of about -1 to 1 that belongs to the patient: seven waves."""
        total = np.zeros_like(self.u)
        for wave in range(1, 8):
            phase = self.anatomy.texture * wave
            k, turn = 9 + 4.5 * wave, 2.4 * wave + 0.1 * math.sin(phase)
            total += np.cos(k * (math.cos(turn) * self.u + math.sin(turn) * self.v) + phase)
        return total / 2.8

    # Layers

    def cover(self, level: float | np.ndarray, mask: np.ndarray) -> None:
        """Replace the brightness by `level` where the mask is 1."""
        self.light += mask * (level - self.light)

    def draw_lungs(self) -> None:
        """The soft tissue of the trunk, and in it the lungs with their vessels."""
        anatomy, v, away = self.anatomy, self.v, self.away
        outward = np.clip(away - 0.22, 0, 1)
        flank = away - anatomy.lung_width - 0.15 - 0.9 * np.clip(0.1 - v, 0, 1) ** 2
        shoulder = np.minimum(-0.90 + 0.55 * outward**1.5 - v, 4 * (away - 0.24 + 0.1 * v))
        self.body = self.within(np.maximum(flank, shoulder), 0.05)
        self.cover(anatomy.tissue_level + 0.06 - 0.14 * away, self.body)
        self.pattern = self.texture()
        self.cover(anatomy.lung_level - 0.05 * away + 0.05 * v + 0.015 * self.pattern, self.lungs)
        du, dv = np.abs(self.axis) - 0.17, v - 0.05
        reach = np.hypot(du, dv)
        wave = np.cos(8 * np.arctan2(dv, du) + 0.9 * self.pattern + np.sign(self.axis))
        branches = np.clip(wave, 0, 1) ** 2 * np.exp(-3.5 * reach)
        hilum = np.exp(-((reach / 0.13) ** 2))
        self.light += anatomy.vessel_strength * self.lungs * (1.8 * branches + 2.2 * hilum)

    def draw_chest(self) -> None:
        """Ribs, shoulder blades, heart and great vessels, abdomen, spine and clavicles."""
        anatomy, v, away = self.anatomy, self.v, self.away
        self._add_ribs()
        blade = np.maximum(0.62 + 0.20 * (v + 0.6) - away, np.abs(v + 0.28) - 0.36)
        self.light += 0.05 * self.within(blade, 0.03) * self.body
        self.cover(0.71 + 0.04 * v, self.central_shadow * self.body)
        self.cover(0.76 + 0.04 * v, self.within(self.dome - v, 0.025) * self.body)
        bubble = self.within(self.ellipse_gap(0.38, self.diaphragm, 0.15, 0.07, -0.2), 0.06)
        self.light -= anatomy.stomach_air * bubble * self.within(self.dome + 0.04 - v, 0.02)
        vertebra = 0.7 + 0.3 * np.cos(v * (2 * math.pi / 0.135))
        self.light += 0.08 * self.within(np.abs(self.axis) - 0.085, 0.04) * vertebra * self.body
        trachea = self.within(np.abs(self.axis) - 0.035, 0.03) * self.within(v + 0.2, 0.25)
        self.light -= 0.14 * trachea * self.body
        middle = anatomy.clavicle - anatomy.clavicle_rise * np.sin(2.1 * away)
        ends = self.within(np.maximum(0.07 - away, away - 0.9), 0.04)
        self.light += 0.13 * self.within(np.abs(middle - v) - 0.032, 0.02) * ends * self.body

    def _add_ribs(self) -> None:
        anatomy, away = self.anatomy, self.away
        turns, start = 2 * math.pi / anatomy.rib_spacing, 2 * math.pi * anatomy.rib_phase
        back = self.v - anatomy.rib_slope * (1.6 * away - 0.4) * away
        front = self.v - 0.6 * (anatomy.lung_width - away) + 0.3 * away**2
        bands = np.clip(0.35 + 1.4 * np.cos(back * turns + start), 0, 1)
        front_bands = np.clip(0.2 + 1.4 * np.cos(front * turns + start + 2), 0, 1)
        bands += 0.6 * front_bands * self.within(0.42 - away, 0.2)
        cage = self.within(self.thorax - 0.04, 0.05)
        # Bone adds less where the film is bright already.
        self.light += 1.6 * (1 - self.light) * anatomy.rib_strength * bands * cage * self.body

    # Abnormalities: each is drawn, and its region, 0 to 1, returned.

    def draw_inside_lung(self, one: Abnormality) -> np.ndarray:
        """What lies in the pleura or the lung, under the ribs and behind the heart."""
        mirror = 1 if one.side == "left" else -1
        u, v = mirror * one.place[0], one.place[1]
        lung = self.lungs * self.side(one)
        match one.kind:
            case "pleural effusion":  # the meniscus climbs the lateral wall
                across = np.clip(self.away / self.anatomy.lung_width, 0, 1)
                surface = self.diaphragm - one.size * (0.05 + 0.95 * across**2)
                region = lung * self.within(surface - self.v, 0.05)
                self.cover(0.66, region)
            case "pneumothorax":  # air without vessels around a lung with a fine white edge
                edge = self.outline_gap(one.size) + 0.01 * self.pattern
                region = lung * self.within(-edge, 0.01)
                self.cover(0.03, region)
                self.light += 0.4 * one.size * (lung - region)
                self.light += 0.2 * lung * self.within(np.abs(edge) - 0.008, 0.01)
            case "opacity":
                gap = self.ellipse_gap(u, v, 1.15 * one.size, one.size, mirror * 0.6)
                region = lung * self.within(gap + 0.03 * self.pattern, 0.10)
                self.cover(0.58 + 0.04 * self.pattern, region)
            case "lung nodule":
                region = self.within(self.disc_gap(u, v, one.size), 0.03)
                self.cover(0.66, region)
            case "calcified granuloma":
                region = self.within(self.disc_gap(u, v, one.size), 0.01)
                self.cover(1.15, region)
        return region * (1 - self.central_shadow)

    def draw_over_chest(self, one: Abnormality) -> np.ndarray:
        """What shows in the shape of heart or diaphragm, and what lies over the whole chest."""
        match one.kind:
            case "cardiomegaly":
                region = self.heart * self.within(self.v - self.dome, 0.025)
            case "hemidiaphragm":
                resting_lungs = self.cavity * self.within(self.v - self.resting_dome, 0.025)
                region = self.side(one) * (resting_lungs - self.lungs)
            case "pacemaker":
                du, dv = np.abs(self.u - _PACEMAKER[0]), np.abs(self.v - _PACEMAKER[1])
                corner = np.hypot(np.maximum(du - 0.06, 0), np.maximum(dv - 0.035, 0))
                region = np.maximum(self.within(corner - 0.05, 0.01), self.line(_LEAD, 0.024))
                self.cover(1.1, region)
            case "sternal wires":
                knots = [
                    self.line([(-0.045, level + 0.02), (0.045, level)], 0.03)
                    for level in (-0.36, -0.22, -0.08, 0.06, 0.20, 0.34)
                ]
                region = np.maximum.reduce(knots)
                self.cover(1.1, region)
        return region

    def expose(self, grain: np.random.Generator) -> np.ndarray:
        """The film as uint8: exposure, its gradient over the film, and grain."""
        anatomy = self.anatomy
        light = 0.5 + anatomy.contrast * (self.light - 0.5) + anatomy.brightness
        light += anatomy.gradient_u * self.x + anatomy.gradient_v * self.y
        dust = grain.standard_normal(light.shape, dtype=np.float32)
        dust = dust + np.roll(dust, 1, axis=0) + np.roll(dust, 1, axis=1)
        light += anatomy.noise / math.sqrt(3) * dust
        return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blend(one: np.ndarray, other: np.ndarray, radius: float) -> np.ndarray:
    """The gap of the union of two shapes, the corner between them filled by a fillet."""
    share = np.clip(0.5 + (other - one) / (2 * radius), 0, 1)
    return other + share * (one - other) - radius / 2 * share * (1 - share)
