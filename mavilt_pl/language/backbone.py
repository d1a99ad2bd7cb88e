"""Load a pretrained causal language model, and refuse what the language stages cannot use."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, masking_utils

from mavilt_pl.errors import MaviltWarning, UserError
from mavilt_pl.language.hub import cached_folder, hub_answers, is_hub_name
from mavilt_pl.language.options import Attention

# Computed from the config today, so nothing is lost if they are ignored.
UNUSED_BUFFERS = ("masked_bias", "inv_freq")  # saved by older versions of transformers
FAMILIES = "Llama, Qwen, Phi, Pythia or GPT-2"


class UnsupportedAttentionError(UserError):
    """The architecture does not support the requested attention kernel."""


def load_backbone(
    name: str,
    attention: Attention | str = "sdpa",
    pretrained: bool = True,
    local_files_only: bool = False,
) -> tuple[Any, Any]:
    """Model (float32, safetensors only) and tokenizer from a local folder or a hub name.

    Args:
        name: a folder that `save_pretrained` wrote, or a name on the hub.
        attention: attention kernel of transformers.
        pretrained: false takes the architecture with random weights.
        local_files_only: never ask the hub; its local cache is still searched.

    Raises:
        UserError: there is no such model, weights are missing, or the language stages cannot use
            it: a tokenizer beyond the embedding, no key-value cache, or a head that is more than a
            linear map.
    """
    # Without this check transformers would ask the hub for a mistyped path, and report what the hub
    # says about it.
    looks_local = name.startswith((".", "/")) or "runs/" in name or not name
    if looks_local and not (Path(name) / "config.json").exists():
        raise UserError(
            f"backbone {name}: no config.json there. Expected a folder saved by Hugging Face's "
            "save_pretrained, such as the one that `mavilt fit --config backbone.yaml` leaves in "
            "<run>/backbone"
        )
    # A folder with `auto_map` brings code of its own, which never runs. Without this setting
    # transformers would ask on the terminal.
    folder = name
    if is_hub_name(name) and (local_files_only or not hub_answers()):
        # By its folder in the cache: transformers asks for some files of a name whatever
        # `local_files_only` says, and tries each for a minute.
        folder = cached_folder(name)
    source = {"trust_remote_code": False, "local_files_only": folder != name}
    model = _load_model(folder, attention, pretrained, source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    except Exception as error:
        raise UserError(
            f"backbone {name}: no readable tokenizer ({_reason(error)}). Expected tokenizer.json "
            "next to the model, as the tokenizer's save_pretrained writes it"
        ) from error
    _check_rows(name, model, tokenizer)
    _check_forward(name, model)
    return model, tokenizer


@contextmanager
def whole_rows() -> Iterator[None]:
    """Rows in it hold one sequence each, and transformers need not ask the device.

    Without a mask it looks in each forward pass whether position ids restart within a row, and the
    host waits for the answer. It has no argument for it (`transformers.masking_utils`, read in
    version 5.24).
    """
    name = "find_packed_sequence_indices"
    asked = getattr(masking_utils, name, None)
    if asked is None:
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, asked)


def _load_model(name: str, attention: str, pretrained: bool, source: dict[str, bool]) -> Any:
    options = {"dtype": torch.float32, "attn_implementation": attention}
    try:
        if not pretrained:
            config = AutoConfig.from_pretrained(name, **source)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            # Mismatches are collected, so that `_check_loaded` can name them with what is missing.
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source,
            **options,
        )
    except ImportError as error:
        raise UserError(
            f"attention={attention} is not available here ({_reason(error)}); use sdpa"
        ) from None
    except Exception as error:
        # transformers has no class for this error, so its message is the only sign.
        if "does not support an attention implementation" in str(error):
            architecture = str(error).split()[0]
            raise UnsupportedAttentionError(
                f"backbone {name}: this model ({architecture}) does not support "
                f"attention={attention}; set --model.init_args.model.attention eager"
            ) from error
        # A folder that exists but cannot be loaded needs another advice than a name that is
        # nowhere.
        missing = isinstance(error, OSError) and not Path(name).is_dir()
        what = "no such folder, and not on the hub" if missing else "it cannot be loaded"
        raise UserError(
            f"backbone {name}: {what} ({_reason(error)}). Expected a causal language model, such "
            f"as {FAMILIES}, in a folder saved by Hugging Face's save_pretrained, or its name on "
            "the hub; if it was downloaded or copied, do it again"
        ) from error
    model, loading_info = loaded  # a pair because of `output_loading_info`
    _check_loaded(name, loading_info)
    return model


def _reason(error: Exception) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line[:200]}"


def _check_loaded(name: str, loading_info: Mapping[str, Any]) -> None:
    """Refuse missing or mismatched weights, which transformers would leave random."""
    wrong = list(loading_info.get("missing_keys", ()))
    wrong += [key for key, *_ in loading_info.get("mismatched_keys", ())]
    if wrong:
        raise UserError(
            f"backbone {name}: {len(wrong)} of its weights are missing, or not of the size that "
            f"config.json gives (first: {min(wrong)}). Expected all of them, or they would be "
            "random; download or copy the folder again, or set pretrained: false for a model from "
            "scratch"
        )
    unused = []
    for key in loading_info.get("unexpected_keys", ()):
        if not key.endswith(UNUSED_BUFFERS):
            unused.append(key)
    if unused:
        warnings.warn(
            f"backbone {name}: {len(unused)} weights of its files belong to no part of the model "
            f"and are ignored (first: {min(unused)})",
            MaviltWarning,
            stacklevel=4,
        )


def _check_rows(name: str, model: Any, tokenizer: Any) -> None:
    """Refuse tokens without a row, and a head without a row for each token.

    The ids of such tokens would be those of special tokens and codes.
    """
    rows = model.get_input_embeddings().num_embeddings
    special = set(tokenizer.all_special_tokens)
    # Special tokens without a row are allowed: text is tokenised without them.
    beyond = []
    for token, index in tokenizer.get_vocab().items():
        if index >= rows and token not in special:
            beyond.append((index, token))
    if beyond:
        index, token = min(beyond)
        raise UserError(
            f"backbone {name}: its tokenizer has {len(beyond)} tokens without a row in the model "
            f"(first: {token!r}, id {index}; the model has {rows:,} rows). Grow the model with "
            f"transformers' resize_token_embeddings({len(tokenizer)}), or remove these tokens, and "
            "save both again"
        )
    head = model.get_output_embeddings()
    if head is None or head.weight.shape[0] != rows:
        raise UserError(
            f"backbone {name}: {type(model).__name__} has no head with a row for each of its "
            f"{rows:,} tokens"
        )


@torch.no_grad()
def _check_forward(name: str, model: Any) -> None:
    """Refuse a model without a cache, and a head that is more than a linear map.

    The language stages read the rows of the head, not its function, so capped or scaled logits
    would be lost.
    """
    head, kind = model.get_output_embeddings(), type(model).__name__
    was_training = model.training
    model.eval()
    # A probe of up to four ids is enough: the check is of the head's form, not of its values.
    ids = torch.arange(min(4, head.weight.shape[0]))[None]
    outputs = model.base_model(input_ids=ids, use_cache=True)
    if not {"past_key_values", "cache"} & outputs.keys():
        raise UserError(
            f"backbone {name}: {kind} returns no key-value cache, which generation needs; use "
            f"another model, such as {FAMILIES}"
        )
    logits = model(input_ids=ids, use_cache=False).logits
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    # Compared by value, since scaling, soft caps and projections have no common name in configs.
    linear = F.linear(hidden, head.weight, head.bias)
    model.train(was_training)
    if not torch.allclose(logits, linear, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"backbone {name}: the logits of {kind} are not a linear map of its last hidden state "
            "(they are scaled, capped or projected), which is not supported; use a model with a "
            f"plain head, such as {FAMILIES}"
        )
