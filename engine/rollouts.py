"""Rollouts, the one thing that is handed from the sampler to the judge, the scorers and the losses."""
import dataclasses
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Rollouts:
    """B rollouts; those of one prompt are adjacent.  A literal example, pad = 0, EOS = 9:

    prompt_ids  [[0, 5, 6], [4, 5, 6]]         prompt_mask      [[0, 1, 1], [1, 1, 1]]    left-padded
    completion_ids [[7, 9, 0], [7, 7, 7]]      completion_mask  [[1, 1, 0], [1, 1, 1]]    the mask covers the EOS
    finished    [True, False]                  the second was cut at max_new_tokens
    """
    prompt_ids: Tensor            # (B, P) int64
    prompt_mask: Tensor           # (B, P) bool
    completion_ids: Tensor        # (B, C) int64
    completion_mask: Tensor       # (B, C) bool
    finished: Tensor              # (B,) bool
    sampler_logprobs: Tensor | None = None   # (B, C) float32, nats, at the sampling temperature, 0 where masked
    old_logprobs: Tensor | None = None       # (B, C) float32, nats, by the trainer before the first update
    rewards: Tensor | None = None            # (B,) float32
    advantages: Tensor | None = None         # (B,) float32
    weights: Tensor | None = None            # (B,) float32, of each rollout in the bridge's loss
    prompt_index: Tensor | None = None       # (B,) int64, which prompt a rollout answers, of those of all ranks

    def __len__(self) -> int:
        return len(self.finished)

    def select(self, index) -> "Rollouts":
        """The rollouts at `index` (a slice or an index tensor), without columns that are padding in all of them."""
        index = index.to(self.finished.device) if torch.is_tensor(index) else index
        part = Rollouts(**{field.name: None if (value := getattr(self, field.name)) is None else value[index]
                           for field in dataclasses.fields(self)})
        longest = [mask.sum(1).max() for mask in (part.prompt_mask, part.completion_mask)] if len(part) else ()
        prompt_length, completion_length = torch.stack(longest).tolist() if len(part) else (0, 0)
        for name in ("prompt_ids", "prompt_mask"):
            setattr(part, name, getattr(part, name)[:, part.prompt_mask.shape[1] - prompt_length:].contiguous())
        for name in ("completion_ids", "completion_mask", "sampler_logprobs", "old_logprobs"):
            if getattr(part, name) is not None:
                setattr(part, name, getattr(part, name)[:, :completion_length].contiguous())
        return part

    def to(self, device) -> "Rollouts":
        return Rollouts(**{field.name: None if (value := getattr(self, field.name)) is None else value.to(device)
                           for field in dataclasses.fields(self)})

    def begins_group(self) -> Tensor:
        """Whether a rollout has another prompt than the one before it.  (B,) bool"""
        prompts = self.prompt_ids.masked_fill(~self.prompt_mask, -1)
        return torch.cat([torch.ones_like(self.finished[:1]), (prompts[1:] != prompts[:-1]).any(1)])

    def split(self, size: int) -> list["Rollouts"]:
        """Micro-batches of at most `size` rollouts, cut between groups; a group is cut only where it is larger."""
        starts, cuts = [*self.begins_group().nonzero()[:, 0].tolist(), len(self)], [0]
        for start, end in zip(starts, starts[1:]):
            if start > cuts[-1] and end > cuts[-1] + size:
                cuts.append(start)
            cuts += range(cuts[-1] + size, end, size)
        return [self.select(slice(*ends)) for ends in zip(cuts, [*cuts[1:], len(self)])] if len(self) else []

    def completions(self) -> list[list[int]]:
        return [ids[mask].tolist() for ids, mask in zip(self.completion_ids.cpu(), self.completion_mask.cpu())]

    def prompts(self) -> list[list[int]]:
        return [ids[mask].tolist() for ids, mask in zip(self.prompt_ids.cpu(), self.prompt_mask.cpu())]


def is_rollout(row: dict) -> bool:
    """Whether a row of rollouts.jsonl has its two lists of ids, neither empty, and its two numbers."""
    lists, numbers = ([row.get(name) for name in names]
                      for names in (("prompt_ids", "completion_ids"), ("finished", "weight")))
    return (all(isinstance(ids, list) and ids and all(type(id) is int and id >= 0 for id in ids) for ids in lists)
            and all(isinstance(number, int | float) and 0 <= number < float("inf") for number in numbers))


def pad(rows: list[list[int]], pad_id: int, device, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of unequal length -> ids (B, T) int64 and mask (B, T) bool, padded on the left or on the right."""
    length = max(map(len, rows), default=0)
    fill = [[pad_id] * (length - len(row)) for row in rows]
    ids = torch.tensor([f + row if left else row + f for f, row in zip(fill, rows)], dtype=torch.int64)
    ids, lengths = ids.view(len(rows), length), torch.tensor([len(row) for row in rows])[:, None]
    columns = torch.arange(length)
    mask = columns >= length - lengths if left else columns < lengths
    return ids.to(device), mask.to(device)


def from_rows(rows: list[dict], pad_id: int) -> Rollouts:
    """Of the rows that stage 2 has written, on the CPU."""
    prompt_ids, prompt_mask = pad([row["prompt_ids"] for row in rows], pad_id, "cpu", left=True)
    completion_ids, completion_mask = pad([row["completion_ids"] for row in rows], pad_id, "cpu", left=False)
    return Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask,
                    finished=torch.tensor([row["finished"] for row in rows], dtype=torch.bool),
                    weights=torch.tensor([row["weight"] for row in rows]))


def positions(mask: Tensor) -> Tensor:
    """RoPE positions that ignore padding.  (B, T) -> (B, T) int64.  Without them left padding shifts every position."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def even_micro_batches(rollouts: Rollouts, size: int) -> list[Rollouts]:
    """Cut into micro-batches, one or more; a rank with fewer than the others adds some without any token."""
    micro_batches = rollouts.split(size) or [without_tokens(rollouts)]
    if dist.is_initialized():
        most = torch.tensor(len(micro_batches), device=rollouts.finished.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        micro_batches += [without_tokens(rollouts)] * (int(most) - len(micro_batches))
    return micro_batches


def cut_groups(rollouts: Rollouts, num_groups: int, groups_per_part: int, generator: torch.Generator) -> list[Rollouts]:
    """Whole groups in random order, cut into parts: this rank's rollouts of each.

    A group is the rollouts of one prompt.  The order is of all ranks' groups, of which this rank holds some: a part has
    the same groups however many ranks share them.
    """
    places: dict[int, list[int]] = {}
    for place, prompt in enumerate(rollouts.prompt_index.tolist()):
        places.setdefault(prompt, []).append(place)
    parts = torch.randperm(num_groups, generator=generator).split(groups_per_part)
    return [rollouts.select(torch.tensor([place for prompt in part.tolist() for place in places.get(prompt, [])],
                                         dtype=torch.int64)) for part in parts]


def without_tokens(like: Rollouts) -> Rollouts:
    """One rollout whose mask is all False: a forward and backward pass over it adds zero to the gradient."""
    device = like.finished.device
    ids, one, none = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.ones, torch.zeros
    numbers = {name: none(1, 1, device=device) for name in ("sampler_logprobs", "old_logprobs")}
    numbers |= {name: none(1, device=device) for name in ("rewards", "advantages", "weights")}
    return Rollouts(prompt_ids=ids, prompt_mask=one(1, 1, dtype=torch.bool, device=device), completion_ids=ids,
                    completion_mask=none(1, 1, dtype=torch.bool, device=device),
                    finished=one(1, dtype=torch.bool, device=device), **numbers)
