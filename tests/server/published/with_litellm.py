# mypy: ignore-errors
"""A batch by `litellm`, sync and async: upload, create, look, list, content, delete; prints what came."""

import asyncio
import json
import os
import time

import litellm

GIVEN = {
    "custom_llm_provider": "openai",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}
ENDS = ("completed", "failed", "expired", "cancelled")
ASKED = {"completion_window": "24h", "endpoint": "/v1/chat/completions"}


def rows():
    for n in range(5):
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"question {n}"}]}
        yield {"custom_id": f"row-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}


FILE = ("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows()).encode())


def answers(content):
    lines = map(json.loads, content.decode().splitlines())
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def plainly():
    file = litellm.create_file(file=FILE, purpose="batch", **GIVEN)
    batch = litellm.create_batch(input_file_id=file.id, metadata={"by": "litellm"}, **ASKED, **GIVEN)
    while batch.status not in ENDS:
        time.sleep(0.05)
        batch = litellm.retrieve_batch(batch_id=batch.id, **GIVEN)
    newest = next(iter(litellm.list_batches(limit=1, **GIVEN))).id
    content = litellm.file_content(file_id=batch.output_file_id, **GIVEN).content
    deleted = litellm.file_delete(file_id=file.id, **GIVEN).deleted
    return {"status": batch.status, "answers": answers(content), "newest": newest == batch.id, "deleted": deleted}


async def in_a_loop():
    file = await litellm.acreate_file(file=FILE, purpose="batch", **GIVEN)
    batch = await litellm.acreate_batch(input_file_id=file.id, metadata={"by": "litellm"}, **ASKED, **GIVEN)
    while batch.status not in ENDS:
        await asyncio.sleep(0.05)
        batch = await litellm.aretrieve_batch(batch_id=batch.id, **GIVEN)
    content = (await litellm.afile_content(file_id=batch.output_file_id, **GIVEN)).content
    return {"status": batch.status, "answers": answers(content)}


print(json.dumps({"sync": plainly(), "async": asyncio.run(in_a_loop())}))
