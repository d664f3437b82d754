"""`fedkd export`, `predict` and `evaluate`: what is done with a model after its run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from ..files import as_json, write_output
from .common import Overrides, app, exit_codes, say
from .tables import print_scores

Model = Annotated[Path, typer.Argument(help="A file that `fedkd export` has written, or a run folder.")]
Node = Annotated[int | None, typer.Option(min=0, help="Of a run: this node's model; by default the server's.")]
Which = Annotated[Literal["last", "best"], typer.Option(help="Of a run: after its last or its best round.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="The file may run code: TorchScript, torch.export, a model of your own.")
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file; with --node all, a folder.")],
    which: Annotated[Literal["last", "best"], typer.Option(help="After the last or the best round.")] = "last",
    node: Annotated[str | None, typer.Option(help="A node's number, or all; by default the server's model.")] = None,
    format: Annotated[
        Literal["safetensors", "onnx", "torchscript", "torch.export"] | None,
        typer.Option(help="By default by the file's ending; of a folder safetensors."),
    ] = None,
    licence: Annotated[str, typer.Option(help="The licence that the model card names.")] = "unknown",
    force: Force = False,
) -> None:
    """Write a run's model to a file, with its classes, the preparation of its samples, and a model card beside it."""
    with exit_codes("what was written stays"):
        from ..exports.formats import ENDINGS, Format, write_model
        from ..exports.of_run import model_of_run, models_of_run, real_samples

        of_ending: dict[str, Format] = {ending: name for name, ending in ENDINGS.items()}
        chosen = format or ("safetensors" if node == "all" else of_ending.get(out.suffix.lower()))
        if chosen is None:
            raise InputError(f"--out {out}: end the file with {', '.join(of_ending)}, or name a --format.")
        if node is not None and node != "all" and not (node.isascii() and node.isdecimal()):
            raise InputError(f"--node {node}: give a node's number, or all.")
        if node == "all":
            if out.is_file():
                raise InputError(f"--out {out}: with --node all, name a folder.")
            models = {out / f"node-{n}{ENDINGS[chosen]}": model for n, model in models_of_run(run, which).items()}
        else:
            models = {out: model_of_run(run, None if node is None else int(node), which)}
        real = real_samples(run) if chosen == "onnx" else None
        for path, model in models.items():
            written = write_model(model, path, chosen, licence=licence, force=force, checked_on=real)
            say(f"{written.model} ({written.card.name}): round {model.about.card['round']}")
            if written.difference is not None:
                inputs = "drawn inputs" if real is None else f"{len(real)} test samples"
                say(f"the largest difference of ONNX and PyTorch on {inputs} is {written.difference:.2g}")


@app.command()
def predict(
    model: Model,
    samples: Annotated[list[Path], typer.Argument(help="Files and folders: images, rows, texts, arrays.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The CSV file.")],
    node: Node = None,
    which: Which = "last",
    force: Force = False,
    trust_code: TrustCode = False,
) -> None:
    """Write a model's predictions for files and folders to a CSV file, a row for each sample."""
    with exit_codes("nothing is written"):
        from ..exports.loading import read_model
        from ..exports.predicting import write_predictions

        found = write_predictions(read_model(model, node, which, trust_code=trust_code), samples, out, force=force)
        for note in found.notes:
            say(f"note: {note}", err=True)
        say(f"{out}: {found.samples} predictions")


@app.command()
def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="A run, a run file, a named set, or a file or folder with labels.")],
    overrides: Overrides = None,
    node: Node = None,
    which: Which = "last",
    trust_code: TrustCode = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A file for all scores, as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all scores as the last line.")] = False,
) -> None:
    """Measure a model on labelled samples: accuracy, F1, AUC, calibration, confusion; by class and by node."""
    with exit_codes("nothing is written"):
        from ..exports.evaluating import evaluate as measure
        from ..exports.loading import read_model
        from ..runs.run_folder import make_folder

        if out is not None and not out.parent.is_dir():
            make_folder(out.parent)
        found = measure(read_model(model, node, which, trust_code=trust_code), data, overrides or [])
        for note in found["notes"]:
            say(f"note: {note}", err=True)
        print_scores(found)
        if out is not None:
            write_output(out, as_json(found, indent=2))
            say(f"scores: {out}")
        if json:
            typer.echo(as_json(found).decode().strip())
