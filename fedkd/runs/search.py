"""Searches settings with Optuna: each trial is a run, measured on held-out training samples, never on the tests."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from ..config import Config, flattened, overridden, parse_config, read_table, to_table
from ..core.wrapper import make_strategy
from ..errors import InputError, RunError, described, on_one_line, some
from ..files import write
from ..masking import masked
from ..registry import installed
from . import run as runs
from .choosing import BestRound
from .metrics import lower_is_better
from .results import read_run
from .run_folder import CONFIG, make_folder
from .sweep import split_values

HELD_OUT = 0.2  # the share of training samples on which trials are measured, if the config does not say
_STARTUP = 5  # trials before the median pruner, and before the sampler models what is best
_STUDY, _SPACE, WINNER = "study.log", "space.json", "winner.toml"
_RANGE = re.compile(r"(?P<low>[-+\d.eE]+)\.\.(?P<high>[-+\d.eE]+)(?::(?P<kind>log|int))?")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Range:
    """The values of a key between two ends, both included; `log`: evenly by their logarithms."""

    low: float
    high: float
    log: bool
    whole: bool


Space = dict[str, Range | list[str]]  # by key: a range, or values in the form of --set


class Trial(NamedTuple):
    """A finished trial: its number, its values by key, and the metric; None if it was stopped early or failed."""

    number: int
    values: dict[str, Any]
    value: float | None
    state: str


class Found(NamedTuple):
    """The result of a search: its trials, the best one, and the config with its values."""

    trials: list[Trial]
    best: Trial
    winner: Path


def space_of(vary: Sequence[str], table: Mapping[str, Any]) -> Space:
    """Return what to search, of texts such as `train.optimizer.lr=0.01..0.3:log` or `strategy.beta=1,10`.

    A key that is the last part of exactly one key of the config, such as `lr`, is short for that one. Raises InputError
    for a text of another form.
    """
    space: Space = {}
    for text in vary:
        key, sign, rest = text.partition("=")
        said = f"--vary {on_one_line(repr(text), 100)}"
        if not sign or not key or not rest:
            raise InputError(f"{said}: write key=low..high, key=low..high:log, or key=value,value.")
        key = whole_key(key, table)
        if key in space:
            raise InputError(f"{said}: the key {key} is given twice.")
        found = _RANGE.fullmatch(rest)
        space[key] = _range(found, said) if found is not None else [one.strip() for one in split_values(rest)]
    if not space:
        raise InputError("--budget: name what to search, such as --vary train.optimizer.lr=0.01..0.3:log.")
    return space


def whole_key(key: str, table: Mapping[str, Any]) -> str:
    """Return a key of a config for a short one, its last part. Raises InputError if several keys end with it."""
    if "." in key or key in table:
        return key
    found = [name for name in flattened(dict(table)) if name.rpartition(".")[2] == key]
    if len(found) > 1:
        raise InputError(f"--vary {key}: several keys end with it: {some(found)}; write the whole one.")
    return found[0] if found else key


def _range(found: re.Match[str], said: str) -> Range:
    ends = [found["low"], found["high"]]
    if not all(_NUMBER.fullmatch(end) for end in ends):
        raise InputError(f"{said}: the ends of a range are numbers.")
    low, high = map(float, ends)
    whole = found["kind"] == "int" or (found["kind"] is None and not any(c in end for end in ends for c in ".eE"))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{said}: the lower end comes first.")
    if found["kind"] == "log" and low <= 0:
        raise InputError(f"{said}: a logarithmic range begins above 0.")
    return Range(low, high, found["kind"] == "log", whole)


def search(
    source: Path,
    overrides: Sequence[str],
    vary: Sequence[str],
    metric: str,
    budget: int,
    seed: int,
    out: Path,
    on_trial: Callable[[Trial, int], None] = lambda trial, done: None,
) -> Found:
    """Run trials until there are `budget` of them; return the best one, whose config is written to `winner.toml`.

    Values are chosen by Optuna's TPE; a trial whose metric is worse than the median of earlier ones at the same round
    is stopped. All trials have the seed `seed`, and are measured on `data.held_out` of the training samples (0.2).
    Trials that are in `out` count: the same command continues an interrupted search. Raises InputError for a space or
    a metric that this config does not have, and RunError if no trial came to its end.
    """
    with installed("fedkd sweep --budget (pip install 'fedkd[search]')"):
        import optuna
        from optuna.storages.journal import JournalFileBackend
    logging.getLogger("optuna").setLevel(logging.ERROR)
    base = overridden(read_table(source), overrides)
    plain = parse_config(base, str(source))
    if plain.data.sites is not None:
        raise InputError("data.sites: there are no samples here to search with.")
    space = space_of(vary, to_table(plain.model_copy(update={"strategy": make_strategy(plain.strategy)[1]})))
    make_folder(out)
    _same_search(out, {"space": _plain(space), "metric": metric, "seed": seed, "config": masked(to_table(plain))})
    backend = JournalFileBackend(str(out / _STUDY))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend), study_name="search", load_if_exists=True,
        direction="minimize" if lower_is_better(metric) else "maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=plain.rounds // 4),
    )  # fmt: skip
    for left in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # of a search that was interrupted
        study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(left.params)
    while (done := len(_ended(study))) < budget:
        # a sampler of its own for each trial: an interrupted search goes on with the same values
        study.sampler = optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=_STARTUP)
        trial = study.ask()
        chosen = {key: _suggest(trial, key, one) for key, one in space.items()}
        on_trial(_run(study, trial, chosen, base, source, metric, seed, out), done + 1)
    trials = _ended(study)
    best = study.best_trial if any(one.value is not None for one in trials) else None
    if best is None:
        raise RunError("No trial came to its end; metrics.jsonl and summary.json in their folders say why.")
    winner = _config(base, best.user_attrs["values"], source, seed, held_out=False)
    write(out / WINNER, tomli_w.dumps(masked(to_table(winner))).encode())
    of_best = next(one for one in trials if one.number == best.number)
    return Found(trials, of_best, out / WINNER)


def _ended(study: Any) -> list[Trial]:
    import optuna

    names = {optuna.trial.TrialState.COMPLETE: "completed", optuna.trial.TrialState.PRUNED: "stopped early",
             optuna.trial.TrialState.FAIL: "failed"}  # fmt: skip
    return [
        Trial(one.number, one.user_attrs["values"], one.value if names[one.state] == "completed" else None,
              names[one.state])
        for one in study.get_trials(deepcopy=False)
        if one.state in names and "values" in one.user_attrs
    ]  # fmt: skip


def _suggest(trial: Any, key: str, one: Range | list[str]) -> Any:
    if isinstance(one, list):
        return trial.suggest_categorical(key, one)
    if one.whole:
        return trial.suggest_int(key, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(key, one.low, one.high, log=one.log)


def _config(base: Mapping[str, Any], values: Mapping[str, Any], source: Path, seed: int, *, held_out: bool) -> Config:
    """Return the config with a trial's values; with `held_out` it measures on training samples."""
    table = json.loads(json.dumps(base))
    changes = sorted((f"{key}={value}" for key, value in values.items()), key=lambda text: text.count("."))
    config = parse_config(table, str(source), changes)
    config = config.model_copy(update={"strategy": make_strategy(config.strategy)[1], "seed": seed})
    if held_out and config.data.held_out is None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"held_out": HELD_OUT})})
    if not held_out:
        config = config.model_copy(update={"data": config.data.model_copy(update={"held_out": None})})
    return config


