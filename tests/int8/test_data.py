"""Arrays to batches of inputs: what is taken, what is said, and what is refused in one line."""

import hashlib

import numpy as np
import pytest
import torch

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.files.many_arrays import files_in, read_many
from acfuse.int8.data import data_of, random_data
from acfuse.proof import Inputs
from acfuse.proof.onnx_runtime import images_of
from acfuse.system.limits import Limits
from tests.int8.small import images, model_of, network


def taken(model, **arrays):
    parts = [("x.npz", {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()})]
    return data_of(model, parts, "x.npz")


def sizes(data, name="x"):
    return [len(batch[name]) for batch in data.batches]


def test_images_come_in_batches_and_none_is_lost():
    data = taken(network(), x=images(20))
    assert sizes(data) == [8, 8, 4]
    assert (data.images, data.notes) == (20, ())
    assert np.array_equal(torch.cat([b["x"] for b in data.batches]).numpy(), images(20))


def test_a_fixed_batch_is_kept_and_what_does_not_fill_one_is_said():
    data = taken(network(batch=3), x=images(20))
    assert sizes(data) == [3] * 6
    assert (data.images, data.notes) == (18, ("2 images of x.npz left out, as the model takes 3",))


def test_images_of_several_files_fill_batches_together():
    parts = [(f"{i}.npy", {"arr_0": torch.from_numpy(images(3, i))}) for i in range(6)]
    data = data_of(network(batch=9), parts)
    assert sizes(data) == [9, 9]
    assert torch.equal(data.batches[0]["x"][3:6], parts[1][1]["arr_0"])


def test_images_of_several_sizes_stay_apart():
    model = model_of([], {}, inputs={"x": ["n", 3, "h", "w"]})
    parts = [(f"{i}.npy", {"a": torch.randn(10, 3, 4 + i % 2, 4)}) for i in range(4)]
    data = data_of(model, parts)
    assert {tuple(b["x"].shape[2:]) for b in data.batches} == {(4, 4), (5, 4)}
    assert data.images == 40


def test_a_single_image_needs_no_axis_of_its_own():
    data = taken(network(), x=images(1)[0])
    assert data.images == 1
    assert data.notes == ("1 image is few: ranges of values are known well of about a hundred",)


def test_with_one_input_any_name_will_do_and_labels_may_be_there():
    assert taken(network(), whatever=images()).images == 24
    data = taken(network(), x=images(), labels=np.arange(24))
    assert data.notes == ("the model has no input labels: left out",)


def test_several_inputs_go_by_name_or_by_their_order():
    model = model_of([], {}, inputs={"x": ["n", 3], "y": [2, 4]})
    x, y = np.random.randn(20, 3), np.random.randn(20, 4)
    data = taken(model, y=y, x=x)
    assert [*data.batches[0]] == ["x", "y"]
    assert sizes(data, "y") == [2] * 10
    assert data.batches[1]["y"].dtype == torch.float32
    assert torch.equal(taken(model, arr_0=x, arr_1=y).batches[3]["x"], data.batches[3]["x"])


def test_integers_are_given_as_integers():
    model = model_of([], {}, inputs={"x": ["n", 2]}, dtype=np.int64)
    assert taken(model, x=np.zeros((20, 2), np.uint8)).batches[0]["x"].dtype == torch.int64
    for wrong in (np.full((20, 2), 0.5), np.full((20, 2), np.nan)):
        with pytest.raises(InputError, match=r"x is float64|holds 40 numbers that are not finite"):
            taken(model, x=wrong)


def test_files_that_differ_in_what_has_no_images_stay_apart():
    model = model_of([], {}, inputs={"x": ["n", 3], "factor": []})
    parts = [(f"{i}.npz", {"x": torch.randn(2, 3), "factor": torch.tensor(float(i % 2))})
             for i in range(4)]  # fmt: skip
    data = data_of(model, parts)
    assert [float(batch["factor"]) for batch in data.batches] == [0.0, 1.0]
    assert sizes(data) == [4, 4]
    assert torch.equal(data.batches[1]["x"], torch.cat([parts[1][1]["x"], parts[3][1]["x"]]))


def test_bfloat16_is_taken_as_float32():
    given = torch.from_numpy(images(20)).bfloat16()
    data = data_of(network(), [("x", {"x": given})])
    assert torch.equal(torch.cat([b["x"] for b in data.batches]), given.float())


def test_what_has_no_images_is_given_every_time():
    model = model_of([], {}, inputs={"x": ["n", 3], "size": []})
    data = taken(model, x=np.random.randn(20, 3), size=np.array(2.5))
    assert [float(b["size"]) for b in data.batches] == [2.5] * 3


