"""The least that could be called a server: `python asgi_server.py PORT NAME=MODEL...`.

Plain ASGI, and threads that take what waits: no key, no calibration, no prior, no metrics, no bound on anything. What
a server with all of these loses against it is what they cost.
"""

import asyncio
import gc
import sys
import threading
from collections import deque
from typing import Any

import orjson
import uvicorn
import uvloop
from graph import scores, session

PORT, *MODELS = sys.argv[1:]
THREADS, MOST = 2, 8
networks = {f"/models/{name}/scores": session(path) for name, path in (each.split("=", 1) for each in MODELS)}
queues: dict[str, deque[tuple[asyncio.Future[list[float]], bytes]]] = {path: deque() for path in networks}
work = threading.Semaphore(0)


def run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        work.acquire()
        for path, queue in queues.items():
            taken = []
            for _ in range(min(MOST, -(-len(queue) // THREADS))):
                try:
                    taken.append(queue.popleft())
                except IndexError:  # another thread was faster
                    break
            if taken:
                rows = scores(networks[path], [body for _, body in taken])
                loop.call_soon_threadsafe(deliver, [future for future, _ in taken], rows)


def deliver(futures: list[asyncio.Future[list[float]]], rows: list[list[float]]) -> None:
    for future, row in zip(futures, rows, strict=True):
        if not future.done():
            future.set_result(row)


async def app(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    future: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
    queues[scope["path"]].append((future, body))
    work.release()
    answer = orjson.dumps({"scores": await future})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def serve() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(THREADS):
        threading.Thread(target=run, args=(loop,), daemon=True).start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    await uvicorn.Server(
        uvicorn.Config(app, port=int(PORT), http="httptools", lifespan="off", access_log=False, log_level="warning")
    ).serve()


if __name__ == "__main__":
    uvloop.run(serve())
