"""A transcript in server-sent events with the names of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from stateless_transducer.recognition.transcript import Segment, Transcript
from stateless_transducer.text.symbols import Vocabulary

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers that keep proxies from buffering events."""


async def transcript_events(
    results: AsyncIterator[Segment | Transcript],
    tokens: Vocabulary,
    *,
    has_segments: bool,
    describe: Callable[[Transcript], dict[str, Any]],
) -> AsyncIterator[str]:
    """``transcript.text.delta``: the text that a segment adds; at the end ``transcript.text.done``.

    Args:
        results: Segments, followed by the transcript.
        tokens: the model's.
        has_segments: Add ``transcript.text.segment`` for each segment, silent ones included.
        describe: Fields of the last event.
    """
    text, number = "", 0
    async for result in results:
        if isinstance(result, Transcript):
            yield event({"type": "transcript.text.done", **describe(result)})
            continue
        longer = tokens.join([text, result.text])
        if longer != text:
            yield event({"type": "transcript.text.delta", "delta": longer[len(text) :]})
        if has_segments:
            yield event({"type": "transcript.text.segment", "id": number, **result.known()})
        text, number = longer, number + 1


def event(fields: dict[str, Any]) -> str:
    """One event as it is sent."""
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"
