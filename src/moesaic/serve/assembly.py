"""Puts together what an engine runs: decoder, draft, and as many blocks as the memory holds."""

from collections.abc import Sequence

import torch

from moesaic.errors import ModelError, ServeError
from moesaic.model import Transformer
from moesaic.serve.blocks import BlockPool
from moesaic.serve.decoder import Decoder, TorchDecoder
from moesaic.serve.draft import Draft, Lookup, ModelDraft
from moesaic.serve.local import LocalModel
from moesaic.serve.native import BLOCK_SIZE, NativeDecoder, open_library, uncovered
from moesaic.serve.runner import Runner
from moesaic.serve.settings import EngineSettings


def assemble(model: LocalModel, settings: EngineSettings) -> tuple[Runner, BlockPool]:
    """Raises ServeError when the memory does not hold a block, ModelError for kernels or a draft that cannot be had."""
    small = None if settings.draft in (None, "lookup") else _open_draft(model, settings)
    blocks = _blocks([model.model] if small is None else [model.model, small.model], settings)
    context = model.model.config.context
    draft: Draft | None = Lookup() if settings.draft == "lookup" else None
    if small is not None:
        draft = ModelDraft(build_decoder(small.model, blocks, settings, context), small.folder.name)
    runner = Runner(build_decoder(model.model, blocks, settings, context), draft)
    return runner, BlockPool(blocks, settings.block_size, settings.prefix_cache)


def build_decoder(model: Transformer, blocks: int, settings: EngineSettings, context: int) -> Decoder:
    """The native decoder where it is wanted and can be had, else torch. Raises ModelError."""
    why = "as asked"
    if settings.kernels != "torch":
        why = uncovered(model) or (f"blocks of {settings.block_size}" if settings.block_size != BLOCK_SIZE else "")
        if not why:
            library = open_library()
            if not isinstance(library, str):
                return NativeDecoder(model, library, blocks, context, torch.get_num_threads(), settings.most_rows)
            why = library
        if settings.kernels == "native":
            raise ModelError(f"no native kernels here ({why}); use --kernels torch, or install a C++ compiler")
    return TorchDecoder(model, blocks, settings.block_size, settings.batch_invariant, why)


def _blocks(models: Sequence[Transformer], settings: EngineSettings) -> int:
    """Blocks that the memory holds, of the model and its draft together; no more than all requests can fill."""
    block = sum(_position_bytes(m) for m in models) * settings.block_size
    most = settings.max_running * -(-models[0].config.context // settings.block_size)
    blocks = min(settings.kv_memory // block, most)
    if blocks < 1:
        raise ServeError(f"{settings.kv_memory} bytes do not hold a block of keys and values; give at least {block}")
    return blocks


def _position_bytes(model: Transformer) -> int:
    """Of keys and values of one position in all layers."""
    config, element = model.config, torch.empty(0, dtype=model.compute_dtype).element_size()
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * element


def _open_draft(model: LocalModel, settings: EngineSettings) -> LocalModel:
    assert settings.draft is not None
    small = LocalModel(settings.draft)  # type: ignore[arg-type]
    sizes = {m.model.config.vocab_size for m in (model, small)}
    if len(sizes) > 1 or not small.tokenizer.shares_tokens(model.tokenizer):
        raise ModelError(f"{settings.draft} has another tokenizer than {model.folder}; a draft must share it")
    return small
