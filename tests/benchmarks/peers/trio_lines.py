"""trio's serve_tcp, with lines assembled by hand, since trio has no stream of lines."""

import sys

import trio


async def serve(stream):
    pending = bytearray()
    try:
        async for data in stream:
            pending += data
            end = pending.rfind(b"\n") + 1
            if end:
                lines = bytes(pending[:end])
                del pending[:end]
                await stream.send_all(lines)
    except trio.BrokenResourceError:
        pass


async def main():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            lambda task_status: trio.serve_tcp(serve, 0, host="127.0.0.1", backlog=1024, task_status=task_status)
        )
        port = listeners[0].socket.getsockname()[1]
        print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)


trio.run(main)
