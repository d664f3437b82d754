"""Partitions: no image twice, the shape that a scheme promises, the same from the same seed, and clear refusals."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from helpers import Make
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.class_partitions import deal
from fedkd.data.federation import federate
from fedkd.data.partitions import split
from fedkd.data.splits import Pool, allocate
from fedkd.errors import InputError
from fedkd.streams import numpy_stream

CLASSES = tuple("0123456789")


def pool(size: int = 2000, domains: int = 1) -> Pool:
    rng = np.random.default_rng(0)
    names = tuple(f"set{i}" for i in range(domains))
    return Pool(rng.integers(0, 10, size), np.sort(rng.integers(0, domains, size)), CLASSES, names)


def parts_of(table: dict, seed: int = 0, data: Pool | None = None, share: float | None = None) -> list[np.ndarray]:
    rng = numpy_stream(seed, 0, "server", "partition")
    return split(data or pool(), {"minimum": 1, **table}, rng, share=share).parts


DEALT_TO_THE_LAST = {"scheme": "dirichlet_dealt", "alpha": 0.3}  # one image at a time
SCHEMES = [
    {"scheme": "iid"},
    {"scheme": "dirichlet", "alpha": 0.5},
    {"scheme": "dirichlet", "alpha": 0.05, "capped": True},
    {"scheme": "client_dirichlet", "alpha": 0.5},
    {"scheme": "client_dirichlet", "alpha": 0.05, "size": 20},
    DEALT_TO_THE_LAST,
    {"scheme": "dirichlet_dealt", "alpha": 0.01, "size": 20},
    {"scheme": "shards"},
    {"scheme": "classes_per_client", "classes": 3},
    {"scheme": "classes_per_client", "classes": 10, "deal": "niid_bench"},
    {"scheme": "quantity", "sigma": 0.8},
    {"scheme": "quantity", "alpha": 5.0},
    {"scheme": "groups", "groups": 1, "alpha": 0.3, "size": 30},
]


USES_ALL = {"iid", "dirichlet", "shards", "quantity"}


@pytest.mark.parametrize(
    "table",
    [pytest.param(t, marks=pytest.mark.slow if t == DEALT_TO_THE_LAST else []) for t in SCHEMES],
    ids=lambda t: t["scheme"],
)
@given(seed=st.integers(0, 10**6), clients=st.integers(1, 25))
@settings(deadline=None, max_examples=20)
def test_no_image_is_given_twice_and_equal_seeds_give_equal_parts(table: dict, seed: int, clients: int) -> None:
    parts = parts_of({**table, "clients": clients}, seed)
    everything = np.concatenate(parts)
    assert len(parts) == clients
    assert min(len(part) for part in parts) >= 1
    assert len(np.unique(everything)) == len(everything)
    if table["scheme"] in USES_ALL:
        assert len(everything) == 2000
    again = parts_of({**table, "clients": clients}, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_sizes_and_classes_are_what_the_scheme_promises() -> None:
    labels = pool().labels
    sizes = {len(p) for p in parts_of({"scheme": "client_dirichlet", "clients": 12, "alpha": 0.1, "size": 100})}
    assert sizes == {100}
    assert {len(p) for p in parts_of({"scheme": "dirichlet_dealt", "clients": 20, "alpha": 0.1})} == {100}
    for part in parts_of({"scheme": "classes_per_client", "clients": 15, "classes": 2}):
        assert len(np.unique(labels[part])) == 2
    held = [np.unique(labels[p]) for p in parts_of({"scheme": "classes_per_client", "clients": 15, "classes": 2})]
    assert set(np.bincount(np.concatenate(held))) == {3}  # every class equally often: 15 * 2 / 10
    sizes_iid = [len(part) for part in parts_of({"scheme": "iid", "clients": 7})]
    assert max(sizes_iid) - min(sizes_iid) <= 1
    assert max(len(np.unique(labels[p])) for p in parts_of({"scheme": "shards", "clients": 50})) <= 4


def test_alpha_sets_the_skew() -> None:
    labels = pool(20000).labels

    def skew(scheme: str, alpha: float) -> float:
        parts = parts_of({"scheme": scheme, "clients": 20, "alpha": alpha}, data=pool(20000))
        return float(np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts]))

    for scheme in ("dirichlet", "client_dirichlet"):
        assert skew(scheme, 0.05) > skew(scheme, 0.5) > skew(scheme, 100.0)
        assert skew(scheme, 100.0) < 0.2


def test_who_has_an_equal_share_gets_none_of_the_later_classes() -> None:
    labels = pool().labels
    for seed in range(20):
        parts = parts_of({"scheme": "dirichlet", "clients": 5, "alpha": 0.3, "capped": True}, seed=seed)
        counts = np.stack([np.bincount(labels[part], minlength=len(CLASSES)) for part in parts])
        before = np.cumsum(counts, axis=1) - counts  # what a client has as a class is dealt
        assert not counts[before >= len(labels) / 5].any()
        assert counts.sum() == len(labels)


def test_who_has_as_many_images_as_capped_says_gets_none_of_the_later_classes() -> None:
    """Three clients, three classes of six: the same draws, and of each class only those who still get some share it."""
    images = Pool(np.repeat([0, 1, 2], 6), np.zeros(18, np.int64), ("a", "b", "c"), ("set",))
    table = {"scheme": "dirichlet", "clients": 3, "alpha": 0.5, "minimum": 0}
    for capped in (6, 7, 12, 100):
        rng = numpy_stream(0, 0, "server", "partition")
        hands: list[list[int]] = [[], [], []]
        for label in range(3):
            order, share = rng.permutation(6) + 6 * label, rng.dirichlet([0.5] * 3)
            open_ = [one for one in range(3) if len(hands[one]) < capped]
            ends = np.round(np.cumsum(share[open_] / share[open_].sum())[:-1] * 6).astype(int)
            for one, dealt in zip(open_, np.split(order, ends), strict=True):
                hands[one] += dealt.tolist()
        found = parts_of(table | {"capped": capped}, data=images)
        assert [part.tolist() for part in found] == [sorted(hand) for hand in hands]


def test_client_dirichlet_follows_each_clients_own_prior() -> None:
    """The first client draws from a full pool: its counts are its prior by largest remainder."""
    rng = numpy_stream(0, 0, "server", "partition")
    data = pool()
    for label in range(10):
        rng.permutation(np.flatnonzero(data.labels == label))
    prior = rng.dirichlet(np.full(10, 0.5))
    first = parts_of({"scheme": "client_dirichlet", "clients": 5, "alpha": 0.5, "size": 60})[0]
    assert np.abs(np.bincount(data.labels[first], minlength=10) - 60 * prior).max() < 1


def test_domains_keep_apart_and_may_be_split_further() -> None:
    data = pool(3000, domains=3)
    for part, domain in zip(parts_of({"scheme": "domains"}, data=data), range(3), strict=True):
        assert set(data.domains[part]) == {domain}
    within = {"scheme": "dirichlet", "alpha": 0.3}
    parts = parts_of({"scheme": "domains", "per_domain": 4, "within": within}, data=data)
    assert [set(data.domains[part]) for part in parts] == [{0}] * 4 + [{1}] * 4 + [{2}] * 4
    assert sum(map(len, parts)) == 3000


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=10).filter(lambda p: sum(p) > 0.01),
    st.lists(st.integers(0, 30), min_size=10, max_size=10),
    st.integers(0, 300),
)
def test_allocate_meets_the_size_within_what_is_there(prior: list, available: list, size: int) -> None:
    there = np.array(available[: len(prior)])
    size = min(size, int(there.sum()))
    counts = allocate(np.array(prior) / sum(prior), size, there)
    assert counts.sum() == size
    assert (counts >= 0).all()
    assert (counts <= there).all()
    if (there >= size).all():
        assert np.abs(counts - np.array(prior) / sum(prior) * size).max() < 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"scheme": "dirichlet", "clients": 5, "alpha": 0}, r"data.partition.alpha = 0: .*greater than 0"),
        ({"scheme": "dirichlet", "clients": 5, "alpha": -1.0}, r"data.partition.alpha = -1.0: .*greater than 0"),
        ({"scheme": "dirichlet", "clients": 5, "alfa": 1.0}, "data.partition.alpha: is missing"),
        (
            {"scheme": "iid", "clients": 5, "alfa": 1.0},
            "data.partition.alfa: unknown key 'alfa'.*Valid: clients, minimum, scheme, seed",
        ),
        ({"scheme": "dirichle", "clients": 5}, "unknown 'dirichle'; did you mean 'dirichlet'"),
        (
            {"scheme": "dirichlet", "clients": 5, "alpha": 1.0, "capped": 0},
            "data.partition.capped = 0: input should be a valid boolean, or input should be greater than or equal to 1",
        ),
        (
            {"scheme": "dirichlet", "clients": 5, "alpha": 1.0, "capped": "yes"},
            "data.partition.capped = 'yes': input should be a valid boolean, or input should be a valid integer",
        ),
        ({"scheme": "dirichlet", "clients": 5, "alpha": 1.0, "capped": -1}, "data.partition.capped = -1: .*equal to 1"),
        (
            {"scheme": "dirichlet", "clients": 6, "alpha": 1.0, "capped": 333},
            "data.partition.capped = 333: 6 clients may all have .* 2000 images are dealt; valid are true and 334 or m",
        ),
        (
            {"scheme": "shards", "clients": 7, "per_client": 3, "cut": "class"},
            "data.partition.cut = 'class': 7 clients x 3 per client are 21 shards; .* a multiple of 10, the number of",
        ),
        ({"scheme": "shards", "clients": 5, "cut": "classes"}, "partition.cut = 'classes': .*'all' or 'class'"),
        ({"scheme": "classes_per_client", "clients": 5, "deal": "even"}, ".deal = 'even': .*'equal' or 'niid_bench'"),
        (
            {"scheme": "classes_per_client", "clients": 3, "classes": 11, "deal": "niid_bench"},
            "classes = 11: the data has only 10 classes",
        ),
        (
            {"scheme": "quantity", "clients": 5, "sigma": 1.0, "alpha": 0.5},
            "data.partition.sigma and data.partition.alpha both say how sizes are drawn; remove one of them",
        ),
        ({"scheme": "quantity", "clients": 5, "alpha": 0.0}, "data.partition.alpha = 0.0: .*greater than 0"),
        (
            {"scheme": "ways", "clients": 5, "ways": 3, "most_shots": 37, "shots": 37},
            "data.partition.most_shots = 37: 5 clients need 185 images of each class, and '0' has 182; lower most_shot",
        ),
        (
            {"scheme": "ways", "clients": 5, "ways": 3, "shots": 111},
            "data.partition.shots = 111: clients share .* over most_shots = 110",
        ),
        (
            {"scheme": "ways", "clients": 5, "ways": 12, "stdev": 2},
            "data.partition.ways = 12: with stdev = 2 .* from 10 to 9, .* never all 10",
        ),
        (
            {"scheme": "ways", "clients": 5, "ways": 1, "stdev": 0},
            "data.partition.ways = 1: with stdev = 0 .* from 2 to 1, as it is two at least",
        ),
        ({"scheme": "ways", "clients": 5, "ways": 0}, "data.partition.ways = 0: .*greater than or equal to 1"),
        ({"scheme": "iid", "clients": 2001}, "data.partition.clients = 2001: .*there are 2000"),
        ({"scheme": "iid", "clients": 0}, "data.partition.clients = 0"),
        ({"scheme": "iid", "clients": 2.5}, "data.partition.clients = 2.5: .*integer"),
        ({"scheme": "dirichlet", "clients": 20, "alpha": 0.05, "minimum": 90}, "minimum = 90: the smallest node got"),
        ({"scheme": "client_dirichlet", "clients": 20, "alpha": 1.0, "size": 101}, "size = 101: 20 clients need 2020"),
        ({"scheme": "classes_per_client", "clients": 3, "classes": 11}, "classes = 11: the data has only 10 classes"),
    ],
)
def test_bad_partitions_are_refused_by_key(table: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts_of(table)


def test_groups_share_a_prior_and_no_image() -> None:
    table = {"scheme": "groups", "clients": 7, "groups": 3, "alpha": 0.3, "size": 60}
    drawn = split(pool(), {"minimum": 1, **table}, numpy_stream(0, 0, "server", "partition"))
    assert drawn.priors is not None
    assert [len(part) for part in drawn.parts] == [60] * 7
    which = [0, 0, 0, 1, 1, 2, 2]
    for n in range(7):
        for m in range(7):
            assert (drawn.priors[n] == drawn.priors[m]).all() == (which[n] == which[m])
    labels = pool().labels
    counts = np.stack([np.bincount(labels[part], minlength=10) / 60 for part in drawn.parts])
    distance = np.abs(counts[:, None] - drawn.priors[None]).sum(2)
    for n, group in enumerate(which):
        assert which[int(distance[n].argmin())] == group
    assert (counts[0] != counts[1]).any()  # drawn, not dealt: clients of a group differ
    alone = split(pool(), {"minimum": 1, **table, "groups": 7}, numpy_stream(0, 0, "server", "partition"))
    assert alone.priors is not None
    assert len(np.unique(alone.priors, axis=0)) == 7


def test_drawn_nodes_are_drawn_when_asked_and_always_alike() -> None:
    labels = np.repeat(np.arange(10), [3, *[200] * 9])
    images = Pool(labels, np.zeros(len(labels), np.int64), CLASSES, ("set",))
    table = {"scheme": "drawn", "minimum": 1, "clients": 1_000_000, "alpha": 0.2, "size": 40}
    parts = split(images, table, numpy_stream(0, 0, "server", "partition")).parts
    again = split(images, table, numpy_stream(0, 0, "server", "partition")).parts
    assert len(parts) == 1_000_000
    for node in (0, 7, 999_999, 7):
        assert np.array_equal(parts[node], again[node])
        assert len(np.unique(parts[node])) == len(parts[node]) == 40
    assert not np.array_equal(parts[0], parts[1])
    shares = np.stack([np.bincount(labels[parts[node]], minlength=10) for node in range(400)]) / 40
    assert shares.mean(0)[1:] == pytest.approx(np.full(9, 0.1), abs=0.04)
    assert (shares.max(1) > 0.5).mean() > 0.5  # alpha = 0.2 is skewed
    with pytest.raises(IndexError):
        parts[1_000_000]
    with pytest.raises(InputError, match="data.partition.size = 5000: there are only 1803 images"):
        split(images, {**table, "size": 5000}, numpy_stream(0, 0, "server", "partition"))


def test_each_class_is_cut_into_shards_of_its_own() -> None:
    """Three clients with two shards each, of three classes with 5, 4 and 6 images: two shards of each class."""
    labels = np.array([2, 0, 1, 0, 2, 0, 1, 2, 0, 1, 2, 2, 0, 1, 2])
    images = Pool(labels, np.zeros(15, np.int64), ("a", "b", "c"), ("set",))
    table = {"scheme": "shards", "clients": 3, "per_client": 2}
    for seed in range(5):
        rng = numpy_stream(seed, 0, "server", "partition")
        order = rng.permutation(15).tolist()
        of = [[i for i in order if labels[i] == label] for label in range(3)]
        pieces = [of[0][:3], of[0][3:], of[1][:2], of[1][2:], of[2][:3], of[2][3:]]
        wanted = [sorted(pieces[a] + pieces[b]) for a, b in rng.permutation(6).reshape(3, 2)]
        assert [part.tolist() for part in parts_of(table | {"cut": "class"}, seed, images)] == wanted
        assert np.array_equal(parts_of(table, seed)[0], parts_of(table | {"cut": "all"}, seed)[0])


def test_niid_bench_gives_client_i_class_i_and_draws_the_others() -> None:
    """Five clients with two of three classes: client 3 begins again with class 0."""
    labels = np.array([2, 0, 1, 0, 2, 0, 1, 2, 0, 1, 2, 2, 0, 1, 2])
    images = Pool(labels, np.zeros(15, np.int64), ("a", "b", "c"), ("set",))
    table = {"scheme": "classes_per_client", "clients": 5, "classes": 2, "deal": "niid_bench", "minimum": 0}
    for seed in range(5):
        rng = numpy_stream(seed, 0, "server", "partition")
        hands = []
        for first, others in ((0, [1, 2]), (1, [0, 2]), (2, [0, 1]), (0, [1, 2]), (1, [0, 2])):
            hands.append({first, int(rng.choice(others, 1, replace=False)[0])})
        wanted: list[list[int]] = [[], [], [], [], []]
        for label, count in enumerate((5, 4, 6)):
            order = rng.permutation(np.flatnonzero(labels == label))
            owners = [client for client in range(5) if label in hands[client]]
            sizes = [count // len(owners) + (place < count % len(owners)) for place in range(len(owners))]
            for client, size in zip(owners, sizes, strict=True):
                wanted[client] += order[:size].tolist()
                order = order[size:]
        assert [part.tolist() for part in parts_of(table, seed, images)] == [sorted(part) for part in wanted]


def test_niid_bench_leaves_out_classes_that_no_client_has() -> None:
    labels = pool().labels
    parts = parts_of({"scheme": "classes_per_client", "clients": 3, "classes": 1, "deal": "niid_bench"})
    assert [part.tolist() for part in parts] == [np.flatnonzero(labels == label).tolist() for label in range(3)]
    often = np.zeros(10)
    for seed in range(200):
        for client, part in enumerate(
            parts_of({"scheme": "classes_per_client", "clients": 4, "classes": 3, "deal": "niid_bench"}, seed)
        ):
            held = np.unique(labels[part])
            assert len(held) == 3
            assert client in held
            often[held] += 1
    assert often[:4].min() > 200  # their own, and in part what the others draw
    assert np.abs(often[4:] / 200 - 4 * 2 / 9).max() < 4.5 * np.sqrt(4 * 2 / 9 * 7 / 9 / 200)


def test_sizes_follow_shares_of_a_dirichlet_distribution() -> None:
    rng = numpy_stream(3, 0, "server", "partition")
    shares = rng.dirichlet([0.5] * 4)
    cuts = np.round(np.cumsum(shares)[:3] * 2000).astype(int)
    wanted = [sorted(part) for part in np.split(rng.permutation(2000), cuts)]
    assert [part.tolist() for part in parts_of({"scheme": "quantity", "clients": 4, "alpha": 0.5}, 3)] == wanted
    plain, one = ({"scheme": "quantity", "clients": 4, **more} for more in ({}, {"sigma": 1.0}))
    assert [part.tolist() for part in parts_of(plain)] == [part.tolist() for part in parts_of(one)]


def test_ways_gives_client_i_its_own_place_in_each_of_its_classes() -> None:
    """Three clients, four classes of ten images: client i has one or two images of a class from its 3 i-th on."""
    labels = np.arange(40) % 4
    images = Pool(labels, np.zeros(40, np.int64), ("a", "b", "c", "d"), ("set",))
    table = {"scheme": "ways", "clients": 3, "ways": 2, "stdev": 1, "shots": 2, "most_shots": 3, "test_shots": 5}
    seen = set()
    for seed in range(20):
        found = split(images, {"minimum": 1, **table}, numpy_stream(seed, 0, "server", "partition"))
        assert found.test_shots == 5
        rng = numpy_stream(seed, 0, "server", "partition")
        counts, shots = rng.integers(2, 4, 3).tolist(), rng.integers(1, 3, 3).tolist()
        for client, (count, k) in enumerate(zip(counts, shots, strict=True)):
            own = rng.choice(4, count, replace=False)
            first = 3 * client
            wanted = sorted(4 * place + label for label in own for place in range(first, first + k))
            assert found.parts[client].tolist() == wanted
            seen.add((count, k))
    assert seen == {(2, 1), (2, 2), (3, 1), (3, 2)}


@pytest.mark.parametrize(("ways", "stdev", "counts"), [(3, 2, range(2, 6)), (5, 2, range(3, 8)), (9, 3, range(6, 10))])
def test_ways_draws_the_published_numbers_of_classes_and_images(ways: int, stdev: int, counts: range) -> None:
    labels = pool(30_000).labels
    table = {"scheme": "ways", "clients": 20, "ways": ways, "stdev": stdev}
    found, sizes = [], set()
    for seed in range(20):
        parts = parts_of(table, seed, pool(30_000))
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
        for part in parts:
            held = np.bincount(labels[part])
            found.append(np.count_nonzero(held))
            sizes.add(tuple(np.unique(held[held > 0])))
    often = np.bincount(found)
    assert np.flatnonzero(often).tolist() == [*counts]
    assert np.abs(often[counts.start :] / 400 - 1 / len(counts)).max() < 4.5 * np.sqrt(0.25 / 400)
    assert sizes == {(99,), (100,)}


def test_a_node_keeps_the_first_images_in_the_order_of_its_shards() -> None:
    """Two clients get two shards of two images: of 0.75 the first shard stays, and the first image of the second."""
    images = Pool(np.array([3, 2, 1, 0, 0, 1, 2, 3]), np.zeros(8, np.int64), ("a", "b", "c", "d"), ("set",))
    in_part = []
    for seed in range(5):
        rng = numpy_stream(seed, 0, "server", "partition")
        order = rng.permutation(8)
        shards = [[int(i) for i in order if images.labels[i] == label] for label in range(4)]
        hands = rng.permutation(4).reshape(2, 2)
        wanted = [sorted([*shards[a], shards[b][0]]) for a, b in hands]
        found = parts_of({"scheme": "shards", "clients": 2}, seed, images, 0.75)
        assert [part.tolist() for part in found] == wanted
        in_part += [part != sorted(shards[a] + shards[b])[:3] for part, (a, b) in zip(wanted, hands, strict=True)]
    assert any(in_part)  # the first ones of the sorted positions are others


@pytest.mark.parametrize("table", [t | {"clients": 5} for t in SCHEMES] + [{"scheme": "domains", "per_domain": 5}])
def test_a_share_of_a_nodes_images_is_rounded_down_and_taken_of_the_same_partition(table: dict) -> None:
    whole = parts_of(table)
    for share in (1.0, 0.8, 0.29, 0.1):
        parts = parts_of(table, share=share)
        assert [len(part) for part in parts] == [int(Decimal(str(share)) * len(part)) for part in whole]
        assert all(set(part) <= set(before) for part, before in zip(parts, whole, strict=True))
        assert all((np.diff(part) > 0).all() for part in parts)


def test_a_scheme_with_test_images_of_its_own_is_for_one_set() -> None:
    ways = {"scheme": "ways", "ways": 3, "shots": 2, "most_shots": 2, "test_shots": 2}
    with pytest.raises(
        InputError, match=r"scheme = 'ways': the federation has several sets, but this scheme is for one"
    ):
        parts_of({**ways, "clients": 3}, data=pool(domains=2))
    with pytest.raises(
        InputError, match=r"within.scheme = 'ways': this scheme is only for one set; use another scheme"
    ):
        parts_of({"scheme": "domains", "per_domain": 3, "within": ways})


def test_domains_leave_the_order_of_the_scheme_within_as_it_is() -> None:
    table = {"scheme": "domains", "per_domain": 5, "within": {"scheme": "shards"}}
    within, alone = parts_of(table, share=0.6), parts_of({"scheme": "shards", "clients": 5}, share=0.6)
    assert [part.tolist() for part in within] == [part.tolist() for part in alone]


def test_a_share_that_leaves_no_image_and_one_of_drawn_nodes_are_refused() -> None:
    with pytest.raises(InputError, match=r"data.node_train = 0.1: node 0 has 4 images, of which none is left"):
        parts_of({"scheme": "iid", "clients": 500}, share=0.1)
    with pytest.raises(InputError, match=r"data.node_train = 0.5: with data.partition.scheme = 'drawn' a node's image"):
        parts_of({"scheme": "drawn", "clients": 9, "alpha": 1.0, "size": 20}, share=0.5)


def test_the_partition_deals_as_published() -> None:
    rng = np.random.RandomState(0)
    priors = rng.dirichlet([0.3] * 5, size=4)
    counts = deal(priors, np.full(5, 20), np.full(4, 25), rng.uniform, rng.randint, 10**6)
    assert counts.tolist() == [[1, 12, 2, 2, 8], [8, 5, 0, 2, 10], [10, 3, 6, 4, 2], [1, 0, 12, 12, 0]]


def test_an_unknown_key_of_a_partition_is_shown_all_keys(tiny: Make) -> None:
    partition = {"scheme": "dirichlet", "clients": 3, "alpha": 0.5, "minimun": 2}
    with pytest.raises(InputError) as refused:
        federate(tiny({"data.partition": partition}).data, 0)
    assert "data.partition.minimun: unknown key 'minimun'; did you mean 'minimum'?" in str(refused.value)
    assert "Valid: alpha, capped, clients, minimum, scheme, seed." in str(refused.value)
