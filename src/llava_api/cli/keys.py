"""``llava-api keys new NAME`` and ``llava-api keys hash``: make an API key, or the hash of one."""

import argparse
import getpass
import sys

from llava_api.errors import StartupError
from llava_api.limits.keys import HASHED, hashed, new_key, read_key


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("keys", help="make API keys", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    new = actions.add_parser("new", help="make a key: show it once, and print its line for --api-key-file")
    new.add_argument("name", metavar="NAME", help="the key's holder, for logs and metrics")
    new.set_defaults(run=make)
    other = actions.add_parser("hash", help="read a key from standard input, print its hash for --api-key-file")
    other.set_defaults(run=show_hash)


def make(chosen: argparse.Namespace) -> None:
    key = new_key()
    read_key(chosen.name, key, "keys new")
    # Only the line goes to standard output, so that it can be appended to the file.
    print(f"The key of {chosen.name}, shown only now:\n\n{key}\n\nIts line for --api-key-file:\n", file=sys.stderr)
    print(f"{chosen.name}={hashed(key)}")


def show_hash(chosen: argparse.Namespace) -> None:
    """Reads standard input, because other users can read a command line."""
    key = getpass.getpass("key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
    if key.startswith(HASHED):
        raise StartupError("keys hash: this is a hash already")
    read_key("key", key, "keys hash")
    print(hashed(key))
