"""Rendering the phantom's films: chest radiographs with findings at known positions.

A film is drawn in patient coordinates, so it shows the same anatomy at any image size: the image
is 2 units wide, (0, 0) is its centre, u grows towards the patient's left (the right of the image)
and v downwards. Brightness is 0 (black: air) to 1 (white: metal) and is built up in layers from
the soft tissue to the devices. An abnormality changes the shape of a layer (heart, diaphragm) or
adds one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np

from raymed.data.examples import Finding
from raymed.data.sources.phantom_reports import Abnormality, Patient

_PACEMAKER = (0.54, -0.44)
_LEAD = (
    (0.46, -0.44), (0.38, -0.53), (0.25, -0.57), (0.08, -0.53), (-0.05, -0.42), (-0.11, -0.20),
    (-0.11, 0.12), (-0.05, 0.32), (0.08, 0.43), (0.26, 0.48),
)  # fmt: skip

_INSIDE = ("pleural effusion", "pneumothorax", "opacity", "lung nodule", "calcified granuloma")
"""Kinds that are drawn inside a lung, before the ribs and the heart."""


def _between(low: float, high: float) -> Any:
    return field(metadata={"range": (low, high)})


@dataclass(frozen=True)
class Anatomy:
    """One patient and one exposure: everything that varies between films, except abnormalities."""

    rotation: float = _between(-0.07, 0.07)  # radians
    scale: float = _between(0.92, 1.06)
    shift_u: float = _between(-0.05, 0.05)
    shift_v: float = _between(-0.05, 0.05)
    lung_width: float = _between(0.76, 0.85)  # from the midline to the lateral wall
    lung_height: float = _between(0.96, 1.06)  # from the apex to the widest point
    heart_tilt: float = _between(0.5, 0.8)  # radians below the horizontal
    dome: float = _between(0.16, 0.24)  # height of the domes above the angles
    right_dome: float = _between(0.01, 0.05)  # how much higher the right one is
    mediastinum: float = _between(0.11, 0.14)
    rib_spacing: float = _between(0.150, 0.185)
    rib_phase: float = _between(0.0, 1.0)
    rib_slope: float = _between(0.30, 0.48)
    rib_strength: float = _between(0.05, 0.10)
    clavicle: float = _between(-0.68, -0.60)  # level of the sternal ends
    clavicle_rise: float = _between(0.10, 0.24)
    texture: float = _between(1.0, 100.0)  # selects the pattern of the lungs
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
        """Sample every value uniformly from its normal range."""
        return cls(**{value.name: rng.uniform(*value.metadata["range"]) for value in fields(cls)})


def render(
    anatomy: Anatomy,
    patient: Patient,
    image_size: int,
    grain: np.random.Generator,
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Draw one film. Anatomy and grain do not depend on the patient's abnormalities.

    Args:
        anatomy: The patient's anatomy and the exposure.
        patient: Build and abnormalities; the abnormalities must not overlap.
        image_size: Pixels per side.
        grain: Generator of the film's noise.

    Returns:
        The image, uint8 [image_size, image_size], and one `Finding` per abnormality, in order.
    """
    film = _Film(anatomy, patient, image_size)
    abnormalities = patient.abnormalities
    film.draw_lungs()
    inside = [abnormality for abnormality in abnormalities if abnormality.kind in _INSIDE]
    over = [abnormality for abnormality in abnormalities if abnormality.kind not in _INSIDE]
    regions = {abnormality: film.draw_inside_lung(abnormality) for abnormality in inside}
    film.draw_chest()
    regions |= {abnormality: film.draw_over_chest(abnormality) for abnormality in over}
    findings = tuple(
        Finding(abnormality.tag, *_bounding_box(regions[abnormality]))
        for abnormality in abnormalities
    )
    return film.expose(grain), findings


