"""Makes the data of a federation: loads the sets, removes the public set, partitions the rest."""

from __future__ import annotations

import numpy as np

from ..config import DataConfig, PartitionConfig
from ..errors import InputError, some
from ..streams import numpy_stream
from .alignment import common_spec, in_spec
from .classes import same_classes
from .codec import MOST_UNSEEN, Codec, notes_of, unseen
from .federated_data import FederatedData, Noise, Ragged
from .held_out import tests_from_training
from .named_sets import codec_of, first_of_each, images_fingerprint, load_set
from .node_tests import DrawnTests, dealt_tests, draw_node_test
from .node_validation import behind, hold_out, named_rows, refuse_unheld
from .partitions import split
from .public_set import take_public_set, take_validation
from .samples import Dataset, Samples
from .site_data import without_samples
from .spec import DataSpec, Task
from .splits import Drawn, Pool, Split
from .strata import strata_of
from .unknown_words import unknown_at_nodes


def federate(config: DataConfig, seed: int) -> FederatedData:
    """Load the named sets, remove the public set, partition the rest, and draw each node's test images.

    The same config and seed give the same federation on every machine. Raises InputError if the config is impossible.
    """
    if config.sites is not None:
        return without_samples(config, config.sites, seed)
    assert config.partition is not None
    seed = config.partition.seed if config.partition.seed is not None else seed
    sets = [first_of_each(load_set(config, name), config) for name in config.set_names]
    if config.held_out is not None:
        by_time = config.time is not None
        sets = [
            tests_from_training(one, config.held_out, name, by_time=by_time)
            for name, one in zip(config.set_names, sets, strict=True)
        ]
    first = sets[0]
    images = {one.about.kind for one in sets} == {"image"}
    for name, other in zip(config.set_names, sets, strict=True):
        if images and other.train.inputs.shape[1:] != first.train.inputs.shape[1:]:
            shapes = " and ".join("x".join(map(str, s.train.inputs.shape[1:])) for s in (first, other))
            raise InputError(
                f"data.names: {config.set_names[0]} and {name} have images of {shapes} (channels x height x width); "
                "set data.size and data.channels to give them the same shape."
            )
    if config.noise and not images:
        raise InputError(f"data.noise = {config.noise:g} is for images; the samples are {first.about.noun(2)}.")
    if not images:
        spec = common_spec(sets, config.set_names)
        sets = [in_spec(one, spec) for one in sets]
    sets = same_classes(sets, config.set_names)
    first = sets[0]
    task = first.about.task
    if task == "classification" and len(first.classes) < 2:
        raise InputError(
            f"data: {config.set_names[0]} has only one class, {first.classes[0]}; it needs at least two. If that is a "
            "folder around the class folders, name it in data.name."
        )
    train, domains = _pool([s.train for s in sets])
    test, test_domains = _pool([s.test for s in sets])
    holders, names = _holders(sets)
    every, its_holder, named = train, None, named_rows(sets, config)
    if named is not None:
        train, domains = train.take(~named), domains[~named]
        if holders is not None:
            its_holder, holders = holders[0][named], (holders[0][~named], holders[1])

    public, kept, classes = take_public_set(config, train, first.about, seed, first.classes)
    train, domains = _left(train, kept), domains[kept]
    holder = None if holders is None else holders[0][kept]
    validation, kept = take_validation(config, train, first.about, seed, first.classes)
    train, domains = _left(train, kept), domains[kept]
    holder = None if holder is None else holder[kept]
    columns = _columns(config, train, first.about, holder, names)
    strata = strata_of(train.labels, task, first.classes)
    targets = train.labels[:, 0] if task == "regression" else None
    pool = Pool(
        strata.of(train.labels), domains, strata.names, tuple(config.set_names), holder, names, columns, targets
    )
    table = {"scheme": config.partition.scheme, "minimum": config.partition.minimum}
    rng = numpy_stream(seed, 0, "server", "partition")
    found = split(pool, table | (config.partition.model_extra or {}), rng, seed, config.node_train)
    _refuse_other_tests(config, config.partition, found)
    parts, priors, own, test_shots = found
    if named is not None and own is None:
        refuse_unheld(config, int(named.sum()))
    test_pool = Pool(strata.of(test.labels), test_domains, strata.names, tuple(config.set_names))
    if own is not None:
        assert holders is not None
        names = tuple("+".join(names[one] for one in group) for group in own)
    test_parts: Ragged | DrawnTests
    if isinstance(parts, Drawn):
        node_domains, test_parts = (
            np.zeros(len(parts), np.int8),
            DrawnTests(parts, pool, test_pool, config.node_test, seed),
        )
    else:
        if priors is None:
            width = len(strata.names)
            priors = np.stack([np.bincount(pool.labels[p], minlength=width) / len(p) for p in parts])
        node_domains = np.array([np.bincount(domains[part]).argmax() for part in parts])
        if own is not None and holders is not None:
            tests = [np.flatnonzero(np.isin(holders[1], group)) for group in own]
        elif test_shots is not None:
            tests = dealt_tests(parts, pool, test_pool, test_shots, "data.partition.test_shots")
        elif config.node_test_by != "labels":
            tests = dealt_tests(parts, pool, test_pool, config.node_test if config.node_test_by == "cut" else None)
        else:
            tests = [
                draw_node_test(pool, part, prior, test_pool, config.node_test, numpy_stream(seed, 0, node, "node-test"))
                for node, (part, prior) in enumerate(zip(parts, priors, strict=True))
            ]
        test_parts = Ragged.of(tests)
        more = len(classes) - len(first.classes)
        priors = np.pad(priors, ((0, 0), (0, more))) if task == "classification" else None
    validation_parts = None
    if config.node_validation is not None:
        parts, validation_parts = hold_out(parts, pool.labels, config.node_validation, seed)
    rows = np.arange(len(train.labels)) if isinstance(parts, Drawn) else np.sort(np.concatenate(parts))
    codec = codec_of(config, sets, train, rows)
    notes = tuple(note for one in sets for note in one.notes)
    if codec.spec.kind == "table":
        notes += notes_of(codec, train.inputs[rows], test.inputs)
        if own is not None and isinstance(parts, list):
            notes += _empty_columns(codec.spec, train.inputs, parts, names)
        if isinstance(test_parts, Ragged):
            _refuse_unseen(codec, test, test_parts, names if own is not None else ())
    if codec.spec.kind == "tokens" and isinstance(parts, list) and isinstance(test_parts, Ragged):
        whose = names if own is not None else ()
        notes += unknown_at_nodes(codec, train.inputs, Ragged.of(parts), test.inputs, test_parts, whose)
    if task == "regression":
        equal = (train.labels[rows] == train.labels[rows][:1]).all(0).tolist()
        notes += tuple(
            f"target {name!r} is constant in all training samples"
            for name, same in zip(first.classes, equal, strict=True)
            if same
        )
    if own is not None and isinstance(parts, list) and isinstance(test_parts, Ragged):
        notes += _few_rows(parts, test_parts, train.labels, names, task)
    held = 0 if validation_parts is None else len(validation_parts.values)
    if unused := len(train.labels) - len(rows) - held:
        notes += (f"{unused} of {len(train.labels)} training {first.about.noun(2)} are with no node",)
    if named is not None and its_holder is not None and own is not None:
        validation_parts = Ragged.of([len(train.labels) + np.flatnonzero(np.isin(its_holder, one)) for one in own])
        train = behind(train, every.take(named))
    return FederatedData(
        train=train,
        test=test,
        train_parts=parts if isinstance(parts, Drawn) else Ragged.of(parts),
        test_parts=test_parts,
        node_domains=node_domains,
        priors=priors,
        public=public,
        validation=validation,
        public_labelled=bool(config.public and config.public.labelled),
        classes=classes,
        node_classes=first.classes,
        domain_names=tuple(config.set_names),
        codec=codec,
        images_fingerprint=images_fingerprint(sets),
        node_names=names if own is not None else (),
        notes=notes,
        validation_parts=validation_parts,
        noise=Noise(config.noise, seed) if config.noise else None,
    )


