"""`fedkd deploy renew`: a new certificate and key of the server, of the authority that the sites know."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from helpers import HOME
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.deployment import authority
from fedkd.deployment.authority import Authority, names_in, read_certificate, renew
from fedkd.deployment.provision import provision
from fedkd.errors import InputError


@pytest.fixture
def fed(tmp_path: Path) -> Path:
    provision(tmp_path / "fed", HOME / "configs/knfu/sites.toml", 3, "fl.example.org", 9443, insecure=False)
    return tmp_path / "fed"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_the_servers_certificate_and_key_are_new(fed: Path) -> None:
    before, old = contents(fed), read_certificate(fed / "server/server.crt")
    result = CliRunner().invoke(app, ["deploy", "renew", str(fed)])
    assert result.exit_code == 0, result.output
    after, new = contents(fed), read_certificate(fed / "server/server.crt")
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {"server/server.crt", "server/server.key"}
    assert f"valid until {new.not_valid_after_utc:%Y-%m-%d}" in " ".join(result.output.split())
    assert names_in(new) == names_in(old) == ["fl.example.org", "127.0.0.1", "localhost", "::1"]
    assert new.serial_number != old.serial_number
    assert new.public_key() != old.public_key()
    new.verify_directly_issued_by(read_certificate(fed / "sites/site-1/ca.crt"))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(fed / "server/server.crt", fed / "server/server.key")
    for name in ("server.crt", "server.key"):
        assert stat.S_IMODE((fed / "server" / name).stat().st_mode) == 0o600, name
    assert [path.name for path in (fed / "server").iterdir() if path.name.startswith(".")] == []


def test_a_server_gets_another_name(fed: Path) -> None:
    renew(fed, "10.1.2.3")
    assert names_in(read_certificate(fed / "server/server.crt"))[0] == "10.1.2.3"


def test_a_certificate_does_not_outlive_its_authority(fed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Authority.read(fed).certificate.not_valid_after_utc
    monkeypatch.setattr(authority, "_now", lambda: ends - datetime.timedelta(days=30))
    assert renew(fed) == ends
    monkeypatch.setattr(authority, "_now", lambda: ends)
    before = contents(fed)
    with pytest.raises(InputError, match=r"server/ca.crt has ended; sites need the certificate of a new"):
        renew(fed)
    assert contents(fed) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ca/ca.key", None, "ca/ca.key cannot be read: No such file or directory."),
        ("ca/ca.key", b"", "ca/ca.key cannot be read: "),
        ("ca/ca.key", b"-----BEGIN PRIVATE KEY-----\n\xff\n-----END PRIVATE KEY-----\n", "ca/ca.key cannot be read: "),
        ("ca/ca.key", b"x" * 2_000_000, "ca/ca.key cannot be read: it is larger than 1 MB."),
        ("server/ca.crt", None, "server/ca.crt cannot be read: No such file or directory."),
        ("server/ca.crt", b"no certificate", "server/ca.crt cannot be read: "),
        ("server/server.crt", None, "server/server.crt cannot be read: No such file or directory."),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(fed: Path, name: str, content: bytes | None, message: str) -> None:
    (fed / name).unlink()
    if content is not None:
        (fed / name).write_bytes(content)
    before = contents(fed)
    result = CliRunner().invoke(app, ["deploy", "renew", str(fed)])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split()).replace("/ ", "/")
    assert contents(fed) == before


def test_the_key_of_another_authority_is_refused(fed: Path, tmp_path: Path) -> None:
    Authority.make(tmp_path / "other")
    (fed / "ca/ca.key").write_bytes((tmp_path / "other/ca/ca.key").read_bytes())
    with pytest.raises(InputError, match=r"ca/ca.key is not the key of .*server/ca.crt"):
        renew(fed)
    (fed / "ca/ca.key").write_bytes((fed / "server/server.key").read_bytes())
    with pytest.raises(InputError, match=r"ca/ca.key is not the key of .*server/ca.crt"):
        renew(fed)
    assert isinstance(read_certificate(fed / "server/ca.crt"), x509.Certificate)
