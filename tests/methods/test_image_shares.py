"""A node's share of the federation's images."""

from __future__ import annotations

from typing import cast
from unittest.mock import Mock

import pytest
from flwr.app import RecordDict
from helpers import Make

from fedkd import Environment, Payload, Round, SharesClient, mean_images, share_numbers
from fedkd.core.round import Reply


def test_a_share_is_relative_to_the_mean_and_1_without_it(tiny: Make) -> None:
    client = SharesClient(Environment(tiny()), [object()], 0, RecordDict(), 0, "count", False)
    assert client.count(Payload()).numbers == {"examples": 24}
    assert [client.share_of(share_numbers(mean)) for mean in (None, 12.0, 48.0)] == [1.0, 2.0, 0.5]


def test_the_mean_is_over_the_nodes_that_answer() -> None:
    replies = [Reply(node, Payload(numbers={"examples": count})) for node, count in ((0, 3), (2, 4), (5, 8))]
    federation = Mock(ask=Mock(return_value=replies))
    assert mean_images(cast(Round, federation)) == pytest.approx(5.0)
    assert federation.ask.call_args.args == ("count",)
    assert share_numbers(5.0) == {"mean_images": 5.0}