def _refuse_other_tests(config: DataConfig, partition: PartitionConfig, found: Split) -> None:
    """Raise InputError for options of test images if the scheme leaves no choice of them."""
    keys: dict[str, str | int] = {"node_test_by": config.node_test_by}
    if isinstance(found.parts, Drawn):
        why = "nodes share images"
    elif found.holders is not None:
        why = "nodes have their own test samples"
    elif found.test_shots is not None:
        why, keys = "nodes get test_shots test images of each of their classes", {**keys, "node_test": config.node_test}
    else:
        return
    for key, value in keys.items():
        if value != DataConfig.model_fields[key].default:
            raise InputError(
                f"data.{key} = {value!r}: with data.partition.scheme = {partition.scheme!r} {why}; remove data.{key}."
            )


def _few_rows(
    parts: list[np.ndarray], tests: Ragged, labels: np.ndarray, names: tuple[str, ...], task: Task
) -> tuple[str, ...]:
    """Return which nodes have training samples of one class only, and which have no test samples."""
    one = "training samples of one class only" if task == "classification" else "equal labels on all training samples"
    found = {
        f"have {one}": [len(np.unique(labels[part], axis=0)) == 1 for part in parts],
        "have no test samples": (tests.lengths() == 0).tolist(),
    }
    named = {said: [name for name, is_so in zip(names, which, strict=True) if is_so] for said, which in found.items()}
    return tuple(f"{len(who)} nodes {said}: {some(who)}" for said, who in named.items() if who)


