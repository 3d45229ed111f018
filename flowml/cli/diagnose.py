"""``flowml doctor``: what this machine has, and what to do about it."""

from __future__ import annotations

import dataclasses
import json

import click

from flowml.cli.arguments import json_option
from flowml.cli.endings import reported
from flowml.doctor import examine


@click.command(name="doctor")
@json_option
@reported
def doctor_command(as_json: bool) -> None:
    """Look at versions, BLAS, allocator, sockets and configuration; say what to do."""
    found = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in found]))
        return
    width = max(len(finding.name) for finding in found)
    for finding in found:
        click.echo(f"{finding.status:<4}  {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            click.echo(f"{'':<4}  {'':<{width}}  -> {finding.advice}")
