"""Room for what a checkpoint copies from a GPU; here without one, as what locks pages is handed in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.infra.training.host_copies import HostCopies, slabs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 3000), max_size=30), st.integers(256, 4096))
def test_every_tensor_lies_whole_in_one_slab_and_none_upon_another(sizes, most):
    found, seen = list(slabs({("e", str(n)): size for n, size in enumerate(sizes)}, most)), []
    for places, size in found:
        assert size <= most or len(places) == 1
        ends = 0
        for (_, name), start in places:
            assert start >= ends and start % 256 == 0
            ends = start + sizes[int(name)]
            seen.append(int(name))
        assert ends <= size
    assert seen == list(range(len(sizes)))


def test_copies_have_the_shape_and_dtype_of_what_they_are_for_and_lie_in_locked_memory():
    tensors = {("e", "a"): torch.randn(300, 7), ("e", "b"): torch.arange(5), ("f", "a"): torch.randn(1)}
    locked, unlocked = [], []
    room = HostCopies(tensors, locked.append, unlocked.append)
    for key, tensor in tensors.items():
        copy = room[key].copy_(tensor)
        assert copy.dtype == tensor.dtype and torch.equal(copy, tensor)
        (slab,) = (s for s in locked if s.data_ptr() <= copy.data_ptr() < s.data_ptr() + s.numel())
        assert copy.data_ptr() + copy.nbytes <= slab.data_ptr() + slab.numel()
    assert all(torch.equal(room[key], tensor) for key, tensor in tensors.items())  # none was written over
    assert room.fits({("e", "b"): torch.arange(5)})
    assert not room.fits({("e", "b"): torch.arange(6)}) and not room.fits({("g", "a"): torch.arange(5)})
    room.close()
    assert unlocked == locked and torch.equal(room["e", "b"], torch.arange(5))


def test_room_that_cannot_be_made_is_told_where_it_is_asked_for():
    def refuse(slab: torch.Tensor) -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        HostCopies({("e", "a"): torch.zeros(3)}, refuse)["e", "a"]
