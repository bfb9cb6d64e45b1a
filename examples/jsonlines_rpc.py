"""Remote procedure calls with JSON-RPC 2.0: one line of JSON for a call, one for its reply.

It shows how to answer any input, even invalid input, and continue. The protocol is plain functions without a socket:

    python3 -m examples.jsonlines_rpc
    nc 127.0.0.1 65432                        # then type {"jsonrpc": "2.0", "method": "add", "params": [1, 2], "id": 1}

Without an ``id`` a call is a notification and gets no reply. A list of calls is a batch and gets a list of replies.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
from typing import Any, Callable

import echo

METHODS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "divide": lambda dividend, divisor: dividend / divisor,
}
PARSE_ERROR = {"code": -32700, "message": "Parse error"}
INVALID_REQUEST = {"code": -32600, "message": "Invalid Request"}
METHOD_NOT_FOUND = {"code": -32601, "message": "Method not found"}
INVALID_PARAMS = {"code": -32602, "message": "Invalid params"}
INTERNAL_ERROR = {"code": -32603, "message": "Internal error"}


class JsonRpc(echo.MessageRequestHandler):
    def message_received(self, message: bytes) -> None:
        reply = answer(message)
        if len(reply) > self.framing.max_message:  # many small calls in one batch
            reply = respond(None, error=INTERNAL_ERROR)
        if reply:
            self.send(reply.encode())


def answer(line: bytes) -> str:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested too deeply
        return respond(None, error=PARSE_ERROR)
    if not isinstance(data, list) or not data:  # an empty batch is invalid, as a number is
        return answer_call(data)
    replies = [reply for reply in map(answer_call, data) if reply]
    return f"[{', '.join(replies)}]" if replies else ""


def answer_call(call: Any) -> str:
    if not isinstance(call, dict) or call.get("jsonrpc") != "2.0":
        return respond(None, error=INVALID_REQUEST)
    name, params, identity = call.get("method"), call.get("params", []), call.get("id")
    if type(name) is not str or type(params) not in (list, dict) or type(identity) not in (str, int, type(None)):
        return respond(None, error=INVALID_REQUEST)
    reply = perform(name, params, identity)
    return reply if "id" in call else ""  # no id: a notification


def perform(name: str, params: list[Any] | dict[str, Any], identity: int | str | None) -> str:
    if name not in METHODS:
        return respond(identity, error=METHOD_NOT_FOUND)
    try:
        bind = inspect.signature(METHODS[name]).bind
        call = bind(**params) if isinstance(params, dict) else bind(*params)
    except TypeError:
        return respond(identity, error=INVALID_PARAMS)
    try:
        return respond(identity, result=METHODS[name](*call.args, **call.kwargs))
    except Exception:  # the reply says that it failed, the log says why
        logging.exception("%s failed", name)
        return respond(identity, error=INTERNAL_ERROR)


def respond(identity: int | str | None, **outcome: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", **outcome, "id": identity}, allow_nan=False)  # NaN is not JSON


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 65432
    sys.exit(echo.run(JsonRpc, ("127.0.0.1", port)))
