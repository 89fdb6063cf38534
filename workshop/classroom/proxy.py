"""The hub's proxy in Python, set for a class: it came with ten requests at a time, 20 s for each, and no TLS."""

from __future__ import annotations

import argparse
import functools
import ssl
import sys
from collections.abc import Sequence

from configurable_http_proxy import cli
from tornado.httpclient import AsyncHTTPClient

AT_ONCE = 1000  # thirty browsers ask for a dozen things each
REQUEST_MS = 300_000  # thirty kernels that start at once take a minute


def with_tls(arguments: Sequence[str]) -> list[str]:
    """Let the proxy's outer side speak TLS where `arguments` name a certificate; the arguments that are left."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--ssl-cert")
    parser.add_argument("--ssl-key")
    given, others = parser.parse_known_args(arguments)
    if not given.ssl_cert:
        return others
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(given.ssl_cert, given.ssl_key)
    plain = cli.HTTPServer
    # It makes two servers, first the outer one, then the one by which the hub alone, on loopback, tells it where to go.
    making = iter((functools.partial(plain, ssl_options=context), plain))
    cli.HTTPServer = lambda application: next(making)(application)
    return [*others, "--custom-header", "X-Scheme:https"]  # else the hub takes it for HTTP, and its cookies go unmarked


if __name__ == "__main__":
    AsyncHTTPClient.configure(None, max_clients=AT_ONCE)
    cli.main([*with_tls(sys.argv[1:]), f"--proxy-timeout={REQUEST_MS}"])
