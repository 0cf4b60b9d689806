"""The ramp of the picture, as people with the three kinds of colour blindness see it."""

import re

import numpy as np
import pytest

from lightning_gradguard.tensorboard.assets import STATIC

# Severity 1.0 of Machado, Oliveira and Fernandes 2009, doi:10.1109/TVCG.2009.113, on linear sRGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ @ np.ones(3)


def lab(colours, sight):
    """CIE L*a*b* of sRGB colours in hex, as seen with one kind of sight."""
    values = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1) @ XYZ.T / WHITE
    f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def themes():
    source = (STATIC / "palette.js").read_text()
    for name in ("LIGHT", "DARK"):
        block = source[source.index(f"const {name} =") :]
        stops = re.findall(r"#[0-9a-f]{6}", re.search(r"diverging: \[(.*?)\]", block)[1])
        nonfinite = re.search(r'nonfinite: "(#[0-9a-f]{6})"', block)[1]
        zero = re.search(r'zero: \["(#[0-9a-f]{6})"', block)[1]
        yield name.lower(), stops, nonfinite, zero


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(("theme", "stops", "nonfinite", "zero"), list(themes()), ids=["light", "dark"])
def test_less_and_more_are_told_apart_at_every_distance_from_the_middle(theme, stops, nonfinite, zero, sight):
    colours = lab(stops, sight)
    for distance in range(1, 5):
        assert np.linalg.norm(colours[4 - distance] - colours[4 + distance]) > 20, (theme, distance)
    steps = np.linalg.norm(np.diff(colours, axis=0), axis=1)
    assert steps.min() > 6, f"{theme}: neighbours {steps.argmin()} and {steps.argmin() + 1} look alike"


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(("theme", "stops", "nonfinite", "zero"), list(themes()), ids=["light", "dark"])
def test_nan_and_zero_are_no_colour_of_the_ramp(theme, stops, nonfinite, zero, sight):
    colours, (bad, nothing) = lab(stops, sight), lab([nonfinite, zero], sight)
    assert np.linalg.norm(colours - bad, axis=1).min() > 15
    assert np.linalg.norm(colours - nothing, axis=1).min() > 12
    assert np.linalg.norm(bad - nothing) > 40