def _empty_columns(
    spec: DataSpec, rows: np.ndarray, parts: list[np.ndarray], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return which columns have values in training rows, but none in those of some nodes, with the nodes' names."""
    empty = np.stack([np.isnan(rows[part]).all(0) for part in parts])
    found = [(column.name, np.flatnonzero(empty[:, place]).tolist()) for place, column in enumerate(spec.columns)]
    return tuple(
        f"column {name!r} has no training value at {len(nodes)} nodes: {some([names[node] for node in nodes])}; the "
        "values of others say what it becomes there"
        for name, nodes in found
        if 0 < len(nodes) < len(empty)
    )


def _left(train: Samples, kept: np.ndarray) -> Samples:
    """Return the samples at these positions; all of them as they are, in memory or in a mapped file."""
    return train if len(kept) == len(train.labels) else train.take(kept)


def _refuse_unseen(codec: Codec, test: Samples, parts: Ragged, names: tuple[str, ...]) -> None:
    """Raise InputError if most of a node's test rows have, in one column, a category that no training row has."""
    for node in range(len(parts)):
        rows = test.inputs[parts[node]]
        for name, count in unseen(codec, rows).items():
            if count > MOST_UNSEEN * len(rows):
                who = names[node] if names else str(node)
                raise InputError(
                    f"data: column {name!r} of node {who}: {count} of {len(rows)} test values are no category of a "
                    "training row; is this another column, or another spelling? Else lower data.min_count, or add it "
                    "to data.drop."
                )


def _columns(
    config: DataConfig, train: Samples, spec: DataSpec, holder: np.ndarray | None, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Return the columns of the training rows that a partitioner may look at, by name."""
    found: dict[str, np.ndarray] = {}
    if spec.kind == "table":
        for place, column in enumerate(spec.columns):
            values = train.inputs[:, place]
            if column.categories is not None:
                code = np.nan_to_num(values, nan=len(column.categories)).astype(np.int64)
                values = np.array([*column.categories, ""])[code]
            found[column.name] = values
    for place, name in enumerate(config.labels):
        found[name] = train.labels if train.labels.ndim == 1 else train.labels[:, place]
    if config.node is not None and holder is not None:
        found[config.node] = np.array(names)[holder]
    return found


def _holders(sets: list[Dataset]) -> tuple[tuple[np.ndarray, np.ndarray] | None, tuple[str, ...]]:
    """Return who has each training and each test sample, as positions in the names, and the names, sorted."""
    if any(one.nodes is None for one in sets):
        return None, ()
    both = [np.concatenate([one.nodes[part].astype(str) for one in sets if one.nodes is not None]) for part in (0, 1)]
    names = np.unique(np.concatenate(both))
    places = tuple(np.searchsorted(names, one) for one in both)
    if all(name.isdecimal() for name in names.tolist()):  # node 10 comes after node 2
        order = np.argsort(names.astype(np.float64), kind="stable")
        back = np.argsort(order)
        names, places = names[order], tuple(back[one] for one in places)
    return (places[0], places[1]), tuple(names.tolist())


def _pool(parts: list[Samples]) -> tuple[Samples, np.ndarray]:
    if len(parts) == 1:
        return parts[0], np.zeros(len(parts[0].labels), np.int64)
    images = np.concatenate([part.inputs for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Samples(images, labels), np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])
