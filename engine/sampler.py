"""Sampling completions from any Hugging Face causal LM, fast.  One face: `sample`.

How it works.  A row is a rollout that is being written; all rows take one step at a time.

    queue of prompts ──join──► rows ──draw──► tokens ──forward──► logits ──draw──► …
                                │ an EOS, or max_new_tokens
                                └─leave──► Rollouts

The model stays Hugging Face's own; only its attention function is exchanged while a token is decoded, for
SharedPrefixCache.attend.  It keeps keys and values in two places:

    prefix   (S, heads, P, D)   of S distinct prompts, left-padded: prefilled once, never copied for their samples
    suffix   (R, heads, C, D)   of each row's own completion: allocated ahead, written in place

The G samples of a prompt put their queries together and attend to the prefix as if they were one sequence of G tokens;
each attends to its own suffix; the log of each softmax's denominator says how much of either to take.  Query heads that
share a key head are stacked in the same way, so no key is ever repeated.  The groups need not be equal: `grid`
(S, largest group) says which row sits where.

All rows write column `clock` of the suffix, one slice, whenever they joined; the columns are a ring of max_new_tokens,
longer than any row lives.  What a row may not see (padding, columns from before it joined, tokens beyond a sliding
window) is masked by a bias, made once a step.  When a row leaves, the last row moves to its place: one row is copied,
not the batch.  Rows that leave make room, and waiting prompts join in their place.

A token is drawn by inverse CDF from uniforms that are a hash of (seed, index of the rollout, step): a rollout depends
on the weights, its prompt, the seed and its index, not on the batch, its order, the waves or the ranks.  That is exact
as far as the matmuls are: kernels choose their order of summation by the batch size, logits then differ in the last
bits, and a token changes when a uniform falls within that distance of the border between two.

What is done for one kind of machine only is elsewhere: the weights' layout on a CPU in linears.py, captured steps on
CUDA in hardware.py.

A model whose attention is more than softmax(q k) v over all or the last `sliding_window` positions (sinks, soft caps,
ALiBi, chunks, linear attention) is found out by one comparison with its own forward pass, and takes PlainCache: the
model's own cache, a copy of the prompt's for each row.
"""
import functools
import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import hardware
from engine.attention import (
    NotPlain, agrees, attention_implementation, check_arguments, check_windows, configs_of, tell,
)
from engine.linears import packed_weights
from engine.ranks import fail
from engine.rollouts import Rollouts, pad, positions
from engine.sharding import evaluating, is_sharded

# ================================================================ the loop

