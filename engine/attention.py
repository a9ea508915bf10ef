"""The attention of a Hugging Face model, exchanged for one of ours: what sampling and scoring have in common.

A model that takes its attention from transformers' table, by the name in its config, takes ours by another name.  Ours
computes softmax(q k) v over all or the last `sliding_window` positions, and no model is trusted to want just that: what
is built on an exchange is compared once with the model's own forward pass (`agrees`), or not used.
"""
from contextlib import contextmanager, nullcontext

import torch.distributed as dist


class NotPlain(Exception):
    """The model's attention is more than ours computes."""


def class_name(model) -> str:
    return type(model).__name__.removeprefix("FSDP")


def configs_of(model) -> list:
    """Those that name the attention of its modules."""
    return list({id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values())


# ================================================================ exchanging

IN_FORCE: list[tuple] = []                              # the exchanges that we are inside of, the innermost last


@contextmanager
def attention_implementation(configs: list, name: str, function=None):
    """Exchange the attention of a model with these configs, and put back what was there, whatever happens."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = [config._attn_implementation for config in configs]
    if function is not None:
        ALL_ATTENTION_FUNCTIONS[name] = function
    IN_FORCE.append((configs, name, function))
    try:
        for config in configs:
            config._attn_implementation = name
        yield
    finally:
        IN_FORCE.pop()
        for config, own in zip(configs, before):
            config._attn_implementation = own
        if function is not None:
            del ALL_ATTENTION_FUNCTIONS[name]


def same_attention_again() -> tuple:
    """Of a checkpointed block: what surrounds its forward pass, and its second one, which runs when the exchange is
    over and must attend as the first did."""
    return nullcontext(), attention_implementation(*IN_FORCE[-1]) if IN_FORCE else nullcontext()


def check_arguments(others: dict) -> None:
    """Refuse what an attention function is given and ours does not read."""
    strange = {name for name, x in others.items() if x is not None and not isinstance(x, bool)} - {"position_ids"}
    if strange:
        raise NotPlain(f"its attention takes {', '.join(sorted(strange))}")


def check_windows(config, windows: set[int | None]) -> None:
    """windows: what the model's layers asked for."""
    if getattr(config, "sliding_window", None) and windows == {None}:
        raise NotPlain("its attention does not say which layers have a sliding window")


# ================================================================ which models are served

TOLD: set[str] = set()


def tell(subject: str, message: str) -> None:
    """Print a line, once for each subject and on one rank."""
    if subject not in TOLD and (not dist.is_initialized() or dist.get_rank() == 0):
        print(message, flush=True)
    TOLD.add(subject)


VERDICTS: dict[str, bool] = {}                          # purpose, class and config of a model -> is it served?


def agrees(model, purpose: str, compare) -> bool:
    """Whether compare(model) finds no difference from the model's own forward pass; tried once for each purpose, class
    and config."""
    if not hasattr(model, "_class_and_config"):         # written out once: this is asked in every pass
        model._class_and_config = f"{type(model).__name__} {model.config.to_json_string()}"
    name = f"{purpose} {model._class_and_config} {model.dtype}"
    if name not in VERDICTS:
        try:
            config = model.config.get_text_config()
            if others := {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}:
                raise NotPlain(f"it has layers of {', '.join(sorted(others))}")
            if getattr(config, "attn_temperature_tuning", False):
                raise NotPlain("its attention scales by the place in a row, not by the position")        # Llama 4
            compare(model)
            VERDICTS[name] = True
        except Exception as error:                      # whatever it is: the model's own way will do
            reason = error if isinstance(error, NotPlain) else f"its attention is not exchanged ({error!r})"
            tell(name, f"{purpose}: {class_name(model)} takes the plain way, which is slower: {reason}")
            VERDICTS[name] = False
    return VERDICTS[name]
