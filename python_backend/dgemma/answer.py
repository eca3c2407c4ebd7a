"""Committed blocks of one request to the text and the tokens that may be sent.

Knows stop ids, stop strings and max_new_tokens, and what must be held back for them; knows nothing
of canvases or transport.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from dgemma.chat import ChatTokenizer
from dgemma.detokenizer import Piece
from dgemma.sampling import Sampling


@dataclass(frozen=True)
class Delta:
    """What a block adds to the answer."""

    text: str  # without what could still become part of a stop string or of a character
    token_ids: tuple[int, ...]  # the tokens of that text, and control tokens between them
    finish_reason: str | None  # None = go on; "stop" or "length" = this was the last block


class Answer:
    """The answer of one request. It ends at whatever comes first in it:

    - a stop id, unless `ignore_eos`; neither it nor what follows is part of the answer;
    - the first position at which any stop string begins, wherever blocks end ("stop" as well);
    - `max_new_tokens` tokens ("length"); a stop id right behind them is not seen any more.

    Texts joined are the `decode` of the token ids joined, up to the stop string if there is one.
    The token ids are those whose text begins before it.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, sampling: Sampling, eos_token_ids: frozenset[int]
    ) -> None:
        self._detokenizer = tokenizer.detokenizer(sampling.return_tags)
        self._stop_ids = frozenset[int]() if sampling.ignore_eos else eos_token_ids
        self._remaining = sampling.max_new_tokens
        self._stops = sampling.stop
        self._text = ""  # settled, not sent
        self._pieces: deque[Piece] = deque()  # of that text
        self._ids: list[int] = []  # not sent; those of the pieces first
        self._sent = 0
        self._finished = False

    def push(self, block: Sequence[int]) -> Delta:
        """Take the next block (int token ids `[L]`) and return what may be sent.

        Raises RuntimeError after the block whose delta had a finish_reason.
        """
        if self._finished:
            raise RuntimeError("the answer has ended")
        useful, reason = self._cut(block)
        self._ids += useful
        pieces = self._detokenizer.push(useful)
        if reason is not None:
            pieces += self._detokenizer.finish()
        self._pieces += pieces
        self._text += "".join(piece.text for piece in pieces)
        end, matched = _scan(self._stops, self._text, final=reason is not None)
        if matched:
            reason = "stop"
        self._finished = reason is not None
        tokens = len(self._ids) if self._finished and not matched else self._release(end)
        text, self._text = self._text[:end], self._text[end:]
        token_ids, self._ids = tuple(self._ids[:tokens]), self._ids[tokens:]
        self._sent += tokens
        return Delta(text, token_ids, reason)

    @property
    def completion_tokens(self) -> int:
        """Tokens in all deltas so far."""
        return self._sent

    def _cut(self, block: Sequence[int]) -> tuple[Sequence[int], str | None]:
        """The block up to the first stop id or `max_new_tokens`, and which of them it was."""
        within = block[: self._remaining]
        self._remaining -= len(within)
        for index, token_id in enumerate(within):
            if token_id in self._stop_ids:
                return within[:index], "stop"
        return within, None if self._remaining else "length"

    def _release(self, characters: int) -> int:
        """Drop the pieces of the first `characters` of the text; how many tokens they have.

        A piece that only begins in them is taken whole, its other characters stay.
        """
        if characters == len(self._text):  # with the control tokens at its end
            tokens = sum(piece.tokens for piece in self._pieces)
            self._pieces.clear()
            return tokens
        tokens = 0
        while characters > 0:
            piece = self._pieces.popleft()
            tokens += piece.tokens
            characters -= len(piece.text)
            if characters < 0:
                self._pieces.appendleft(Piece(piece.text[characters:], 0))
                break
        return tokens


def annotate(
    tokenizer: ChatTokenizer, ids: Sequence[int], states: Sequence[int]
) -> tuple[str, list[int]]:
    """Text of a draft and the state of each of its characters.

    `ids` and `states` are `[L]`; states 0 provisional, 1 accepted, 2 pinned. A character of several
    tokens has the lowest of their states. Control tokens have no text.
    """
    detokenizer = tokenizer.detokenizer()
    texts: list[str] = []
    characters: list[int] = []
    end = 0
    for text, tokens in [*detokenizer.push(ids), *detokenizer.finish()]:
        # A piece without tokens of its own ends the last token of the piece before.
        start = end - (tokens == 0)
        end += tokens
        if text:
            texts.append(text)
            characters += [min(states[start:end] or [0])] * len(text)
    return "".join(texts), characters


def _scan(stops: tuple[str, ...], text: str, final: bool) -> tuple[int, bool]:
    """How much of the unsent text may be sent, and whether the first stop string begins there.

    While more text may come, an end of the text that could be the beginning of a stop string waits;
    so does a complete one behind it, which would not be the first.
    """
    complete = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
    begun = len(text)
    if not final:
        begun = min((_begins(stop, text) for stop in stops), default=begun)
    if complete is not None and complete <= begun:
        return complete, True
    return begun, False


def _begins(stop: str, text: str) -> int:
    """Where the longest end of the text begins that `stop`, longer than it, begins with."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0 and not stop.startswith(text[at:]):
        at = text.find(stop[0], at + 1)
    return at if at >= 0 else len(text)