WITH_NAN = images()
WITH_NAN[2, 0, 0, :2] = np.nan


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (images()[:0], "is empty, (0, 3, 8, 8); expected one image"),
        (images()[:, :, :7], "is of (24, 3, 7, 8); the input x takes (any, 3, 8, 8)"),
        (images()[0, 0], "is of (8, 8)"),
        (images()[None], "is of (1, 24, 3, 8, 8)"),
        (np.array(1.0), "is of ()"),
        (WITH_NAN, "holds 2 numbers that are not finite, first in image 2"),
        (images() * np.inf, "not finite"),
        ((images() * 50).astype(np.uint8), "is uint8; the input x takes float32"),
        (images().astype(np.complex64), "is complex64"),
        (images().astype(np.float64) * 1e39, "not all of its numbers are float32"),
        (images() * 0 + 3, "all that the input x is given is 3"),
    ],
)
def test_what_the_model_does_not_take_is_refused(array, words):
    with pytest.raises(InputError) as error:
        taken(network(), x=array)
    assert words in str(error.value)
    assert "x.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_arrays_that_fit_no_input_are_refused_by_name():
    with pytest.raises(InputError, match="no array x: it holds a, b; expected one for each input"):
        taken(network(), a=images(), b=images())
    model = model_of([], {}, inputs={"x": ["n", 3], "y": ["n", 4]})
    with pytest.raises(InputError, match="no array y"):
        taken(model, x=np.ones((2, 3)))
    with pytest.raises(InputError, match=r"different numbers of images \(x 20, y 19\)"):
        taken(model, x=np.ones((20, 3)), y=np.ones((19, 4)))
    with pytest.raises(InputError, match="holds 2 images, and the model takes 3 at a time"):
        taken(network(batch=3), x=images(2))


def test_the_first_images_are_whole_batches():
    data = taken(network(), x=images(40))
    assert data.first(9).images == 16
    assert data.first(100).images == 40


def test_made_up_inputs_are_known_as_such():
    data = random_data(network(), None)
    assert (data.is_random, data.images) == (True, 16)
    assert random_data(network(), Inputs(((None, (2, 3, 8, 8)),), samples=5)).images == 10


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("batches", "given", "expected"),
    [
        (("n", "n"), (7, 7), [(7, 7)]),
        ((3, "n"), (7, 7), [(3, 3), (3, 3)]),
        (("n", 1), (2, 2), [(1, 1), (1, 1)]),
        ((2, 4), (6, 12), [(2, 4)] * 3),
        # An input that is not of images, or too few: as they are, so that running them tells.
        (("n", 5), (7, 5), [(7, 5)]),
        ((1, 5), (7, 5), [(7, 5)]),
        ((3, 3), (2, 2), [(2, 2)]),
    ],
)
def test_real_inputs_are_as_many_at_a_time_as_the_model_fixes(batches, given, expected):
    model = model_of([], {}, inputs=dict(zip("ab", ([n, 4] for n in batches), strict=True)))
    data = tuple(torch.randn(n, 4) for n in given)
    shapes = tuple(zip("ab", (tuple(x.shape) for x in data), strict=True))
    found = images_of(model, Inputs(shapes, data=data))
    assert [(len(image["a"]), len(image["b"])) for image in found] == expected
    whole = torch.cat([image["a"] for image in found])
    assert torch.equal(whole, data[0][: len(whole)])


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    np.save(tmp_path / "b.npy", images(3, 1))
    np.savez(tmp_path / "a.npz", x=images(4, 2))
    (tmp_path / "README.txt").write_text("x")
    (tmp_path / ".hidden.npy").write_text("x")
    many = read_many(tmp_path, "--data")
    assert [name for name, _ in many.parts] == ["a.npz", "b.npy"]
    assert many.left_out == ("README.txt",)
    lines = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("a.npz", "b.npy")
    )
    assert many.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    data = data_of(network(), many.parts, many.name, many.left_out)
    assert data.images == 7
    assert data.notes[-1] == f"no arrays, and left out: README.txt, of {tmp_path.name}"


def test_a_file_is_known_by_its_own_hash(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=images())
    many = read_many(path, "--data")
    assert (many.name, many.sha256) == ("x.npz", hashlib.sha256(path.read_bytes()).hexdigest())


def test_pictures_and_what_is_no_array_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none.npz does not exist"):
        files_in(tmp_path / "none.npz", "--data")
    with pytest.raises(InputError, match=r"holds no .npy or .npz file"):
        files_in(tmp_path, "--data")
    np.save(tmp_path / "a.npy", images())
    (tmp_path / "b.JPG").write_bytes(b"")
    for path in (tmp_path, tmp_path / "b.JPG"):
        with pytest.raises(InputError, match=r"b.JPG is a picture, and how its pixels"):
            files_in(path, "--data")
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"--data: c.npz cannot be read"):
        read_many(tmp_path / "c.npz", "--data")


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    for order in "<>":
        np.savez(tmp_path / "x.npz", x=images(20).astype(f"{order}f4"))
        ((_, arrays),) = read_many(tmp_path / "x.npz", "--data").parts
        assert np.array_equal(arrays["x"].numpy(), images(20))


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="it holds objects"):
        read_many(tmp_path, "--data")


def test_more_than_memory_should_hold_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", images(24))
    np.save(tmp_path / "b.npy", images(24))
    size = images(24).nbytes
    assert read_many(tmp_path, "--data", Limits(memory=2 * size)).parts
    with pytest.raises((InputError, UnsafeError), match="more than"):
        read_many(tmp_path, "--data", Limits(memory=2 * size - 1))