@torch.no_grad()
def sample(model, prompts: list[list[int]], *, samples_per_prompt: int, max_new_tokens: int, temperature: float = 1.0,
           top_p: float = 1.0, top_k: int = 0, eos_ids: list[int], pad_id: int,
           generator: torch.Generator | None = None, indices: list[int] | None = None,
           rollout_tokens: int | None = None) -> Rollouts:
    """Sample completions; the checkpoint's generation_config has no say.

    temperature 0 is greedy; top_p 1 and top_k 0 switch the truncation off (training never truncates).
    indices: each prompt's own index among the prompts of all ranks (default: its place here).  With the same state of
      `generator`, a prompt of the same index has the same rollouts whatever else is sampled with it.
    rollout_tokens: bound on the tokens in the cache; what does not fit waits until rows have left.  0 or None: none,
      but for a batch that would not fit into free memory (`measured_bound`).
    -> Rollouts, B = len(prompts) * samples_per_prompt, with these indices and sampler_logprobs of the untruncated
       distribution.
    """
    device, num_rollouts = model.device, len(prompts) * samples_per_prompt
    longest, asked = getattr(model, "longest_row", None), max(map(len, prompts), default=0) + max_new_tokens
    if longest and asked > longest:                                 # load_model has set it
        fail(f"prompt and completion may have {asked} tokens, and the model samples and scores alike up to {longest}")
    top_p, top_k = top_p or 1.0, top_k or 0                         # None is off too
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device if generator else "cpu"))
    prompt_ids, prompt_mask = (x.repeat_interleave(samples_per_prompt, 0) for x in pad(prompts, pad_id, device, True))
    index = torch.tensor(list(range(len(prompts))) if indices is None else indices, dtype=torch.int64, device=device)
    index = (index[:, None] * samples_per_prompt + torch.arange(samples_per_prompt, device=device)).flatten()
    completion_ids = torch.full((num_rollouts, max_new_tokens), pad_id, device=device)
    logprobs = torch.zeros(num_rollouts, max_new_tokens, device=device)
    lengths = torch.zeros(num_rollouts, dtype=torch.int64, device=device)
    finished = torch.zeros(num_rollouts, dtype=torch.bool, device=device)
    stop = torch.tensor(eos_ids, dtype=torch.int64, device=device)

    queue = group_by_prompt(prompts, samples_per_prompt)
    rows = torch.zeros(0, dtype=torch.int64, device=device)         # the rollouts that are being written
    logits = None
    # Inference mode spares each operation some bookkeeping, but FSDP's own tensors must not come out of it.
    with evaluating(model), packed_weights(model), torch.inference_mode(not is_sharded(model)):
        kind = SharedPrefixCache if queue and has_plain_attention(model) else PlainCache
        cache = kind(model, prompt_ids.shape[1], max_new_tokens)
        rollout_tokens = rollout_tokens or measured_bound(
            model, len(queue) * cache.tokens_per_prompt + num_rollouts * cache.tokens_per_row)
        while queue or len(rows):
            if joining := take(queue, cache, len(rows), rollout_tokens):
                joining.sort(key=lambda group: len(group[0]))
                first_logits = cache.join([prompt for prompt, _ in joining], [len(own) for _, own in joining])
                logits = first_logits if len(rows) == 0 else torch.cat([logits, first_logits])
                rows = torch.cat([rows, torch.tensor([row for _, own in joining for row in own], device=device)])
            steps = lengths[rows]
            tokens, token_logprobs = draw(logits, uniforms(seed, index[rows], steps), temperature, top_p, top_k)
            completion_ids[rows, steps] = tokens
            logprobs[rows, steps] = token_logprobs
            lengths[rows] = steps + 1
            finished[rows] = ended = torch.isin(tokens, stop)
            order = close_ranks((~ended & (steps + 1 < max_new_tokens)).cpu())     # a step's one wait for the device
            if len(order) < len(rows):
                rows, tokens = rows[order.to(device)], tokens[order.to(device)]
                cache.leave(order)
            if len(order):
                logits = cache.forward(tokens)

    completion_mask = torch.arange(max_new_tokens, device=device) < lengths[:, None]
    return Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask, finished, logprobs,
                    prompt_index=index // samples_per_prompt).select(slice(None))


def group_by_prompt(prompts: list[list[int]], samples_per_prompt: int) -> list[tuple[list[int], list[int]]]:
    """Each distinct prompt and the rollouts that begin with it."""
    groups: dict[tuple, list[int]] = {}
    for place, prompt in enumerate(prompts):
        rows = range(place * samples_per_prompt, (place + 1) * samples_per_prompt)
        groups.setdefault(tuple(prompt), []).extend(rows)
    return [(list(prompt), rows) for prompt, rows in groups.items()]


