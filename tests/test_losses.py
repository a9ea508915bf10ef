"""The equations, against tables done by hand and plain float64."""
import pytest
import torch

from stage1_grpo import clipped_surrogate, group_advantages, token_weights
from stage3_kl import forward_kl
from stage4_distill import jsd, reverse_kl, sampled_token_loss


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 0, 0, 0,  1, 1, 1, 1,  0, 0, 0, 0,  1, 1, 0, 0])
    std = 3**0.5 / 4
    expected = torch.tensor([0.75 / (std + 1e-4)] + [-0.25 / (std + 1e-4)] * 3 + [0.0] * 8 + [0.5 / 0.5001] * 2 + [-0.5 / 0.5001] * 2)
    got = group_advantages(rewards, 4)
    torch.testing.assert_close(got, expected)
    assert (got[4:12] == 0).all(), "a group whose rewards are all equal prefers nothing, exactly"


def test_group_advantages_do_not_mix_groups():
    rewards = (torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    whole = group_advantages(rewards.flatten(), 4).view(6, 4)
    assert torch.equal(group_advantages(rewards[order].flatten(), 4).view(6, 4), whole[order])


@pytest.mark.parametrize("advantage, ratio, expected, has_gradient", [
    (1.0, 1.1, 1.1, True), (1.0, 1.5, 1.28, False), (1.0, 0.5, 0.5, True),          # may grow up to 1.28
    (-1.0, 0.9, -0.9, True), (-1.0, 0.5, -0.8, False), (-1.0, 1.5, -1.5, True),     # may shrink to 0.8
    (-1.0, 30.0, -10.0, False)])                                                    # dual clip
def test_clipped_surrogate(advantage, ratio, expected, has_gradient):
    logprobs = torch.tensor([[ratio]]).log().requires_grad_()
    objective, clipped = clipped_surrogate(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), 0.2, 0.28, 10.0)
    objective.sum().backward()
    assert objective.item() == pytest.approx(expected, rel=1e-5)
    assert (logprobs.grad.item() != 0) == has_gradient
    assert clipped.item() == (not has_gradient and ratio < 30), "the dual clip is not counted"


def test_first_pass_is_reinforce():
    generator = torch.Generator().manual_seed(0)
    logprobs = (-torch.rand(4, 5, generator=generator)).requires_grad_()
    advantages = torch.randn(4, generator=generator)
    clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.28, 10.0)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, advantages[:, None].expand(4, 5))


def test_loss_means_of_a_short_and_a_long_completion():
    mask = torch.arange(99) < torch.tensor([[1], [99]])
    token, sequence = (token_weights(mask, mean, num_tokens=100, num_sequences=2) for mean in ("token", "sequence"))
    assert token[0, 0] == token[1, 98] == pytest.approx(0.01)
    assert sequence[0, 0] == 0.5 and sequence[1, 98] == pytest.approx(0.5 / 99)
    assert token.sum() == pytest.approx(1) and sequence.sum() == pytest.approx(1)


def float64_kl(p_logits, q_logits):
    p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def logit_pair(scale, vocab=1000):
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(2, 3, vocab, generator=generator)
    return student, student + scale * torch.randn(2, 3, vocab, generator=generator)


@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergences_match_float64_and_are_not_negative(scale, dtype):
    student, teacher = (x.to(dtype) for x in logit_pair(scale))
    for got, expected in ((forward_kl(student, teacher), float64_kl(teacher, student)),
                          (reverse_kl(student, teacher), float64_kl(student, teacher))):
        assert got.shape == (2, 3) and got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-2, atol=1e-7)
        assert (got >= -1e-6).all()
    mixture = ((student.double().softmax(-1) + teacher.double().softmax(-1)) / 2).log()
    expected = (float64_kl(student, mixture) + float64_kl(teacher, mixture)) / 2
    torch.testing.assert_close(jsd(student, teacher).double(), expected, rtol=1e-2, atol=1e-7)


def test_gradients_of_both_directions():
    """d KL(T||S) = S − T;  d KL(S||T) = S (log S − log T − KL): on an asymmetric pair they differ."""
    student, teacher = logit_pair(1.0, vocab=7)
    student.requires_grad_()
    s, t = student.detach().softmax(-1), teacher.softmax(-1)
    forward, = torch.autograd.grad(forward_kl(student, teacher).sum(), student)
    torch.testing.assert_close(forward, s - t, atol=1e-6, rtol=1e-4)
    kl = reverse_kl(student, teacher)
    reverse, = torch.autograd.grad(kl.sum(), student)
    torch.testing.assert_close(reverse, s * (s.log() - t.log() - kl.detach()[..., None]), atol=1e-6, rtol=1e-4)
    assert (forward - reverse).abs().max() > 0.05


def test_sampled_form_has_the_gradient_of_the_reverse_kl_in_expectation():
    """Equation 9, with the expectation over the vocabulary done exactly."""
    student, teacher = logit_pair(1.0, vocab=7)
    student = student[:1, :1].clone().requires_grad_()
    teacher = teacher[:1, :1]
    exact, = torch.autograd.grad(reverse_kl(student, teacher).sum(), student)
    logprobs, teacher_logprobs = student.log_softmax(-1)[0, 0], teacher.log_softmax(-1)[0, 0]
    per_token = sampled_token_loss(logprobs[None], teacher_logprobs[None])[0]
    expectation = (logprobs.detach().exp() * per_token).sum()
    got, = torch.autograd.grad(expectation, student)
    torch.testing.assert_close(got, exact, atol=1e-6, rtol=1e-4)
    assert expectation.item() == pytest.approx(reverse_kl(student, teacher).item(), rel=1e-5), "its value estimates the KL"
