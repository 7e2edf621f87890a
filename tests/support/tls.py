"""TLS on loopback: a certificate made for the occasion, and a front that speaks TLS for a plain server."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder: Path, *names: str) -> Path:
    """Return a file with a self-signed certificate for 127.0.0.1 and some names, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "spotconn tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), *map(x509.DNSName, names)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "certificate.pem"
    path.write_bytes(private + made.public_bytes(pem))
    return path


def name_for_openssl(pem: Path) -> str:
    """Return the name by which OpenSSL finds that certificate in a folder: a hash of its subject in lower case."""
    name = x509.load_pem_x509_certificate(pem.read_bytes()).subject.rfc4514_string().removeprefix("CN=").encode()
    text = b"\x0c" + bytes([len(name)]) + name
    pair = b"\x06\x03\x55\x04\x03" + text
    sequence = b"\x30" + bytes([len(pair)]) + pair
    subject = b"\x31" + bytes([len(sequence)]) + sequence
    digest = hashlib.sha1(subject, usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}.0"


@asynccontextmanager
async def tls_front(port: int, pem: Path) -> AsyncGenerator[int]:
    """Forward what comes over TLS to a plain server while the block lasts; gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    async with _relay(port, context) as front:
        yield front


@asynccontextmanager
async def damaging_relay(port: int, damages: Callable[[], bool]) -> AsyncGenerator[int]:
    """Forward bytes to a server while the block lasts, and alter those that come back while `damages()`."""
    async with _relay(port, None, damages) as front:
        yield front


@asynccontextmanager
async def _relay(port: int, context: ssl.SSLContext | None, damages: Callable[[], bool] = bool) -> AsyncGenerator[int]:
    links: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        links.add(task)
        task.add_done_callback(links.discard)
        plain_reader, plain_writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(_pump(reader, plain_writer), _pump(plain_reader, writer, damages))
        plain_writer.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in links:
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, damages: Callable[[], bool] = bool) -> None:
    while data := await reader.read(65536):
        if damages():
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        writer.write(data)
        await writer.drain()
    writer.close()
