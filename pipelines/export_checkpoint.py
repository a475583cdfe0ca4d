"""Make one plain state dict of a training's newest checkpoint, however many workers saved it."""

import argparse
import sys
from pathlib import Path

USAGE = """
A pipeline's workers save the layers that they have, each in a file of its own; this puts them
together under the names of the model that was not cut. Every file is held against the hash that
its checkpoint names. Nothing in DIR is changed, so a run that is under way may be exported too.

The file is read by

  model.load_state_dict(torch.load("model.pt", weights_only=True))

examples:
  export_checkpoint.py runs/gpipe_train-20260821-101500 --out model.pt
  export_checkpoint.py runs/gpipe_train-20260821-101500/training --step 4000 --out model.pt
  export_checkpoint.py s3://bucket/run --out model.pt
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python pipelines/export_checkpoint.py",
        description=__doc__,
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "directory",
        metavar="DIR",
        help="run directory, or the folder of a training in it; a path or a URI",
    )
    add("--out", metavar="FILE", type=Path, required=True, help="file to make; must not be there")
    add("--step", metavar="N", type=int, help="checkpoint to take (default: the newest whole one)")
    return parser.parse_args(arguments)


if __name__ == "__main__":  # run from a checkout that need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    parse(None)  # --help, before the imports below take their seconds

import torch
from torch import Tensor

from raykb.data.atomic import whole_file
from raykb.engine import checkpoint, shards
from raykb.engine.checkpoint import Damaged
from raykb.runtime.run_files import checkpoints
from raykb.runtime.secrets import redacted
from raykb.runtime.storage import Storage, check_new


def read(storage: Storage, step: int | None) -> tuple[str, dict[str, Tensor], list[str]]:
    """Return the checkpoint that was taken, the whole model's state dict, and what is wrong with
    newer checkpoints.

    Raises:
        ValueError: there is no such checkpoint, or it does not verify.
    """
    there = checkpoint.folders(storage)
    wanted = there if step is None else [checkpoint.folder_of(step)]
    problems: list[str] = []
    for folder in wanted:
        try:
            return folder, shards.whole_model(storage, folder), problems
        except FileNotFoundError:
            problems.append(f"{folder}: is not there, or was never finished")
        except Damaged as error:
            problems.append(str(error))
    raise ValueError(
        f"{storage.uri}: no checkpoint can be read:\n  "
        + "\n  ".join(problems)
        + f"\nThere are {', '.join(there)}."
    )


def main(arguments: list[str] | None = None) -> None:
    """Export, and say what was written."""
    given = parse(arguments)
    try:
        check_new(given.out)
        storage = checkpoints(given.directory)
        folder, model, passed_over = read(storage, given.step)
        with whole_file(given.out) as file:
            torch.save(model, file)
    except (ValueError, OSError) as error:
        sys.exit(redacted(f"error: {error}"))
    for problem in passed_over:
        print(redacted(f"passed over: {problem}"), file=sys.stderr)
    values = [value for value in model.values() if isinstance(value, torch.Tensor)]
    print(
        f"{given.out}: {len(values)} tensors with {sum(value.numel() for value in values):,} "
        f"numbers, {given.out.stat().st_size:,} bytes, from {redacted(storage.uri)}/{folder}"
    )


if __name__ == "__main__":
    main()
