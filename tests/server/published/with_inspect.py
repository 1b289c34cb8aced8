# mypy: ignore-errors
"""An evaluation by `inspect_ai` in its batch mode; prints the status and the answers."""

import json
import sys

from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.model import BatchConfig, GenerateConfig
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

pace = GenerateConfig(batch=BatchConfig(size=3, send_delay=0.2, tick=0.2, max_batches=10))
samples = [Sample(input=f"question {n}", target="the", id=f"row-{n}") for n in range(6)]
task = Task(dataset=samples, solver=generate(), scorer=includes(), config=pace)
[log] = evaluate(task, model="openai/gpt-4o-mini", display="none", log_dir=sys.argv[1])
answers = {sample.id: sample.output.completion for sample in log.samples}
print("\n" + json.dumps({"status": log.status, "answers": answers}))
