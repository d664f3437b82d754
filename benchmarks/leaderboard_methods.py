"""The leaderboard's protocol: data sets, budget, learning rates, and the knobs of each method."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

from fedkd.config import Config, parse_config, read_table
from fedkd.runs.sweep import resolved

HOME = Path(__file__).resolve().parents[1]
CONFIGS = HOME / "configs" / "leaderboard"  # one file for each data set
GLOBAL, PERSONAL = "global/accuracy", "personal/accuracy"
TABLE, SERIES, IMAGES = "a table", "time series", "images"

ALPHAS = (0.1, 0.5)
RATES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)  # as many as trials: each method tries each of them once
SEARCH_SEED, SEEDS = 100, (0, 1, 2, 3, 4)
HELD_OUT = 0.2  # the share of training samples on which trials are measured

Settings = dict[str, Any]  # of a trial: `lr`, and options of the strategy


class Set(NamedTuple):
    """A data set: its name on the page, its kind, and the processor seconds of a run of FedAvg with its start."""

    title: str
    kind: str
    seconds: float


class Method(NamedTuple):
    """A strategy on the board.

    `result`: what its search improves: the accuracy of the global model or of the nodes' models. `knobs`: options that
    are searched, each with its values. `fixed`: other options that are not the defaults; `images`: those for images.
    `cost`: the seconds of a run as a multiple of FedAvg's, for the estimate of hours.
    """

    result: str
    cost: float
    knobs: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012 - never changed
    fixed: dict[str, Any] = {}  # noqa: RUF012
    images: dict[str, Any] = {}  # noqa: RUF012


# Seconds: one run each on 2026-12-01, two cores (x86_64), while other programs used both of them
SETS = {
    "mnist": Set("MNIST", IMAGES, 12),
    "cifar10": Set("CIFAR-10", IMAGES, 16),
    "rodents": Set("Rodents", TABLE, 4),
    "spoken_digits": Set("Spoken digits", SERIES, 18),
}

# The values of a knob are those that the paper tries, if the comment gives the paper. Where we do not know what it
# tries, they are the value of the paper or of its code ("authors'") with one smaller and one larger value.
# Costs: from the board of 2026-11-26 (MNIST and CIFAR-10); of fedper and lg_fedavg FedAvg's.
# Sizes in `fixed` fit the budget of this board; the defaults are for training that is ten times longer.
METHODS = {
    # what others are compared with; `central` trains on all nodes' samples and is the upper bound
    "fedavg": Method(GLOBAL, 1.0),
    "local": Method(PERSONAL, 1.4),
    "central": Method(GLOBAL, 1.2),
    # one model for all
    "fedprox": Method(GLOBAL, 1.2, {"mu": (0.001, 0.01, 0.1, 1.0)}),  # Li et al. 2020, section 5.1
    "scaffold": Method(GLOBAL, 1.2),  # Karimireddy et al. 2020: the server's step is 1 in all experiments
    "feddyn": Method(GLOBAL, 1.3, {"alpha": (0.001, 0.01, 0.1)}),  # Acar et al. 2021
    "fednova": Method(GLOBAL, 1.1),
    "fedntd": Method(GLOBAL, 1.5, {"beta": (0.3, 1.0, 3.0), "temperature": (1.0, 3.0)}),  # authors': 1 and 1
    "moon": Method(GLOBAL, 1.8, {"mu": (0.1, 1.0, 5.0, 10.0)}),  # Li et al. 2021, section 4.1; its temperature is 0.5
    "feddistill_fl": Method(GLOBAL, 1.2, {"gamma": (0.1, 1.0, 10.0)}),  # authors': 1
    "feddf": Method(GLOBAL, 4.3, {"distil_lr": (1e-4, 1e-3, 1e-2)}, {"steps": 100}),  # authors': 1e-3
    # authors' for MNIST: 10 and 10; with plain SGD they diverged in our runs, and 1 and 1 did not
    "fedgen": Method(
        GLOBAL, 1.7, {"alpha": (1.0, 10.0), "beta": (1.0, 10.0)}, {"generator_lr": 3e-3, "generator_steps": 20}
    ),
    # authors': 0.1 for a node's rate of 0.1
    "fedftg": Method(
        GLOBAL,
        5.0,
        {"student_lr": (0.01, 0.03, 0.1)},
        {"base": {"name": "fedavg"}, "iterations": 2, "generator_width": 16},
    ),
    "supcon_only": Method(GLOBAL, 1.1, {"lambda_con": (0.1, 1.0, 10.0)}),  # the values of fedlgd, whose control it is
    "vhl": Method(  # authors': 1 and 1
        GLOBAL,
        3.0,
        {"alpha": (0.3, 1.0, 3.0), "align": (0.3, 1.0, 3.0)},
        {"noise_per_class": 100, "noise_batch_size": 32, "generator_width": 64},
    ),
    "fedlgd": Method(  # authors': 1, and 10 for digits
        GLOBAL,
        5.0,
        {"lambda_con": (0.1, 1.0, 10.0)},
        # with so few steps, images that start from noise stay noise
        {
            "ipc": 5,
            "server_ipc": 5,
            "initial": "real",
            "initial_steps": 50,
            "real_batch": 64,
            "local_steps": 10,
            "global_steps": 50,
            "times": 2,
        },
        {"augment": ["color", "crop", "cutout", "scale", "rotate"]},  # digits must not be flipped
    ),
    # a model for each node
    "fd": Method(PERSONAL, 1.3, {"gamma": (0.1, 1.0, 10.0)}),  # 1 in public frameworks
    "feddistill": Method(PERSONAL, 1.2, {"gamma": (0.1, 1.0, 10.0)}),  # authors': 1
    "fedmd": Method(  # mae: Li and Wang 2019; kl: this project's alternative
        PERSONAL, 2.4, {"digest": ("mae", "kl")}, {"public_epochs": 0, "private_epochs": 0, "distil_batch_size": 32}
    ),
    "ktpfl": Method(  # authors': 0.7 and 10
        PERSONAL, 2.7, {"rho": (0.1, 0.7, 2.0), "temperature": (1.0, 10.0)}, {"distil_batch_size": 32}
    ),
    "knfu": Method(PERSONAL, 2.4, {"beta": (1.0, 3.0, 10.0)}, {"distil_batch_size": 32}),  # the paper's: 10
    "dsfl": Method(PERSONAL, 2.8, {"temperature": (0.05, 0.1, 0.5)}, {"distil_batch_size": 32}),  # the paper's: 0.1
    "comet": Method(  # the defaults of a public re-implementation: 2 and 1
        PERSONAL, 3.6, {"clusters": (2, 3, 5), "regularization": (0.3, 1.0, 3.0)}, {"distil_batch_size": 32}
    ),
    "fml": Method(PERSONAL, 2.1, {"alpha": (0.25, 0.5, 0.75), "beta": (0.25, 0.5, 0.75)}),  # 0.5 and 0.5 by default
    "fedproto": Method(PERSONAL, 1.3, {"prototype_weight": (0.1, 1.0, 2.0, 4.0)}),  # Tan et al. 2022: 0.1 to 4
    "fedper": Method(PERSONAL, 1.0, {"kept_layers": (1, 2, 3)}),  # Arivazhagan et al. 2019: 1 to 4
    "lg_fedavg": Method(PERSONAL, 1.0, {"shared_layers": (1, 2, 3)}),  # authors': 3 of 5 layers
}

_WITHOUT_LABELS = "They learn features without labels, and are measured by a probe that has the labels of all nodes."
LEFT_OUT = {
    **dict.fromkeys(("byol", "fedu", "fedx", "moco", "protocl", "simclr"), _WITHOUT_LABELS),
    "fedavg_virtual": "A control of FedLGD: FedAvg on distilled samples instead of the nodes' own.",
    "fedensemble": "It trains as FedAvg does; only its prediction, the mean over all nodes' models, is another.",
    "weight_ema": "A wrapper that trains nothing: it measures an average of the models of its base.",
}


def trials(method: Method) -> list[Settings]:
    """Return the settings of a method's trials: each learning rate once, with the values of its knobs in turn.

    Neighbouring rates have different values. With up to as many combinations of values as rates, each is tried.
    """
    choices = [dict(zip(method.knobs, values, strict=True)) for values in itertools.product(*method.knobs.values())]
    count = len(choices)
    stride = next(s for s in itertools.count(math.isqrt(count - 1) + 1) if math.gcd(s, count) == 1)
    return [{"lr": rate, **choices[stride * place % count]} for place, rate in enumerate(RATES)]


def table_of(name: str, alpha: float, method: str, settings: Settings) -> dict[str, Any]:
    """Return the run file of a method with these settings as a table, without its seed."""
    table = read_table(CONFIGS / f"{name}.toml")
    one = METHODS[method]
    own = one.images if SETS[name].kind == IMAGES else {}
    knobs = {key: value for key, value in settings.items() if key != "lr"}
    table["strategy"] = {"name": method, **one.fixed, **own, **knobs}
    table["train"]["optimizer"]["lr"] = settings["lr"]
    table["data"]["partition"]["alpha"] = alpha
    return table


def config_of(name: str, alpha: float, method: str, settings: Settings, seed: int, *, held_out: bool) -> Config:
    """Return the config of a run; with `held_out` it measures on training samples. Raises InputError."""
    table = table_of(name, alpha, method, settings)
    table["seed"] = seed
    if held_out:
        table["data"]["held_out"] = HELD_OUT
    return resolved(parse_config(table, f"{method} on {name}"))


def core_hours(name: str, method: str, runs: int) -> float:
    """Return the estimated hours of one core for runs of a method on a set."""
    return runs * SETS[name].seconds * METHODS[method].cost / 3600
