"""NIfTI: numbers as they are, axes in one order, and predictions back where the file lies."""

import gzip
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from shared_volumes import AFFINE, geometry, labels, numbered, save

from raykb.data import nifti
from raykb.data.nifti import Geometry, read_image, read_label, write_nifti

FILE = np.arange(4 * 5 * 6).reshape(4, 5, 6)  # (X, Y, Z)
RAS = np.diag([0.8, 0.8, 2.5, 1.0])


def turned(degrees):
    """An oblique affine, about two axes."""
    a, b = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0, 0], [0, a, -b, 0], [0, b, a, 0], [0, 0, 0, 1]])
    about_z = np.array([[a, -b, 0, 0], [b, a, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return about_x @ about_z @ np.diag([-1.2, 1, 3, 1])


def permuted(codes):
    """An affine whose axes point to ``codes``, with spacings of 1, 2 and 3 mm."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        world, backwards = divmod("RLAPSI".index(code), 2)
        affine[world, axis] = (axis + 1.0) * (-1 if backwards else 1)
    affine[:3, 3] = [5, -6, 7]
    return affine


AFFINES = {
    "RAS": RAS,
    "LAS": AFFINE,
    "LPS": permuted("LPS"),
    "PIR": permuted("PIR"),
    "SLA": permuted("SLA"),
    "oblique": turned(12),
}


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_numbers_have_the_type_of_the_file(tmp_path, kind):
    path = save(tmp_path / "a.nii.gz", FILE.astype(kind), RAS)
    array = read_image(path).array
    assert array.dtype == np.dtype(kind).newbyteorder("=")
    assert np.array_equal(array[0], FILE.T)


@pytest.mark.parametrize("name", AFFINES)
def test_axes_of_an_array_ascend_towards_superior_anterior_and_right(tmp_path, name):
    affine = AFFINES[name]
    index = np.stack([*np.indices(FILE.shape), np.ones(FILE.shape)], -1)
    world = (index @ affine.T)[..., :3].astype(np.float32)  # (X, Y, Z, 3): R, A, S of each voxel
    array, where = read_image(save(tmp_path / "a.nii", world, affine))
    for axis, coordinate in ((1, 2), (2, 1), (3, 0)):
        steps = np.diff(array[coordinate], axis=axis - 1)
        assert (steps > 0).all()
    moved = [np.linalg.norm(np.diff(array, axis=axis), axis=0).mean() for axis in (1, 2, 3)]
    assert np.allclose(moved, where.spacing_mm, rtol=1e-5)
    assert array.shape[1:] == where.shape


@pytest.mark.parametrize("name", AFFINES)
def test_what_is_written_lies_where_the_file_does(tmp_path, name):
    affine = AFFINES[name]
    label = (FILE % 3).astype(np.uint8)
    array, where = read_label(save(tmp_path / "a.nii.gz", label, affine))
    write_nifti(tmp_path / "new" / "b.nii.gz", array, where)
    back = nibabel.load(tmp_path / "new" / "b.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), label)
    assert np.array_equal(back.affine, where.affine)
    assert np.allclose(back.affine, affine, atol=1e-5)
    assert back.header.get_zooms()[:3] == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0))
    assert back.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("name", ["RAS", "SLA"])
def test_modalities_come_first_and_go_back_last(tmp_path, name):
    data = np.stack([FILE + 1000 * channel for channel in range(3)], -1).astype(np.int16)
    array, where = read_image(save(tmp_path / "a.nii.gz", data, AFFINES[name]))
    assert array.shape == (3, *where.shape)
    assert [int(channel.min()) for channel in array] == [0, 1000, 2000]
    write_nifti(tmp_path / "b.nii.gz", array, where)
    assert np.array_equal(np.asanyarray(nibabel.load(tmp_path / "b.nii.gz").dataobj), data)


def test_modalities_may_be_the_fifth_axis_as_of_vectors(tmp_path):
    data = np.stack([FILE, FILE + 1000], -1).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", data[..., None, :], AFFINES["SLA"])
    array, where = read_image(path)
    assert np.array_equal(array[1], where.to_array(data)[1])
    with pytest.raises(ValueError, match=r"has the shape \(4, 5, 6, 2, 2\), must be"):
        read_image(save(tmp_path / "b.nii", np.stack([data, data], -1), RAS))


def test_two_affines_of_one_file_must_agree_which_side_is_right(tmp_path):
    near = AFFINE.copy()
    near[0, 3] += 20  # as of a scan, and of it laid over an atlas
    for qform, sform, right in ((AFFINE, near, True), (AFFINE, AFFINE @ np.diag([-1, 1, 1, 1]), 0)):
        image = nibabel.Nifti1Image(FILE.astype(np.int16), None)
        image.set_qform(qform, 1)
        image.set_sform(sform, 2)
        nibabel.save(image, tmp_path / "a.nii")
        if right:
            assert np.allclose(read_image(tmp_path / "a.nii").geometry.affine, sform)
            continue
        with pytest.raises(
            ValueError, match=r"a.nii: has axes towards LAS by its qform and RAS by"
        ):
            read_image(tmp_path / "a.nii")


def test_an_array_towards_right_anterior_superior_is_no_copy(tmp_path):
    array = read_image(save(tmp_path / "a.nii.gz", FILE.astype(np.int16), RAS)).array
    assert array.flags.c_contiguous


def test_orientation_and_spacing_are_told(tmp_path):
    where = read_image(save(tmp_path / "a.nii.gz", FILE.astype(np.int16), AFFINE)).geometry
    assert where.orientation == "LAS"
    assert where.spacing_mm == pytest.approx((2.5, 0.8, 0.8))
    assert (where.shape, where.file_shape) == ((6, 5, 4), (4, 5, 6))


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_slope_and_intercept_are_applied_to_images(tmp_path, kind):
    path = save(tmp_path / "a.nii.gz", FILE.astype(kind), RAS, slope=2.0, inter=-1.0)
    stored = np.asanyarray(nibabel.load(path).dataobj.get_unscaled())
    array = read_image(path).array
    assert array.dtype == np.float32
    assert np.allclose(array[0], 2.0 * stored.T - 1.0)


def test_a_label_with_slope_or_intercept_is_refused(tmp_path):
    for slope, inter in ((2.0, 0.0), (1.0, 3.0)):
        path = save(tmp_path / "a.nii.gz", labels().T, slope=slope, inter=inter)
        with pytest.raises(ValueError, match=rf"a.nii.gz: has scl_slope {slope:g} and scl_inter"):
            read_label(path)
    path = save(tmp_path / "b.nii.gz", labels().T, slope=1.0)
    assert np.array_equal(read_label(path).array[:, :, ::-1], labels())


def test_labels_that_are_floats_are_rounded_where_they_are_whole(tmp_path):
    nearly = labels().T + np.float32(1e-4)
    found = read_label(save(tmp_path / "a.nii.gz", nearly)).array
    assert found.dtype == np.int32
    assert np.array_equal(found[:, :, ::-1], labels())
    for value in (1.5, np.nan, np.inf):
        nearly[3, 4, 5] = value
        with pytest.raises(ValueError, match=f"b.nii.gz: has {value:g} for a label, must be a wh"):
            read_label(save(tmp_path / "b.nii.gz", nearly))


def test_a_label_may_have_axes_of_one_and_no_more(tmp_path):
    for more in (1, 2):
        label = labels().T.reshape(*labels().T.shape, *[1] * more)
        found = read_label(save(tmp_path / "a.nii", label)).array
        assert np.array_equal(found, labels()[:, :, ::-1])
    label = labels().T[..., None]
    with pytest.raises(ValueError, match=r"has the shape \(13, 11, 9, 2\), a label must have thre"):
        read_label(save(tmp_path / "b.nii", label.repeat(2, -1)))


def broken(folder, how):
    """Write a file that cannot be used."""
    path = folder / ("a.nii" if how == "cut" else "a.nii.gz")
    noise = np.random.default_rng(0).integers(0, 2**15, (32, 32, 32)).astype(np.int16)
    if how == "five axes":
        save(path, np.zeros((2, 2, 2, 2, 2), np.uint8))
    elif how == "colours":
        save(path, np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    elif how == "infinite":
        save(path, np.array([1, np.nan, np.inf, 2], np.float32).reshape(2, 2, 1))
    elif how != "missing":
        save(path, noise)
        raw = path.read_bytes()
        path.write_bytes(b"no volume" if how == "other" else raw[: len(raw) * 2 // 3])
    if how == "damaged":
        path.write_bytes(gzip.compress(gzip.decompress(raw)[:9000]))
    return path


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "is missing$"),
        ("other", "cannot be read as NIfTI"),
        ("cut", "is truncated or damaged: it says that 65536 bytes of voxels follow after 352"),
        ("packed and cut", "is truncated or damaged"),
        ("damaged", "is truncated or damaged"),
        ("five axes", r"has the shape \(2, 2, 2, 2, 2\), must be \(X, Y, Z\) or"),
        ("colours", "has numbers of type .*, must be plain ones"),
        ("infinite", "has 2 voxels that are no finite numbers"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, how, told):
    path = broken(tmp_path, how)
    with pytest.raises(ValueError, match=f"^{path}: .*{told}"):
        read_image(path)


def test_other_formats_are_refused(tmp_path):
    path = tmp_path / "a.mgz"
    nibabel.save(nibabel.MGHImage(FILE.astype(np.int32), RAS), path)
    with pytest.raises(ValueError, match=r"a.mgz: is MGHImage, must be NIfTI; convert it"):
        read_image(path)


@pytest.mark.parametrize(
    ("given", "written"),
    [("bool", "u1"), ("int64", "i4"), ("float16", "f4"), ("u1", "u1"), ("f4", "f4"), ("f8", "f8")],
)
def test_arrays_are_written_in_a_type_that_every_reader_knows(tmp_path, given, written):
    write_nifti(tmp_path / "a.nii.gz", labels().astype(given), geometry())
    back = nibabel.load(tmp_path / "a.nii.gz")
    assert back.get_data_dtype() == np.dtype(written)
    assert np.array_equal(
        np.asanyarray(back.dataobj)[::-1].T, labels().astype(given).astype(written)
    )


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    def full(image, path):
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    path = tmp_path / "a.nii.gz"
    write_nifti(path, labels(), geometry())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"shape \(9, 11, 12\), must end in \(9, 11, 13\)"):
        write_nifti(path, labels()[..., 1:], geometry())
    with pytest.raises(ValueError, match="array: has numbers above those of int32"):
        write_nifti(path, labels().astype(np.int64) << 40, geometry())
    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(OSError, match="no space left"):
        write_nifti(path, labels() + 1, geometry())
    assert [found.name for found in tmp_path.iterdir()] == ["a.nii.gz"]
    assert path.read_bytes() == before


def test_an_affine_without_directions_is_refused():
    for affine in (np.diag([1.0, 0, 1, 1]), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match=r"affine: .*must be finite and give each axis"):
            Geometry((2, 3, 4), affine)


def test_geometries_are_the_same_where_their_voxels_are():
    where = geometry()
    near, far, flipped = (AFFINE.copy() for _ in range(3))
    near[0, 3] += 0.07  # of 0.8 mm
    far[0, 3] += 0.09
    flipped[0] *= -1
    assert where.differences(geometry()) == []
    assert where.differences(geometry(affine=near)) == []
    assert where.differences(geometry(affine=far)) == ["an affine that puts corners 0.09 mm away"]
    [told] = where.differences(geometry(affine=flipped))
    assert told.endswith("mm away (RAS, not LAS)")
    [told] = where.differences(geometry((9, 11, 12)))
    assert told == "shape (12, 11, 9), not (13, 11, 9)"
    spaced = AFFINE @ np.diag([1, 1, 1.05, 1])  # which only the far corners show
    assert where.differences(geometry(affine=spaced)) == ["an affine that puts corners 1 mm away"]


def test_without_nibabel_modules_are_there_and_volumes_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(nifti, "nibabel", None)
    for use in (
        lambda: read_image(tmp_path / "a.nii"),
        lambda: read_label(tmp_path / "a.nii"),
        lambda: write_nifti(tmp_path / "a.nii", numbered(), geometry()),
    ):
        with pytest.raises(ImportError, match=r"run: pip install 'raykb\[medical\]'"):
            use()
    code = "import sys; sys.modules['nibabel'] = None; import raykb.data.decathlon as d; print(d)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
