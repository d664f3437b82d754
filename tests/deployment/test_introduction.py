"""Introductions of sites: bad ones are refused, odd names arrive as they are."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from fedkd import Payload
from fedkd.config import Limits
from fedkd.deployment.introduction import Introduction, introduction_of, other_series
from fedkd.errors import PayloadError


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
        "a", -1, "y" * 300, 1, 1, ("x" * 300, "two  words|<b>", " "), (1, 8, 8), "1", ("000001-000002",)
    )
    assert introduction_of(reported.to_payload().to_records(), Limits(10**6, {})) == reported


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": '["a", "a"]'}, "a name twice, or one that cannot be printed"),
        ({"classes": '["a", "\\u001b[2J"]'}, "a name twice, or one that cannot be printed"),
        ({"classes": '["a", "\\ud800"]'}, "a name twice, or one that cannot be printed"),
        ({"classes": '{"a": 1}'}, "is not a list of names"),
        ({"classes": "[" * 10**5}, "is not a list of names"),
        ({"name": "node-3"}, "string 'name' is 'node-3'"),
        ({"height": 0.0}, "number 'height' is 0"),
        ({"channels": 1e9}, "number 'channels' is 1000000000"),
        ({"images": 1.5}, "number 'images' is not whole"),
        ({"images": -1.0}, "number 'images' is -1"),
    ],
)  # fmt: skip
def test_what_no_site_can_be_is_refused(changes: dict[str, Any], reason: str) -> None:
    one = Introduction("site-1", 0, "", 5, 2, ("a", "b"), (1, 8, 8), "1", ()).to_payload()
    for name, value in changes.items():
        (one.numbers if isinstance(value, float) else one.strings)[name] = value
    with pytest.raises(PayloadError, match=re.escape(reason)):
        introduction_of(one.to_records(), Limits(10**6, {}))


@pytest.mark.parametrize("version", ["0.1.0", "0.1.7", "0.1", "0.1.0.dev3", "0.1.0+local"])
def test_a_site_of_another_patch_version_takes_part(version: str) -> None:
    assert other_series(version, "0.1.2") is None


@pytest.mark.parametrize("version", ["0.2.0", "1.1.2", "0.10.2", "0.11", "", "x", "0", "v0.1.2"])
def test_a_site_of_another_series_is_refused_with_both_versions(version: str) -> None:
    assert other_series(version, "0.1.2") == f"it runs fedkd {version}, the server 0.1.2; install any 0.1.x at the site"
