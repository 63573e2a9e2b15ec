"""Flower on loopback for the tests: a SuperLink with TLS, SuperNodes, and `flwr run`.

Every process is marked in its environment, so that none is left behind: Flower starts some in
sessions of their own.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
ADDRESS = "127.0.0.1"
MARK = "FEDSPZO_TEST_DEPLOYMENT"
DEADLINE = 120.0
"""Seconds that anything may take."""


def eventually(what: str, done: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


class Deployment:
    """A SuperLink and SuperNodes, whose files and logs are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.port = _free_port()
        self.started: list[subprocess.Popen[bytes]] = []
        _write_certificates(folder)
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "test"\n[superlink.test]\n'
            f'address = "{ADDRESS}:{self.port}"\nroot-certificates = "{folder / "ca.crt"}"\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def start(self, name: str, command: str, *options: str) -> subprocess.Popen[bytes]:
        """Start one of Flower's programs, by which name it and its children are found."""
        with (self.folder / f"{name}.log").open("ab") as file:
            process = subprocess.Popen(
                [BIN / command, *options],
                env={**self.environment, MARK: f"{self.folder}:{name}"},
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def superlink(self, *options: str) -> None:
        """Start the SuperLink, and wait until it answers."""
        folder = self.folder
        process = self.start(
            "superlink",
            "flower-superlink",
            *("--host", ADDRESS, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(folder / "ca.crt")),
            *("--ssl-certfile", str(folder / "server.pem")),
            *("--ssl-keyfile", str(folder / "server.key")),
            *("--database", str(folder / "state.db")),
            "--disable-runtime-dependency-installation",
            *options,
        )
        eventually("the SuperLink answers", lambda: _listens(self.port) or process.poll())
        assert process.poll() is None, self.log("superlink")

    def supernode(
        self, client: int, data: Path, *options: str, name: str = "node"
    ) -> subprocess.Popen[bytes]:
        """Start a SuperNode with a client's data."""
        return self.start(
            f"{name}{client}",
            "flower-supernode",
            *("--superlink", f"{ADDRESS}:{self.port}"),
            *("--root-certificates", str(self.folder / "ca.crt")),
            *("--port", str(_free_port())),
            *("--node-config", f'partition-id={client} data="{data}"'),
            *options,
        )

    def flwr(self, *arguments: str) -> None:
        """Give Flower a command, such as to run an app. Returns at once."""
        done = subprocess.run(
            [BIN / "flwr", *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def log(self, name: str) -> str:
        """What a program has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def processes(self, name: str = "", program: str = "") -> list[int]:
        """The processes of what was started by a name, or all; or those of a program alone."""
        mark = f"{MARK}={self.folder}:{name}".encode() + (b"\0" if name else b"")
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and mark in (entry / "environ").read_bytes()
                    and program.encode() in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def kill(self, name: str = "") -> None:
        """Kill what was started by a name, or all, as by a power cut, and wait until it is gone."""

        def gone() -> bool:
            left = self.processes(name)
            for process in left:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return not left

        eventually("all processes are gone", gone)
        self.started = [process for process in self.started if process.poll() is None]


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """A deployment that leaves no process behind."""
    made = Deployment(folder)
    try:
        yield made
    finally:
        made.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((ADDRESS, 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(0.5)
        return caller.connect_ex((ADDRESS, port)) == 0


def _write_certificates(folder: Path) -> None:
    """Write ca.crt, and server.pem with its key, for loopback alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        authority = x509.BasicConstraints(ca=name == "ca", path_length=None)
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(authority, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
        )
        if name != "ca":
            names = [x509.IPAddress(ipaddress.ip_address(ADDRESS)), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(signer, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (folder / "ca.crt").write_bytes(certificate("ca", authority, authority))
    (folder / "server.pem").write_bytes(certificate("server", server, authority))
    (folder / "server.key").write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
