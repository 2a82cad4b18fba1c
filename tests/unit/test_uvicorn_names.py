"""uvicorn still has every name that the server uses of it: ``http_protocol.py`` extends a class that is not public.

The names are read from our source, so that the list is complete. After an upgrade of uvicorn, what has moved fails here
by its name.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

import llava_api
from llava_api.server import http_protocol
from llava_api.server.http_protocol import ClosingTransport, HttpProtocol

SOURCES = sorted(Path(llava_api.__path__[0]).rglob("*.py"))
CLASSES: dict[str, type] = {
    one.__name__: one
    for one in (HttpToolsProtocol, RequestResponseCycle, FlowControl, ServerState, uvicorn.Server, uvicorn.Config)
}
OBJECTS = {"self.cycle": "RequestResponseCycle", "self.flow": "FlowControl", "self.server_state": "ServerState"}
"""What HttpProtocol reaches through its own attributes."""


def tree_of(thing: Any) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


def attributes(tree: ast.AST, owner: str) -> Iterator[tuple[str, bool]]:
    """Attributes of the expression ``owner``: their names, and whether they are assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == owner:
            yield node.attr, isinstance(node.ctx, ast.Store)


def names_of(cls: type) -> set[str]:
    """Everything that an object of the class has, what its methods assign included."""
    assigned = {name for one in cls.__mro__[:-1] for name, stored in attributes(tree_of(one), "self") if stored}
    return set(dir(cls)) | assigned


def own_names() -> set[str]:
    """What HttpProtocol adds: what ``__init__`` assigns, and the methods that do not call uvicorn's."""
    assigned = {name for name, stored in attributes(tree_of(HttpProtocol.__init__), "self") if stored}
    return assigned | {name for name in vars(HttpProtocol) if not name.startswith("__")} - overridden() - {"transport"}


def overridden() -> set[str]:
    called = {name for name, _ in attributes(tree_of(HttpProtocol), "super()")}
    return (called | {"data_received"}) - {"__init__"}


def used() -> Iterator[str]:
    protocol = tree_of(HttpProtocol)
    yield from (f"HttpToolsProtocol.{name}" for name, _ in attributes(protocol, "self") if name not in own_names())
    yield from (f"HttpToolsProtocol.{name}" for name in overridden())
    for owner, cls in OBJECTS.items():
        yield from (f"{cls}.{name}" for name, _ in attributes(protocol, owner))
    for path in SOURCES:
        text = path.read_text()
        if "uvicorn" in text:
            yield from used_in(ast.parse(text))


def used_in(module: ast.AST) -> Iterator[str]:
    """``uvicorn.Config(...)``, subclasses of ``uvicorn.Server``, and variables called ``server``."""
    servers = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and "uvicorn.Server" in map(ast.unparse, node.bases)
    ]
    for server in servers:
        methods = [node.name for node in server.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        ours = {name for name, stored in attributes(server, "self") if stored}
        yield from (f"Server.{name}" for name in methods)
        yield from (f"Server.{name}" for name, _ in attributes(server, "self") if name not in ours)
    if servers:
        yield from (f"Server.{name}" for name, _ in attributes(module, "server"))
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "uvicorn.Config":
            yield from (f"Config.{keyword.arg}" for keyword in node.keywords if keyword.arg)


USED = sorted(set(used()))


@pytest.mark.parametrize("name", USED)
def test_uvicorn_still_has(name: str) -> None:
    cls, _, attribute = name.partition(".")
    if cls == "Config":
        assert attribute in inspect.signature(uvicorn.Config.__init__).parameters
    else:
        assert attribute in names_of(CLASSES[cls])


def test_the_list_is_not_empty() -> None:
    """What is known to be used, so that a mistake in reading the source does not go unnoticed."""
    known = {"HttpToolsProtocol.parser", "HttpToolsProtocol.on_body", "RequestResponseCycle.keep_alive"}
    known |= {"FlowControl.read_paused", "ServerState.default_headers", "Server.should_exit", "Server.capture_signals"}
    assert known | {"Server.handle_exit", "Config.ssl_context_factory"} <= set(USED)


@pytest.mark.parametrize("name", sorted(own_names()))
def test_uvicorn_does_not_use_a_name_of_ours(name: str) -> None:
    assert name not in names_of(HttpToolsProtocol)


def test_uvicorn_calls_only_what_our_transport_passes_on() -> None:
    called = {name for name, _ in attributes(tree_of(httptools_impl), "self.transport")}
    called |= {name for name, _ in attributes(tree_of(flow_control), "self._transport")}
    # Upgrades to WebSocket are off.
    called -= {"set_protocol"}
    ours = {name for name, stored in attributes(tree_of(ClosingTransport), "self") if stored} | set(
        vars(ClosingTransport)
    )
    assert called - ours == set()


def test_the_classes_are_those_that_are_used() -> None:
    """What the objects are that HttpProtocol reaches: uvicorn's annotations say so."""
    source = inspect.getsource(httptools_impl)
    for owner, cls in OBJECTS.items():
        assert f"{owner}: {cls} = " in source or f"{owner.removeprefix('self.')}: {cls}," in source
    assert http_protocol.HttpToolsProtocol is HttpToolsProtocol