def take(queue: list, cache, num_rows: int, rollout_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Groups from the head of the queue that fit beside what is there; one that is too large even alone is cut.

    A prefill of few tokens is dear, so nobody joins before a quarter of the room is free.
    """
    free = rollout_tokens - cache.num_prompts * cache.tokens_per_prompt - num_rows * cache.tokens_per_row
    if num_rows and (not cache.can_join or free < rollout_tokens // 4):
        return []
    taken = []
    while queue:
        prompt, rows = queue[0]
        fit = min(len(rows), (free - cache.tokens_per_prompt) // cache.tokens_per_row)
        if fit < len(rows) and (taken or num_rows):
            break
        fit = max(fit, 1)
        taken.append((prompt, rows[:fit]))
        queue[:1] = [(prompt, rows[fit:])] if fit < len(rows) else []
        free -= cache.tokens_per_prompt + fit * cache.tokens_per_row
    if queue:
        tell("waves", f"sampler: {rollout_tokens} tokens of cache (--rollout-tokens) hold part of the batch at a time")
    return taken


def measured_bound(model, tokens: int) -> int:
    """How many tokens the cache may hold: no bound if `tokens` fit, else the power of two that fits.

    A power of two, so that runs with about the same free memory take the same waves and are the same to the bit; a run
    that must be is given a number.
    """
    config = model.config.get_text_config()
    query_heads = getattr(config, "num_attention_heads", 1)         # 1: a state-space model, over-estimated
    heads = getattr(config, "num_key_value_heads", None) or query_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // query_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    free = hardware.free_bytes(model.device)
    if free is None or tokens * token_bytes <= 0.7 * free:          # the rest is for logits and activations
        return 2**62
    bound = 2 ** int(math.log2(max(1, 0.7 * free / token_bytes)))
    tell("measured", f"sampler: a cache of {tokens * token_bytes / 1e9:.1f} GB does not fit into {free / 1e9:.1f} GB "
                     f"of free memory: {bound} tokens at a time (set --rollout-tokens for another bound)")
    return bound


def close_ranks(stay: Tensor) -> Tensor:
    """Which row comes to stand at each place when the last ones fill the gaps.  (B,) bool -> (rows that stay,) int64.

    [stay, leave, stay, leave, stay] -> [0, 4, 2]: one row moves.  On the CPU.
    """
    order = torch.arange(int(stay.sum()))
    order[~stay[:len(order)]] = stay[len(order):].nonzero()[:, 0] + len(order)
    return order


# ================================================================ drawing a token

def uniforms(seed: int, index: Tensor, step: Tensor) -> Tensor:
    """Two random numbers in [0, 1) for each (rollout, step): splitmix64 twice.  (B,), (B,) -> (B, 2) float32."""
    bits = mix(mix(index * GOLDEN + seed) + step * GOLDEN)
    return torch.stack([bits >> 40 & 0xFFFFFF, bits >> 16 & 0xFFFFFF], -1).float() / 2**24     # 24 bits fit a float32


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 wraps around as uint64 does, but its shift drags the sign along: masked away."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * (0x94D049BB133111EB - 2**64)
    return x ^ (x >> 31 & (1 << 33) - 1)


GOLDEN = 0x9E3779B97F4A7C15 - 2**64


def draw(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF.  (B, V), (B, 2) -> ids (B,), their logprobs (B,) before truncation, nats."""
    if temperature == 0:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)      # greedy: probability 1
    probs = (logits.float() if temperature == 1 else logits.float() / temperature).softmax(-1)
    if top_k > 0 or top_p < 1:
        tokens = draw_truncated(probs, uniforms, top_p, top_k)
    else:
        tokens = draw_by_block(probs, uniforms)
    return tokens, probs.gather(-1, tokens[:, None])[:, 0].log()


def draw_by_block(probs: Tensor, uniforms: Tensor, size: int = 256) -> Tensor:
    """Draw a block of ids by its sum, and one id in the block.  (B, V), (B, 2) -> (B,).

    One sum over V in place of a cumulative sum over V.  And steadier: where 50,000 steps of one long sum move by a
    rounding error, many ids change that are rarer than that error; the two short sums have some 450 steps.
    """
    if probs.shape[-1] % size:
        probs = F.pad(probs, (0, -probs.shape[-1] % size))
    blocks = probs.unflatten(-1, (-1, size))
    block = invert_cdf(blocks.sum(-1), uniforms[:, 0])
    return block * size + invert_cdf(blocks[torch.arange(len(block), device=block.device), block], uniforms[:, 1])


