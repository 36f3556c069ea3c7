"""A causal language model as one function: tokens and who sees whom in, logits at the places that are read out.

Shapes: B rows, Q new tokens in each, K tokens in the cache afterwards (the last Q are the new ones), V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging

from rlhf_bench.harness.checkpoint import OWN_FILES
from rlhf_bench.harness.engines.tree import Tree
from rlhf_bench.harness.errors import UserError

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
BLOCK = 128  # queries of a row whose keys are looked for together


class Steered:
    """A transformers model on a device, called with explicit positions and an explicit mask; see `steerable`."""

    def __init__(self, module: Any, dtype: torch.dtype, device: str) -> None:
        config = module.config.get_text_config()
        self._kinds = set(getattr(config, "layer_types", None) or ())
        self._window: int | None = getattr(config, "sliding_window", None)
        self.grouped = module.config._attn_implementation == "sdpa"
        if self.grouped:
            module.set_attn_implementation(_GROUPED)
        self._selects = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._module: Any = module.to(device).eval()
        self.device = torch.device(device)
        self.dtype = dtype

    @torch.inference_mode()
    def __call__(
        self, tokens_BQ: Tensor, positions_BQ: Tensor, sees_BQK: Tensor, positions_BK: Tensor, cache: Any, read: Tensor
    ) -> Tensor:
        """Logits [B, len(read), V] at the places `read` among the new tokens; `cache` grows by the new tokens.

        Of a model without a head: its states [B, len(read), D].
        """
        mask = self._masks(sees_BQK, positions_BQ, positions_BK)
        options = {"logits_to_keep": read} if self._selects else {}
        out: Tensor = self._module(
            input_ids=tokens_BQ,
            attention_mask=mask,
            position_ids=positions_BQ,
            past_key_values=cache,
            use_cache=True,
            **options,
        )[0]
        return out if self._selects else out[:, read]

    def _masks(self, sees_BQK: Tensor, positions_BQ: Tensor, positions_BK: Tensor) -> Any:
        """What the architecture takes as a prepared mask: one of [B, 1, Q, K], or one for each kind of its layers."""
        full = self._additive(sees_BQK)
        if not self._window or self._kinds == {"full_attention"}:
            return full
        near = self._additive(sees_BQK & (positions_BQ[:, :, None] - positions_BK[:, None, :] < self._window))
        if "full_attention" not in self._kinds:
            return near
        return {"full_attention": full, "sliding_attention": near}

    def _additive(self, sees_BQK: Tensor) -> Tensor:
        mask: Any = torch.zeros(sees_BQK.shape, dtype=self.dtype, device=self.device)
        mask = mask.masked_fill_(~sees_BQK, float("-inf"))[:, None]
        if self.device.type == "cpu" and len(mask) == 1:
            mask.blocks = [_block(mask, sees_BQK[0], first) for first in range(0, mask.shape[2], BLOCK)]
        return mask  # type: ignore[no-any-return]


class Model(Steered):
    """A causal language model in a folder.

    Raises UserError for an architecture with layers other than attention, which such a mask cannot steer, and for a
    checkpoint that is no language model.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: str) -> None:
        module = _load(path, dtype)
        if not steerable(module):
            raise UserError(
                f"{path} is a {type(module).__name__}: the hf engine runs models whose layers are all attention with"
                " explicit positions. Serve this one elsewhere."
            )
        super().__init__(module, dtype, device)
        self.context, self.end_ids = bounds(module.config, module.generation_config)
        self.token_bytes, shares = self._try_cache()
        self.shares = self.grouped and not self._window and shares

    def _try_cache(self) -> tuple[int, bool]:
        """The bytes of a token's keys and values, and whether every layer reads what a cache says is shared."""
        places = torch.arange(2, device=self.device)[None]
        sees = torch.ones(1, 1, 1, dtype=torch.bool, device=self.device)
        one, first, second = places[:, :1] * 0, places[:, :1], places[:, 1:]
        cache: Any = DynamicCache()
        self(one, first, sees, first, cache, one[0])
        row = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        size = sum(keys.nbytes + values.nbytes for keys, values in row)
        beside = slabs([[(keys[:, :0], values[:, :0]) for keys, values in row]], 1, row)
        self(one, second, sees, second, beside, one[0])
        return size, all(layer.was_shared for layer in beside.layers)


def bounds(config: Any, generation_config: Any) -> tuple[int, frozenset[int]]:
    """How many tokens a model reads at most, and the ids that end an answer, as its configurations say."""
    text = config.get_text_config()
    context: int = getattr(text, "max_position_embeddings", None) or sys.maxsize
    return context, _ids(generation_config.eos_token_id) | _ids(text.eos_token_id)


