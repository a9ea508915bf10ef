"""A training pass over groups, the prompt once a group beside a padded row a rollout: processor time and peak memory.

    python bench/packed.py --model DIR [--case 2x8x110x64 2x8x110x200] [--micro-batch-size 8] [--dtype float32]
    python bench/packed.py --case 1x4x100x4000                         # without --model: a tiny random one
    python bench/packed.py --attention --even --case 4x8x80x20 [--dtype bfloat16]

A case is prompts x samples x tokens of the longest prompt x of the longest completion.  Prompts are up to a sixth
shorter and completions up to a half, ids are random.  Each measurement is forward and backward of every micro-batch, in
a fresh process, the two ways taking turns; memory is how far the process's high-water mark rises above what the model
and its gradients hold.  The tests say how near the two are; the last column here is the norm of the gradient.

--attention: one layer's attention alone, forward and backward, 9 heads of 64 on 3, in both forms of packed.py; what the
rule between them would choose.
"""
import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import FlagParser  # noqa: E402
from processes import in_a_fresh_process, memory  # noqa: E402


def parse_args(argv=None):
    parser = FlagParser(__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: a tiny random Qwen3)")
    parser.add_argument("--case", nargs="+", default=["2x8x110x64", "2x8x110x200"], help="prompts x samples x P x C")
    parser.add_argument("--even", action="store_true", help="prompts and completions all as long as the longest")
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of compute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes per way")
    parser.add_argument("--attention", action="store_true", help="both forms of attention, and the rule")
    parser.add_argument("--only", help=argparse.SUPPRESS)       # way and case that a fresh process measures
    return parser.parse_args(argv)


def model_of(args):
    import torch

    from common import load_model, load_tokenizer

    if args.model:
        return load_model(args.model, load_tokenizer(args.model), args.dtype, torch.device("cpu"), trainable=True)
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=16384))


def rollouts_of(case: str, even: bool, vocab_size: int):
    import torch

    from engine.rollouts import Rollouts, pad

    num_prompts, samples, prompt, new = map(int, case.split("x"))
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, longest: int, cut: int) -> list[list[int]]:
        lengths = [longest - (0 if even else cut * (i % 3) // 2) for i in range(count)]
        return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]

    prompts = [row for row in rows(num_prompts, prompt, prompt // 6) for _ in range(samples)]
    parts = *pad(prompts, 0, "cpu", True), *pad(rows(num_prompts * samples, new, new // 2), 0, "cpu", False)
    return Rollouts(*parts, torch.ones(len(prompts), dtype=torch.bool))


def measure(args) -> dict:
    import torch

    import common
    from engine import heads
    from engine.packed import Padded

    torch.set_num_threads(args.threads)
    way, case = json.loads(args.only)
    if way == "padded":
        heads.layout = lambda model, rollouts: Padded(rollouts)
    model, autocast = model_of(args), torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16")
    rollouts = rollouts_of(case, args.even, model.config.vocab_size)

    def one_pass(micro) -> None:
        with autocast:
            loss = common.completion_logprobs(model, micro).sum() / len(rollouts)
        loss.backward()

    one_pass(rollouts.select(slice(0, 1)))              # libraries, the comparison at first use, the gradients' memory
    model.zero_grad(set_to_none=False)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = memory("VmRSS"), time.process_time()
    for micro in rollouts.split(args.micro_batch_size):
        one_pass(micro)
    seconds, peak = time.process_time() - start, memory("VmHWM")
    norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in model.parameters())
    return {"seconds": seconds, "megabytes": (peak - before) / 1024e3, "gradient": float(norm)}


def attention(args) -> None:
    import torch

    from engine import packed

    torch.set_num_threads(args.threads)
    print(f"| prompts x samples x P x C, {args.dtype} | whole rows, ms | parts, ms | ratio | chosen |\n"
          "| --- | ---: | ---: | ---: | --- |")
    for case in args.case:
        form, generator = packed.Packed(rollouts_of(case, args.even, 1000)), torch.Generator().manual_seed(0)
        tokens = form.inputs["input_ids"].shape[1]
        query, key, value = (torch.randn(1, tokens, heads, 64, generator=generator).to(getattr(torch, args.dtype))
                             .transpose(1, 2).requires_grad_() for heads in (9, 3, 3))
        chosen = form.shares_prompts(query, key, value)
        seconds: dict[str, list[float]] = {"whole rows": [], "parts": []}
        for _ in range(1 + args.rounds):                # the first one is not counted
            for way, each in seconds.items():
                form.shares_prompts = lambda *tensors, way=way: way == "parts"
                start = time.process_time()
                for _ in range(3):
                    seen = form.attend(None, query, key, value, None)[0]
                    torch.autograd.grad(seen, (query, key, value), seen.detach())
                each.append((time.process_time() - start) / 3)
        whole, parts = (1000 * min(each[1:]) for each in seconds.values())
        print(f"| {case} | {whole:.2f} | {parts:.2f} | {whole / parts:.2f} | {'parts' if chosen else 'whole rows'} |",
              flush=True)


def main(args) -> None:
    if args.only:
        return print(json.dumps(measure(args)))
    if args.attention:
        return attention(args)
    print("| prompts x samples x P x C | way | processor seconds | MB | gradient |\n| --- | --- | --- | --- | --- |")
    for case in args.case:
        runs: dict = {"padded": [], "packed": []}
        for _ in range(args.rounds):
            for way in runs:
                runs[way].append(in_a_fresh_process([way, case], args.threads))
        for way, each in runs.items():
            seconds, megabytes = (", ".join(f"{run[key]:.{places}f}" for run in each)
                                  for key, places in (("seconds", 2), ("megabytes", 0)))
            print(f"| {case} | {way} | {seconds} | {megabytes} | {each[0]['gradient']:.6g} |", flush=True)


if __name__ == "__main__":
    main(parse_args())
