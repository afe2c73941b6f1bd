"""Who holds the right to save to a place: what locks and claims say about their run, and how errors call it."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from .errors import CheckpointLocked


def myself() -> dict[str, Any]:
    """This process, as a lock or claim describes its run."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def told_by(text: bytes) -> dict[str, Any]:
    """What a lock or claim says about its run; nothing if it is none."""
    try:
        found = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return {}
    return {name: found[name] for name in ("pid", "host", "since") if name in found}


def in_words(text: bytes) -> str:
    """The run that a lock or claim describes."""
    known = [f"{name} {value}"[:100] for name, value in told_by(text).items()]
    return f"another run ({', '.join(known)})" if known else "another run"


def taken(holder: str, place: str, done: str) -> CheckpointLocked:
    """The error that says who has a place."""
    return CheckpointLocked(f"{holder} {done} {place}; choose another checkpoint_path or end it")
