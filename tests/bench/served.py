"""The workload over gRPC, through the real Triton server.

Knows the client and the server; knows nothing of what the figures are compared with.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import Any

from dgemma.client import Client, Generation
from tests.bench.workload import LONGEST, Measured, tasks


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def round_of(client: Client) -> Measured:
    """Every task once, one after another."""
    work = tasks()
    began = time.perf_counter()
    answers = [
        client.generate(messages=chat(task.prompt), seed=seed, max_new_tokens=LONGEST)
        for seed, task in enumerate(work)
    ]
    seconds = time.perf_counter() - began
    return Measured(
        seconds,
        sum(answer.usage["completion_tokens"] for answer in answers),
        sum(sum(answer.usage["denoising_steps"]) for answer in answers),
        sum(task.is_right(answer.text) for task, answer in zip(work, answers, strict=True)),
        len(work),
    )


def one(client: Client, parameters: dict[str, Any], times: int) -> float:
    """Median wall time of one request as its client sees it, in seconds."""
    messages, samples = chat(tasks()[0].prompt), []
    for _ in range(times):
        began = time.perf_counter()
        client.generate(messages=messages, **parameters)
        samples.append(time.perf_counter() - began)
    return median(samples)


def together(url: str, requests: int, parameters: dict[str, Any]) -> float:
    """Tokens per second of as many clients at once, each with one request; all are connected."""
    messages = chat(tasks()[0].prompt)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(url)) for _ in range(requests)]
        for client in clients:
            client.generate(messages=messages, max_new_tokens=1, max_denoising_steps=1)

        def ask(seed: int) -> Generation:
            return clients[seed].generate(messages=messages, seed=seed, **parameters)

        with ThreadPoolExecutor(requests) as threads:
            began = time.perf_counter()
            answers = list(threads.map(ask, range(requests)))
            seconds = time.perf_counter() - began
    return sum(answer.usage["completion_tokens"] for answer in answers) / seconds