def _bounding_box(region: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the clear part of a region [H, W], as fractions."""
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
    """The layers of one film. All arrays are float32 [H, W]."""

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
        for abnormality in patient.abnormalities:
            if abnormality.kind == "hemidiaphragm":
                raised = abnormality.size * self.side(abnormality) * self.cavity
                self.dome = self.dome - raised
            elif abnormality.kind == "cardiomegaly":
                heart_size = abnormality.size
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

    def side(self, abnormality: Abnormality) -> np.ndarray:
        """1 on the abnormality's side of the midline, 0 on the other side."""
        return self.left if abnormality.side == "left" else 1 - self.left

    # Shapes. A gap is the signed distance from a shape: positive outside, negative inside.

    def within(self, gap: np.ndarray, blur: float) -> np.ndarray:
        """Coverage of each pixel, 0 to 1, with an edge softened by `blur`."""
        return np.clip(0.5 - gap / (blur + self.pixel), 0, 1)

    def disc_gap(self, u: float, v: float, radius: float) -> np.ndarray:
        return np.hypot(self.u - u, self.v - v) - radius

    def ellipse_gap(self, u: float, v: float, long: float, short: float, tilt: float) -> np.ndarray:
        cos, sin = math.cos(tilt), math.sin(tilt)
        du, dv = self.u - u, self.v - v
        along, across = (cos * du + sin * dv) / long, (cos * dv - sin * du) / short
        return (np.hypot(along, across) - 1) * short

    def outline_gap(self, collapse: float) -> np.ndarray:
        """Outline of both lungs, shrunk towards the hila by the fraction `collapse`."""
        away = 0.2 + (self.away - 0.2) / (1 - collapse)
        down = 0.15 + (self.v - 0.15) / (1 - collapse)
        half = self.anatomy.lung_width / 2
        return (np.hypot((away - half) / half, (down - 0.25) / self.anatomy.lung_height) - 1) * half

    def line(self, points: Sequence[tuple[float, float]], width: float) -> np.ndarray:
        """A polyline through the points."""
        gap = np.full_like(self.u, np.inf)
        for (u, v), (next_u, next_v) in pairwise(points):
            du, dv = next_u - u, next_v - v
            along = np.clip(((self.u - u) * du + (self.v - v) * dv) / (du**2 + dv**2), 0, 1)
            gap = np.minimum(gap, np.hypot(self.u - u - along * du, self.v - v - along * dv))
        return self.within(gap - width / 2, 0.01)

    def texture(self) -> np.ndarray:
        """An irregular pattern specific to the patient, about -1 to 1: a sum of seven waves."""
        total = np.zeros_like(self.u)
        for wave in range(1, 8):
            phase = self.anatomy.texture * wave
            k, turn = 9 + 4.5 * wave, 2.4 * wave + 0.1 * math.sin(phase)
            total += np.cos(k * (math.cos(turn) * self.u + math.sin(turn) * self.v) + phase)
        return total / 2.8

    # Layers

    def cover(self, level: float | np.ndarray, mask: np.ndarray) -> None:
        """Blend the brightness towards `level` by the mask (0 to 1)."""
        self.light += mask * (level - self.light)

    def draw_lungs(self) -> None:
        """Draw the soft tissue of the trunk, and the lungs with their vessels."""
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
        """Draw ribs, shoulder blades, heart and great vessels, abdomen, spine and clavicles."""
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
        # Bone adds less where the film is already bright.
        self.light += 1.6 * (1 - self.light) * anatomy.rib_strength * bands * cage * self.body

    # Abnormalities. Each method draws one and returns its region, 0 to 1.

    def draw_inside_lung(self, abnormality: Abnormality) -> np.ndarray:
        """Draw an abnormality of the pleura or lung, which lies below the ribs and the heart."""
        mirror = 1 if abnormality.side == "left" else -1
        u, v = mirror * abnormality.position[0], abnormality.position[1]
        size, lung = abnormality.size, self.lungs * self.side(abnormality)
        match abnormality.kind:
            case "pleural effusion":  # the meniscus climbs the lateral wall
                across = np.clip(self.away / self.anatomy.lung_width, 0, 1)
                surface = self.diaphragm - size * (0.05 + 0.95 * across**2)
                region = lung * self.within(surface - self.v, 0.05)
                self.cover(0.66, region)
            case "pneumothorax":  # air without vessels around a lung with a fine white edge
                edge = self.outline_gap(size) + 0.01 * self.pattern
                region = lung * self.within(-edge, 0.01)
                self.cover(0.03, region)
                self.light += 0.4 * size * (lung - region)
                self.light += 0.2 * lung * self.within(np.abs(edge) - 0.008, 0.01)
            case "opacity":
                gap = self.ellipse_gap(u, v, 1.15 * size, size, mirror * 0.6)
                region = lung * self.within(gap + 0.03 * self.pattern, 0.10)
                self.cover(0.58 + 0.04 * self.pattern, region)
            case "lung nodule":
                region = self.within(self.disc_gap(u, v, size), 0.03)
                self.cover(0.66, region)
            case "calcified granuloma":
                region = self.within(self.disc_gap(u, v, size), 0.01)
                self.cover(1.15, region)
        return region * (1 - self.central_shadow)

    def draw_over_chest(self, abnormality: Abnormality) -> np.ndarray:
        """Draw a change of the heart or diaphragm, or a device over the whole chest."""
        match abnormality.kind:
            case "cardiomegaly":
                region = self.heart * self.within(self.v - self.dome, 0.025)
            case "hemidiaphragm":
                resting_lungs = self.cavity * self.within(self.v - self.resting_dome, 0.025)
                region = self.side(abnormality) * (resting_lungs - self.lungs)
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
        """Return the film as uint8, after exposure, its gradient and grain."""
        anatomy = self.anatomy
        light = 0.5 + anatomy.contrast * (self.light - 0.5) + anatomy.brightness
        light += anatomy.gradient_u * self.x + anatomy.gradient_v * self.y
        dust = grain.standard_normal(light.shape, dtype=np.float32)
        dust = dust + np.roll(dust, 1, axis=0) + np.roll(dust, 1, axis=1)
        light += anatomy.noise / math.sqrt(3) * dust
        return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blend(first: np.ndarray, second: np.ndarray, radius: float) -> np.ndarray:
    """Gap of the union of two shapes, with the corner between them rounded by a fillet."""
    share = np.clip(0.5 + (second - first) / (2 * radius), 0, 1)
    return second + share * (first - second) - radius / 2 * share * (1 - share)
