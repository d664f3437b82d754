"""Flower's ServerApp and ClientApp for the strategy in the run file that the run config's `config` names."""

from pathlib import Path

from fedkd.deployment.app import client_app, server_app

server = server_app(Path(__file__).parent)
client = client_app(Path(__file__).parent)
