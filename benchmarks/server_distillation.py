"""Seconds a round and peak memory of FedFTG's server half, against the number of teachers, the model and the batch.

Beside ours runs the plain loop of the published code: teachers are loaded into one model again and again, images and
targets are made anew in each of the I_d steps. Each case is a process of its own, the two alternate, and the medians of
`--repeats` rounds are printed, with where our time goes.

    python benchmarks/server_distillation.py
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.data.spec import Form
from fedkd.distillation.generators import ImageGenerator
from fedkd.learning.losses import diversity_loss
from fedkd.messages.arrays import Tensors, copied
from fedkd.methods.teachers import Teachers
from fedkd.models.build import build
from fedkd.strategies.fedftg import (
    FedFTG,
    classification_loss,
    disagreement_loss,
    ensemble_targets,
    ensemble_weights,
    student_loss,
)
from fedkd.streams import default_stream, torch_stream

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet 24k": ("convnet", {"channels": [16, 32, 32], "norm": "batch", "pooling": "max"}),
    "resnet20 270k": ("resnet20", {}),
    "resnet18 11M": ("torchvision:resnet18", {}),
}
CLASSES, SHAPE, ITERATIONS, WIDTH = 10, (3, 32, 32), 2, 32
CASES = [
    ("convnet 24k", 5, 50), ("convnet 24k", 10, 50), ("convnet 24k", 20, 50), ("convnet 24k", 10, 25),
    ("convnet 24k", 10, 100), ("resnet20 270k", 10, 50), ("resnet18 11M", 10, 50),
]  # fmt: skip


def plain(
    method: FedFTG, student: nn.Module, generator: nn.Module, models: list[Tensors], alpha: Tensor, y: Tensor, z: Tensor
) -> None:
    """Run the server round as the published code does: nothing is cached, teachers take gradients, all get one."""
    teacher = copy.deepcopy(student).eval()
    by_student = torch.optim.SGD(student.parameters(), lr=method.student_lr, weight_decay=method.weight_decay)
    by_generator = torch.optim.Adam(generator.parameters(), lr=method.generator_lr)
    for labels, noise in zip(y, z, strict=True):
        a = alpha[labels]
        student.eval()
        generator.train()
        for k, weights in enumerate(models):
            teacher.load_state_dict(weights)
            images = generator(noise, labels)
            told = teacher(images)
            loss = disagreement_loss(student(images), told.detach(), a[:, k], "l1")
            loss = loss + classification_loss(told, labels, a[:, k], "batch_mean")
            loss = loss + diversity_loss(images, noise) / len(models)
            by_generator.zero_grad()
            loss.backward()
            by_generator.step()
        student.train()
        generator.eval()
        for _ in range(method.student_steps):
            images = generator(noise, labels).detach()
            logits = []
            for weights in models:
                teacher.load_state_dict(weights)
                with torch.no_grad():
                    logits.append(teacher(images))
            targets = ensemble_targets(torch.stack(logits), a, "probabilities")
            by_student.zero_grad()
            student_loss(student(images), targets).backward()
            by_student.step()


def measure(who: str, model: str, teachers: int, batch: int, repeats: int) -> dict[str, float]:
    """Return median seconds a round (scaled to I = 10), peak memory in MB over the start, and shares of the time."""
    torch.set_num_threads(1)
    with default_stream(torch_stream(0, 0, "server", "benchmark")):
        student = build(*MODELS[model], Form("image", SHAPE), CLASSES)
        models = [copied(build(*MODELS[model], Form("image", SHAPE), CLASSES).state_dict()) for _ in range(teachers)]
        generator = ImageGenerator(100, CLASSES, SHAPE, WIDTH)
    stream = torch_stream(0, 0, "server", "draws")
    alpha = ensemble_weights(torch.randint(0, 50, (teachers, CLASSES), generator=stream)).float()
    y = torch.randint(0, CLASSES, (ITERATIONS, batch), generator=stream)
    z = torch.randn(ITERATIONS, batch, 100, generator=stream)
    method = FedFTG(iterations=ITERATIONS, batch_size=batch)
    before = _peak()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        if who == "plain":
            plain(method, student, generator, models, alpha, y, z)
        else:
            method.refine(student, generator, Teachers(student, models), alpha, y, z)
        seconds.append((time.perf_counter() - begin) * 10 / ITERATIONS)
    found = {"seconds": statistics.median(seconds), "memory": _peak() - before}
    return found | (_shares(method, student, generator, models, alpha, y, z) if who == "fedkd" else {})


def _shares(
    method: FedFTG, student: nn.Module, generator: nn.Module, models: list[Tensors], alpha: Tensor, y: Tensor, z: Tensor
) -> dict[str, float]:
    """Return the shares of generator steps, teachers' targets and student steps in a round."""
    all_teachers, a = Teachers(student, models), alpha[y[0]]
    begin = time.perf_counter()
    student.eval()
    generator.train()
    for k in range(len(models)):
        losses = method.generator_losses(student, generator, all_teachers, a, y[0], z[0], [k])
        torch.autograd.grad(sum(losses, torch.zeros(())), list(generator.parameters()))
    generated = time.perf_counter() - begin
    begin = time.perf_counter()
    with torch.no_grad():
        images = generator.eval()(z[0], y[0])
        targets = ensemble_targets(all_teachers(images), a, "probabilities")
    told = time.perf_counter() - begin
    begin = time.perf_counter()
    student.train()
    for _ in range(method.student_steps):
        value = -(targets * F.log_softmax(student(images), 1)).mean()
        torch.autograd.grad(value, list(student.parameters()))
    learnt = time.perf_counter() - begin
    total = generated + told + learnt
    return {"generator": generated / total, "targets": told / total, "student": learnt / total}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        who, model, teachers, batch = json.loads(options.case)
        print(json.dumps(measure(who, model, teachers, batch, options.repeats)))
        return
    print(
        "| model | K | batch | fedkd, s | plain loop, s | ratio | fedkd, MB | plain, MB | generator, targets, student |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for model, teachers, batch in CASES:
        rows = {}
        for who in ("fedkd", "plain"):
            case = json.dumps([who, model, teachers, batch])
            command = [sys.executable, __file__, "--case", case, "--repeats", str(options.repeats)]
            rows[who] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ours, theirs = rows["fedkd"], rows["plain"]
        shares = ", ".join(f"{100 * ours[part]:.0f} %" for part in ("generator", "targets", "student"))
        print(
            f"| {model} | {teachers} | {batch} | {ours['seconds']:.2f} | {theirs['seconds']:.2f} | "
            f"{ours['seconds'] / theirs['seconds']:.2f} | {ours['memory']:.0f} | {theirs['memory']:.0f} | {shares} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
