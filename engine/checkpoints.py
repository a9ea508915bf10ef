"""Checkpoint directories: found, checked before any weights load, read in parts, and written.

    --model NAME ──find_model──► a directory that is whole: from its small files and the headers of its weights alone it
                                 is known that they and config.json fit, tensor for tensor, and hold plain numbers
    directory ──WeightFiles──► each rank reads its rows of every tensor, where transformers would take all as they are;
                               else (experts that are stored one by one) transformers reads them whole
    model ──save_model──► an ordinary Hugging Face directory, and a manifest

Which tensor goes where is asked of transformers (`get_model_conversion_mapping`), so that both ways of reading end with
the same model; whatever would leave a weight out, or invent one, is refused in one sentence.
"""
import hashlib
import json
import os
import re
from bisect import bisect_left
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from engine.files import empty_directory, file_digest, put_in_place, read_record, saving, write_json
from engine.ranks import fail, first_line, from_rank_0, gather_list, rank, say
from engine.sharding import whole_state

# ================================================================ finding


def find_model(path: Path, allow_failed_certificate: bool = False) -> dict:
    """The checkpoint directory that a --model, --teacher, … flag means, checked without loading any weights.

    `path` is a checkpoint directory, a finished run (then its model/), or a name on the hub, owner/name or
    owner/name@revision; a directory of that name wins.
    -> {"path", "sha256" of config and weights}, for a run "run": its directory, from the hub "hub": name and commit.
    """
    path, hub = Path(path), {}
    if not path.is_dir():
        path, hub = download(path)
    if not os.access(path, os.R_OK | os.X_OK):
        fail(f"{path}: no permission to read this directory")
    run = path if read_record(path) and not (path / "config.json").is_file() else path.parent
    is_run = path in (run, run / "model") and read_record(run) is not None
    if is_run:
        check_parent_run(run, allow_failed_certificate)
    model_dir = run / "model" if is_run else path
    weights = sorted(file for file in model_dir.glob("*.safetensors") if file.is_file())
    check_manifest(model_dir, {file.name: {"bytes": file.stat().st_size} for file in weights})
    check_directory(model_dir)
    digests = from_rank_0(lambda: {file.name: file_digest(file) for file in weights})
    check_manifest(model_dir, digests)
    parts = [(model_dir / "config.json").read_bytes(), *(bytes.fromhex(facts["sha256"]) for facts in digests.values())]
    sha256 = hashlib.sha256(b"".join(parts)).hexdigest()
    return {"path": str(model_dir), "sha256": sha256} | ({"run": str(run)} if is_run else {}) | hub


def check_parent_run(run: Path, allow_failed_certificate: bool) -> None:
    """A run is handed on only when it is finished and, where it certifies something, when that holds."""
    if not (run / "DONE").is_file():
        fail(f"{run}: this run has no DONE, so it did not finish; run its command again, it goes on where it stopped")
    certificate = run / "certificate.json"
    if certificate.is_file() and not read_object(certificate).get("passed") and not allow_failed_certificate:
        fail(f"{run}: the certificate of this run did not pass (see {certificate}); --allow-failed-certificate goes on")


def check_manifest(model_dir: Path, found: dict[str, dict]) -> None:
    """Refuse files of weights that are not as the run wrote them, if a run did.

    found: name -> what is known of the file so far, of {"bytes", "sha256"}.
    """
    manifest = model_dir / "manifest.json"
    written = read_object(manifest) if manifest.is_file() else found
    for name in sorted(name for name in {**written, **found} if name.endswith(".safetensors")):
        facts, expected = found.get(name), written.get(name)
        if not facts or not isinstance(expected, dict) or not facts.items() <= expected.items():
            fail(f"{model_dir / name} is not as the run wrote it (see manifest.json there): delete {model_dir} and "
                 "DONE beside it and run that run's command again")


SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]        # configs, tokenizer, chat template


def download(name: Path) -> tuple[Path, dict]:
    """The snapshot of a model on the hub, from the local cache or downloaded: rank 0, one rank of each node, the rest.

    -> its directory; {"hub": "owner/name@commit"}.
    """
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\S+))?", str(name))
    if not match:
        fail(f"{name}: no such directory (a model on the hub is named owner/name or owner/name@revision)")
    (repository, revision), answer = match.groups(), None
    for turn in (rank() == 0, int(os.environ.get("LOCAL_RANK", 0)) == 0, True):
        answer = answer or turn and snapshot(repository, revision)
        for _, problem in filter(None, gather_list([answer])):
            if problem:
                fail(f"{name}: no such directory, and not to be had from the hub or its local cache ({problem})")
        revision = from_rank_0(lambda: answer[0].name)  # noqa: B023  (the commit: a branch may move between two ranks)
    say(f"{name}: commit {revision} of the hub, {answer[0]}")
    return answer[0], {"hub": f"{repository}@{revision}"}


