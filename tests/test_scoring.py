"""Scoring inside the model's own forward pass: many kinds of head, and a sharded model on two ranks."""
from pathlib import Path

import pytest
import torch
import transformers
from forks import run_ranks

from common import completion_divergence, completion_logits, completion_logprobs
from engine.heads import has_known_head
from engine.ranks import setup_distributed
from engine.rollouts import pad
from engine.rollouts import Rollouts
from stage3_kl import forward_kl
from stage4_distill import jsd, reverse_kl

SMALL = dict(vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
KNOWN = {"Qwen3": dict(tie_word_embeddings=True), "Llama": {}, "Gemma2": dict(final_logit_softcapping=2.0, query_pre_attn_scalar=8),
         "Gemma3Text": dict(final_logit_softcapping=1.5, query_pre_attn_scalar=8), "GPTNeoX": {}, "Phi": {}}       # Phi: a bias
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def tiny_model(family, seed=0, **changes):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SMALL | KNOWN.get(family, {}) | changes)
    model = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(config).eval()
    output = model.get_output_embeddings()
    output.weight.data.normal_(std=0.3)                 # as initialised, all logits would be near 0
    if getattr(output, "bias", None) is not None:
        output.bias.data.normal_()
    return model


def some_rollouts():
    prompt_ids, prompt_mask = pad([[5, 6, 7], [8]], 0, "cpu", left=True)
    completion_ids, completion_mask = pad([[9, 10, 2], [11, 12, 13, 14, 2]], 0, "cpu", left=False)
    return Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask, torch.ones(2, dtype=torch.bool), torch.zeros(2, 5))


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def close(got, expected):
    assert (got - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("family", [*KNOWN, "Granite"])
def test_scores_are_those_of_the_plain_equations(family):
    """Values and gradients; Granite divides its logits by a number of its own and takes the whole logits."""
    student, teacher = tiny_model(family, **({"logits_scaling": 3.0} if family == "Granite" else {})), tiny_model("Llama", seed=1)
    rollouts, mask = some_rollouts(), some_rollouts().completion_mask
    assert has_known_head(student) == (family in KNOWN)
    log_p = completion_logits(student, rollouts, 0.7).log_softmax(-1)
    expected = log_p.gather(-1, rollouts.completion_ids[..., None])[..., 0] * mask, -(log_p.exp() * log_p).sum(-1) * mask
    expected_gradient = gradients((expected[0] + 0.3 * expected[1]).square().sum(), student)
    got = completion_logprobs(student, rollouts, 0.7, entropy=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    close(gradients((got[0] + 0.3 * got[1]).square().sum(), student), expected_gradient)

    weights = mask * torch.tensor([[1.0], [0.5]])
    for equation in (reverse_kl, forward_kl, jsd):
        divergence = equation(completion_logits(student, rollouts, 0.7), completion_logits(teacher, rollouts, 0.7).detach())
        expected_gradient = gradients((divergence * weights).sum(), student)
        loss, got, logprobs = completion_divergence(student, teacher, rollouts, equation, 0.7, weights)
        torch.testing.assert_close(got, divergence * mask, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logprobs, expected[0], rtol=1e-5, atol=1e-5)
        close(gradients(loss, student), expected_gradient)
        assert all(parameter.grad is None for parameter in teacher.parameters())
    assert "forward" not in vars(student), "left as it was"


def test_a_sharded_model_scores_and_learns_as_a_whole_one():
    """fully_shard on two ranks, tied embeddings; teacher sharded too, and its layers' weights gone after its forward."""
    said = run_ranks(2, Path(__file__))
    assert said.count("as the whole model") == 2, said


def compare_sharded_with_whole():
    """One of two ranks: the gradient of a loss over both ranks' rollouts, sharded and whole."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    setup_distributed()

    def sharded(model, reshard):
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model, reshard_after_forward=reshard)
        return model

    mine = some_rollouts().select(slice(dist.get_rank(), dist.get_rank() + 1))
    for reshard in (None, True):
        whole, teacher = tiny_model("Qwen3"), tiny_model("Llama", seed=1)
        student, sharded_teacher = sharded(tiny_model("Qwen3"), reshard), sharded(tiny_model("Llama", seed=1), reshard)
        for model, guide in ((whole, teacher), (student, sharded_teacher)):
            loss = completion_logprobs(model, mine, 0.7, entropy=True)
            loss = loss[0].square().sum() + loss[1].sum()
            (loss + completion_divergence(model, guide, mine, reverse_kl, 0.7)[0]).backward()
        for (name, expected), got in zip(whole.named_parameters(), student.parameters()):
            dist.all_reduce(expected.grad)
            torch.testing.assert_close(got.grad.full_tensor(), expected.grad / 2, rtol=1e-4, atol=1e-5, msg=name)
    print("as the whole model", flush=True)


if __name__ == "__main__":
    compare_sharded_with_whole()
