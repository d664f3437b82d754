"""Introductions of sites: bad ones are refused, odd names arrive as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedkd import Payload
from fedkd.config import Limits
from fedkd.deployment.introduction import Introduction, introduction_of
from fedkd.messages.arrays import PayloadError


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"strings": {"name": "../../x"}}, "string 'name' is '../../x'"),
        ({"strings": {"classes": "[" * 5000}}, "string 'classes' is not a list of names"),
        ({"strings": {"classes": "[1, 2]"}}, "string 'classes' is not a list of names"),
        ({"numbers": {"images": -1.0}}, "number 'images' is -1.0"),
        ({"numbers": {"images": math.nan}}, "number 'images' is nan"),
        ({"numbers": {"more": 1.0}}, "numbers has 'more', which was not asked for"),
        ({"strings": {"model": "x" * 2000}}, "payload of .* bytes is over the limit"),
    ],
)
def test_bad_introductions_are_refused(payload: dict[str, dict[str, Any]], message: str) -> None:
    numbers = dict.fromkeys(("images", "test_images", "channels", "height", "width", "partition"), 1.0)
    strings = {"name": "a", "model": "", "version": "1", "classes": '["0", "1"]', "states": ""}
    assert introduction_of(Payload(numbers=numbers, strings=strings).to_records(), Limits(1000, {})).classes == (
        "0",
        "1",
    )
    bad = Payload(numbers={**numbers, **payload.get("numbers", {})}, strings={**strings, **payload.get("strings", {})})
    limit = 10**6 if "classes" in payload.get("strings", {}) else 1000
    with pytest.raises(PayloadError, match=message):
        introduction_of(bad.to_records(), Limits(limit, {}))


def test_names_of_classes_and_models_arrive_as_they_are_however_odd() -> None:
    reported = Introduction(
        "a", -1, "y" * 300, 1, 1, ("x" * 300, "two\nlines", " "), (1, 8, 8), "1", ("000001-000002",)
    )
    assert introduction_of(reported.to_payload().to_records(), Limits(10**6, {})) == reported
