"""Random streams depend on their four coordinates alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedkd.streams import default_stream, numpy_stream, stream_seed, torch_stream

COORDINATES = st.tuples(st.integers(0, 2**31), st.integers(0, 10**4), st.integers(0, 10**6), st.text(max_size=9))


@given(COORDINATES, COORDINATES)
def test_streams_are_equal_exactly_where_their_coordinates_are(one: tuple, other: tuple) -> None:
    assert (stream_seed(*one) == stream_seed(*other)) == (one == other)
    assert torch.equal(torch.randn(4, generator=torch_stream(*one)), torch.randn(4, generator=torch_stream(*one)))


def test_a_seed_is_the_same_in_every_release() -> None:
    """Published results depend on it."""
    assert stream_seed(0, 1, 2, "local-training") == 2711995777726838132
    assert numpy_stream(0, 0, "server", "partition").integers(10**6) == 408325


def test_default_stream_serves_code_without_a_generator_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with default_stream(torch_stream(3, 1, 4, "x")):
            draws.append(torch.nn.Linear(3, 3).weight.detach())
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
