"""How robust a classifier is: its errors on corrupted images, in units of a weaker network's.

Dan Hendrycks, Thomas Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, arXiv 1903.12261, section 4.3:

    CE_c = sum_s E_sc / sum_s E_sc^AlexNet        mCE = mean of CE_c over the corruptions c

    E_sc   share of errors at severity s of corruption c

Departures: a share here, where the paper writes percent: AlexNet's own is 1.
"""

import math
from collections.abc import Mapping, Sequence

# Mean over severities of AlexNet's errors on ImageNet-C, as the code of AugMix has them (Hendrycks,
# Mu, Cubuk, Zoph, Gilmer, Lakshminarayanan, ICLR 2020, arXiv 1912.02781).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], baseline: Mapping[str, float] | None = ALEXNET
) -> float:
    """Return the mean over corruptions of the mean error, in units of the baseline's.

    Args:
        errors: by corruption, the share of errors in [0, 1] at each severity.
        baseline: by corruption, the mean over severities of another network's; None for the plain
            mean of errors, as results on small images are given.

    Raises:
        ValueError: the corruptions are not those of the baseline, an error is no share, or there is
            none to take a mean of.
    """
    units = dict.fromkeys(errors, 1.0) if baseline is None else baseline
    if problems := _problems(errors, units):
        raise ValueError("; ".join(problems))
    ratios = [math.fsum(row) / len(row) / units[name] for name, row in errors.items()]
    return math.fsum(ratios) / len(ratios)


def _problems(errors: Mapping[str, Sequence[float]], units: Mapping[str, float]) -> list[str]:
    missing, unknown = units.keys() - errors.keys(), errors.keys() - units.keys()
    problems = [] if errors else ["errors: none, must be a row for each corruption"]
    if missing:
        problems.append(f"errors: no {', '.join(sorted(missing))}, must have all of the baseline")
    if unknown:
        problems.append(f"errors: {', '.join(sorted(unknown))} unknown to the baseline")
    for name, row in errors.items():
        if not row or not all(0 <= error <= 1 for error in row):
            problems.append(
                f"errors of {name}: {list(row)}, must be shares in [0, 1], at least one"
            )
    for name, unit in units.items():
        if not unit > 0:
            problems.append(f"baseline of {name}: {unit}, must be above 0")
    return problems