def invert_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The first id at which the cumulative sum exceeds uniform * total.  (B, V), (B,) -> (B,); probs need no scale."""
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    # Strictly below the total: the first entry above the threshold then has a probability greater than 0.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, threshold, right=True)[:, 0]


def draw_truncated(probs: Tensor, uniforms: Tensor, top_p: float, top_k: int, guess: int = 256) -> Tensor:
    """Draw among the top_k, and of these among the fewest that hold the share top_p.  (B, V), (B, 2) -> (B,).

    Top-p alone sorts the `guess` likeliest, and all only in rows where these do not reach top_p: whether there are any
    is one more wait for the device.
    """
    count = min(top_k if top_k > 0 else guess, probs.shape[-1])
    top, ids = probs.topk(count, dim=-1)                # the largest first
    mass = top.sum(-1, keepdim=True)
    enough = top_p * (mass if top_k > 0 else 1.0)
    before = top.cumsum(-1) - top                       # the mass of what is likelier
    tokens = ids.gather(-1, invert_cdf(top.masked_fill(before >= enough, 0.0), uniforms[:, 0])[:, None])[:, 0]
    if top_k <= 0 and count < probs.shape[-1] and (short := mass[:, 0] < top_p).any():
        tokens[short] = draw_truncated(probs[short], uniforms[short], top_p, probs.shape[-1])
    return tokens


# ================================================================ the caches

class PlainCache:
    """The model's own cache, any architecture: rows hold copies of their prompt's, and join only all at once."""
    can_join, num_prompts = False, 0

    def __init__(self, model, prompt_length: int, max_new_tokens: int):
        self.model = model
        self.tokens_per_prompt, self.tokens_per_row = 0, prompt_length + max_new_tokens

    def join(self, prompts: list[list[int]], counts: list[int]) -> Tensor:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        logits, mask = prefill(self.model, prompts, self.cache)
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(mask.device)
        self.cache.reorder_cache(source)                # keys, values and states: batch_select_indices knows no states
        self.attends = any(getattr(layer, "keys", None) is not None for layer in self.cache.layers)
        self.mask = mask[source]
        return logits[source]

    def leave(self, order: Tensor) -> None:
        order = order.to(self.mask.device)
        self.cache.reorder_cache(order)
        self.mask = self.mask[order]

    def forward(self, tokens: Tensor) -> Tensor:
        self.mask = F.pad(self.mask, (0, 1), value=True)
        # A state holds no padding; Mamba multiplies whatever mask it is given with this one token.
        return self.model(tokens[:, None], attention_mask=self.mask if self.attends else None,
                          position_ids=positions(self.mask)[:, -1:], **with_cache(self.model, self.cache)).logits[:, -1]


def prefill(model, prompts: list[list[int]], cache) -> tuple[Tensor, Tensor]:
    """Fill an empty cache.  -> logits of each prompt's last token (S, V), the left-padded prompts' mask (S, P)."""
    ids, mask = pad(prompts, 0, model.device, left=True)
    logits = model(ids, attention_mask=mask, position_ids=positions(mask), logits_to_keep=1,
                   **with_cache(model, cache)).logits[:, -1]
    return logits, mask


def with_cache(model, cache) -> dict:
    """The arguments by which a model fills and reads a cache."""
    return {cache_argument(type(model)): cache, "use_cache": True}


@functools.cache
def cache_argument(model_class: type) -> str:
    """transformers renamed it in 5.24."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


