"""https with the certificates that are valid now, and clients that verify them."""

import asyncio
import logging
import socket
import ssl
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from fastapi import FastAPI

from llava_api.errors import StartupError
from llava_api.limits.keys import KeyRing
from llava_api.server.app import create_app
from llava_api.server.lifecycle import Lifecycle
from llava_api.server.lifespan import make_lifespan
from llava_api.server.services import Services
from llava_api.server.tls import Certificates, open_certificates
from llava_api.settings import Settings
from tests.api.test_chat import CHAT, text_body
from tests.support.certificates import Authority
from tests.support.running_server import HEALTH, Connection, RunningServer, post, serve_app
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import until


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def settings_made(tmp_path: Path, authority: Authority) -> dict[str, Any]:
    certificate, key = authority.pair().write(tmp_path / "tls")
    return {"tls_certificate_file": certificate, "tls_key_file": key, "receive_timeout_seconds": 1}


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.certificate.decode())


async def call(edge: RunningServer, trusting: ssl.SSLContext) -> Connection:
    """Connect after the certificates have been read again, as they are every two seconds."""
    assert edge.certificates is not None
    edge.certificates.refresh()
    return await edge.connect(ssl=trusting, server_hostname="localhost")


def serial_of(caller: Connection) -> int:
    return int(caller.writer.get_extra_info("peercert")["serialNumber"], 16)


async def test_the_openai_client_verifies_and_is_answered(
    edge: RunningServer, trusting: ssl.SSLContext, engine: ScriptedEngine
) -> None:
    url = f"https://localhost:{edge.address[1]}/v1"
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=httpx.AsyncClient(verify=trusting)
    ) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        whole = await client.chat.completions.create(model="tiny", messages=messages)
        assert whole.choices[0].message.content == "A red circle."
        stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(said) == "A red circle."
    async with httpx.AsyncClient() as stranger:
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await stranger.get(f"{url}/models")


async def test_old_versions_are_refused(edge: RunningServer, trusting: ssl.SSLContext) -> None:
    caller = await call(edge, trusting)
    assert caller.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await (await call(edge, trusting)).ask(HEALTH)).status == 200
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await call(edge, old)


async def test_plain_http_is_closed_without_an_answer(edge: RunningServer, trusting: ssl.SSLContext) -> None:
    plain = await edge.connect()
    await plain.send(HEALTH)
    assert b"HTTP" not in await plain.end()
    assert (await (await call(edge, trusting)).ask(HEALTH)).status == 200
    await until(lambda: len(edge.server.server_state.connections) == 1)


