"""NIfTI files as arrays: their own numbers, one order of axes, and the way back to the file's own.

    file      (X, Y, Z) or (X, Y, Z, C)            along the axes of its affine: LAS, oblique, …
    array     label (Z, Y, X), image (C, Z, Y, X)  towards superior, anterior and right

A file with a qform and an sform is taken by the latter, as nibabel does; it is refused where they
differ in which axis points where, for then nobody knows which side is right.

Arrays have the file's numbers in the file's order in memory: no copy is made unless an axis has to
be turned. Whatever is made of them goes back by :class:`Geometry` with the affine of the file.

nibabel, which reads and writes, is in the extra ``medical`` and is asked for on use.
"""

import gzip
import importlib.util
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raykb.engine.foreign import MOST_INFLATED
from raykb.later import Later

# all else of raykb.data goes without it
nibabel: Any = Later("nibabel") if importlib.util.find_spec("nibabel") else None

_NEAR = 1e-3  # what a label that is stored as a float may be off a whole number
MOST_BYTES = 2**33
"""Of the voxels of a file."""

_MOST_BEFORE = 2**20  # bytes before the voxels: the header, and what else is said of them
_HEADER_BYTES = 540  # of NIfTI-2; that of NIfTI-1 has 348

_APART = 0.1  # of the finest spacing: how far corners of one grid may lie apart

Triple = tuple[int, int, int]