class SharedPrefixCache:
    """Keys and values of S prompts and of B rows' completions, and the attention over both (see the top)."""
    can_join = True

    def __init__(self, model, prompt_length: int, max_new_tokens: int):
        self.model, self.max_columns = model, max_new_tokens
        self.tokens_per_prompt, self.tokens_per_row = prompt_length, max_new_tokens
        self.configs = configs_of(model)
        self.prefix: list[list[Tensor]] = []            # [layer] -> [keys (S, Hk, P, D), values], left-padded
        self.suffix: list[list[Tensor]] = []            # [layer] -> [keys (R, Hk, C, D), values], R >= B
        self.clock = 0                                  # steps so far
        self.lengths = torch.zeros(0, dtype=torch.int64, device=model.device)       # (S,) tokens of each prompt
        self.written = self.lengths                     # (B,) a row's tokens in the suffix
        self.slots = torch.zeros(0, dtype=torch.int64)  # (B,) which prompt is the row's; here: nothing waits for it
        self.windows: set[int | None] = set()           # that the model's layers asked for
        self.buckets: dict = {}                         # hardware.py's, of these very prefix and suffix tensors
        # FSDP's hooks communicate in a forward pass, which a graph would not replay.
        self.capture = hardware.capture_graph if model.device.type == "cuda" and not is_sharded(model) else None

    @property
    def num_prompts(self) -> int:
        return len(self.lengths)

    def join(self, prompts: list[list[int]], counts: list[int]) -> Tensor:
        """Prefill prompts and append their rows, counts[i] for prompts[i].  -> first logits of the new rows."""
        from transformers import DynamicCache

        new, logits = [], []                            # new: [batch][layer] -> [keys, values]
        for batch in similar_lengths(prompts):
            cache = DynamicCache()                      # no config: it would drop what slid out of a window
            logits.append(prefill(self.model, batch, cache)[0])
            new.append([[layer.keys, layer.values] for layer in cache.layers])
        if len(self.slots) == 0:
            self.clock = 0
        old = [self.prefix] if self.prefix else []
        self.suffix = self.suffix or [[tensor[:0, :, :0] for tensor in pair] for pair in new[0]]
        self.prefix = [[stack_left_padded(tensors) for tensors in zip(*pairs)]
                       for pairs in zip(*old, *new, strict=True)]
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts))
        self.slots = torch.cat([self.slots, source + len(self.lengths)])
        self.written = torch.cat([self.written, self.written.new_zeros(len(source))])
        self.lengths = torch.cat([self.lengths, self.lengths.new_tensor([len(prompt) for prompt in prompts])])
        self.buckets.clear()
        self.reserve(len(self.slots), 0)
        self.arrange()
        return torch.cat(logits)[source.to(self.slot.device)]

    def leave(self, order: Tensor) -> None:
        """Row i becomes what row order[i] was; prompts without a row go when they are the half."""
        moved, columns = (order != torch.arange(len(order))).nonzero()[:, 0], min(self.clock, self.max_columns)
        to, source = moved.to(self.slot.device), order[moved].to(self.slot.device)
        for tensor in (tensor for pair in self.suffix for tensor in pair):
            tensor[to, :, :columns] = tensor[source, :, :columns]
        self.slots, self.written = self.slots[order], self.written[order.to(to.device)]
        used, slots = self.slots.unique(return_inverse=True)
        if 2 * len(used) <= self.num_prompts:
            self.slots, used = slots, used.to(to.device)
            self.lengths, self.prefix = self.lengths[used], [[tensor[used] for tensor in pair] for pair in self.prefix]
            self.buckets.clear()
        self.arrange()

    def arrange(self) -> None:
        """Seat the rows of each prompt side by side: self.grid (S, G), self.place (B,); an empty seat holds row 0."""
        row, order = torch.arange(len(self.slots)), self.slots.argsort(stable=True)
        counts = torch.bincount(self.slots, minlength=self.num_prompts)
        starts = counts.cumsum(0) - counts
        place = torch.empty_like(row).scatter(0, order, row - starts[self.slots[order]])
        grid = row.new_zeros(self.num_prompts, int(counts.max()) if len(row) else 0)
        grid[self.slots, place] = row
        self.slot, self.place, self.grid = (x.to(self.lengths.device) for x in (self.slots, place, grid))

    def reserve(self, rows: int, columns: int) -> None:
        """Allocate the suffix, twice as wide each time that it is full."""
        have_rows, _, have_columns, _ = self.suffix[0][0].shape
        if rows > have_rows or columns > have_columns:
            self.buckets.clear()
            columns = have_columns if columns <= have_columns else min(self.max_columns, max(64, 2 * columns))
            for tensors in self.suffix:
                for place, old in enumerate(tensors):
                    # Zeros: a masked column has weight 0, but 0 times what memory held may be NaN.
                    tensors[place] = old.new_zeros(max(rows, have_rows), old.shape[1], columns, old.shape[3])
                    tensors[place][:have_rows, :, :have_columns] = old

    def forward(self, tokens: Tensor) -> Tensor:
        """One step of all rows.  (B,) -> logits (B, V)."""
        self.column, self.width = self.clock % self.max_columns, min(self.clock + 1, self.max_columns)
        self.reserve(0, self.width)
        logits = hardware.step_in_bucket(self, tokens) if self.capture else self.step(tokens)
        self.clock += 1
        self.written = self.written + 1
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """The part of `forward` that runs on the device: a CUDA graph can hold it."""
        self.biases: dict[tuple, tuple[Tensor, Tensor]] = {}
        self.seat = self.slot * self.grid.shape[1] + self.place
        position = self.lengths[self.slot] + self.written
        with attention_implementation(self.configs, "shared_prefix", self.attend):
            return self.model(tokens[:, None], position_ids=position[:, None], use_cache=False).logits[:, -1]

    def bias(self, window: int | None, stacked: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """0 where a row may look, far below where not: prefixes (S, 1, G * stacked, P), suffixes (B, 1, 1, width)."""
        if (window, stacked) not in self.biases:
            device, prompt_length = self.slot.device, self.prefix[0][0].shape[2]
            lengths = self.lengths[self.slot, None]
            position = torch.arange(prompt_length, device=device) - (prompt_length - lengths)       # < 0: padding
            age = (self.column - torch.arange(self.width, device=device)) % self.max_columns        # in steps
            in_prefix, in_suffix = position >= 0, age <= self.written[:, None]
            if window is not None:
                in_prefix &= lengths + self.written[:, None] - position < window
                in_suffix &= age < window
            # Not -inf: a prefix that is out of its row's window would have no weights at all, but NaN.
            hidden = torch.finfo(dtype).min / 2
            prefix, suffix = (torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill(~visible, hidden)
                              for visible in (in_prefix[self.grid], in_suffix))
            self.biases[window, stacked] = prefix.repeat_interleave(stacked, 1)[:, None], suffix[:, None, None]
        return self.biases[window, stacked]

    def attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, dropout=0.0,
               is_causal=True, **others):
        """What transformers calls in place of its own attention.  query (B, Hq, 1, D) -> (B, 1, Hq, Dv), None.

        key, value: (B, Hk, 1, D) of this step's token; the rest is here.
        """
        check_arguments(others)
        self.windows.add(sliding_window)
        (prefix_keys, prefix_values), (keys, values) = self.prefix[module.layer_idx], self.suffix[module.layer_idx]
        if keys.shape[1::2] != key.shape[1::2] or values.shape[1::2] != value.shape[1::2]:
            raise NotPlain("its cache holds something else than the keys and values of its attention")
        now = self.column if torch.is_tensor(self.column) else slice(self.column, self.column + 1)
        keys[:len(key), :, now], values[:len(key), :, now] = key, value
        keys, values = keys[:len(key), :, :self.width], values[:len(key), :, :self.width]
        stacked = query.shape[1] // key.shape[1]
        # (B, Hk, Hq / Hk, D), but in memory (B, Hq / Hk, Hk, D): the kernels' own layout, in which a row is one piece
        query = query.view(len(key), key.shape[1], stacked, -1).transpose(1, 2).contiguous().transpose(1, 2)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        prefix_bias, suffix_bias = self.bias(sliding_window, stacked, query.dtype)

        together = attention(self.by_prompt(query), prefix_keys, prefix_values, prefix_bias, scale)
        seen, log_total = (self.by_row(x, stacked) for x in together)
        own, own_log_total = attention(query, keys, values, suffix_bias, scale)
        seen = torch.lerp(seen.float(), own.float(), (own_log_total - log_total).sigmoid()[..., None])
        return seen.to(query.dtype).reshape(len(key), 1, key.shape[1] * stacked, -1), None

    def by_prompt(self, x: Tensor) -> Tensor:
        """The rows of a prompt one below the other.  (B, Hk, stacked, D) -> (S, Hk, G * stacked, D)"""
        rows = x.transpose(1, 2).index_select(0, self.grid.flatten())
        return rows.unflatten(0, self.grid.shape).flatten(1, 2).transpose(1, 2)

    def by_row(self, x: Tensor, stacked: int) -> Tensor:
        """The way back.  (S, Hk, G * stacked, ...) -> (B, Hk, stacked, ...)"""
        seats = x.transpose(1, 2).unflatten(1, (-1, stacked)).flatten(0, 1)         # (S * G, stacked, Hk, ...)
        return seats.index_select(0, self.seat).transpose(1, 2)


