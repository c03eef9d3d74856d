"""A server of watches as one would write it first: each client's connection opens a watch on etcd of its own, and each
decodes and encodes every object again. `python -m benchmarks.naive_watches PORT` with ETCD_ENDPOINTS set.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
from aiohttp import web

from libs.model import keys
from libs.model.codec import encode
from libs.model.storage import from_storage
from libs.runtime.backends import open_store


async def serve(port: int) -> None:
    async with open_store() as store:

        async def watch(request: web.Request) -> web.StreamResponse:
            prefix = keys.resource_prefix(request.match_info["kind"], request.match_info["namespace"])
            answer = web.StreamResponse()
            await answer.prepare(request)
            revision = (await store.list(prefix, keys_only=True)).revision
            await answer.write(b'{"type":"BOOKMARK"}\n')
            async for batch in store.watch(prefix, revision=revision + 1):
                for event in batch.events:
                    if event.kv is not None:
                        resource = from_storage(event.key, event.kv.value, event.revision)
                        frame = {"type": "MODIFIED", "object": msgspec.Raw(encode(resource))}
                        await answer.write(msgspec.json.encode(frame) + b"\n")
            return answer

        app = web.Application()
        app.router.add_get("/watch/{kind}/{namespace}", watch)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
        print("serving", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
