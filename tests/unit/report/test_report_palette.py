"""The hues stay apart for people who see fewer colours: simulated, and measured as a trained eye would."""

import itertools
import math

import pytest

from curlora_lab.report.palette import DARK, DASHES, LIGHT, LINESTYLES, MARKERS, SYMBOLS, dash, hue

Colour = tuple[float, float, float]

#: Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB; rows give red, green, blue.
BLINDNESS: dict[str, tuple[Colour, Colour, Colour]] = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)


def linear(colour: str) -> Colour:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return red, green, blue


def times(matrix: tuple[Colour, Colour, Colour], vector: Colour) -> Colour:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)
    return x, y, z


def lab(colour: str, blindness: str) -> Colour:
    """CIELAB (D65) of a colour as it is seen."""
    red, green, blue = (min(1.0, max(0.0, part)) for part in times(BLINDNESS[blindness], linear(colour)))
    f = [
        t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
        for t in (part / white for part, white in zip(times(XYZ, (red, green, blue)), WHITE, strict=True))
    ]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def difference(one: Colour, other: Colour) -> float:
    """CIEDE2000."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean_chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * math.sqrt(mean_chroma**7 / (mean_chroma**7 + 25**7))
    c1, c2 = math.hypot(g * a1, b1), math.hypot(g * a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    lightness, chroma, both = (l1 + l2) / 2, (c1 + c2) / 2, c1 * c2
    turn = (h2 - h1 + 180) % 360 - 180 if both else 0.0
    mean_hue = (h1 + turn / 2) % 360 if both else h1 + h2
    t = 1 + sum(
        weight * math.cos(math.radians(k * mean_hue + shift))
        for weight, k, shift in ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    )
    sl = 1 + 0.015 * (lightness - 50) ** 2 / math.sqrt(20 + (lightness - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = -2 * math.sqrt(chroma**7 / (chroma**7 + 25**7))
    rotation *= math.sin(math.radians(60 * math.exp(-(((mean_hue - 275) / 25) ** 2))))
    dl, dc = (l2 - l1) / sl, (c2 - c1) / sc
    dh = 2 * math.sqrt(both) * math.sin(math.radians(turn / 2)) / sh
    return math.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ],
)
def test_the_measure_is_the_published_one(one: Colour, other: Colour, expected: float) -> None:
    """Pairs of Sharma, Wu and Dalal (2005)."""
    assert difference(one, other) == pytest.approx(expected, abs=1e-4)


#: CIEDE2000; about 1 is just visible side by side, 2 at a glance.
NEIGHBOURS, FIRST_FOUR = 7.5, 6.0


@pytest.mark.parametrize("blindness", BLINDNESS)
@pytest.mark.parametrize("hues", [LIGHT, DARK], ids=["light", "dark"])
def test_hues_that_follow_each_other_stay_apart(hues: tuple[str, ...], blindness: str) -> None:
    seen = [lab(colour, blindness) for colour in hues]
    neighbours = [difference(seen[k], seen[(k + 1) % len(seen)]) for k in range(len(seen))]
    assert min(neighbours) >= NEIGHBOURS, neighbours
    four = [difference(one, other) for one, other in itertools.combinations(seen[:4], 2)]
    assert min(four) >= FIRST_FOUR, four


def test_the_simulation_can_fail() -> None:
    """Red and green of equal lightness, which is what the hues must not be."""
    red, green = (lab(colour, "deutan") for colour in ("#b05a00", "#6b7d00"))
    assert difference(red, green) < NEIGHBOURS < difference(lab("#b05a00", "none"), lab("#6b7d00", "none"))


def test_colour_is_never_the_only_difference() -> None:
    """Of eight hues some look alike to some people; each has a mark of its own, and the next eight another dash."""
    assert len(set(SYMBOLS)) == len(set(MARKERS)) == len(LIGHT) == len(DARK) == 8
    assert len(set(DASHES)) == len(set(LINESTYLES)) == 5
    styles = {(hue(k), dash(k)) for k in range(40)}
    assert len(styles) == 40
