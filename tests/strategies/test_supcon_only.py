"""SupCon alone: without its term it is FedAvg."""

from __future__ import annotations

from pathlib import Path

from helpers import Make, checkpoint_bytes
from helpers.virtual_images import NET

from fedkd.runs.run import run


def test_supcon_without_its_term_is_fedavg(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in [
        ("avg", {"name": "fedavg"}),
        ("none", {"name": "supcon_only", "lambda_con": 0.0}),
        ("some", {"name": "supcon_only"}),
    ]:
        run(tiny({"strategy": strategy, "model": NET}), tmp_path / name)
    avg, none, some = (checkpoint_bytes(tmp_path / name)["server.safetensors"] for name in ("avg", "none", "some"))
    assert avg == none
    assert avg != some
