"""Run stages' mains with canned rollouts and save the gradients that reach the optimiser.

    python gradients.py FILE stage1_grpo --model … --max-steps 1
    torchrun --nproc_per_node=4 gradients.py JOBS          JOBS: a JSON list of such argument lists, run one after the other

Rollouts are a function of their prompt, so any number of ranks trains on the same ones.  A job that begins with "real"
samples in earnest instead and takes its steps; nothing but its run directory is of interest.
"""
import importlib
import json
import sys
from pathlib import Path

import torch

import common
from engine import ranks, rollouts, runs
from engine.sharding import whole


def canned_sample(model, prompts, *, samples_per_prompt, max_new_tokens, eos_ids, pad_id, indices=None, **_):
    """Completions of 1 to max_new_tokens random digits, ended by EOS but where the length is a multiple of 3."""
    rows = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(sum(token * 31**i for i, token in enumerate(prompt)) % 2**31)
        for _ in range(samples_per_prompt):
            length = int(torch.randint(1, max_new_tokens, (), generator=generator))
            rows.append(torch.randint(5, 15, (length,), generator=generator).tolist() + eos_ids[:length % 3])
    prompt_ids, prompt_mask = rollouts.pad([prompt for prompt in prompts for _ in range(samples_per_prompt)], pad_id, "cpu", left=True)
    completion_ids, completion_mask = rollouts.pad(rows, pad_id, "cpu", left=False)
    finished = torch.tensor([row[-1] in eos_ids for row in rows], dtype=torch.bool)
    index = torch.tensor(indices or range(len(prompts)), dtype=torch.int64).repeat_interleave(samples_per_prompt)
    return rollouts.Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask, finished, torch.zeros(completion_ids.shape), prompt_index=index)


def main(file, stage, *flags):
    module = importlib.import_module(stage)
    runs.sample = common.sample = canned_sample
    common.grade = lambda completion, gold: len(completion) % 2 == 0
    gradients = []

    def keep_gradients(optimizer, closure=None):
        gradients.append([whole(parameter.grad).clone() for group in optimizer.param_groups for parameter in group["params"]])

    torch.optim.AdamW.step = keep_gradients
    module.main(module.parse_args(list(flags)))
    if ranks.rank() == 0:
        torch.save(gradients, file)


def real(stage, *flags):
    module = importlib.import_module(stage)
    module.main(module.parse_args(list(flags)))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        jobs = json.loads(Path(sys.argv[1]).read_text())
        for job in sorted(jobs, key=lambda job: job[0] != "real"):          # the others replace functions for good
            real(*job[1:]) if job[0] == "real" else main(*job)
    else:
        main(*sys.argv[1:])
