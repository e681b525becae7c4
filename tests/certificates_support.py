"""Certificates for tests, made on the spot."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificates(directory: Path) -> None:
    """An authority, and a server's and a client's certificate that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no certificates can be made: there is no openssl on PATH")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl(*signing, "-extfile", "extensions", "-out", f"{name}.pem")
