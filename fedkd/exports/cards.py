"""What a file says of its model: a table within it, and the model card beside it, in the form of Hugging Face's."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pydantic

from ..config import NamedTable, SetsConfig
from ..data.agreement import Agreement, agreement_of, reason_in, to_json
from ..errors import InputError, on_one_line
from ..files import parse_json
from ..messages.metric_names import as_text
from .trained import About, TrainedModel

FORM = 1  # of the table


class _Table(pydantic.BaseModel):
    """The table in a file."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    form: int
    architecture: dict[str, Any]
    samples: str
    padded: bool
    features: bool
    data: dict[str, Any]
    card: dict[str, Any]
    preprocessing: dict[str, Any]  # for other programs: what `samples` says, in short
    classes: list[str]  # the same


def to_text(model: TrainedModel) -> str:
    """Return the table of a model as JSON."""
    about = model.about
    architecture = about.architecture.model_dump(mode="json")
    architecture.pop("weights", None)  # they are in the file itself
    return json.dumps(
        {
            "form": FORM,
            "architecture": architecture,
            "classes": list(model.classes),
            "preprocessing": model.preprocessing,
            "padded": about.padded,
            "features": about.features,
            "data": about.data.model_dump(mode="json", exclude_none=True),
            "card": about.card,
            "samples": to_json(Agreement(model.codec, model.classes)).decode(),
        },
        allow_nan=False,
    )


def from_text(text: str, where: str) -> tuple[Agreement, About]:
    """Return what the table of a model says. Raises InputError, which names the file, for what is no such table."""
    try:
        parse_json(text)
        table = _Table.model_validate_json(text)
        if table.form != FORM:
            raise ValueError(f"its form is {table.form}, this version of fedkd reads {FORM}")
        agreed = agreement_of(table.samples.encode())
        architecture, data = NamedTable.model_validate(table.architecture), SetsConfig.model_validate(table.data)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: it is no model that fedkd has written: {reason_in(error)}.") from error
    return agreed, About(architecture, table.padded, table.features, data, table.card)


def card_of(model: TrainedModel, format: str, file: str, licence: str) -> str:
    """Return the model card as Markdown, with the fields at its top that Hugging Face reads."""
    card, task = model.about.card, model.task
    metrics = "\n".join(f"| {name} | {as_text(name, value)} |" for name, value in sorted(card["metrics"].items()))
    whose = "the server" if card["node"] is None else f"node {card['node']}"
    options = ", ".join(f"{key} = {value!r}" for key, value in card["strategy_options"].items()) or "defaults"
    partition = ", ".join(f"{key} = {value!r}" for key, value in (card["partition"] or {}).items()) or "real sites"
    names = ", ".join(card["data"])
    preprocessing = "\n".join(f"| {key} | {_short(value)} |" for key, value in model.preprocessing.items())
    packages = "\n".join(f"| {name} | {version} |" for name, version in card["versions"].items())
    outputs = "features" if model.about.features else "logits" if task == "classification" else "outputs"
    return textwrap.dedent("""\
        ---
        license: {licence}
        tags: [federated-learning, knowledge-distillation, fedkd, {strategy}]
        library_name: fedkd
        ---

        # {architecture} of {whose}, trained by {strategy} on {names}

        `{file}` ({format}) takes samples that are prepared as below and returns {outputs}, B x {width}.

        | | |
        |---|---|
        | task | {task} |
        | classes | {classes} |
        | data | {names} |
        | partition | {partition} |
        | method | {strategy}: {options} |
        | round | {round} ({which}) |
        | seed | {seed} |
        | licence | {licence} |

        ## Metrics, measured in round {measured}

        | metric | value |
        |---|---|
        {metrics}

        ## Preparation of samples

        | | |
        |---|---|
        {preprocessing}

        ## Versions

        | package | version |
        |---|---|
        {packages}
        """).format(
        licence=licence, strategy=card["strategy"], architecture=model.about.architecture.name, whose=whose,
        names=names, file=file, format=format, outputs=outputs, width=len(model.classes), task=task,
        classes=_short(list(model.classes)), partition=partition, options=options, round=card["round"],
        which=card["which"], seed=card["seed"], measured=card["measured_in_round"], metrics=metrics,
        preprocessing=preprocessing, packages=packages,
    )  # fmt: skip


def _short(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, float) for one in value):
        value = [round(one, 6) for one in value]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return on_one_line(text, 200).replace("|", "\\|")
