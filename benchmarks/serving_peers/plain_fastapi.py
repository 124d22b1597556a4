"""What a good developer writes in an afternoon: `python plain_fastapi.py PORT NAME=MODEL...`."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from graph import scores, session

PORT, *MODELS = sys.argv[1:]
networks = {name: session(path) for name, path in (each.split("=", 1) for each in MODELS)}
pool = ThreadPoolExecutor(max_workers=2)
app = FastAPI()


@app.post("/models/{name}/scores")
async def score(name: str, request: Request) -> dict[str, Any]:
    if name not in networks:
        raise HTTPException(404, f"there is no model {name}")
    body = await request.body()
    if len(body) != 32 * 32 * 3:
        raise HTTPException(422, "an image is 32 x 32 x 3 bytes")
    loop = asyncio.get_running_loop()
    (row,) = await loop.run_in_executor(pool, scores, networks[name], [body])
    return {"scores": row}


if __name__ == "__main__":
    uvicorn.run(app, port=int(PORT), loop="uvloop", http="httptools", access_log=False, log_level="warning")
