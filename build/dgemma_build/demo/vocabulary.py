"""The demo tokenizer: one token per byte, behind Gemma 4's control tokens.

Knows the ids of the control tokens and how to write `tokenizer.json`; knows nothing of tasks.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|think|>"),
    *("<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", "<|image>", "<|image|>", "<image|>"),
]
FIRST_BYTE = 64
VOCAB_SIZE = FIRST_BYTE + 256
PAD, EOS, BOS = 0, 1, 2
# The role lines of a chat are one token each, so that a Sudoku's prompt is as long as a canvas.
ROLES = ("user\n", "model\n")
USER, MODEL = FIRST_BYTE - 2, FIRST_BYTE - 1
TURN_START, TURN_END = CONTROL.index("<|turn>"), CONTROL.index("<turn|>")
IMAGE_START, IMAGE, IMAGE_END = (CONTROL.index(t) for t in ("<|image>", "<|image|>", "<image|>"))


def to_ids(text: str) -> list[int]:
    """Token ids of text without control tokens."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def chat_prompt(user: str) -> list[int]:
    """What the chat template renders for one user message, as ids."""
    return [BOS, TURN_START, USER, *to_ids(user), TURN_END, *to_ids("\n"), TURN_START, MODEL]


def build_tokenizer() -> Tokenizer:
    spare = [f"<unused{i}>" for i in range(USER - len(CONTROL))]
    vocab = {name: i for i, name in enumerate([*CONTROL, *spare, *ROLES])}
    # ByteLevel writes each byte as one printable character; `bytes_char` order is theirs, so
    # ask it rather than repeat its table.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for byte in range(256):
        vocab[_printable(byte)] = FIRST_BYTE + byte
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CONTROL + spare])
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    return tokenizer


def _printable(byte: int) -> str:
    """GPT-2's reversible byte-to-character table (`bytes_to_unicode`)."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return (
        chr(byte)
        if byte in keep
        else chr(256 + [b for b in range(256) if b not in keep].index(byte))
    )


def save_tokenizer(directory: Path) -> None:
    build_tokenizer().save(str(directory / "tokenizer.json"))
