"""Scores of a classifier on labelled samples: the numbers, the confusion matrix and the calibration of one test set."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15  # of confidence, equally wide, each without its lower edge


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the scores of logits, N x C, on labels, N whole numbers below C, as a table of plain values.

    Logarithms of probabilities are logits too. `accuracy`, `balanced_accuracy` (mean recall over the classes with
    samples), `macro_f1` (over the classes that have samples or are predicted), `auc` (one versus rest, mean over the
    classes with samples, None if there is only one) and `ece` (expected calibration error over `BINS` bins; Naeini et
    al., 2015) are fractions. `confusion`: counts, C x C, a row for each true class. `classes`: each class's `samples`,
    `precision`, `recall`, `f1` and `auc`; None where it is not defined. `calibration`: each bin's `samples`, mean
    `confidence` and `accuracy`; None if it is empty. Raises ValueError for no samples, for logits that are not finite,
    and for labels out of range.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    _check(logits, labels)
    from scipy.special import softmax
    from sklearn import metrics  # takes a second to import

    every, predicted, probabilities = np.arange(logits.shape[1]), logits.argmax(1), softmax(logits, axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, labels=every)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=every, zero_division=np.nan
    )
    ranked = np.full(len(every), np.nan)
    for label in every[(support > 0) & (support < len(labels))]:
        ranked[label] = metrics.roc_auc_score(labels == label, probabilities[:, label])
    bins = _bins(predicted == labels, probabilities.max(1))
    return {
        "samples": len(labels),
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(np.nanmean(recall)),
        "macro_f1": float(np.nanmean(f1)),
        "auc": _plain(np.nanmean(ranked)) if np.isfinite(ranked).any() else None,
        "ece": sum(one["samples"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["samples"])
        / len(labels),
        "confusion": confusion.tolist(),
        "classes": [
            {"samples": int(count)} | {name: _plain(value) for name, value in zip(_OF_A_CLASS, values, strict=True)}
            for count, *values in zip(support, precision, recall, f1, ranked, strict=True)
        ],
        "calibration": bins,
    }


_OF_A_CLASS = ("precision", "recall", "f1", "auc")


def _check(logits: np.ndarray, labels: np.ndarray) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits of shape {logits.shape} and labels of shape {labels.shape}; needed: N x C and N")
    if not np.isfinite(logits).all():
        raise ValueError(f"the logits of {int((~np.isfinite(logits)).any(1).sum())} of {len(labels)} are not finite")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"the labels are not whole numbers from 0 to {logits.shape[1] - 1}")


def _bins(right: np.ndarray, confidence: np.ndarray) -> list[dict[str, Any]]:
    """Return the bins of predictions by their confidence, the largest probability."""
    from sklearn.calibration import calibration_curve

    accuracies, confidences = calibration_curve(right, np.minimum(confidence, 1), n_bins=BINS)  # of bins with samples
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence), minlength=BINS)
    found: list[dict[str, Any]] = [{"samples": int(count), "confidence": None, "accuracy": None} for count in counts]
    for one, accuracy, mean in zip(np.flatnonzero(counts), accuracies, confidences, strict=True):
        found[one] |= {"confidence": float(mean), "accuracy": float(accuracy)}
    return found


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