def attention(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q k * scale + bias) v, and the log of the softmax's denominator, by which two such results are joined.

    (N, H, T, D), (N, H, L, D), (N, H, L, Dv), bias broadcast to (N, 1, T, L) -> (N, H, T, Dv), (N, H, T) float32
    """
    if query.device.type == "cpu" and keys.shape == values.shape:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu     # SDPA's own face hides the denominator
        return kernel(query, keys, values, attn_mask=bias.expand(-1, -1, query.shape[2], -1), scale=scale)
    scores = (query * scale @ keys.mT).float() + bias
    log_total = scores.logsumexp(-1)
    return (scores - log_total[..., None]).exp().to(values.dtype) @ values, log_total


def similar_lengths(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Prompts in order of length -> batches to prefill: enough tokens for a matmul, little padding, bounded memory."""
    batches = [[prompts[0]]]
    for prompt in prompts[1:]:
        batch = batches[-1]
        tokens = len(batch) * len(batch[-1])
        if tokens >= 128 and len(prompt) > 1.125 * len(batch[0]) or tokens >= 8192:
            batches.append([prompt])
        else:
            batch.append(prompt)
    return batches


def stack_left_padded(tensors: tuple[Tensor, ...]) -> Tensor:
    """Stack keys of prompts of unequal length.  n x (S_i, Hk, P_i, D) -> (sum of S_i, Hk, longest P_i, D)"""
    length = max(x.shape[2] for x in tensors)
    return torch.cat([F.pad(x, (0, 0, length - x.shape[2], 0)) for x in tensors])


