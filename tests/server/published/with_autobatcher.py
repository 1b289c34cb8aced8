# mypy: ignore-errors
"""Plain chat calls that `autobatcher` turns into batches behind the official SDK's face; prints the answers."""

import asyncio
import json
import os

from autobatcher import BatchOpenAI


async def main():
    given = {"api_key": os.environ["OPENAI_API_KEY"], "base_url": os.environ["OPENAI_BASE_URL"]}
    pace = {"batch_size": 4, "batch_window_seconds": 0.2, "poll_interval_seconds": 0.1, "completion_window": "24h"}
    async with BatchOpenAI(**given, **pace) as client:

        async def ask(n):
            messages = [{"role": "user", "content": f"question {n}"}]
            answer = await client.chat.completions.create(model="gpt-4o-mini", messages=messages)
            return f"row-{n}", answer.choices[0].message.content

        print(json.dumps({"answers": dict(await asyncio.gather(*map(ask, range(10))))}))


asyncio.run(main())
