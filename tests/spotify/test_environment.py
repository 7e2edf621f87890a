"""TLS and proxies as a host sets them: what is right works, and what is wrong is named when the process starts."""

import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import certifi
import httpx
import pytest

from spotconn import ConfigurationError, SpotifyAccounts, TokenManager
from spotconn._spotify.environment import proxy_setting, tls_context
from spotconn.testing import FakeSpotify
from support.listening import until
from support.tls import certificate, name_for_openssl, tls_front
from support.upstream import upstream

SPOTIFY = "https://accounts.spotify.com"
SECRET = "proxy-secret"


@pytest.fixture(autouse=True)
def _plain_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL"):
            monkeypatch.delenv(name)


UNUSABLE = {
    "SOCKS without its package": ("ALL_PROXY", f"socks5://user:{SECRET}@127.0.0.1:1080", "httpx\\[socks\\]"),
    "SOCKS as GNOME writes it": ("all_proxy", f"socks://user:{SECRET}@127.0.0.1:1080/", "expected http, https"),
    "no kind of proxy": ("HTTPS_PROXY", f"nonsense://user:{SECRET}@127.0.0.1:1", "expected http, https"),
    "# in the password": ("HTTPS_PROXY", f"http://user:p#{SECRET}@proxy:3128", "percent-encoded"),
    "@ and # in the password": ("HTTPS_PROXY", f"http://user:p@ss#{SECRET}@proxy:3128", "percent-encoded"),
    "/ in the password": ("https_proxy", f"http://user:p/{SECRET}@proxy:3128", "percent-encoded"),
    "? in the password": ("https_proxy", f"user:1?{SECRET}@proxy:3128", "percent-encoded"),
    "no host": ("HTTPS_PROXY", f"http://user:{SECRET}@", "percent-encoded"),
    "no port that exists": ("HTTPS_PROXY", f"http://user:{SECRET}@proxy:99999", "percent-encoded"),
    "SSL_CERT_FILE is missing": ("SSL_CERT_FILE", f"/{SECRET}/cacert.pem", "FileNotFoundError"),
    "SSL_CERT_FILE is empty": ("SSL_CERT_FILE", "/dev/null", "PEM"),
    "SSL_CERT_FILE is a folder": ("SSL_CERT_FILE", "/", "PEM"),
    "SSL_CERT_DIR is missing": ("SSL_CERT_DIR", f"/{SECRET}", "openssl rehash"),
    "SSL_CERT_DIR has no certificates": ("SSL_CERT_DIR", "/", "openssl rehash"),
    "SSLKEYLOGFILE cannot be written": ("SSLKEYLOGFILE", f"/{SECRET}/keys", "FileNotFoundError"),
}
unusable = pytest.mark.parametrize(("variable", "value", "text"), UNUSABLE.values(), ids=UNUSABLE)


@unusable
def test_what_cannot_be_used_is_named_at_once(
    variable: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The constructor names the variable and says what to do; it does not show the value."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable} .*{text}") as raised:
        SpotifyAccounts("app")
    assert SECRET not in str(raised.value)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


