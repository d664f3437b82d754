"""Secrets are found by the names of options and in URIs, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from fedkd.masking import is_hidden, is_secret, masked, masked_text, without_hidden


@pytest.mark.parametrize(
    "name",
    ["api_key", "apikey", "apiKey", "WANDB_API_KEY", "token", "hf-token", "password", "db_passwd", "clientSecret"],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["tokenizer", "tokens", "max_tokens", "key", "keys", "secretary", "monkey", "name", "uri"]
)
def test_names_of_other_options(name: str) -> None:
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@mlflow.example/a", "https://***@mlflow.example/a"),
        ("https://me:hun@ter2@mlflow.example", "https://***@mlflow.example"),
        ("postgresql+psycopg://u:p@h/db and https://t0ken@h", "postgresql+psycopg://***@h/db and https://***@h"),
        ("https://h/x?api_key=abc&run=7", "https://h/x?api_key=***&run=7"),
        ('--set \'trackers=[{name="t", token="abc"}]\'', "--set 'trackers=[{name=\"t\", token=***}]'"),
        ("{'password': 'a b', 'n': 1}", "{'password': ***, 'n': 1}"),
        ('{"secret": "a b"}', '{"secret": ***}'),
        ("WANDB_API_KEY=abc", "WANDB_API_KEY=***"),
        ("https://mlflow.example:5000/a@b", "https://mlflow.example:5000/a@b"),
        ("me@mlflow.example, a tokenizer='x', beta = 3", "me@mlflow.example, a tokenizer='x', beta = 3"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert masked_text(text) == shown


def test_tables_keep_all_but_secrets() -> None:
    table = {
        "seed": 3, "trackers": [{"name": "t.py:T", "api_key": "abc", "headers": {"Authorization": "Bearer abc"}}],
        "strategy": {"name": "fedavg", "password": 1234, "token": {"read": "abc", "write": ["abc"]}, "secret": True},
    }  # fmt: skip
    assert masked(table) == {
        "seed": 3, "trackers": [{"name": "t.py:T", "api_key": "***", "headers": {"Authorization": "***"}}],
        "strategy": {"name": "fedavg", "password": "***", "token": {"read": "***", "write": ["***"]}, "secret": True},
    }  # fmt: skip
    assert masked(masked(table)) == masked(table)


def test_what_is_left_of_an_option_without_its_secret() -> None:
    assert without_hidden("https://***@mlflow.example") == "https://mlflow.example"
    assert without_hidden("***") is None
    assert without_hidden("https://h/x?api_key=***") is None
    assert all(map(is_hidden, ["***", "https://***@h", "https://h/x?api_key=***"]))
    assert not any(map(is_hidden, ["https://h", "a***b", 3, None]))
