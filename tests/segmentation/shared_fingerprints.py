"""Fingerprints of data sets whose cases are all of one shape."""

from raykb.segmentation.fingerprint import Fingerprint, Intensities

CT = Intensities(-900.0, 40.0, 300.0, 50.0, 100.0)


def uniform(
    shape, spacing_mm, *, cases=100, modalities=("MRI",), labels=2, relative_size=1.0
) -> Fingerprint:
    return Fingerprint(
        shapes=(shape,) * cases,
        spacings_mm=(tuple(map(float, spacing_mm)),) * cases,
        modalities=modalities,
        intensities=(CT,) * len(modalities),
        labels=labels,
        relative_size=relative_size,
    )
