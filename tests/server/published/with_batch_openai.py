# mypy: ignore-errors
"""A batch by `batch-openai`, sync and async, one row of which fails; prints what came."""

import asyncio
import json
import os

from batch_openai import BatchRequestBuilder
from openai import AsyncOpenAI, OpenAI

GIVEN = {"api_key": os.environ["OPENAI_API_KEY"], "base_url": os.environ["OPENAI_BASE_URL"]}


def asked():
    builder = BatchRequestBuilder()
    for n in range(5):
        messages = [{"role": "user", "content": f"question {n}"}]
        builder.add(messages=messages, model="gpt-4o-mini", custom_id=f"row-{n}")
    return builder


def told(result):
    answers = {item.custom_id: item.content for item in result.succeeded}
    return {"answers": answers, "failed": [item.custom_id for item in result.failed]}


async def in_a_loop():
    async with AsyncOpenAI(**GIVEN) as client:
        job = await asked().async_submit(client, description="async")
        return told(await job.await_completion(poll_interval=0.1))


with OpenAI(**GIVEN) as client:
    plainly = told(asked().submit(client, description="sync").wait(poll_interval=0.1))
print("\n" + json.dumps({"sync": plainly, "async": asyncio.run(in_a_loop())}))
