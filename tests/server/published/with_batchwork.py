# mypy: ignore-errors
"""Four kinds of batches by `batchwork`, which speaks HTTP by itself; prints what came."""

import asyncio
import json
import os
import sys

from batchwork import BatchEmbeddingRequest, BatchModerationRequest, BatchRequest, Batchwork

WAIT = {"timeout": 60, "poll_interval": 0.1}


async def texts(client, provider):
    asked = [BatchRequest(custom_id=f"row-{n}", prompt=f"question {n}") for n in range(5)]
    job = await client.batch(model=f"{provider}/gpt-4o-mini", requests=asked)
    ended = await job.wait(**WAIT)
    return {"status": ended.status.value, "answers": {row.custom_id: row.text for row in await job.collect()}}


async def vectors(client):
    asked = [BatchEmbeddingRequest(custom_id=f"row-{n}", value=f"question {n}") for n in range(3)]
    job = await client.batch_embeddings(model="openai/text-embedding-3-small", requests=asked)
    await job.wait(**WAIT)
    return [len(row.embedding) for row in await job.collect()]


async def verdicts(client):
    asked = [BatchModerationRequest(custom_id=f"row-{n}", value=f"question {n}") for n in range(3)]
    job = await client.batch_moderations(model="openai/omni-moderation-latest", requests=asked)
    await job.wait(**WAIT)
    return [row.custom_id for row in await job.collect()]


async def main(provider):
    given = {"api_key": os.environ["OPENAI_API_KEY"], "base_url": os.environ["OPENAI_BASE_URL"]}
    async with Batchwork(credentials={provider: given}) as client:
        told = {"texts": await texts(client, provider)}
        if provider == "openai":
            told |= {"vectors": await vectors(client), "verdicts": await verdicts(client)}
        print(json.dumps(told))


asyncio.run(main(sys.argv[1]))
