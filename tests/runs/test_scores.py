"""Scores of a classifier: those of scikit-learn, calibration by a second formula, and what is not defined."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from fedkd.runs.scores import BINS, scores


def drawn(classes: int = 5, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are right more often than by chance, and labels."""
    generator = np.random.default_rng(3)
    labels = generator.integers(0, classes, samples)
    logits = generator.normal(size=(samples, classes))
    logits[np.arange(samples), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize("classes", [2, 5])
def test_the_numbers_are_those_of_scikit_learn(classes: int) -> None:
    logits, labels = drawn(classes)
    predicted, probabilities = logits.argmax(1), softmax(logits, axis=1)
    found = scores(logits, labels)
    assert found["samples"] == 400
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted), abs=1e-15)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), abs=1e-15)
    asked = probabilities[:, 1] if classes == 2 else probabilities
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, asked, multi_class="ovr"), abs=1e-12)
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    report = metrics.classification_report(labels, predicted, output_dict=True)
    for label, one in enumerate(found["classes"]):
        wanted = report[str(label)]
        assert (one["samples"], one["precision"], one["recall"]) == (
            wanted["support"], wanted["precision"], wanted["recall"],
        )  # fmt: skip
        assert one["f1"] == wanted["f1-score"]
        assert one["auc"] == metrics.roc_auc_score(labels == label, probabilities[:, label])


def test_calibration_is_the_mean_gap_of_fifteen_bins() -> None:
    logits, labels = drawn()
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = 0.0
    found = scores(logits, labels)
    assert len(found["calibration"]) == BINS == 15
    for number, one in enumerate(found["calibration"]):
        mine = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        assert one["samples"] == mine.sum()
        if mine.any():
            assert one["confidence"] == pytest.approx(confidence[mine].mean())
            assert one["accuracy"] == pytest.approx(right[mine].mean())
            gaps += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
        else:
            assert (one["confidence"], one["accuracy"]) == (None, None)
    assert found["ece"] == pytest.approx(gaps)
    assert 0.01 < gaps < 0.5


def test_calibration_of_sure_models_is_their_error() -> None:
    sure = 1000.0 * np.eye(4)
    right = scores(sure, np.arange(4))
    assert (right["accuracy"], right["ece"], right["auc"], right["macro_f1"]) == (1.0, 0.0, 1.0, 1.0)
    assert right["calibration"][-1] == {"samples": 4, "confidence": 1.0, "accuracy": 1.0}
    wrong = scores(sure, np.array([1, 2, 3, 0]))
    assert (wrong["accuracy"], wrong["ece"], wrong["macro_f1"]) == (0.0, 1.0, 0.0)
    one_of_four = scores(sure, np.array([0, 2, 3, 1]))
    assert (one_of_four["accuracy"], one_of_four["ece"]) == (0.25, 0.75)


def test_logarithms_of_probabilities_are_logits() -> None:
    logits, labels = drawn()
    again = scores(np.log(softmax(logits, axis=1)), labels)
    assert again["auc"] == pytest.approx(scores(logits, labels)["auc"], abs=1e-12)
    assert again["ece"] == pytest.approx(scores(logits, labels)["ece"], abs=1e-12)


def test_classes_without_samples_have_no_recall_and_do_not_count() -> None:
    """Class 3 is predicted and has no samples: its F1 of 0 counts. Class 2 has neither: nothing of it counts."""
    logits = np.eye(4)[[0, 0, 1, 3]]
    labels = np.array([0, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(logits, labels)
    nothing = {"samples": 0, "precision": None, "recall": None, "f1": None, "auc": None}
    assert found["classes"][2] == nothing
    assert found["classes"][3] == {**nothing, "precision": 0.0, "f1": 0.0}
    assert found["balanced_accuracy"] == (1 + 0.5) / 2
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, logits.argmax(1), average="macro"))
    assert found["auc"] == (1 + 0.75) / 2
    assert found["confusion"] == [[2, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_samples_of_one_class_have_no_auc() -> None:
    found = scores(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    assert (found["auc"], found["accuracy"], found["balanced_accuracy"]) == (None, 0.5, 0.5)


def test_the_table_is_plain() -> None:
    found = scores(*drawn(3, 50))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert scores(drawn(3, 50)[0].astype(np.float32), drawn(3, 50)[1].astype(np.int32))["samples"] == 50


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0], "shape (2, 3) and labels of shape (1,)"),
        (np.zeros(3), [0, 1, 2], "shape (3,)"),
        (np.zeros((0, 3)), [], "shape (0, 3)"),
        ([[0.0, np.nan], [1.0, 2.0]], [0, 1], "the logits of 1 of 2 are not finite"),
        (np.zeros((2, 3)), [0, 3], "whole numbers from 0 to 2"),
        (np.zeros((2, 3)), [0, -1], "whole numbers from 0 to 2"),
        (np.zeros((2, 3)), [0.0, 1.0], "whole numbers from 0 to 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(logits: object, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        scores(np.array(logits), np.array(labels))
