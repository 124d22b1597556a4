"""Labelled logits as the bytes of an .npz, the form in which bundles and services keep them."""

import io

import numpy as np

from models.calibration.types import LogitSet


def pack_logits(logit_set: LogitSet) -> bytes:
    """The .npz of a calibration set: logits float32 `(N, C)`, labels `(N,)`, split, drawn; equal sets, equal bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        logits=logit_set.logits.astype(np.float32),
        labels=logit_set.labels,
        split=np.array(logit_set.split),
        drawn=np.array(logit_set.drawn),
    )
    return buffer.getvalue()