def steerable(module: Any) -> bool:
    """Whether all layers are attention with explicit positions, so that a mask decides what a token sees."""
    kinds = set(getattr(module.config.get_text_config(), "layer_types", None) or ())
    explicit = "position_ids" in inspect.signature(module.forward).parameters
    return explicit and not module._is_stateful and not kinds - ATTENTION_LAYERS


def _load(path: Path, dtype: torch.dtype) -> Any:
    """The language model in a folder, all of its weights from the folder's safetensors files."""
    logging.disable_progress_bar()
    options: Any = {"use_safetensors": True, **OWN_FILES}
    require_writes(path, AutoConfig.from_pretrained(path, **OWN_FILES))
    try:
        module, loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} does not load as a language model: {str(error).splitlines()[0]}") from error
    if loaded["missing_keys"]:
        raise UserError(f"{path} lacks the weights {', '.join(sorted(loaded['missing_keys'])[:3])}: save it again.")
    return module


def require_writes(path: Path, config: Any) -> None:
    """Raises UserError where the checkpoint is no language model."""
    kinds = config.architectures or []
    if any("Classification" in kind for kind in kinds):
        raise UserError(f"{path} is a {kinds[0]}, which scores texts and writes none. Give a language model.")


def _ids(given: int | Sequence[int] | None) -> frozenset[int]:
    return frozenset() if given is None else frozenset([given] if isinstance(given, int) else given)


def _grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' sdpa attention without its copies of keys and values for every query head of a group.

    The group of query heads that shares a key head becomes a dimension that scaled_dot_product_attention broadcasts:
    the queries where there is one a row (decoding), the batch where there is one row (a stretch of a tree).
    """
    slab = getattr(key, "slab", None)
    if slab is not None and slab.shared is not None and all(options.get(name) is None for name in _UNKNOWN_TO_SHARED):
        slab.was_shared = True
        return _shared_attention(query, key, value, attention_mask, slab.shared, options.get("scaling")), None
    blocks = getattr(attention_mask, "blocks", ())
    if len(blocks) > 1 and all(options.get(name) is None for name in _UNKNOWN_TO_SHARED):
        return _blocked_attention(query, key, value, blocks, options.get("scaling")), None
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    if kv_heads == heads or (rows > 1 and length > 1) or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    groups = heads // kv_heads
    if length == 1:
        query = query.view(rows, kv_heads, groups, width)
    else:
        query = query.view(kv_heads, groups, length, width).transpose(0, 1)
        key, value = (t.expand(groups, *t.shape[1:]) for t in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    if length > 1:
        out = out.transpose(0, 1)
    return out.reshape(rows, heads, length, width).transpose(1, 2).contiguous(), None


Block: TypeAlias = tuple[slice, slice | Tensor, Tensor]
"""Of a mask [1, 1, Q, K]: some neighbouring queries, the keys that any of them sees, and that part of the mask."""


def _block(mask: Tensor, sees_QK: Tensor, first: int) -> Block:
    queries = slice(first, min(first + BLOCK, len(sees_QK)))
    seen = sees_QK[queries].any(0).nonzero()[:, 0]
    begin, end = int(seen[0]), int(seen[-1]) + 1
    keys = slice(begin, end) if end - begin == len(seen) else seen
    return queries, keys, mask[:, :, queries, keys]


def _blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None
) -> Tensor:
    """The attention of one row [1, H, Q, W], each block of queries to the keys alone that one of them sees.

    Of a tree that is a part: not what comes later, nor the branches beside. Returns [1, Q, H, W].
    """
    _, heads, length, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(kv_heads, heads // kv_heads, length, width).transpose(0, 1)
    out = torch.empty_like(grouped)
    for queries, keys, mask in blocks:
        near, far = (each[:, :, keys].expand(len(grouped), -1, -1, -1) for each in (key, value))
        out[:, :, queries] = torch.nn.functional.scaled_dot_product_attention(
            grouped[:, :, queries], near, far, attn_mask=mask, scale=scale
        )
    return out.transpose(0, 1).reshape(1, heads, length, width).transpose(1, 2).contiguous()


def _shared_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, shared: tuple[Tensor, Tensor], scale: float | None
) -> Tensor:
    """One new token a row [B, H, 1, W] to its row's own keys [B, KV, K, W] and to keys [KV, P, W] that all rows share.

    The shared part is one matrix product for the whole batch; the two softmaxes are joined by their maxima and sums
    (Milakov & Gimelshein 2018, arXiv 1805.02867). Returns [B, 1, H, W].
    """
    rows, heads, _, width = query.shape
    kv_heads = shared[0].shape[0]
    grouped = (query * (width**-0.5 if scale is None else scale)).view(rows, kv_heads, heads // kv_heads, width)
    own = (grouped @ key.transpose(-1, -2)).float()
    if mask is not None:
        own = own + mask
    far = (grouped.transpose(0, 1).reshape(kv_heads, -1, width) @ shared[0].transpose(-1, -2)).float()
    far_top = far.amax(-1, keepdim=True)
    far = (far - far_top).exp_()

    def by_row(each: Tensor) -> Tensor:
        return each.view(kv_heads, rows, heads // kv_heads, each.shape[-1]).transpose(0, 1)

    top = torch.maximum(own.amax(-1, keepdim=True), by_row(far_top))
    own = (own - top).exp_()
    weight = (by_row(far_top) - top).exp()
    out = own.to(value.dtype) @ value + by_row(far.to(value.dtype) @ shared[1]) * weight.to(value.dtype)
    total = own.sum(-1, keepdim=True) + by_row(far.sum(-1, keepdim=True)) * weight
    return (out / total).to(query.dtype).view(rows, 1, heads, width)


_UNKNOWN_TO_SHARED = ("position_bias", "softcap", "s_aux", "head_mask")
_GROUPED = "rlhf_bench_grouped"
AttentionInterface.register(_GROUPED, _grouped_attention)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a tree, computed: `logits` [len(read), V] at the places `read`; `keys` says what `cache` holds.

    `stop` is one past the last token computed so far.
    """

    stop: int
    read: list[int]
    logits: Tensor
    keys: Tensor
    cache: Any


