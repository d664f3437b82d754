"""The rows of benchmarks/gpu.py that check one way to compute against another. `good`: as close as it must be."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from gpu_measure import difference, exact_float32, weights_after
from gpu_work import Result, Scale, built, fedavg, inline, quarter, stacked, trainings

NETS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lenet5", {}),
    ("resnet8", {"norm": "group"}),
    ("resnet8", {"norm": "batch"}),
)


def twice(scale: Scale) -> Result:
    """The same run twice, by each engine: are the weights the same bytes?"""
    row: Result = {"good": True}
    for engine in (inline, stacked):
        more = {"path": "folded"} if engine is stacked else {}  # another path has other bytes
        config = fedavg("mnist-10", engine(scale, **more), scale, rounds=2)
        apart = difference(weights_after(config)[0], weights_after(config)[0])
        row[config.engine.name] = apart
        row["good"] &= apart == 0
    return row


def on_cpu(scale: Scale) -> Result:
    """One round on the device and on the CPU: the same up to rounding, and in accuracy up to half a point."""
    with exact_float32():
        one, accuracy = weights_after(fedavg("mnist-10", inline(scale), scale, rounds=1))
        other, expected = weights_after(fedavg("mnist-10", {"name": "inline", "device": "cpu"}, scale, rounds=1))
    apart, points = difference(one, other), 100 * abs(accuracy - expected)
    return {"apart": apart, "accuracy_points": points, "good": apart < 1e-2 and points <= 0.5}


def _sizes(scale: Scale) -> list[int]:
    return [40, 33, 20, 50, 7] if scale.tiny else [640, 500, 330, 400, 200]


def _each(scale: Scale, compare: Callable[[Any, dict[str, Any], Any], dict[str, Any]], most: float) -> Result:
    """Compare for each model and path, in float64; differences must be at most `most`."""
    row: Result = {"good": True}
    for name, options in NETS:
        model = built(name, scale, **options).double()
        begin = {n: t.clone() for n, t in model.state_dict().items()}
        for path in ("vmap", "folded"):
            found = compare(model, begin, path)
            row[" ".join([name, *options.values(), path])] = found
            row["good"] &= all(value <= most for value in found.values() if isinstance(value, float))
            row["good"] &= not found.get("events")
    return row


def in_one_step(scale: Scale) -> Result:
    """Clients of unequal sizes in one step against one at a time, in float64; and five against two and three."""
    from fedkd.learning.stacked_training import train_stacked
    from fedkd.learning.training import train_alone

    def made(model: Any) -> list[Any]:
        return trainings(model, scale, _sizes(scale), exact=True)

    def compare(model: Any, begin: dict[str, Any], path: Any) -> dict[str, Any]:
        alone = []
        for local in made(model):
            model.load_state_dict(begin)
            train_alone(local)
            alone.append({n: t.clone() for n, t in model.state_dict().items()})
        together = [one.weights for one in train_stacked(made(model), [begin] * 5, path)]
        parts = [one.weights for a, b in ((0, 2), (2, 5))
                 for one in train_stacked(made(model)[a:b], [begin] * (b - a), path)]  # fmt: skip
        return {"alone": _worst(together, alone), "split": _worst(together, parts)}

    return _each(scale, compare, 1e-10)


def _worst(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    return max(difference(a, b) for a, b in zip(one, other, strict=True))


def graphs(scale: Scale) -> Result:
    """The step of fixed shapes against the ordinary one, in float64; on a GPU also recorded as a CUDA graph.

    The second training of a kind is the one that is recorded. On a CPU nothing is.
    """
    from fedkd.learning.stacked_graphs import StepGraphs, record_graph

    return _each(scale, _fixed(scale, lambda note: StepGraphs(note, record_graph if scale.device == "cuda" else None)),
                 1e-10)  # fmt: skip


def compiled(scale: Scale) -> Result:
    """The compiled step against the ordinary one, in float64, and the seconds of the first training."""
    from fedkd.learning.stacked_graphs import StepGraphs

    backend = "aot_eager" if scale.tiny else "inductor"
    return _each(scale, _fixed(scale, lambda note: StepGraphs(note, None, backend)), 1e-10) | {"backend": backend}


def _fixed(
    scale: Scale, make: Callable[[Callable[[str], None]], Any]
) -> Callable[[Any, dict[str, Any], Any], dict[str, Any]]:
    from fedkd.learning.stacked_training import train_stacked

    def compare(model: Any, begin: dict[str, Any], path: Any) -> dict[str, Any]:
        events: list[str] = []
        fixed, found, taken = make(events.append), [], []
        for which in (None, fixed, fixed):
            work = trainings(model, scale, _sizes(scale), exact=True)
            start = time.perf_counter()
            found.append([one.weights for one in train_stacked(work, [begin] * 5, path, which)])
            _wait(scale)
            taken.append(time.perf_counter() - start)
        row = {"first": _worst(found[0], found[1]), "second": _worst(found[0], found[2]), "events": events}
        return row | {"seconds": [round(one, 3) for one in taken]}

    return compare


def _wait(scale: Scale) -> None:
    if scale.device == "cuda":
        import torch

        torch.cuda.synchronize()


def paths(scale: Scale) -> Result:
    """What `path = "auto"` measures on a GPU: the seconds of a short training by each path, and the fastest one."""
    from fedkd.core.environment import Environment
    from fedkd.simulations.path_choice import seconds_of, times_of

    row: Result = {}
    for work in ("mnist-10", "resnet8", "resnet18"):
        if scale.tiny and work == "resnet18":
            continue
        environment = Environment(fedavg(work, stacked(scale), scale))
        environment.use_device(scale.device)
        times = times_of(environment, 0, 3 if scale.tiny else 10, seconds_of if scale.device == "cuda" else _seconds)
        row[work] = dict(times) | {"fastest": min(times, key=lambda way: times[way])}
    return row


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def memory(scale: Scale) -> Result:
    """A run with too little memory for its clients per step: it must halve them, and end in the same weights.

    On a GPU the process may use half of what the same run took before. On a CPU the first attempts fail by decree.
    """
    import torch

    from fedkd.simulations import kinds

    events: list[str] = []
    config = fedavg("mnist-100", stacked(scale, path="folded"), scale, rounds=1)
    free, _ = weights_after(config)
    before = kinds.train_stacked

    def capped(work: Any, *more: Any) -> Any:
        if len(work) > 2:
            raise torch.OutOfMemoryError("by decree")
        return before(work, *more)

    if scale.device == "cuda":
        peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        gc.collect()  # what the first run has left
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(peak / 2 / total)
    else:
        kinds.train_stacked = capped
    weights, _ = weights_after(config, events)
    apart, halved = difference(free, weights), [text for text in events if text.startswith("out of memory")]
    return {"apart": apart, "events": events, "good": apart < 1e-2 and bool(halved)}


def by_ray(scale: Scale) -> Result:
    """Four Ray workers, each with a quarter of the device, against one client at a time."""
    one, _ = weights_after(fedavg("mnist-10", inline(scale), scale, rounds=2))
    other, _ = weights_after(fedavg("mnist-10", quarter(scale), scale, rounds=2))
    apart = difference(one, other)
    return {"apart": apart, "good": apart <= (0 if scale.device == "cpu" else 1e-2)}
