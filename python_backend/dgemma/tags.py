"""The control tokens around parts of an answer: thinking and tool calls, as Gemma 4 spells them.

Knows the spellings, from the public prompt format of Gemma 4; knows nothing of how they are parsed.
"""

from __future__ import annotations

CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
TOOL_CALL, TOOL_CALL_END = "<|tool_call>", "<tool_call|>"
QUOTE = '<|"|>'  # on both sides of a string among the arguments of a call

# What a text keeps, of all control tokens, where a request sets `return_tags`.
TAGS = (CHANNEL, CHANNEL_END, TOOL_CALL, TOOL_CALL_END, QUOTE)
