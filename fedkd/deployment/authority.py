"""Certificates of a private certificate authority, and keys of SuperNodes."""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ..errors import InputError, reason_of
from ..files import read

_DAYS = 5 * 365  # certificates are valid for this time, but not longer than their authority
_MOST_BYTES = 10**6  # of a file with a key or a certificate
_CA = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedkd private CA")])
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a new file with these permissions, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # created with its mode, so that a key is never readable for others
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)


class Authority:
    """A private certificate authority; its key is only needed for further certificates."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self.certificate = key, certificate

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Make an authority; write its key into `ca/` of a folder, its certificate into `server/`."""
        key = ec.generate_private_key(ec.SECP384R1())
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            _builder(_CA, key.public_key(), _CA, key.public_key(), _now() + datetime.timedelta(days=_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA384())
        )
        write_file(folder / "ca" / "ca.key", _pem(key), 0o600)
        write_file(folder / "server" / "ca.crt", _encoded(certificate))
        return cls(key, certificate)

    @classmethod
    def read(cls, folder: Path) -> Authority:
        """Return the authority that `make` wrote. Raises InputError, which names the missing or damaged file."""
        key_path, path = folder / "ca" / "ca.key", folder / "server" / "ca.crt"
        try:
            key = serialization.load_pem_private_key(read(key_path, _MOST_BYTES), None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise InputError(f"{key_path} cannot be read: {reason_of(error)}.") from error
        certificate = read_certificate(path)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InputError(f"{key_path} is not the key of {path}.")
        return cls(key, certificate)

    def issue(self, folder: Path, host: str) -> datetime.datetime:
        """Write the server's certificate and key, valid for the host and for its loopback address; return its end."""
        key = ec.generate_private_key(ec.SECP384R1())
        names = [_general_name(name) for name in dict.fromkeys((host, *LOOPBACK))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        end = min(_now() + datetime.timedelta(days=_DAYS), self.certificate.not_valid_after_utc)
        certificate = (
            _builder(subject, key.public_key(), self.certificate.subject, self._key.public_key(), end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA384())
        )
        write_file(folder / "server.key", _pem(key), 0o600)
        write_file(folder / "server.crt", _encoded(certificate))
        return certificate.not_valid_after_utc


def renew(folder: Path, host: str | None = None) -> datetime.datetime:
    """Replace the server's certificate and key in a federation's folder; return when the new one ends.

    `host`: the server's name or address for the sites; by default that of the certificate. Raises InputError for a
    file that is missing or damaged, and for an authority that has ended.
    """
    authority, server = Authority.read(folder), folder / "server"
    if authority.certificate.not_valid_after_utc <= _now():
        raise InputError(f"{server / 'ca.crt'} has ended; sites need the certificate of a new authority first.")
    named = host or names_in(read_certificate(server / "server.crt"))[0]
    before = os.umask(0o077)
    try:
        with tempfile.TemporaryDirectory(dir=server, prefix=".renewed-") as made:
            end = authority.issue(Path(made), named)
            for name in ("server.key", "server.crt"):
                os.replace(Path(made) / name, server / name)
    finally:
        os.umask(before)
    return end


def read_certificate(path: Path) -> x509.Certificate:
    """Return the certificate in a file. Raises InputError, which names the file."""
    try:
        return x509.load_pem_x509_certificate(read(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error


def names_in(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses for which a server's certificate is valid, the one that sites use first."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuers_key: ec.EllipticCurvePublicKey,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(hours=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key), critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    no_password = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password).decode()


def _encoded(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def write_key(folder: Path, copy: Path) -> None:
    """Write a SuperNode's key pair, as `ssh-keygen -t ecdsa -b 384` does, and a copy of its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_file(folder / "key", private.decode(), 0o600)
    for path in (folder / "key.pub", copy):
        write_file(path, public.decode() + "\n")