def test_a_handshake_has_the_time_of_the_event_loop(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a minute. The test shortens it on asyncio's own loop, because it cannot on uvloop."""
    monkeypatch.setattr("asyncio.constants.SSL_HANDSHAKE_TIMEOUT", 0.5)

    async def wait_for_the_end() -> None:
        async with serve_app(app) as edge:
            silent = await edge.connect()
            for piece in (b"\x16\x03\x01", b"\x02\x00", b"\x01\x00"):
                await silent.send(piece)
            assert await silent.end() == b""

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(wait_for_the_end())


async def test_the_limits_are_the_same(edge: RunningServer, trusting: ssl.SSLContext) -> None:
    caller = await call(edge, trusting)
    answer = await caller.ask(b"GET /" + b"a" * 200_000)
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
    caller = await call(edge, trusting)
    await caller.send(b"GET / HTTP/1.1\r\n")
    assert (await caller.answer()).error["code"] == "receive_timeout"
    caller = await call(edge, trusting)
    assert (await caller.ask(post(CHAT, text_body()))).status == 200
    assert (await caller.ask(HEALTH)).status == 200


async def test_what_comes_with_the_handshake_is_not_lost(edge: RunningServer, trusting: ssl.SSLContext) -> None:
    """The request comes in the same bytes as the end of the handshake."""
    for _ in range(20):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting.wrap_bio(incoming, outgoing, server_hostname="localhost")
        caller = await edge.connect()
        async with asyncio.timeout(5):
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    caller.writer.write(outgoing.read())
                    incoming.write(await caller.reader.read(65_536))
            tls.write(HEALTH)
            caller.writer.write(outgoing.read())
            answer = b""
            while b"live" not in answer:
                try:
                    answer += tls.read(65_536)
                except ssl.SSLWantReadError:
                    incoming.write(await caller.reader.read(65_536))
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_new_certificate_is_used_at_once_and_no_connection_is_closed(
    edge: RunningServer, trusting: ssl.SSLContext, authority: Authority, tmp_path: Path, engine: ScriptedEngine
) -> None:
    engine.texts = ("word ",) * 100
    engine.pause_seconds = 0.01
    before = await call(edge, trusting)
    await before.send(post(CHAT, text_body(stream=True), "Connection: close"))
    await before.head()
    new = authority.pair()
    assert serial_of(before) != new.serial
    new.write(tmp_path / "tls")
    after = await call(edge, trusting)
    assert serial_of(after) == new.serial
    assert (await after.ask(HEALTH)).status == 200
    assert b"[DONE]" in await before.end()


async def test_a_server_reads_its_certificates_again(
    app: FastAPI, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its start, so also while the model is loaded."""
    monkeypatch.setattr("llava_api.server.lifespan.WATCH_SECONDS", 0.01)
    services: Services = app.state.services
    settings, lifecycle = services.settings, Lifecycle(1)
    certificates = open_certificates(settings)
    assert certificates is not None

    async def never() -> Any:
        await asyncio.Event().wait()

    lifespan = make_lifespan(
        services.model,
        settings,
        KeyRing(settings),
        services.limiter,
        lifecycle,
        never,
        certificates=certificates,
    )
    before = certificates.value
    async with lifespan(create_app(settings, KeyRing(settings), lifespan=lifespan, lifecycle=lifecycle)):
        authority.pair().write(tmp_path / "tls")
        await until(lambda: certificates.value is not before)


async def test_a_broken_new_pair_keeps_the_old(
    edge: RunningServer,
    trusting: ssl.SSLContext,
    authority: Authority,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serial = serial_of(await call(edge, trusting))
    other = authority.pair()
    for certificate, key in ((other.certificate, None), (b"nonsense", None), (None, other.key)):
        old = [(tmp_path / "tls" / name).read_bytes() for name in ("tls.crt", "tls.key")]
        if certificate is not None:
            (tmp_path / "tls" / "tls.crt").write_bytes(certificate)
        if key is not None:
            (tmp_path / "tls" / "tls.key").write_bytes(key)
        caplog.clear()
        for _ in range(3):
            caller = await call(edge, trusting)
            assert serial_of(caller) == serial
            assert (await caller.ask(HEALTH)).status == 200
        # The error is logged once, not for every connection.
        assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1
        assert "stay as they were" in caplog.text
        for name, content in zip(("tls.crt", "tls.key"), old, strict=True):
            (tmp_path / "tls" / name).write_bytes(content)
        assert serial_of(await call(edge, trusting)) == serial
    (tmp_path / "tls" / "tls.key").unlink()
    assert serial_of(await call(edge, trusting)) == serial
    # One half of a new pair comes, then the other half.
    other.write(tmp_path / "tls")
    assert serial_of(await call(edge, trusting)) == other.serial


async def test_a_pair_that_was_half_written_is_used_when_it_is_complete(
    edge: RunningServer, trusting: ssl.SSLContext, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await call(edge, trusting)
    assert edge.certificates is not None
    watched = edge.certificates
    new, load = authority.pair(), watched.make
    certificate, _ = new.write(tmp_path / "tls")

    def load_while_it_is_written(contents: list[bytes]) -> ssl.SSLContext:
        Path(certificate).write_bytes(b"")
        try:
            return load(contents)
        finally:
            Path(certificate).write_bytes(new.certificate)

    with monkeypatch.context() as patched:
        patched.setattr(watched, "make", load_while_it_is_written)
        assert serial_of(await call(edge, trusting)) != new.serial
    assert serial_of(await call(edge, trusting)) == new.serial


class TestClients:
    @pytest.fixture
    def settings_made(self, tmp_path: Path, authority: Authority) -> dict[str, Any]:
        certificate, key = authority.pair().write(tmp_path / "tls")
        (tmp_path / "clients.crt").write_bytes(authority.certificate)
        return {
            "tls_certificate_file": certificate,
            "tls_key_file": key,
            "tls_client_ca_file": str(tmp_path / "clients.crt"),
        }

    async def test_only_those_with_a_certificate_are_answered(
        self, edge: RunningServer, trusting: ssl.SSLContext, authority: Authority, tmp_path: Path
    ) -> None:
        stranger = ssl.create_default_context(cadata=authority.certificate.decode())
        stranger.load_cert_chain(*Authority().pair().write(tmp_path / "stranger"))
        for context in (trusting, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                # In TLS 1.3 the client has ended its handshake when the server refuses it.
                await (await call(edge, context)).ask(HEALTH)
        known = ssl.create_default_context(cadata=authority.certificate.decode())
        known.load_cert_chain(*authority.pair().write(tmp_path / "known"))
        assert (await (await call(edge, known)).ask(HEALTH)).status == 200

    async def test_an_authority_that_is_removed_is_not_trusted_any_more(
        self, edge: RunningServer, authority: Authority, tmp_path: Path
    ) -> None:
        """Not in a resumed session either: in TLS 1.3 no session is resumed."""
        known = ssl.create_default_context(cadata=authority.certificate.decode())
        known.load_cert_chain(*authority.pair().write(tmp_path / "known"))

        def ask(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            with (
                socket.create_connection(edge.address, 5) as wire,
                known.wrap_socket(wire, server_hostname="localhost", session=session) as encrypted,
            ):
                encrypted.sendall(HEALTH)
                assert encrypted.recv(1000).startswith(b"HTTP/1.1 200")
                assert not encrypted.session_reused
                return encrypted.session

        session = await asyncio.to_thread(ask, None)
        await asyncio.to_thread(ask, session)
        (tmp_path / "clients.crt").write_bytes(Authority().certificate)
        assert edge.certificates is not None
        edge.certificates.refresh()
        for old in (session, None):
            with pytest.raises((OSError, AssertionError)):
                await asyncio.to_thread(ask, old)


async def test_many_handshakes_that_do_not_end_do_not_delay_others(app: FastAPI, trusting: ssl.SSLContext) -> None:
    services: Services = app.state.services
    services.settings = services.settings.model_copy(update={"max_connections": 20, "receive_timeout_seconds": 30})
    async with serve_app(app) as edge:
        for _ in range(200):
            await (await edge.connect()).send(b"\x16\x03\x01")
        for _ in range(5):
            assert (await (await call(edge, trusting)).ask(HEALTH)).status == 200
        assert len(edge.server.server_state.connections) <= 21


class TestTheStart:
    """Each error is one sentence that says what to do."""

    def refused(self, **given: str) -> str:
        with pytest.raises(StartupError) as caught:
            open_certificates(Settings(**given))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_nothing_is_no_tls(self) -> None:
        assert open_certificates(Settings()) is None

    def test_half_of_it(self, tmp_path: Path) -> None:
        assert "need each other" in self.refused(tls_certificate_file="a")
        assert "need each other" in self.refused(tls_key_file="a")
        assert "--tls-certificate-file" in self.refused(tls_client_ca_file="a")

    @pytest.mark.parametrize("days", [3, 60, 365 * 40], ids=["soon", "later", "after 2050"])
    def test_when_the_certificate_expires(
        self, tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture, days: int
    ) -> None:
        leaf = authority.pair(valid_for=timedelta(days=days))
        certificate, key = leaf.write(tmp_path)
        certificates = Certificates(certificate, key, None)
        end = x509.load_pem_x509_certificate(leaf.certificate).not_valid_after_utc
        assert certificates.expires_at == end.timestamp()
        assert (f"{certificate} expires at {end:%Y-%m-%d %H:%M} UTC" in caplog.text) == (days == 3)
        # What signed it ends in an hour, and the pair with it.
        Path(certificate).write_bytes(leaf.certificate + authority.certificate)
        certificates.refresh()
        assert 0 < certificates.expires_at - time.time() <= 3600

    def test_files_that_cannot_be_used(self, tmp_path: Path, authority: Authority) -> None:
        certificate, key = authority.pair().write(tmp_path / "one")
        _, other = authority.pair().write(tmp_path / "two")
        _, locked = authority.pair(b"secret").write(tmp_path / "three")
        nonsense = tmp_path / "nonsense"
        nonsense.write_text("nonsense")
        assert "No such file" in self.refused(tls_certificate_file="nowhere", tls_key_file=key)
        for first, second in ((str(nonsense), key), (certificate, str(nonsense)), (key, certificate)):
            assert "in PEM" in self.refused(tls_certificate_file=first, tls_key_file=second)
        assert "does not belong" in self.refused(tls_certificate_file=certificate, tls_key_file=other)
        assert "password" in self.refused(tls_certificate_file=certificate, tls_key_file=locked)
        given = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": str(nonsense)}
        assert "no certificates" in self.refused(**given)
        assert isinstance(open_certificates(Settings(tls_certificate_file=certificate, tls_key_file=key)), Certificates)
