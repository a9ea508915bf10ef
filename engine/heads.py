"""From a model to its hidden states and its head, so that a loss needs no whole logits."""
from contextlib import contextmanager

import torch

from engine.logprobs import Head
from engine.packed import layout
from engine.rollouts import Rollouts


def forward_with_head(model, rollouts: Rollouts, function):
    """What function(hidden, head) returns, called inside of the model's own forward pass, where its head would be.

    hidden (T, D) are the states that predict the T completion tokens under the mask, row after row.  Inside, because
    there a sharded model has its weights whole, and because its backward pass begins at what forward returns: function
    returns tensors, and whatever is to be differentiated is among them.
    """
    form, known, plain_forward = layout(model, rollouts), has_known_head(model), model.forward

    def forward(**inputs):
        if known:
            hidden, head = form.call(model, body_of(model), **inputs).last_hidden_state, head_of(model)
        else:                                           # the states are the logits
            inputs |= {"logits_to_keep": form.logits_to_keep}
            hidden, head = form.call(model, plain_forward, **inputs).logits, Head(None)
        return function(form.predicting(hidden), head)

    with replaced_forward(model, forward):
        return model(**form.inputs)


@contextmanager
def replaced_forward(model, forward):
    """model(…) calls this in place of its own forward, between the hooks that sharding has put around it."""
    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def body_of(model):
    """All but the head.  A class whose base_model_prefix names none of its modules is its own base_model."""
    return model.base_model if model.base_model is not model else model.get_decoder()


def head_of(model) -> Head:
    output = model.get_output_embeddings()
    return Head(output.weight, getattr(output, "bias", None), getattr(model.config, "final_logit_softcapping", None))


@torch.no_grad()
def has_known_head(model) -> bool:
    """Whether `head_of` tells all that the model does to its hidden states: some scale.  Tried once, on a few ids."""
    def compare(input_ids, use_cache):
        hidden = body_of(model)(input_ids=input_ids, use_cache=use_cache).last_hidden_state[0]
        expected = plain_forward(input_ids=input_ids, use_cache=use_cache).logits[0]
        got = head_of(model).logits(hidden).to(expected.dtype)
        return torch.tensor(got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-2, atol=1e-3))

    if body_of(model) is model:
        return False
    if not hasattr(model, "_has_known_head"):
        plain_forward = model.forward
        with replaced_forward(model, compare), torch.autocast(model.device.type, enabled=False):      # which rounds
            ids = torch.arange(8, device=model.device)[None]                # id 0 alone may be padding, its state 0
            model._has_known_head = bool(model(input_ids=ids, use_cache=False))
    return model._has_known_head
