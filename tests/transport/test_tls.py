"""TLS is checked unless somebody says otherwise, and what is refused was never sent."""

import datetime as dt
import ssl
from pathlib import Path

import httpx
import pytest
import trustme

from gateway.transport import Engine, PreparedRequest, Target, TlsError, TransportSettings, open_transport
from tests.support.upstream import ScriptedUpstream, close, forever, read, reply
from tests.transport.exchanges import fetch, request

LONG_AGO = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def served(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize("kind", ["own", "httpx"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_of_a_known_authority_is_accepted(
    authority: trustme.CA, ca_file: str, kind: str, host: str
) -> None:
    transport = open_transport(TransportSettings(engine=kind, ca_file=ca_file))  # type: ignore[arg-type]
    tls = served(authority.issue_cert("127.0.0.1", "localhost"))
    async with ScriptedUpstream([forever(read(), reply(b"secret" * 50_000))], tls=tls) as upstream:
        for _ in range(3):
            sent = request(upstream.url.replace("127.0.0.1", host), bytes(1 << 20))
            assert await fetch(transport, sent) == (200, b"secret" * 50_000)

        assert upstream.accepted == 1
    await transport.aclose()


async def test_one_context_serves_all_connections(authority: trustme.CA, ca_file: str) -> None:
    names: list[str | None] = []
    tls = served(authority.issue_cert("127.0.0.1", "localhost"))
    tls.sni_callback = lambda _sock, name, _context: names.append(name)
    engine = Engine(TransportSettings(ca_file=ca_file))
    async with ScriptedUpstream([read(), reply(), close()], tls=tls) as upstream:
        for _ in range(2):
            await fetch(engine, request(upstream.url.replace("127.0.0.1", "localhost")))
    await engine.aclose()

    assert names == ["localhost", "localhost"]


@pytest.mark.parametrize("certified", ["upstream.test", "127.0.0.1"])
async def test_an_address_must_prove_the_name_that_it_was_found_under(
    authority: trustme.CA, ca_file: str, certified: str
) -> None:
    names: list[str | None] = []
    tls = served(authority.issue_cert(certified))
    tls.sni_callback = lambda _sock, name, _context: names.append(name)
    engine = Engine(TransportSettings(ca_file=ca_file))
    async with ScriptedUpstream([read(), reply()], tls=tls) as upstream:
        target = Target("POST", httpx.URL(f"https://upstream.test:{upstream.port}/v1"), address="127.0.0.1")
        sent = PreparedRequest(target, [], b"{}", {"timeout": {"connect": 10.0, "read": 10.0}})
        if certified == "upstream.test":
            assert await fetch(engine, sent) == (200, b"{}")
            assert upstream.requests[0].header("host") == f"upstream.test:{upstream.port}"
        else:
            with pytest.raises(TlsError):
                await fetch(engine, sent)
            assert upstream.requests == []
    await engine.aclose()

    assert names == ["upstream.test"]


@pytest.mark.parametrize("fault", ["wrong host", "expired", "unknown authority", "old protocol"])
async def test_a_certificate_that_proves_nothing_is_refused(authority: trustme.CA, ca_file: str, fault: str) -> None:
    tls = served(
        {
            "wrong host": lambda: authority.issue_cert("example.com"),
            "expired": lambda: authority.issue_cert("127.0.0.1", not_before=LONG_AGO, not_after=LONG_AGO),
            "unknown authority": lambda: trustme.CA().issue_cert("127.0.0.1"),
            "old protocol": lambda: authority.issue_cert("127.0.0.1"),
        }[fault]()
    )
    if fault == "old protocol":
        tls.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            tls.minimum_version, tls.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    engine = Engine(TransportSettings(ca_file=ca_file))
    async with ScriptedUpstream([read(), reply()], tls=tls) as upstream:
        with pytest.raises(TlsError):
            await fetch(engine, request(upstream.url))

        assert upstream.requests == []
        assert repr(engine) == f"<Engine [{upstream.url}: 0 active, 0 idle, 0 waiting]>"
    await engine.aclose()


async def test_without_a_file_only_public_authorities_are_known(engine: Engine, authority: trustme.CA) -> None:
    async with ScriptedUpstream([read(), reply()], tls=served(authority.issue_cert("127.0.0.1"))) as upstream:
        with pytest.raises(TlsError):
            await fetch(engine, request(upstream.url))


async def test_checking_can_be_turned_off(authority: trustme.CA) -> None:
    engine = Engine(TransportSettings(verify=False))
    async with ScriptedUpstream([read(), reply()], tls=served(authority.issue_cert("example.com"))) as upstream:
        assert await fetch(engine, request(upstream.url)) == (200, b"{}")
    await engine.aclose()


@pytest.mark.parametrize("known", [True, False])
async def test_an_upstream_may_ask_who_we_are(authority: trustme.CA, ca_file: str, tmp_path: Path, known: bool) -> None:
    ours = tmp_path / "client.pem"
    authority.issue_cert("gateway").private_key_and_cert_chain_pem.write_to_path(ours)
    tls = served(authority.issue_cert("127.0.0.1"))
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    engine = Engine(TransportSettings(ca_file=ca_file, client_cert=str(ours) if known else None))
    async with ScriptedUpstream([read(), reply()], tls=tls) as upstream:
        if known:
            assert await fetch(engine, request(upstream.url)) == (200, b"{}")
        else:
            with pytest.raises(httpx.TransportError):
                await fetch(engine, request(upstream.url))
            assert upstream.requests == []
    await engine.aclose()


async def test_a_peer_that_does_not_speak_tls_is_a_tls_error(engine: Engine) -> None:
    async with ScriptedUpstream([reply(), close()]) as upstream:
        with pytest.raises(TlsError):
            await fetch(engine, request(upstream.url.replace("http:", "https:")))


async def test_a_peer_that_hangs_up_in_the_handshake_is_a_tls_error(engine: Engine) -> None:
    async with ScriptedUpstream([close()]) as upstream:
        with pytest.raises(TlsError):
            await fetch(engine, request(upstream.url.replace("http:", "https:")))


async def test_a_handshake_without_end_is_a_connect_timeout(engine: Engine) -> None:
    async with ScriptedUpstream([]) as upstream:
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(engine, request(upstream.url.replace("http:", "https:"), timeouts={"connect": 0.05}))

        await upstream.wait_until(lambda: upstream.open_connections == 0)


def test_a_file_that_is_not_there_is_noticed_at_the_start() -> None:
    with pytest.raises(FileNotFoundError, match="ca_file: No such file") as raised:
        Engine(TransportSettings(ca_file="/nonexistent.pem"))
    assert raised.value.filename == "/nonexistent.pem"


def test_a_file_that_is_no_pem_is_named(authority: trustme.CA, tmp_path: Path) -> None:
    wrong, certificate = tmp_path / "wrong.pem", tmp_path / "certificate.pem"
    wrong.write_text("not a certificate")
    authority.issue_cert("gateway").cert_chain_pems[0].write_to_path(certificate)
    both = f"{certificate} and {wrong}"
    for settings, setting, name in (
        ({"ca_file": str(wrong)}, "ca_file: ", str(wrong)),
        ({"client_cert": str(wrong)}, "client_cert, client_key: ", str(wrong)),
        ({"client_cert": str(certificate), "client_key": str(wrong)}, "client_cert, client_key: ", both),
    ):
        with pytest.raises(OSError, match=setting) as raised:
            Engine(TransportSettings(**settings))  # type: ignore[arg-type]
        assert raised.value.filename == name
        assert raised.value.strerror not in {None, setting}


def test_the_proxys_password_is_not_shown() -> None:
    settings = TransportSettings(engine="httpx", proxy="http://user:word@proxy:3128")
    assert "word" not in repr(settings)


def test_the_environment_names_no_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ca_file: str) -> None:
    log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent.pem")

    Engine(TransportSettings(ca_file=ca_file))

    assert not log.exists()
