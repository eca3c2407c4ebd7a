"""Tokenizers and checkpoint directories without weights, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from dgemma.chat import ChatTokenizer
from dgemma.generation import GenerationDefaults
from dgemma_build.demo.vocabulary import build_tokenizer, save_tokenizer

CHAT_TEMPLATE = Path(__file__).parents[1] / "build" / "demo" / "chat_template.jinja"
DEFAULTS = GenerationDefaults(
    max_new_tokens=64,
    max_denoising_steps=48,
    t_min=0.4,
    t_max=0.8,
    entropy_bound=0.1,
    stability_threshold=1,
    confidence_threshold=0.005,
    eos_token_ids=(1, 5),
    pad_token_id=0,
    bos_token_id=2,
)


def byte_tokenizer() -> ChatTokenizer:
    """One token per byte, with the demo's chat template."""
    return ChatTokenizer(build_tokenizer(), CHAT_TEMPLATE.read_text(), {"bos_token": "<bos>"})


def byte_level_words() -> Tokenizer:
    """A byte-level tokenizer some of whose tokens hold several bytes, or parts of two characters.

    Ids: 0 `<eos>`, 1 `<tag>` (added, but text), 2-257 bytes in the order of their spelling, then
    the merged ones.
    """
    spelled = sorted(byte_spelling().values())
    vocab = {"<eos>": 0, "<tag>": 1} | {name: i + 2 for i, name in enumerate(spelled)}
    spell = byte_spelling()
    merged = [b" is", "é".encode(), b"\xe2\x82", b"\xac \xe2", b"\x82\xac", "😀!".encode()]
    for raw in merged:
        vocab["".join(spell[byte] for byte in raw)] = len(vocab)
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<eos>"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens([AddedToken("<tag>")])
    return tokenizer


def byte_spelling() -> dict[int, str]:
    """Byte -> its character in a byte-level vocabulary, as the demo's tokenizer says it."""
    tokenizer = build_tokenizer()
    return {byte: str(tokenizer.id_to_token(64 + byte)) for byte in range(256)}


def gemma_like() -> Tokenizer:
    """Words with `▁` for a space, and byte tokens for what the vocabulary lacks.

    Ids: 0 `<pad>`, 1 `<eos>`, 2 `<bos>`, 3 `<unk>`, 4-259 the bytes, then the words.
    """
    words = ["▁", "▁the", "▁café", "a", "b", "c", "é", "€", "▁▁▁", "\n", "the"]
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    vocab = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>"])
    return tokenizer


def write_checkpoint(directory: Path, generation: dict[str, Any] | None = None) -> Path:
    """`config.json`, `generation_config.json`, `tokenizer.json` and `chat_template.jinja`."""
    text_config = {"vocab_size": 320, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    (directory / "config.json").write_text(json.dumps({"text_config": text_config}))
    (directory / "generation_config.json").write_text(json.dumps(generation or {}))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE.read_text())
    save_tokenizer(directory)
    return directory
