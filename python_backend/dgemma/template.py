"""A canvas template: an answer with gaps, as one pinned or free token for each position.

Knows the gap mark and how text around it is tokenised; knows nothing of denoising.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dgemma.decoding import shown
from dgemma.errors import InvalidRequest

FIELD = "canvas_template"
FREE = -1
GAP = re.compile(r"<\|gap:([0-9]{1,9})\|>")


def parse_template(
    text: str, encode: Callable[[str], list[int]], limit: str, max_tokens: int
) -> tuple[int, ...]:
    """The template's positions: a token id where it is pinned, FREE where it is not.

    `<|gap:12|>` stands for twelve free positions. The text before, between and after gaps is
    tokenised piece by piece, so that it comes back as it was given. Raises InvalidRequest for an
    empty template, a mark that is not a gap of 1 or more, and more than `max_tokens` positions;
    `limit` is the name of what sets that maximum.
    """
    positions: list[int] = []
    # Splitting at a pattern with one group alternates text and gap lengths.
    for index, part in enumerate(GAP.split(text)):
        if index % 2:
            positions += [FREE] * _gap(int(part), max_tokens)
        elif "<|gap" in part:
            mark = part[part.index("<|gap") :][:24]
            raise InvalidRequest(
                FIELD, f"malformed gap {shown(mark)}; write <|gap:12|> for twelve free tokens"
            )
        else:
            positions += encode(part)
        if len(positions) > max_tokens:
            raise InvalidRequest(
                FIELD,
                f"longer than {limit}, which is {max_tokens} tokens; "
                "shorten the template or its gaps",
            )
    if not positions:
        raise InvalidRequest(FIELD, "empty; leave it out for a free answer")
    return tuple(positions)


def pin(
    template: tuple[int, ...], eos_token_id: int, canvas_length: int, max_new_tokens: int
) -> tuple[int, ...]:
    """Every position of the canvases that `max_new_tokens` reaches: the template, then EOS.

    The EOS behind a template that fills its last canvas is a canvas of its own, so that an answer
    that may be longer still ends where the template does.
    """
    canvases = -(-max_new_tokens // canvas_length)
    return template + (eos_token_id,) * (canvases * canvas_length - len(template))


def _gap(length: int, max_tokens: int) -> int:
    if not 1 <= length <= max_tokens:
        raise InvalidRequest(
            FIELD, f"got a gap of {length}; allowed: 1 to {max_tokens} free tokens; change the gap"
        )
    return length
