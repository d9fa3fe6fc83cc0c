"""Colours and marks of all pictures: the page in light and dark, and figures on paper.

The eight hues follow Okabe and Ito (2008); the light ones are darkened and the dark ones lightened until each has a contrast of
at least 3 : 1 against its background (WCAG 2.2, graphical objects). With protanopia, deuteranopia or tritanopia (simulated) hues
that follow each other still differ by 7.5 in CIEDE2000, and any two of the first four by 6; some that are farther apart look
alike then. Series differ by mark and dash as well, so that colour is never the only difference.
"""

LIGHT = ("#0072b2", "#c94f00", "#00805f", "#a8487f", "#946200", "#2a82ab", "#5d4bb0", "#4d5660")
DARK = ("#58b4ea", "#ff9257", "#38c99d", "#e59bc6", "#f0b63e", "#8fd4f5", "#b3a6f5", "#b9c2cb")

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "x")
"""Marks by index, as plotly names them."""
MARKERS = ("o", "s", "D", "^", "P", "*", "v", "X")
"""The same as matplotlib names them."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""Dashes as plotly names them; they change once the hues are used up."""
LINESTYLES = ("-", "--", ":", "-.", (0, (8, 3)))
"""The same for matplotlib."""

SEQUENTIAL_LIGHT = ("#f1efea", "#b4dad2", "#4aa394")
SEQUENTIAL_DARK = ("#1f262d", "#1e4a4a", "#1d6d66")
"""From nothing to much, in the colour of the page's accent; numbers in the colour of text are readable on all of it."""


def hue(index: int) -> int:
    """Place of a series' colour among the eight hues."""
    return index % len(LIGHT)


def dash(index: int) -> int:
    """Place of a series' dash: the first for the first eight series, the second for the next eight, ..."""
    return index // len(LIGHT) % len(DASHES)
