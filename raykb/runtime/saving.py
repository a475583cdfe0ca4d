"""The checkpoints of one training, as each of its workers writes and reads them."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from raykb.engine import checkpoint, shards
from raykb.engine.checkpoint import Damaged, Part
from raykb.engine.loop import Training, Worker
from raykb.engine.messages import gathered, told, told_bytes
from raykb.engine.seeding import rng_state
from raykb.runtime.storage import Storage

_logger = logging.getLogger(__name__)

FINAL_BYTES = 2 * 2**30
"""From this size on, a model in shares is only put together when somebody asks for it."""


class Checkpoints:
    """Saves and restores a training together with the other workers that share it.

    Args:
        folder: the training's.
        worker: this one.
        saved: is called when a checkpoint is committed, with its step.

    Attributes:
        step: of the newest checkpoint saved or restored here; None while there is none.
        notes: what a person is to know of how the training was restored, a line each; of rank 0.
    """

    def __init__(self, folder: Storage, worker: Worker, saved: Callable[[int], None]) -> None:
        self._folder, self._worker, self._saved = folder, worker, saved
        self.step: int | None = None
        self.notes: list[str] = []

    def save(self, training: Training, state: dict[str, Any]) -> None:
        """Write a checkpoint: every rank its part, then rank 0 the manifest, then all go on."""
        step, rank = state["step"], self._worker.rank
        shard = training.shard
        mine = rank == 0 if shard is None else shard.saved
        if not mine:
            state = {"step": step, "rng": state["rng"]}
        part = checkpoint.write_part(
            self._folder,
            state,
            step=step,
            rank=rank,
            holds={} if shard is None else shards.holds(state),
        )
        parts = [Part(**each) for each in self._of_all(asdict(part))]
        if rank == 0:
            checkpoint.commit(self._folder, parts, step=step)
        self.step = step
        self._saved(step)

    def restore(self, training: Training) -> int:
        """Put the newest checkpoint that verifies into ``training``; return its step, or 0.

        What a writer that died has begun is removed: no other rank writes before all have restored.
        """
        if self._worker.rank == 0:
            checkpoint.sweep(self._folder, self._tell)
        state = self._own() if training.shard is None else self._share(training)
        if state is None:
            self.notes += ["begins anew, for no checkpoint is left"] * bool(self.notes)
            return 0
        self.step = training.restore(state)
        self.notes.append(f"goes on after step {self.step}")
        return self.step

    def whole_model(self, training: Training) -> dict[str, Any] | None:
        """Return the trained model's state dict; None if it is in shares and large.

        One that is in shares is read from the checkpoint that was saved last.
        """
        if training.shard is None:
            return training.parts["model"].state_dict()
        folder = checkpoint.folder_of(training.steps)
        parts = checkpoint.manifest(self._folder, folder)
        if sum(sum(part.holds.values()) for part in parts) >= FINAL_BYTES:
            return None
        return shards.whole_model(self._folder, folder)

    def _own(self) -> dict[str, Any] | None:
        """Return the state of rank 0, which decides which one it is, with this rank's random state.

        All parts go through rank 0, since they are small.
        """
        rank = self._worker.rank
        found = checkpoint.newest(self._folder, self._tell) if rank == 0 else None
        count = self._from_first(None if found is None else len(found))
        if count is None:
            return None
        parts = [self._bytes_of_first(part) for part in found or [b""] * count]
        state: dict[str, Any] = checkpoint.decode(parts[0])
        if rank < len(parts):
            state["rng"] = checkpoint.decode(parts[rank])["rng"]
        return state

    def _share(self, training: Training) -> dict[str, Any] | None:
        """Return this rank's share of the newest checkpoint of which every rank can read its own.

        Rank 0 proposes one. If some rank finds that what it needs of it does not verify, it is set
        aside and rank 0 proposes the one before. Random states come back only to as many ranks as
        were saved.
        """
        names = training.parts["model"].state_dict().keys()
        while True:
            found = self._from_first(self._newest() if self._worker.rank == 0 else None)
            if found is None:
                return None
            folder, parts = found[0], [Part(**part) for part in found[1]]
            own = self._worker.rank if len(parts) == self._worker.size else None
            state: dict[str, Any] = {"rng": rng_state()}
            damage = ""
            try:
                state |= shards.read_share(self._folder, folder, parts, names, own)
            except Damaged as error:
                damage = str(error)
            damages = list(filter(None, self._of_all(damage)))
            if not damages:
                return state
            if self._worker.rank == 0:
                checkpoint.set_aside(self._folder, folder, Damaged(damages[0]), self._tell)

    def _newest(self) -> tuple[str, list[dict[str, Any]]] | None:
        """Return the folder and the parts of the newest checkpoint that has a manifest."""
        for folder in checkpoint.folders(self._folder):
            try:
                return folder, list(map(asdict, checkpoint.manifest(self._folder, folder)))
            except FileNotFoundError:
                continue
            except Damaged as error:
                checkpoint.set_aside(self._folder, folder, error, self._tell)
        return None

    def _tell(self, line: str) -> None:
        """Keep what a person is to know; it is in the worker's log, too."""
        _logger.warning(line)
        self.notes.append(line)

    def _of_all(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        worker = self._worker
        return gathered(value, device=worker.device) if worker.size > 1 else [value]

    def _from_first(self, value: Any) -> Any:
        """Return rank 0's value."""
        worker = self._worker
        return told(value, device=worker.device) if worker.size > 1 else value

    def _bytes_of_first(self, data: bytes) -> bytes:
        """Return rank 0's bytes."""
        worker = self._worker
        return told_bytes(data, device=worker.device) if worker.size > 1 else data
