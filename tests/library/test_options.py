"""The options of the server: their names, their valid values and their types."""

import socket
import ssl
import typing

import pytest

import echo
from echo.server.options import OPTIONS, Options, ServerOptions


def make(**options):
    echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **options).server_close()


def test_the_class_attributes_are_the_plain_defaults():
    assert {name: getattr(echo.Server, name) for name in OPTIONS} == {
        name: option.default for name, option in OPTIONS.items()
    }
    assert (echo.Server.max_connections, echo.Server.shutdown_timeout) == (1024, 10.0)


def test_the_types_for_checkers_are_those_of_the_class_attributes():
    assert list(ServerOptions.__annotations__) == list(OPTIONS) == list(Options.__annotations__)
    assert typing.get_type_hints(ServerOptions) == typing.get_type_hints(Options)
    assert not ServerOptions.__total__


@pytest.mark.parametrize("name", OPTIONS)
def test_none_is_allowed_where_the_types_and_the_meaning_say_so(name):
    allowed = type(None) in typing.get_args(typing.get_type_hints(Options)[name])
    assert bool(OPTIONS[name].none) is allowed
    if allowed:
        make(**{name: None})


@pytest.mark.parametrize(
    "name, value, error",
    [
        ("max_connections", 0, ValueError),
        ("max_connections", "5", TypeError),
        ("max_connections", True, TypeError),
        ("max_connections", 1.5, TypeError),
        ("max_connections_per_host", 0, ValueError),
        ("shutdown_timeout", -1, ValueError),
        ("shutdown_timeout", float("nan"), ValueError),
        ("shutdown_timeout", float("inf"), ValueError),
        ("handshake_timeout", 0, ValueError),
        ("request_queue_size", None, TypeError),
        ("request_queue_size", -1, ValueError),
        ("ssl_context", "cert.pem", TypeError),
        ("unix_mode", "660", TypeError),
        ("unix_mode", -1, ValueError),
        ("unix_mode", 600, ValueError),
        ("timeout", "1s", TypeError),
        ("timeout", -1, ValueError),
        ("allow", ["10.0.0.0/99"], ValueError),
        ("deny", ["example"], ValueError),
        ("deny", None, TypeError),
        ("proxy_allow_from", iter(()), ValueError),
        ("proxy_protocol", "off", TypeError),
        ("proxy_protocol", None, TypeError),
        ("dual_stack", 0, TypeError),
        ("reuse_threads", "no", TypeError),
    ],
)
@pytest.mark.parametrize("how", ["argument", "class attribute"])
def test_a_wrong_value_is_an_error_that_names_the_option(name, value, error, how):
    cls = type("Server", (echo.Server,), {name: value} if how == "class attribute" else {})
    with pytest.raises(error, match=f"^{name}(:| is) "):
        cls(("127.0.0.1", 0), echo.EchoRequestHandler, **({name: value} if how == "argument" else {}))


def test_an_unknown_option_is_an_error_that_lists_the_options():
    with pytest.raises(
        TypeError, match=r"Server\(\) has no option 'max_conections'; it has max_connections, .*timeout"
    ):
        make(max_conections=5)
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(TypeError, match="has no option 'port'"):
        echo.Server.from_socket(sock, echo.EchoRequestHandler, port=5)


def test_right_values_become_attributes_of_the_server():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    given = {"max_connections": 5, "shutdown_timeout": 0, "ssl_context": context, "timeout": 1, "request_queue_size": 7}
    with echo.Server(("127.0.0.1", 0), echo.EchoRequestHandler, **given) as server:
        assert {name: getattr(server, name) for name in given} == given
    assert echo.Server.max_connections == 1024
