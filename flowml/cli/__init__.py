"""The command line: ``flowml``, ``python -m flowml`` and ``dask flowml``."""

from __future__ import annotations

from importlib.metadata import version

import click

from flowml.cli.contrast import compare_command
from flowml.cli.demonstrate import demo_command
from flowml.cli.diagnose import doctor_command
from flowml.cli.look import explain_command, show_command
from flowml.cli.start import run_command
from flowml.cli.starter import new_command

__all__ = ["main"]


@click.group(name="flowml", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("flowml"), prog_name="flowml")
def main() -> None:
    """Dataflow graphs for distributed machine learning on Dask.

    Exit codes: 0 done, 1 the graph or the data is wrong, 2 usage, 3 diverged, 4 cluster lost,
    5 an operator failed or stalled, 130 interrupted, 143 terminated.
    """


for command in (
    demo_command,
    run_command,
    show_command,
    explain_command,
    compare_command,
    doctor_command,
    new_command,
):
    main.add_command(command)