# ================================================================ which models it serves

def has_plain_attention(model) -> bool:
    """Two steps with shared prefixes beside the model's own forward pass, once for each class and config."""
    return agrees(model, "sampler", compare_with_own_forward)


def compare_with_own_forward(model) -> None:
    config = model.config.get_text_config()
    prompts, steps = [[1, 2, 3, 4], [5, 6]], [[7, 8, 9], [10, 11, 12]]         # (rows, then tokens of each step)
    steps = [[token % config.vocab_size for token in tokens] for tokens in steps]
    prompts = [[token % config.vocab_size for token in prompt] for prompt in prompts]
    cache = SharedPrefixCache(model, 4, 4)
    cache.join(prompts, [2, 1])
    for tokens in steps:
        logits = cache.forward(torch.tensor(tokens, device=model.device))
    check_windows(config, cache.windows)
    ids, mask = pad([prompts[row // 2] + [tokens[row] for tokens in steps] for row in range(3)], 0, model.device, True)
    whole = functools.partial(model, ids, attention_mask=mask, position_ids=positions(mask), use_cache=False)
    expected = whole().logits[:, -1].float()
    with attention_implementation(cache.configs, "eager"):
        eager = whole().logits[:, -1].float()
    error, rounding = ((x.float() - expected).norm() / expected.norm() for x in (logits, eager))
    if not error <= 4 * rounding + max(3e-4, torch.finfo(model.dtype).eps):
        raise NotPlain(f"its logits differ by {error:.2g}, and by {rounding:.2g} from those of its eager attention")
