"""Sound of a microphone, with the optional package sounddevice."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from stateless_transducer.commands.shared.console import complain


def listen(block_s: float) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the samples of the default microphone, one channel, with their rate, until the caller stops.

    Sound that comes in while the caller works waits in memory.

    Args:
        block_s: Seconds of a block.

    Raises:
        ValueError: There is no microphone, or a package for it is missing.
    """
    sounddevice = _sounddevice()
    blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def receive(data: Any, num_samples: int, time: Any, status: Any) -> None:
        if status:
            complain(f"The microphone reports: {status}.")
        blocks.put(np.frombuffer(bytes(data), np.int16))

    with ExitStack() as stack:
        try:
            # the rate that the device prefers always works
            rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
            stream = sounddevice.RawInputStream(
                samplerate=rate, blocksize=round(rate * block_s), channels=1, dtype="int16", callback=receive
            )
            # starts the device
            stack.enter_context(stream)
        except (sounddevice.PortAudioError, ValueError) as err:
            raise ValueError(
                f"`microphone`: there is none that can be used ({err}). Connect one, or name a file."
            ) from err
        complain("Listening; press Ctrl-C to stop.")
        while True:
            yield blocks.get(), rate


def _sounddevice() -> Any:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except ImportError as err:
        raise ValueError(
            "`microphone` needs the package sounddevice: pip install 'stateless-transducer[microphone]'."
        ) from err
    except OSError as err:
        raise ValueError(f"`microphone` needs the library PortAudio (Debian: libportaudio2): {err}.") from err
    return sounddevice
