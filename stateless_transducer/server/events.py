"""A transcript while it comes into being: server-sent events, named as in OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.text.symbols import Vocabulary

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""That nothing between the server and the client keeps events back."""


async def transcript_events(
    heard: AsyncIterator[Segment | Transcript],
    tokens: Vocabulary,
    *,
    has_segments: bool,
    describe: Callable[[Transcript], dict[str, Any]],
) -> AsyncIterator[str]:
    """``transcript.text.delta``: what a segment adds to the text; at the end ``transcript.text.done``.

    Args:
        heard: segments, and behind the last one the transcript of them all.
        tokens: the model's.
        has_segments: with ``transcript.text.segment`` for each, silent ones included.
        describe: what is said of the transcript at the end.
    """
    text, number = "", 0
    async for found in heard:
        if isinstance(found, Transcript):
            yield event({"type": "transcript.text.done", **describe(found)})
            continue
        longer = tokens.join([text, found.text])
        if longer != text:
            yield event({"type": "transcript.text.delta", "delta": longer[len(text) :]})
        if has_segments:
            yield event({"type": "transcript.text.segment", "id": number, **found.known()})
        text, number = longer, number + 1


def event(fields: dict[str, Any]) -> str:
    """One event as it is sent."""
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"
