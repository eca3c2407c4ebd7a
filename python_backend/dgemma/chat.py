"""A checkpoint's tokenizer and chat template.

Knows `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` as Hugging Face writes
them; knows nothing of requests. Safe to use from several threads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from dgemma.detokenizer import Detokenizer, Vocabulary
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.generation import GenerationDefaults
from dgemma.tags import TAGS


class ChatTokenizer:
    """Text to token ids and back, and messages to text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """`special_tokens` are the template's variables, such as `bos_token`.

        Raises ConfigurationError where the template does not compile.
        """
        # What a tokenizer.json says of these is for training; here it would cut prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        self._with_tags = Vocabulary(tokenizer, TAGS)
        self._special_tokens = dict(special_tokens or {})
        self._template = None if chat_template is None else _compile(chat_template)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> ChatTokenizer:
        """Read `tokenizer.json`, and where there are any `chat_template.jinja` and the special
        tokens of `tokenizer_config.json`.

        Raises ConfigurationError naming the file that is missing or corrupt.
        """
        tokenizer = _read_tokenizer(directory / "tokenizer.json")
        defaults = GenerationDefaults.from_checkpoint(directory)
        special = {
            "bos_token": tokenizer.id_to_token(defaults.bos_token_id) or "",
            "eos_token": tokenizer.id_to_token(defaults.eos_token_ids[0]) or "",
            "pad_token": tokenizer.id_to_token(defaults.pad_token_id) or "",
        }
        special |= _read_special_tokens(directory / "tokenizer_config.json")
        path = directory / "chat_template.jinja"
        try:
            template = path.read_text(encoding="utf-8") if path.exists() else None
            return cls(tokenizer, template, special)
        except (OSError, UnicodeDecodeError, TemplateSyntaxError) as error:
            line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
            raise ConfigurationError(
                f"{path}{line}: {error}; copy it again from the checkpoint's source"
            ) from None

    @property
    def vocab_size(self) -> int:
        """Token ids that have a meaning, from 0 on."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of text; control tokens written in it are recognised, none are added.

        Raises UnicodeEncodeError for text that has no UTF-8 form (unpaired surrogates).
        """
        text.encode("utf-8")
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def render(self, messages: list[dict[str, Any]], /, **template_kwargs: Any) -> str:
        """The chat as the template writes it, with the opening of the model's turn.

        Raises InvalidRequest naming `messages` where there is no template or it refuses them.
        """
        if self._template is None:
            raise InvalidRequest(
                "messages", "this checkpoint has no chat template; send text_input or input_ids"
            )
        variables = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **template_kwargs,
            **self._special_tokens,
            "messages": messages,
        }
        try:
            return self._template.render(variables)
        except Exception as error:  # a template is a program: it may raise anything
            raise InvalidRequest(
                "messages", f"the chat template refused them: {error or type(error).__name__}"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids without control tokens; bytes that are not UTF-8 read as U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def detokenizer(self, tags: bool = False) -> Detokenizer:
        """A fresh one: `decode` in pieces, while the ids arrive; `tags` keeps those of `TAGS`."""
        return Detokenizer.of(self._with_tags if tags else self._vocabulary)


def _compile(source: str) -> Template:
    """Compile as Hugging Face does: sandboxed, with the same filters and functions."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment.from_string(source)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which is no part of a prompt."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        raise ConfigurationError(
            f"{path}: no such file; copy it from the checkpoint's source, next to config.json"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for any content
        raise ConfigurationError(
            f"{path}: not a tokenizer: {error}; copy it again from the checkpoint's source"
        ) from None


def _read_special_tokens(path: Path) -> dict[str, str]:
    """`*_token` entries: plain strings, or objects whose `content` is one."""
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path}: expected a JSON object")
    entries = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in config.items()
        if key.endswith("_token")
    }
    return {key: value for key, value in entries.items() if isinstance(value, str)}
