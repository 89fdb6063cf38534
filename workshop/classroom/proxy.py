"""The hub's proxy in Python, set for a class: it came with ten requests at a time and 20 s for each."""

from configurable_http_proxy.cli import main
from tornado.httpclient import AsyncHTTPClient

AT_ONCE = 1000  # thirty browsers ask for a dozen things each
REQUEST_MS = 300_000  # thirty kernels that start at once take a minute

if __name__ == "__main__":
    import sys

    AsyncHTTPClient.configure(None, max_clients=AT_ONCE)
    main([*sys.argv[1:], f"--proxy-timeout={REQUEST_MS}"])
