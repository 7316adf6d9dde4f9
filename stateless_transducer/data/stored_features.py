"""Stored features with checksums: written by ``transducer prepare``, compared whenever they are read.

lhotse's archives have no checksums, so a cut carries that of its features. It holds for the bytes at one place of one
archive; cuts whose features were stored anew, or by other programs, have none.
"""

from __future__ import annotations

import zlib
from itertools import accumulate

import numpy as np
from lhotse import LilcomChunkyWriter
from lhotse.cut import Cut, MonoCut
from lhotse.features import Features

from stateless_transducer.features import FbankConfig

_CHECKSUM = "features_crc32"
"""Custom field of a cut: ``<storage key>:<CRC-32 of these bytes>``."""
# a configuration checks its bounds: too slow for each utterance
_NUM_MEL_BINS = FbankConfig().num_mel_bins


def with_checksum(cut: MonoCut) -> MonoCut:
    """Add the checksum of its features to a cut; they are in a complete archive of `LilcomChunkyWriter`."""
    assert cut.features is not None and cut.features.storage_type == LilcomChunkyWriter.name, cut.id
    checksum = f"{cut.features.storage_key}:{_crc32(cut.features):08x}"
    cut.custom = {**(cut.custom or {}), _CHECKSUM: checksum}
    return cut


def load_features(cut: Cut) -> np.ndarray:
    """Read the stored features of a cut: (T_in, F).

    Raises:
        ValueError: they are missing, damaged or of another width; the message names the cut and the file.
    """
    features = cut.features if isinstance(cut, MonoCut) else None
    try:
        if isinstance(cut, MonoCut) and _is_damaged(cut):
            raise ValueError("their checksum differs.")
        frames = cut.load_features()
        if frames is None:
            raise ValueError("there are none.")
        if frames.shape[1:] != (_NUM_MEL_BINS,):
            raise ValueError(f"their shape is {frames.shape}, but must be (frames, {_NUM_MEL_BINS}).")
        return frames
    except (AssertionError, OSError, ValueError) as err:
        # lhotse adds lines that describe the cut
        cause = (str(err).strip() or type(err).__name__).splitlines()[0]
        path = "" if features is None else f" in {features.storage_path}"
        raise ValueError(
            f"The stored features of {cut.id}{path} cannot be read: {cause} Run `transducer prepare` again."
        ) from err


def _is_damaged(cut: MonoCut) -> bool:
    features, checksum = cut.features, (cut.custom or {}).get(_CHECKSUM)
    if features is None or features.storage_type != LilcomChunkyWriter.name or not isinstance(checksum, str):
        return False
    key, _, digits = checksum.rpartition(":")
    return key == features.storage_key and digits != f"{_crc32(features):08x}"


def _crc32(features: Features) -> int:
    # the key is the place of the first chunk, and the sizes of all
    start, *_, end = accumulate(map(int, str(features.storage_key).split(",")))
    with open(features.storage_path, "rb") as file:
        file.seek(start)
        return zlib.crc32(file.read(end - start))
