"""How many workers, and where: by their shares of processors and GPUs; impossible ones are refused."""

from __future__ import annotations

import pytest

from fedkd import InputError
from fedkd.simulations.ray_placement import connect, count_workers, refuse_relative_files

pytestmark = pytest.mark.xdist_group("ray")


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "cluster", "cohort", "count"),
    [
        ("auto", 1.0, 0.0, {"CPU": 8.0}, 100, 8),
        ("auto", 1.0, 0.0, {"CPU": 8.0}, 3, 3),
        ("auto", 0.5, 0.0, {"CPU": 2.0}, 100, 4),
        ("auto", 0.1, 0.0, {"CPU": 2.0}, 100, 20),
        ("auto", 1.0, 0.25, {"CPU": 64.0, "GPU": 4.0}, 100, 16),
        ("auto", 1.0, 0.4, {"CPU": 64.0, "GPU": 2.0}, 100, 4),  # two to a GPU: a share never straddles two
        ("auto", 0.0, 2.0, {"CPU": 1.0, "GPU": 4.0}, 100, 2),
        (3, 1.0, 0.0, {"CPU": 8.0}, 2, 3),
    ],
)
def test_workers_are_packed_by_their_shares(workers, cpus, gpus, cluster, cohort, count) -> None:  # type: ignore[no-untyped-def]
    assert count_workers(workers, cpus, gpus, [cluster], cohort) == count


@pytest.mark.parametrize(
    ("cpus", "gpus", "machines", "count"),
    [
        (3.0, 0.0, [{"CPU": 4.0}] * 3, 3),  # not 12 / 3
        (0.0, 2.0, [{"CPU": 1.0, "GPU": 3.0}] * 2, 2),  # not 6 / 2
        (1.0, 0.25, [{"CPU": 32.0}, {"CPU": 2.0, "GPU": 4.0}], 2),  # CPU and GPU are on the same machine
    ],
)
def test_a_worker_fits_on_one_machine(cpus: float, gpus: float, machines: list, count: int) -> None:
    assert count_workers("auto", cpus, gpus, machines, 100) == count
    with pytest.raises(InputError, match=f"{count} fit; the cluster has .* on {len(machines)} machines"):
        count_workers(count + 1, cpus, gpus, machines, 100)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "message"),
    [
        (5, 1.0, 0.0, "engine.workers = 5: only 4 fit; the cluster has 4 CPUs and 1 GPUs"),
        ("auto", 8.0, 0.0, "no worker fits"),
        ("auto", 1.0, 2.0, "no worker fits"),
        ("auto", 1.0, 1.5, "gpus_per_worker = 1.5: set a fraction of one GPU, or a whole number of GPUs"),
        ("auto", 0.0, 0.0, "both 0"),
    ],
)
def test_impossible_packings_are_refused(workers, cpus, gpus, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        count_workers(workers, cpus, gpus, [{"CPU": 4.0, "GPU": 1.0}], 100)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_an_address_without_a_cluster_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match=f"engine.address = '{address}': no Ray cluster answers at this address"):
        connect(address)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"strategy": {"name": "mine.py:Mine"}}, "strategy.name = 'mine.py:Mine': the cluster has 2 machines"),
        ({"model": {"names": [{"name": "mlp"}, {"name": "deep/m.py:f"}]}}, "model.names = 'deep/m.py:f'"),
        ({"strategy": {"name": "/shared/mine.py:Mine"}, "model": {"name": "torchvision:resnet18"}}, None),
    ],
)
def test_relative_files_are_refused_where_other_machines_need_them(table: dict, message: str | None) -> None:
    refuse_relative_files(table, {"10.0.0.1"})
    if message is None:
        refuse_relative_files(table, {"10.0.0.1", "10.0.0.2"})
        return
    with pytest.raises(InputError, match=message):
        refuse_relative_files(table, {"10.0.0.1", "10.0.0.2"})
