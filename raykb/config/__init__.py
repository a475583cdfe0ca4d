"""A run's configuration: YAML and ``--set`` overrides to a dict; the constructor is the schema.

    file ──load──▶ whole dict ──check──▶ every problem at once ──build──▶ objects

A section is the keyword arguments of a constructor. Where there is a choice, ``name`` picks the
constructor out of a table::

    model: {name: wide_resnet, depth: 40, widen: 2}      build(MODELS, config["model"], classes=10)

A file says only what differs from the constructors' defaults; a loaded configuration is whole, with
every default in it. So any argument can be set, and what is kept of a run holds all that decided
it, whatever becomes of the defaults.

YAML 1.1 reads ``1e-3`` as text, ``no`` as false, ``1:30`` as 90 and ``012`` as 10. Such values
are refused where they stand, on the command line as well, with what to write instead.

The section ``smoke:`` holds, nested like the file itself, what is different in a smoke run.
A mapping there is merged into the section of that key; one with a ``name`` replaces it, since
another constructor takes other arguments, and so does one of labelled rows.
"""

from raykb.config.checking import build, check
from raykb.config.completion import complete, unwritable
from raykb.config.loading import SMOKE, load, override
from raykb.config.problems import ConfigError, Problems
from raykb.config.schema import Renamed, Section, Value
from raykb.config.writing import diff, dump, flatten

__all__ = [
    "SMOKE",
    "ConfigError",
    "Problems",
    "Renamed",
    "Section",
    "Value",
    "build",
    "check",
    "complete",
    "diff",
    "dump",
    "flatten",
    "load",
    "override",
    "unwritable",
]