def snapshot(repository: str, revision: str | None) -> tuple[Path | None, str | None]:
    """-> the directory of a snapshot, named by its commit; or why there is none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(
            repository, revision=revision, allow_patterns=["*.safetensors", "README.md", *SMALL_FILES],
            ignore_patterns=["*/*", "consolidated*"])), None
    except Exception as error:                          # of the network, the hub, the cache or the disk
        return None, first_line(error)


# ================================================================ checking


def check_directory(model_dir: Path) -> None:
    """Refuse, without loading weights, what would not load or would load as another model than it is."""
    from transformers import CONFIG_MAPPING

    if adapter := next(model_dir.glob("adapter_*"), None):
        fail(f"{model_dir} holds an adapter ({adapter.name}), which is not applied here: merge it into its base model "
             "(peft's merge_and_unload, then save_pretrained) and give that directory")
    if not (model_dir / "config.json").is_file():
        fail(f"{model_dir}: no model here (config.json is missing)")
    for file in (file for kind in SMALL_FILES for file in model_dir.glob(kind) if file.is_file()):
        check_readable(file)                            # a pointer in place of chat_template.jinja is a template
    config = read_object(model_dir / "config.json")
    if method := quantisation(model_dir, config):
        fail(f"{model_dir}: its weights are quantised ({method}); give the checkpoint that they were made from, or "
             "dequantise them with transformers (from_pretrained with FineGrainedFP8Config(dequantize=True) or "
             "Mxfp4Config(dequantize=True), else model.dequantize(); then save_pretrained)")
    if config.get("transformers_weights") or list(model_dir.glob("shard-*-model-*.safetensors")):
        fail(f"{model_dir}: transformers would read other files than model.safetensors (transformers_weights in "
             "config.json, or shard-*-model-*): save it anew with save_pretrained")
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        fail(f"{model_dir}: this model needs code of its own (auto_map in config.json), which is never run")
    generation_config(model_dir)
    files = WeightFiles(model_dir)
    if wrong := files.what_is_wrong(empty_model(model_dir, "float32")):
        fail(f"{model_dir}: {wrong}")


def quantisation(model_dir: Path, config: dict) -> str | None:
    """How the weights are quantised: what config.json says, of the model or a part of it, or a file beside it."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config"):
            if (settings := part.get(key)) is not None:
                return str(settings.get("quant_method", key)) if isinstance(settings, dict) else key
    names = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
    return next((name for name in names if (model_dir / name).is_file()), None)


def read_object(path: Path, kind: type = dict):
    """The JSON object (or list) in a file that a checkpoint or a run consists of."""
    check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        fail(f"{path} cannot be read as JSON ({first_line(error)}): copy or download it again")
    if not isinstance(content, kind):
        fail(f"{path}: a JSON {'object' if kind is dict else 'array'} is expected, this is a {type(content).__name__}")
    return content


def check_readable(path: Path) -> None:
    """Refuse a file that may not be read, and what a clone without git-lfs leaves in a file's place."""
    try:
        with open(path, "rb") as file:
            start = file.read(23)
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror})")
    if start == b"version https://git-lfs":
        fail(f"{path} is a git-lfs pointer in place of the file: run `git lfs pull` there")


@contextmanager
def quiet_transformers():
    """What is wrong becomes our one sentence, not a warning before it."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def empty_model(model_dir: Path, dtype: str):
    """The model that config.json describes, without dropout: its parameters have shapes but no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers(), parameters_on_meta():
            config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
            for part in (config, config.get_text_config()):
                for name in [name for name, value in part.to_dict().items() if "drop" in name and type(value) is float]:
                    setattr(part, name, 0.0)            # the policy that sampled is the policy that is scored
                part.return_dict, part._attn_implementation = True, None     # not one that is not installed here
            exact, model = (AutoModelForCausalLM.from_config(config, dtype=one, trust_remote_code=False)
                            for one in (torch.float32, getattr(torch, dtype)))
            for name, buffer in exact.named_buffers():  # tables of positions: made in float32, then rounded
                model.get_buffer(name).copy_(buffer)
            return model
    except Exception as error:                          # whatever a config can say that is wrong
        fail(f"{model_dir / 'config.json'}: transformers makes no causal language model of it ({first_line(error)}); "
             "copy it again, or give another model")


