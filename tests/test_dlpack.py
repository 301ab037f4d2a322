"""DLPack's capsules, as bnext takes them over from others and hands them out.

Those of others are built by tests/fake_cuda.py from the standard's text.
"""

import gc
import weakref

import numpy as np
import pytest

import bnext

from . import fake_cuda


def address(array):
    return array.__array_interface__["data"][0]


def test_inputs_live_as_long_as_they_are_seen():
    values = np.arange(12.0).reshape(4, 3)
    alive = weakref.ref(values)
    view = bnext._core.from_dlpack(fake_cuda.capsule(values, device_type=1))
    given_back = len(fake_cuda.DELETED)
    del values
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(view, np.arange(12.0).reshape(4, 3))
    del view
    gc.collect()
    assert alive() is None
    assert len(fake_cuda.DELETED) == given_back + 1


CAPSULES = {
    "a version to come": ({"major": 2}, BufferError, "a: expected version 1 of DLPack, got 2.0"),
    "lanes": ({"lanes": 4}, TypeError,
              "a: expected dtype float16, bfloat16, float32 or float64, got float32 in lanes of 4"),
    "a GPU": ({"device_type": 2, "device": 3}, TypeError,
              "a: expected an array on the CPU, got one on cuda:3"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAPSULES)
def test_capsules_that_are_refused(name):
    options, kind, text = CAPSULES[name]
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    with pytest.raises(kind) as caught:
        bnext._core.from_dlpack(fake_cuda.capsule(values, **({"device_type": 1} | options)), "a")
    assert str(caught.value) == text


@pytest.mark.parametrize("options", [{}, {"strides": False}, {"byte_offset": 16}], ids=str)
@pytest.mark.parametrize("versioned", [True, False])
def test_capsules_that_are_read(options, versioned):
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    capsule = fake_cuda.capsule(values, device_type=1, versioned=versioned, **options)
    view = bnext._core.from_dlpack(capsule)
    assert address(view) == address(values)
    np.testing.assert_array_equal(view, values)
    assert view.flags.writeable
    with pytest.raises(TypeError, match=r"^x: expected a DLPack capsule that nobody has used, got"):
        bnext._core.from_dlpack(capsule)
    capsule = fake_cuda.capsule(values, 2, versioned=versioned, **options)
    description = bnext._core.describe_dlpack(capsule)
    assert description[:7] == (address(values), (4, 3), (3, 1), "float32", 2, 2, False)


def test_read_only_memory_stays_so():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    view = bnext._core.from_dlpack(fake_cuda.capsule(values, device_type=1, read_only=True))
    assert not view.flags.writeable
    exported = bnext._core.Exported(view)
    with pytest.raises(BufferError, match="read-only"):
        exported.__dlpack__()
    again = bnext._core.from_dlpack(exported.__dlpack__(max_version=(1, 0)))
    assert not again.flags.writeable
    assert address(again) == address(values)


def test_exported_arrays_are_numpy_s_own_way_too():
    values = np.arange(24.0).reshape(4, 3, 2)[::-1, :, 1]
    exported = bnext._core.Exported(values)
    assert exported.__dlpack_device__() == (1, 0)
    view = np.from_dlpack(exported)
    np.testing.assert_array_equal(view, values)
    assert address(view) == address(values)
    for options in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            exported.__dlpack__(**options)
    exported.__dlpack__()  # a capsule that nobody takes gives its memory back itself
    alive = weakref.ref(values)
    del values, view, exported
    gc.collect()
    assert alive() is None
    with pytest.raises(TypeError, match=r"^array: expected dtype float16, bfloat16, .* got int64$"):
        bnext._core.Exported(np.arange(3))
