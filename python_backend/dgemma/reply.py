"""What a client gets for a request's events: the responses of the wire contract.

Knows stream modes and the meaning of each output; knows nothing of how a response is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgemma.request import Request, StreamMode
from dgemma.scheduler.events import Block, Draft, Event, Finished


@dataclass(frozen=True)
class Response:
    """One response; fields are the outputs of `model_repository/diffusion_gemma`."""

    kind: str  # draft, block or final
    text_output: str = ""
    token_ids: tuple[int, ...] = ()  # only where the request asked for them
    finish_reason: str = ""  # of a final response: stop, length or cancelled
    block_index: int = 0  # of a final response: the last block's
    denoising_step: int = 0  # steps run on that block
    usage: str = ""  # JSON, on the final response
    text_states: tuple[int, ...] = ()  # [len(text_output)] of a draft: 0, 1 accepted, 2 pinned


class Reply:
    """Turns one request's events, in order, into its responses.

    `annotate` gives a draft's text and one state per character.
    """

    def __init__(
        self,
        request: Request,
        annotate: Callable[[Sequence[int], Sequence[int]], tuple[str, list[int]]],
    ) -> None:
        self._request, self._annotate = request, annotate
        self._texts: list[str] = []  # of all blocks, for a client that wants one response
        self._token_ids: list[int] = []
        self._last = Response("block")

    def response(self, event: Event) -> Response | None:
        """The response to an event; None where the stream mode has none for it.

        Raises the error of a request that ended with one.
        """
        match event:
            case Draft():
                return self._draft(event)
            case Block():
                return self._block(event)
            case Finished():
                return self._final(event)

    def _draft(self, draft: Draft) -> Response | None:
        if self._request.stream is not StreamMode.DRAFT:
            return None
        text, states = self._annotate(draft.token_ids, draft.states)
        return Response(
            "draft",
            text,
            self._requested(draft.token_ids),
            block_index=draft.block_index,
            denoising_step=draft.denoising_step,
            text_states=tuple(states),
        )

    def _block(self, block: Block) -> Response | None:
        self._last = Response(
            "block",
            block.delta.text,
            self._requested(block.delta.token_ids),
            block_index=block.block_index,
            denoising_step=block.denoising_steps,
        )
        if self._request.stream is not StreamMode.NONE:
            return self._last
        self._texts.append(block.delta.text)
        self._token_ids += block.delta.token_ids
        return None

    def _final(self, finished: Finished) -> Response:
        if finished.error is not None:
            raise finished.error
        return Response(
            "final",
            "".join(self._texts),
            self._requested(self._token_ids),
            finished.finish_reason,
            self._last.block_index,
            self._last.denoising_step,
            finished.usage.to_json(),
        )

    def _requested(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(token_ids) if self._request.sampling.return_token_ids else ()