def text_config(model_dir: Path):
    """What config.json and its class say of the language model, under the names that all classes share."""
    from transformers import AutoConfig

    with quiet_transformers():
        return AutoConfig.from_pretrained(model_dir, trust_remote_code=False).get_text_config()


def longest_row(model_dir: Path) -> int | None:
    """Over how many tokens, from 1 on, the model is one function of its ids; None where config.json names no bound.

    Its context, or less: what depends on the length of the row (or of the longest row beside it) is not what sampled
    the row's first tokens.  transformers' own table of rotary frequencies is asked at every length.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = text_config(model_dir)
    longest = getattr(config, "max_position_embeddings", None)     # GPT-2's n_positions goes by this name, too
    rope = getattr(config, "rope_parameters", None) or {}
    for kind, settings in nested(rope).items():
        frequencies = ROPE_INIT_FUNCTIONS.get(settings.get("rope_type"))
        if longest and frequencies:
            of_one = frequencies(config, "cpu", seq_len=1, layer_type=kind)[0]
            longest = bisect_left(range(2, longest + 1), True, key=lambda length: not torch.equal(
                frequencies(config, "cpu", seq_len=length, layer_type=kind)[0], of_one)) + 1
    if longest and getattr(config, "attn_temperature_tuning", False):       # Llama 4 counts padding, too, from here on
        longest = min(longest, int(config.floor_scale) - 1)
    return longest


def nested(rope_parameters: dict) -> dict[str | None, dict]:
    """Kind of layer -> its rotary settings; None -> those of all layers."""
    by_kind = {kind: value for kind, value in rope_parameters.items() if isinstance(value, dict)}
    return by_kind or {None: rope_parameters}


def generation_config(model_dir: Path):
    """What generation_config.json says; None without one."""
    from transformers import GenerationConfig

    file = model_dir / "generation_config.json"
    if not file.is_file():
        return None
    read_object(file)
    try:
        with quiet_transformers():
            return GenerationConfig.from_pretrained(model_dir)
    except Exception as error:
        fail(f"{file}: transformers cannot read it ({first_line(error)}); mend it or delete it")


def several(names: list[str], what: str) -> str:
    """"1 tensor (a)", "7 tensors (a, b, c, …)"."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''} ({shown})"


# ================================================================ reading

