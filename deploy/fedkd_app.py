"""Flower's two apps, of whatever strategy the run config's `config` names."""

from pathlib import Path

from fedkd.deployment.app import client_app, server_app

server = server_app(Path(__file__).parent)
client = client_app(Path(__file__).parent)
