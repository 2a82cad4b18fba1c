"""Certificates for a test: an authority, and pairs that it signs."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Pair:
    certificate: bytes
    key: bytes
    serial: int

    def write(self, folder: Path) -> tuple[str, str]:
        """The files have Kubernetes' names."""
        folder.mkdir(exist_ok=True)
        (folder / "tls.crt").write_bytes(self.certificate)
        (folder / "tls.key").write_bytes(self.key)
        return str(folder / "tls.crt"), str(folder / "tls.key")


class Authority:
    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        built = self.builder(self.name, self.key.public_key()).add_extension(constraints, critical=True)
        self.signed = built.add_extension(usage, critical=True).sign(self.key, hashes.SHA256())
        self.certificate = self.signed.public_bytes(serialization.Encoding.PEM)

    def builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid_for: timedelta = timedelta(hours=1)
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        built = x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
        built = built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + valid_for)
        return built.add_extension(identifier, critical=False).add_extension(issuer, critical=False)

    def pair(self, password: bytes | None = None, valid_for: timedelta = timedelta(hours=1)) -> Pair:
        """For localhost and 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        built = self.builder(subject, key.public_key(), valid_for).add_extension(
            x509.SubjectAlternativeName(names), False
        )
        signed = built.sign(self.key, hashes.SHA256())
        lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        pem = serialization.Encoding.PEM
        return Pair(
            signed.public_bytes(pem),
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, lock),
            signed.serial_number,
        )