@contextmanager
def parameters_on_meta():
    """Modules that are built in here have parameters with a shape but no memory; their buffers are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def weight_files(model_dir: Path) -> list[Path]:
    """model.safetensors, else the shards that the index names: those that transformers would read."""
    index = model_dir / "model.safetensors.index.json"
    if (model_dir / "model.safetensors").is_file():
        return [model_dir / "model.safetensors"]
    if index.is_file():
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            fail(f"{index}: no weight_map, tensor -> file, in this index: copy or download it again")
        paths = [model_dir / name for name in sorted(set(files.values()))]
        if missing := [path.name for path in paths if not path.is_file()]:
            fail(f"{index} names {several(missing, 'file')} that cannot be found: copy or download what is missing")
        return paths
    if found := sorted(path.name for path in model_dir.glob("*.safetensors") if path.is_file()):
        fail(f"{model_dir}: neither model.safetensors nor {index.name} is there, only {several(found, 'other file')}: "
             "copy or download what is missing")
    fail(f"{model_dir}: no weights here (*.safetensors; a pickle is never loaded)")


def open_weights(path: Path):
    check_readable(path)
    try:
        return safe_open(path, "pt")                    # checks the header and the file's length
    except (OSError, SafetensorError) as error:
        fail(f"{path} is cut short or damaged ({first_line(error)}): copy or download it again")


class WeightFiles:
    """The tensors of a checkpoint directory's safetensors, by name, read in parts."""

    def __init__(self, model_dir: Path):
        files = [open_weights(path) for path in weight_files(model_dir)]
        self.file_of = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def places(self, model) -> dict[str, tuple[list[str], bool]]:
        """Where transformers puts each tensor: the names in the model, and whether it computes on it on the way there.

        Without those that it leaves out by design: stored masks and rotary frequencies, heads for speculative decoding.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        state, prefix, mapping = model.state_dict(), model.base_model_prefix, get_model_conversion_mapping(model)
        renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
        converter_of = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        ignored = re.compile("|".join([r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$",
                                       *(model._keys_to_ignore_on_load_unexpected or ())]))
        places = {}
        for name in self.file_of:
            target, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:
                target, pattern = name, None
            targets = converter_of[pattern].target_patterns if pattern is not None else []
            targets = [target.replace(targets[0], other) for other in targets] if len(targets) > 1 else [target]
            if not ignored.search(target) or target in state:
                places[name] = targets, pattern is not None
        return places

    def what_is_wrong(self, model) -> str | None:
        """How the files and the model that config.json describes (on meta, not cut) disagree; None if they don't."""
        state, places = model.state_dict(), self.places(model)
        filled = {target for targets, _ in places.values() for target in targets}
        optional = re.compile("|".join(model._keys_to_ignore_on_load_missing or ()) or "$^")
        if missing := [names[0] for names in stored_tensors(model).values()
                       if not filled & set(names) and not optional.search(names[0])]:
            tie = "; if the head is the embedding, config.json must have tie_word_embeddings: true" * (
                missing == ["lm_head.weight"])
            return f"the weights lack {several(missing, 'tensor')} of the model in config.json{tie}"
        if left_over := [name for name, (targets, _) in places.items() if not state.keys() & set(targets)]:
            return (f"the weights have {several(left_over, 'tensor')} that the model in config.json has no place for; "
                    "config.json is of another model, or the tensors do not belong there")
        for name, (targets, computed) in places.items():
            have, want = self.file_of[name].get_slice(name), state[next(name for name in targets if name in state)]
            if want.is_floating_point() and have.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                return f"{name} is stored as {have.get_dtype()}, not as plain numbers: quantised weights are not read"
            if not computed and have.get_shape() != [*want.shape]:
                return f"{name} has shape {have.get_shape()} in the weights and {[*want.shape]} by config.json"
        return self.torn_tie(model)

    def torn_tie(self, model) -> str | None:
        """Weights that config.json ties and the files have twice must be the same: else transformers ties them not."""
        for first, *others in stored_tensors(model).values():
            for other in others if first in self.file_of else []:
                if other in self.file_of and not torch.equal(*(self.file_of[x].get_tensor(x) for x in (first, other))):
                    return (f"config.json ties {other} to {first} (tie_word_embeddings), but the weights have two "
                            "different tensors; set it to false in config.json if both are meant")
        return None

    def sources(self, model) -> dict[str, str] | None:
        """Name in the model -> name in the files; None unless transformers would take each tensor as it is."""
        places, tensors = self.places(model), stored_tensors(model).values()
        name_of = {target: name for name, (targets, _) in places.items() for target in targets}
        as_it_is = len(name_of) == len(places) and not any(computed for _, computed in places.values())
        keeps_float32 = model.dtype != torch.float32 and getattr(model, "_keep_in_fp32_modules_strict", None)
        if not as_it_is or keeps_float32 or not all(name_of.keys() & set(names) for names in tensors):
            return None
        return {names[0]: next(name_of[name] for name in names if name in name_of) for names in tensors}

    @torch.no_grad()
    def read_into(self, model, sources: dict[str, str]) -> None:
        """Fill parameters and stored buffers; each rank reads the rows of its shard and no others.

        sources: of this model before it was cut and sharded.  Embeddings and head may have more rows in the file.
        """
        for tensor, (first, *_) in stored_tensors(model).items():
            name = sources[first]
            source = self.file_of[name]
            if isinstance(tensor, DTensor):
                local = tensor.to_local()
                rows_per_rank = -(-tensor.shape[0] // dist.get_world_size())        # as torch.chunk cuts
                start = min(rows_per_rank * dist.get_rank(), tensor.shape[0])
                if len(local):
                    local.copy_(source.get_slice(name)[start:start + len(local)])
            else:
                tensor.copy_(source.get_slice(name)[:len(tensor)] if tensor.dim() else source.get_tensor(name))


def stored_tensors(model) -> dict[Tensor, list[str]]:
    """The model's parameters and persistent buffers; each with its names, several where weights are tied."""
    names: dict = {}
    state = model.state_dict().keys()
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        if name in state:
            names.setdefault(tensor, []).append(name)
    return names


# ================================================================ writing


def save_model(model, tokenizer, eos_ids: list[int], directory: Path) -> None:
    """An ordinary Hugging Face checkpoint directory with a manifest.json, whole or not at all.

    All ranks call it, rank 0 writes.
    """
    state = whole_state(model)
    if rank() > 0:
        return
    with saving(directory):
        temporary = empty_directory(directory.with_name(directory.name + ".tmp"))
        describe(model, tokenizer, eos_ids)
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
        name_for_transformers_4(temporary, tokenizer.padding_side)
        write_json(temporary / "manifest.json", {file.name: file_digest(file) for file in sorted(temporary.iterdir())})
        put_in_place(temporary, directory)


ROPE_TYPES_OF_4 = {"default", "linear", "dynamic", "yarn", "longrope", "llama3"}
COUNTED = {"phi3": {"longrope"}, "olmo": {"linear", "dynamic"}, "olmo2": {"linear", "dynamic"}}    # by their fields
# The same logits came out of transformers 4.57.6 for saved models of these types, of each kind of rope that they take.
READ_BY_4 = set("""
arcee bamba bitnet bloom codegen cohere cohere2 deepseek_v2 deepseek_v3 diffllama ernie4_5 ernie4_5_moe exaone4
falcon_h1 flex_olmo gemma gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss gptj granite
granitemoe helium hunyuan_v1_dense hunyuan_v1_moe jamba jetmoe lfm2 llama llama4_text mamba ministral mistral mixtral
mpt nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next seed_oss
smollm3 stablelm starcoder2 xglm
""".split())


def name_for_transformers_4(model_dir: Path, padding_side: str = "right") -> None:
    """Say under the names of transformers 4, which vLLM before 0.24 reads by, too, what version 5 has renamed: without
    them version 4 takes rope_theta for 10,000 in silence.  Version 5 reads both and makes the same of them."""
    from transformers import CONFIG_MAPPING

    config = read_object(model_dir / "config.json")
    for part in filter(None, (config, config.get("text_config"))):
        model_type, kinds = part.get("model_type", ""), nested(part.get("rope_parameters") or {})
        main = kinds.get(None) or kinds.get("full_attention") or {}
        scaling = {name: value for name, value in main.items() if name not in {
            "rope_theta", "rope_type", "type", "partial_rotary_factor", *part}}
        others = [value for value in kinds.values() if value is not main]
        # Version 4 has a second theta for the layers with a window (Gemma 3), and nothing else of theirs.
        kind = main.get("rope_type", "default")
        if "rope_theta" in main and kind in {"default"} | COUNTED.get(model_type, ROPE_TYPES_OF_4) and all(
                {**value} == {"rope_theta": value.get("rope_theta"), "rope_type": "default"} for value in others):
            scaling = {"type" if model_type in COUNTED else "rope_type": kind, **scaling}
            names = {"rope_theta": main["rope_theta"], "rope_scaling": None if kind == "default" else scaling,
                     "partial_rotary_factor": main.get("partial_rotary_factor"),
                     "rope_local_base_freq": others[0]["rope_theta"] if others else None}
            if model_type.startswith("gpt_neox"):
                names |= {"rotary_emb_base": main["rope_theta"], "rotary_pct": main.get("partial_rotary_factor")}
            part |= {name: value for name, value in names.items() if value is not None or name == "rope_scaling"}
        aliases = CONFIG_MAPPING[model_type].attribute_map if model_type in CONFIG_MAPPING else {}
        part |= {alias: part[name] for alias, name in aliases.items() if name in part}      # num_experts of Qwen3-MoE
    write_json(model_dir / "config.json", config)
    file = model_dir / "tokenizer_config.json"
    settings = read_object(file)
    if (model_dir / "tokenizer.json").is_file():        # is read as it is: version 4's own classes would add a BOS
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": padding_side,
                     "model_input_names": ["input_ids", "attention_mask"]}
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(file, settings)


def describe(model, tokenizer, eos_ids: list[int]) -> None:
    """Make config and generation config say what is true of the trained model: dtype, vocabulary, where it stops."""
    from transformers import GenerationConfig

    end, rows = eos_ids if len(eos_ids) > 1 else eos_ids[0], model.get_input_embeddings().weight.shape[0]
    for config in (model.config, model.config.get_text_config()):
        config.dtype, config.eos_token_id = model.dtype, end
        if (getattr(config, "pad_token_id", None) or 0) >= rows:
            config.pad_token_id = None                  # in the rows that were cut off; else the model cannot be built
    own = {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "do_sample": True}   # else no temperature fits
    try:
        model.generation_config.update(**own)
        model.generation_config.validate(strict=True)   # as save_pretrained does
    except ValueError:
        model.generation_config = GenerationConfig(**own)