@pytest.mark.parametrize("api_url", ["http://127.0.0.1:1", "https://api.example.com"])
def test_certificates_are_loaded_where_one_service_needs_them(api_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain http alone, which is for this host, nothing is read; one service over https is enough to need them."""
    monkeypatch.setenv("SSL_CERT_FILE", "/missing.pem")
    needed = api_url.startswith("https")
    refused: AbstractContextManager[object] = pytest.raises(ConfigurationError) if needed else nullcontext()
    with refused:
        SpotifyAccounts("app", accounts_url="http://127.0.0.1:1", api_url=api_url)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "HTTPS_PROXY"])
async def test_a_manager_names_it_too(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_env` raises what the constructor of the accounts does."""
    for name, value in {
        "DATABASE_URL": "postgresql://app@127.0.0.1:1/app",
        "SPOTIFY_CLIENT_ID": "app",
        variable: "nonsense://\n",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=variable):
        await TokenManager.from_env().__aenter__()


def test_a_given_client_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host sets for TLS does not concern a client of the caller's own."""
    given = httpx.AsyncClient()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    SpotifyAccounts("app", http=given)


RIGHT = {
    "no scheme": {"HTTPS_PROXY": "proxy.example:3128"},
    "encoded password": {"HTTPS_PROXY": "http://user:p%40ss%23w%2F@proxy.example:3128"},
    "a proxy that is not used": {"ALL_PROXY": "socks://127.0.0.1:1080", "HTTPS_PROXY": "http://proxy.example:1"},
    "a proxy for plain http": {"HTTP_PROXY": "nonsense://"},
    "an exempted proxy": {"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": ".spotify.com"},
    "IPv6 without a proxy": {"NO_PROXY": "[::1],::1,fd00::/8,[fd00::1]:80"},
    "IPv6 with a proxy": {"NO_PROXY": "[::1],::1,fd00::/8,[fd00::1]:80", "HTTPS_PROXY": "http://[fd00::1]:3128"},
    "odd entries": {"NO_PROXY": "*.corp,.x, ,:,//,http://,[,*:1,\u00e9", "HTTPS_PROXY": "http://proxy.example:1"},
    "empty": {"HTTPS_PROXY": "", "SSL_CERT_FILE": "", "SSL_CERT_DIR": "", "NO_PROXY": ""},
}


@pytest.mark.parametrize("environ", RIGHT.values(), ids=RIGHT)
async def test_what_is_right_works(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts can be made wherever the settings that concern Spotify are well-formed."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    async with SpotifyAccounts("app"):
        pass


def test_a_path_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base URL of an address and a number goes through the proxy, too; httpx2 would read it as a network."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    SpotifyAccounts("app", accounts_url="https://10.1.2.3/accounts", api_url="https://10.1.2.3/24")


def test_the_library_in_use_does_not_choose_the_certificates() -> None:
    """Those of certifi are trusted, with httpx2 as with httpx."""
    those = ssl.create_default_context(cafile=certifi.where())
    assert tls_context().get_ca_certs(binary_form=True) == those.get_ca_certs(binary_form=True)


EXEMPTIONS = {
    "": (),
    "*": ("https://accounts.spotify.com", "https://api.spotify.com", "https://[fd00::1]:8443", "https://10.1.2.3"),
    ".spotify.com": ("https://accounts.spotify.com", "https://api.spotify.com"),
    "Spotify.com": ("https://accounts.spotify.com", "https://api.spotify.com"),
    "x, api.spotify.com": ("https://api.spotify.com",),
    "otify.com": (),
    "api.spotify.com:443": ("https://api.spotify.com",),
    "api.spotify.com:80": (),
    "fd00::1,10.1.2.3": ("https://[fd00::1]:8443", "https://10.1.2.3"),
    "[fd00::1],10.1.2.4": (),
}


@pytest.mark.parametrize(("no_proxy", "direct"), EXEMPTIONS.items())
def test_no_proxy_exempts_what_it_names(
    no_proxy: str, direct: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Domains, hosts with a port, addresses and `*` are exempted; nothing that only looks like them is."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    every = ("https://accounts.spotify.com", "https://api.spotify.com", "https://[fd00::1]:8443", "https://10.1.2.3")
    assert tuple(url for url in every if proxy_setting(url) is None) == direct


def test_the_variable_is_named_as_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both spellings are set, the lower-case one counts and is named; HTTPS_PROXY goes before ALL_PROXY."""
    monkeypatch.setenv("ALL_PROXY", "all:1")
    assert proxy_setting(SPOTIFY) == ("ALL_PROXY", "all:1")
    monkeypatch.setenv("HTTPS_PROXY", "upper:1")
    assert proxy_setting(SPOTIFY) == ("HTTPS_PROXY", "upper:1")
    monkeypatch.setenv("https_proxy", "lower:1")
    assert proxy_setting(SPOTIFY) == ("https_proxy", "lower:1")


@asynccontextmanager
async def spotify_over_tls(spotify: FakeSpotify, folder: Path) -> AsyncGenerator[tuple[str, Path]]:
    """Its https URL and the file with its certificate."""
    pem = certificate(folder)
    async with spotify.serve() as url, tls_front(urlsplit(url).port or 0, pem) as port:
        yield f"https://127.0.0.1:{port}", pem


async def refreshed(spotify: FakeSpotify, url: str) -> bool:
    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    async with SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts:
        return spotify.accepts((await accounts.refresh(refresh_token)).access_token)


async def test_certificates_of_a_file(spotify: FakeSpotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose root certificate is in SSL_CERT_FILE is trusted."""
    async with spotify_over_tls(spotify, tmp_path) as (url, pem):
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert await refreshed(spotify, url)


async def test_certificates_of_folders(spotify: FakeSpotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder counts if one of several has certificates under OpenSSL's names."""
    async with spotify_over_tls(spotify, tmp_path) as (url, pem):
        (tmp_path / name_for_openssl(pem)).symlink_to(pem)
        monkeypatch.setenv("SSL_CERT_DIR", os.pathsep.join(["/nowhere", str(tmp_path)]))
        assert await refreshed(spotify, url)


async def test_a_proxy_of_the_environment_is_used(
    spotify: FakeSpotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS goes through the proxy of the environment, unless NO_PROXY exempts the host."""
    async with spotify_over_tls(spotify, tmp_path) as (url, pem), upstream(b"HTTP/1.1 403 No\r\n\r\n") as proxy:
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removeprefix("http://"))
        async with SpotifyAccounts("demo-client", accounts_url=url, api_url=url) as accounts:
            with pytest.raises(Exception, match="the proxy refused to connect; check HTTPS_PROXY") as raised:
                await accounts.refresh("secret-rt", timeout=2)
            assert raised.value.__context__ is None
        await until(lambda: len(proxy.requests) > 0)
        assert proxy.requests[0][0].startswith("CONNECT 127.0.0.1:")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert await refreshed(spotify, url)