def _run(
    study: Any,
    trial: Any,
    values: dict[str, Any],
    base: Mapping[str, Any],
    source: Path,
    metric: str,
    seed: int,
    out: Path,
) -> Trial:
    """Run a trial to its end, or until it is stopped; a run that is in its folder goes on."""
    import optuna

    config = _config(base, values, source, seed, held_out=True)
    name = hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=4).hexdigest()
    path = out / f"trial-{name}"
    trial.set_user_attr("folder", path.name)
    states, value = optuna.trial.TrialState, None
    watch = BestRound("--metric", metric)
    noted: set[int] = set()

    def note(number: int, metrics: Mapping[str, Any]) -> None:
        watch.note({"round": number, "metrics": metrics})
        found = metrics.get(metric)
        if found is not None and math.isfinite(found) and number not in noted:
            noted.add(number)
            trial.report(found, number)

    try:
        begun = (path / CONFIG).is_file()
        if begun:
            for line in read_run(path).lines:
                note(line["round"], line["metrics"])
        playing = runs.resumed(path) if begun else runs.rounds(config, path)
        state = states.COMPLETE
        for ended in playing:
            note(ended.record.number, ended.record.metrics)
            if ended.record.number < config.rounds and trial.should_prune():
                state = states.PRUNED
                playing.close()
                break
        lines = [line["metrics"][metric] for line in read_run(path).lines if metric in line["metrics"]]
        value = lines[-1] if lines else None
        if value is None:
            state = states.FAIL
            trial.set_user_attr("reason", f"{metric} is not finite")
    except RunError as error:
        state = states.FAIL
        trial.set_user_attr("reason", described(error))
    trial.set_user_attr("values", values)
    study.tell(trial, value if state == states.COMPLETE else None, state=state)
    said = {states.COMPLETE: "completed", states.PRUNED: "stopped early", states.FAIL: "failed"}[state]
    return Trial(trial.number, values, value if state == states.COMPLETE else None, said)


def _plain(space: Space) -> dict[str, Any]:
    return {key: one if isinstance(one, list) else one.__dict__ for key, one in space.items()}


def _same_search(out: Path, now: dict[str, Any]) -> None:
    """Write what is searched into the folder. Raises InputError if it has another search, or other files."""
    file, content = out / _SPACE, json.dumps(now, indent=1, sort_keys=True, default=str).encode() + b"\n"
    if file.is_file():
        if file.read_bytes() != content:
            raise InputError(f"--out {out}: it has another search (config, space, metric or seed); name a new folder.")
    elif any(out.iterdir()):
        raise InputError(f"--out {out}: the folder contains other files; name a new one.")
    else:
        write(file, content)
