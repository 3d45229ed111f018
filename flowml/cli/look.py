"""``flowml show`` and ``flowml explain``: a graph as it is asked, and as it would run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from flowml.cli.arguments import (
    cluster_option,
    graph_options,
    groups_of,
    groups_option,
    json_option,
    options_of,
)
from flowml.cli.building import build
from flowml.cli.endings import reported

FORMS = ("text", "svg", "mermaid")


@click.command(name="show")
@graph_options
@click.option("--format", "form", type=click.Choice(FORMS), default="text", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False), help="A file instead of the screen.")
@reported
def show_command(form: str, output: str | None, **given: Any) -> None:
    """Draw a graph: operators, scopes, edges, and the loop through each table."""
    built = build(given["target"], options_of(given, given["replicas"] or 1))
    graph = built.graph
    text = {"text": graph.__str__, "svg": graph.to_svg, "mermaid": graph.to_mermaid}[form]()
    if output is None:
        click.echo(text)
        return
    Path(output).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    click.echo(f"wrote {output}")


@click.command(name="explain")
@graph_options
@groups_option
@cluster_option
@click.option(
    "--calibrate",
    is_flag=True,
    help="Time all replicas at once on the workers of --cluster, or of one started here.",
)
@json_option
@reported
def explain_command(
    as_json: bool, calibrate: bool, groups: str | None, cluster: str | None, **given: Any
) -> None:
    """Explain how a graph would run: stages, traffic, memory, the time of a step, advice."""
    replicas = given["replicas"] or 2
    built = build(given["target"], options_of(given, replicas))
    measured = built.graph.measure(replicas, cluster) if calibrate else None
    explanation = built.graph.explain(replicas, groups_of(groups), cluster, measured)
    if as_json:
        click.echo(json.dumps(explanation.record()))
    else:
        click.echo(explanation)
