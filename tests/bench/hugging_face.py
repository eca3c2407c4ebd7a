"""Worker: the workload by Hugging Face's own `generate`, with the experts implementation given.

Run as `python -m tests.bench.hugging_face CHECKPOINT IMPLEMENTATION THREADS`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from transformers import logging
from transformers.models.diffusion_gemma import DiffusionGemmaForBlockDiffusion

from dgemma_build.demo.vocabulary import EOS, FIRST_BYTE, TURN_END, chat_prompt
from tests.bench.channel import answer_lines
from tests.bench.workload import LONGEST, Measured, tasks


class HuggingFace:
    """The checkpoint in fp32 with sdpa attention."""

    def __init__(self, checkpoint: str, experts: str) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.model = DiffusionGemmaForBlockDiffusion.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="sdpa",
            experts_implementation=experts,
        ).eval()
        self.steps = 0
        self.model.model.decoder.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.steps += 1

    @torch.inference_mode()
    def round(self) -> dict[str, Any]:
        """Every task once; seeds differ from task to task and not from round to round."""
        self.steps, tokens, right, work = 0, 0, 0, tasks()
        prompts = [torch.tensor([chat_prompt(task.prompt)]) for task in work]
        began = time.perf_counter()
        outputs = []
        for seed, prompt in enumerate(prompts):
            torch.manual_seed(seed)
            outputs.append(self.model.generate(prompt, max_new_tokens=LONGEST))
        seconds = time.perf_counter() - began
        for task, prompt, output in zip(work, prompts, outputs, strict=True):
            ids = getattr(output, "sequences", output)[0, prompt.shape[1] :].tolist()
            ends = [i for i, token in enumerate(ids) if token in (EOS, TURN_END)]
            answer = ids[: ends[0]] if ends else ids
            tokens += len(answer)
            text = bytes(i - FIRST_BYTE for i in answer if i >= FIRST_BYTE).decode(errors="replace")
            right += task.is_right(text)
        return Measured(seconds, tokens, self.steps, right, len(work)).to_dict()


if __name__ == "__main__":
    checkpoint, experts, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    worker = HuggingFace(checkpoint, experts)
    answer_lines(worker.round)
