"""What every test relies on: checked annotations, no network, one thread, fixed seeds."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from pathlib import Path

# set before anything imports these libraries: tests never reach a hub
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# commands started by tests inherit the single thread as well
os.environ.setdefault("OMP_NUM_THREADS", "1")
# and read what the first of them has compiled of the package: else each compiles all of it anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import jaxtyping
import numpy as np
import pytest
import torch
from annotations import install

# every annotated function of the package checks its arguments, shapes included, while tests run; but for files, which
# know no shapes and call small functions for every value of a file, and for the page, whose generators gradio knows by
# their kind
ROOMS = sorted({path.stem for path in Path(__file__).parents[1].glob("imagen_pytorch/*") if path.stem[0] not in "_."})
CHECKED = [f"imagen_pytorch.{room}" for room in ROOMS if room not in ("io", "checkpoints", "ui")]
install(CHECKED)
jaxtyping.config.update("jaxtyping_disable", True)  # until the tests begin: files compute their parameters

from imagen_pytorch.io import files  # noqa: E402 - imported with checks

files.WAITS = (0.0, 0.0)  # between the attempts to reach a store
torch.set_num_threads(1)
# whatever is imported stays, half a million objects, and looking through them for garbage takes a fifth of all time:
# see `only_new_garbage`
gc.disable()


#: files whose tests are about files, commands and runs: whole trainings, whose time the checks would multiply; or about
#: mistakes of callers, who have no such checks. What they call is checked in the files about its mathematics and shapes
UNCHECKED = ("test_cascade_calls", "test_cascade_fast", "test_cascade_inputs", "test_cascade_numbers",
             "test_cascade_own_guidance", "test_checkpoint", "test_cli", "test_config", "test_data_cache",
             "test_data_claims", "test_data_clip_faults", "test_data_damage", "test_data_fuzz", "test_data_names",
             "test_data_near_misses", "test_data_outputs", "test_data_places", "test_data_skipping",
             "test_data_tables", "test_data_trouble", "test_evaluation", "test_learning", "test_many",
             "test_optimizers", "test_peer_readme", "test_posthoc", "test_promises", "test_readme", "test_resume",
             "test_sharding", "test_storage", "test_trainer", "test_training_heartbeat", "test_training_identity",
             "test_training_workers", "test_traps")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def only_new_garbage() -> Iterator[None]:
    """The garbage collector looks at what the tests of a file make, at the latest after them, and at nothing older."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def checked_annotations(request: pytest.FixtureRequest) -> Iterator[None]:
    """Annotations, shapes included, are checked in every test but those of `UNCHECKED`."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", request.module.__name__.startswith(UNCHECKED))
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Each test starts from the same global random state, whatever ran before."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries still read the global state
    torch.manual_seed(0)