def require_nibabel() -> None:
    """Raise ImportError, which says the remedy, unless nibabel is installed."""
    if nibabel is None:
        raise ImportError(
            "volumes: NIfTI files are read with nibabel, which is not installed; "
            "run: pip install 'raykb[medical]'"
        )


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxels of a file lie in space.

    Attributes:
        file_shape: (X, Y, Z), as the file has its axes.
        affine: (4, 4) float64, from the numbers (x, y, z, 1) of a voxel in the file to mm towards
            right, anterior and superior.

    Raises:
        ValueError: the affine is singular or not finite, so that no axis has a direction.
    """

    file_shape: Triple
    affine: np.ndarray

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all() or np.linalg.matrix_rank(self.affine[:3, :3]) < 3:
            raise ValueError(
                f"affine: {self.affine.tolist()}, must be finite and give each axis a direction of "
                "its own; write the file again with the scanner's"
            )

    @property
    def orientation(self) -> str:
        """Where the axes of the file point to, nearest: ``LAS``, or the like."""
        return "".join(map(str, nibabel.aff2axcodes(self.affine)))

    @property
    def shape(self) -> Triple:
        """Z, Y and X of the array."""
        x, y, z = (self.file_shape[axis] for axis in self._file_axes)
        return z, y, x

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres between voxels of the array along Z, Y and X."""
        norms = np.linalg.norm(self.affine[:3, :3], axis=0)  # of the file's axes
        x, y, z = (float(norms[axis]) for axis in self._file_axes)
        return z, y, x

    @property
    def _file_axes(self) -> list[int]:
        """The axes of the file that are the array's X, Y and Z."""
        order: list[int] = np.argsort(self._from_file[:, 0]).tolist()
        return order

    @property
    def _from_file(self) -> np.ndarray:
        """Of each axis of the file which one it becomes, and whether it is turned: (3, 2)."""
        return np.asarray(nibabel.io_orientation(self.affine))

    def to_array(self, data: np.ndarray) -> np.ndarray:
        """Return the file's (X, Y, Z) or (X, Y, Z, C) as (Z, Y, X) or (C, Z, Y, X)."""
        turned: np.ndarray = nibabel.orientations.apply_orientation(data, self._from_file)
        array: np.ndarray = turned.T
        return array

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Return what :meth:`to_array` was given.

        Raises:
            ValueError: the array has not the shape of the file.
        """
        if array.shape[-3:] != self.shape:
            raise ValueError(
                f"array: of shape {array.shape}, must end in {self.shape}, the Z, Y and X of the "
                "file that it belongs to"
            )
        axes = nibabel.orientations
        back = axes.ornt_transform(axes.axcodes2ornt("RAS"), self._from_file)
        data: np.ndarray = axes.apply_orientation(array.T, back)
        return data

    def differences(self, other: "Geometry") -> list[str]:
        """Return what tells the two apart; empty if voxels of one number are at one place."""
        if self.file_shape != other.file_shape:
            return [f"shape {other.file_shape}, not {self.file_shape}"]
        corners = np.array([(*index, 1) for index in np.ndindex(2, 2, 2)], float)  # (8, 4)
        corners[:, :3] *= np.array(self.file_shape) - 1
        apart = corners @ (self.affine - other.affine)[:3].T  # (8, 3), in mm
        furthest = float(np.linalg.norm(apart, axis=1).max())
        if furthest <= _APART * min(self.spacing_mm):
            return []
        axes = self.orientation, other.orientation
        turned = f" ({axes[1]}, not {axes[0]})" if axes[0] != axes[1] else ""
        return [f"an affine that puts corners {furthest:.3g} mm away{turned}"]


class Volume(NamedTuple):
    """What a file holds."""

    array: np.ndarray  # (C, Z, Y, X) of an image, (Z, Y, X) of a label
    geometry: Geometry


def read_image(path: Path) -> Volume:
    """Return an image as (C, Z, Y, X): C modalities, one if the file has three axes.

    Numbers have the file's type; where it has a slope or intercept they are applied, as float32.

    Raises:
        ImportError: nibabel is not installed.
        ValueError: the file is missing, truncated or no NIfTI of three or four axes, or holds what
            is no finite number; it is named.
    """
    with _named(path):
        image, geometry = _opened(path)
        if _is_scaled(image):
            data = np.asarray(image.dataobj, np.float32)
        else:
            data = _native(np.asanyarray(image.dataobj))
        data = data.reshape(*data.shape[:3], -1, order="F")  # no copy: channels last
        strange = int(data.size - np.isfinite(data).sum()) if data.dtype.kind == "f" else 0
        if strange:
            raise ValueError(f"has {strange} voxels that are no finite numbers; repair it")
        return Volume(geometry.to_array(data), geometry)


def read_label(path: Path) -> Volume:
    """Return a label as whole numbers (Z, Y, X); those stored as floats are rounded and checked.

    Raises:
        ImportError: nibabel is not installed.
        ValueError: the file is missing, truncated or no NIfTI of three axes, has a slope or
            intercept, or holds what is no whole number; it is named.
    """
    with _named(path):
        image, geometry = _opened(path)
        if _is_scaled(image):
            raise ValueError(
                f"has scl_slope {image.dataobj.slope:g} and scl_inter {image.dataobj.inter:g}, "
                "which a label must not have; write it again without them"
            )
        data = _native(np.asanyarray(image.dataobj))
        if data.size > math.prod(data.shape[:3]):
            raise ValueError(f"has the shape {data.shape}, a label must have three axes")
        data = data.reshape(data.shape[:3], order="F")
        return Volume(geometry.to_array(_whole(data)), geometry)


def _whole(data: np.ndarray) -> np.ndarray:
    """Return whole numbers; floats are rounded where they are so nearly."""
    if data.dtype.kind != "f":
        return data
    rounded: np.ndarray = np.rint(data)
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(data - rounded) <= _NEAR)  # NaN is, too
    if off.any():
        raise ValueError(f"has {data[off][0]:g} for a label, must be a whole number; repair it")
    return rounded.astype(np.int32)


def write_nifti(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a label (Z, Y, X) or an image (C, Z, Y, X) in the geometry of a file; atomically.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``; its folder is made.
        array: bool is written as uint8, int64 as int32, float16 as float32.
        geometry: of the file that it belongs to, whose order of axes and affine it gets.

    Raises:
        ImportError: nibabel is not installed.
        ValueError: the array has another shape, or whole numbers too large to be written.
    """
    require_nibabel()
    data = geometry.to_file(_writable(array))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    image = nibabel.Nifti1Image(data, geometry.affine)
    image.header.set_xyzt_units("mm")
    try:
        nibabel.save(image, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _writable(array: np.ndarray) -> np.ndarray:
    """Return an array of a type that every reader of NIfTI knows."""
    kinds = {"bool": np.uint8, "int64": np.int32, "float16": np.float32}
    written = array.astype(kinds.get(array.dtype.name, array.dtype))
    if array.dtype.kind == "i" and not np.array_equal(written, array):
        raise ValueError("array: has numbers above those of int32; must be labels or smaller ones")
    return written


def check_size(path: Path) -> None:
    """Refuse a file that says it is larger than it can be, before memory is taken for that.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no plain file, or not of NIfTI by its name, or its header says what no
            such file holds.
    """
    if path.exists() and not path.is_file():
        raise ValueError("is no plain file")
    packed = path.name.lower().endswith(".gz")
    if not _is_one_file(path):
        return  # it is refused for that
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            header = _header(file.read(_HEADER_BYTES))
    except (gzip.BadGzipFile, EOFError, KeyError, nibabel.wrapstruct.WrapStructError):
        header = None
    if header is None:
        return  # nibabel does not read it either, and says why
    start, needed = float(header["vox_offset"]), math.prod(map(int, header.get_data_shape()))
    needed *= header.get_data_dtype().itemsize
    most = path.stat().st_size * (MOST_INFLATED if packed else 1)
    if not 0 <= start <= _MOST_BEFORE or not 0 <= needed <= min(most, MOST_BYTES):
        raise ValueError(
            f"is truncated or damaged: it says that {needed} bytes of voxels follow after "
            f"{start:g}; so small a file holds {most} at most, and of no file are more than "
            f"{MOST_BYTES} read, after {_MOST_BEFORE}. Bring it back from where it came"
        )


def _header(head: bytes) -> Any:
    """Return the header that a file begins with; None if it is no NIfTI."""
    kinds = [nibabel.Nifti1Header, nibabel.Nifti2Header]
    found = [kind for kind in kinds if kind.may_contain_header(head)]
    return found[0](head[: found[0].sizeof_hdr], check=False) if found else None


def _is_one_file(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".nii")


def _opened(path: Path) -> tuple[Any, Geometry]:
    """Return an image whose data are still in the file, and where these lie."""
    check_size(path)
    image: Any = nibabel.load(path)  # an image of any format
    if not isinstance(image, nibabel.Nifti1Pair):
        raise ValueError(f"is {type(image).__name__}, must be NIfTI; convert it")
    if not _is_one_file(path):
        raise ValueError("must be NIfTI in one file, .nii or .nii.gz; convert it")
    shape = image.shape
    if len(shape) < 3 or 0 in shape or sum(length > 1 for length in shape[3:]) > 1:
        raise ValueError(f"has the shape {shape}, must be (X, Y, Z) or (X, Y, Z, C)")
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"has numbers of type {image.get_data_dtype()}, must be plain ones")
    forms = [image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]]
    towards = ["".join(map(str, nibabel.aff2axcodes(form))) for form in forms if form is not None]
    if len(set(towards)) > 1:
        raise ValueError(
            f"has axes towards {towards[0]} by its qform and {towards[1]} by its sform, must be of "
            "one mind; find out which is right, and write it again with that alone"
        )
    x, y, z = shape[:3]
    return image, Geometry((x, y, z), np.asarray(image.affine, float))


def _is_scaled(image: Any) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1, 0)


def _native(data: np.ndarray) -> np.ndarray:
    """Return numbers in this machine's order of bytes, of eight of them at most."""
    kind = np.dtype(float) if data.dtype.itemsize > 8 else data.dtype.newbyteorder("=")
    return data.astype(kind, order="K", copy=False)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which file an error in reading is."""
    require_nibabel()
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing") from None
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
    ) as error:
        raise ValueError(f"{path}: cannot be read as NIfTI: {error}") from error
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: is truncated or damaged: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