def walk(model: Steered, tree: Tree, reads: Sequence[int], *, stretch_tokens: int) -> Iterator[Stretch]:
    """Computes a tree from left to right, `stretch_tokens` at a time; `reads` are the places whose logits are wanted.

    The cache holds the current stretch and those before it that later tokens still see, and nothing else.
    """
    tokens, positions, ends = (
        torch.tensor(values, device=model.device) for values in (tree.tokens, tree.positions, tree.ends)
    )
    wanted = sorted(set(reads))
    cache = DynamicCache()
    held = torch.empty(0, dtype=torch.long, device=model.device)
    for start in range(0, len(tree.tokens), stretch_tokens):
        stop = min(start + stretch_tokens, len(tree.tokens))
        new = torch.arange(start, stop, device=model.device)
        keys = torch.cat([held, new])
        sees = (keys <= new[:, None]) & (new[:, None] < ends[keys])
        read = wanted[bisect_left(wanted, start) : bisect_left(wanted, stop)]
        at = torch.tensor([place - start for place in read], dtype=torch.long, device=model.device)
        logits = model(tokens[None, new], positions[None, new], sees[None], positions[None, keys], cache, at)[0]
        yield Stretch(stop, read, logits, keys, cache)
        kept = ends[keys] > stop
        held = keys[kept]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]


class Slab(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values [B, heads, capacity, width] in memory reserved once; the first `used` are filled.

    `shared` are keys and values [heads, length, width] that stand before those of every row; attention finds them
    through the keys that `update` returns, and leaves word in `was_shared`.
    """

    def __init__(self, keys: Tensor, values: Tensor, used: int, shared: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.all_keys, self.all_values, self.used = keys, values, used
        self.shared, self.was_shared = shared, False
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._expose()

    def _expose(self) -> None:
        keys: Any = self.all_keys[:, :, : self.used]
        keys.slab = self
        self.keys, self.values = keys, self.all_values[:, :, : self.used]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values behind the others and returns all of them, without a copy."""
        start, self.used = self.used, self.used + key_states.shape[-2]
        self.all_keys[:, :, start : self.used] = key_states
        self.all_values[:, :, start : self.used] = value_states
        self._expose()
        return self.keys, self.values


Row = list[tuple[Tensor, Tensor]]
"""One sequence's keys and values, by layer, each [heads, length, width]."""


def gather(stretch: Stretch, path: Sequence[int]) -> Row:
    """The keys and values of the tokens at `path`, which this stretch's cache holds."""
    where = torch.searchsorted(stretch.keys, torch.tensor(path, device=stretch.keys.device))
    return [(layer.keys[0][:, where], layer.values[0][:, where]) for layer in stretch.cache.layers]


def slabs(rows: Sequence[Row], capacity: int, shared: Row | None = None) -> Any:
    """A cache of `capacity` tokens a row that holds `rows`, aligned at their ends; zeros before shorter ones.

    `shared` stands before every row and is kept once.
    """
    used = max(row[0][0].shape[1] for row in rows)

    def lay(pieces: Sequence[Tensor]) -> Tensor:
        heads, _, width = pieces[0].shape
        out = pieces[0].new_empty(len(pieces), heads, capacity, width)
        for slot, piece in enumerate(pieces):
            start = used - piece.shape[1]
            out[slot, :, :start] = 0
            out[slot, :, start:used] = piece
        return out

    return Cache(
        layers=[
            Slab(
                lay([row[i][0] for row in rows]),
                lay([row[i][1] for row in rows]),
                used,
                shared[i] if shared else None,
            )
            for i in range(len(rows[0]))
        ]
    )
