"""The command line. Only here are errors turned into words and exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from tilestream.errors import ConfigError, InterruptedRunError, TilestreamError

app = typer.Typer(
    name="tilestream", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr.",
)  # fmt: skip

ConfigPath = Annotated[Path, typer.Argument(help="YAML file, e.g. pipelines/demo.yaml.", show_default=False)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. tiles.mpp=0.25; may be repeated.")
]


WIDE = 170
"""Columns of tables that go into a file or a pipe."""


@app.command("run")
def run_command(
    config: ConfigPath,
    settings: SetOption = None,
    restart: Annotated[bool, typer.Option("--restart", help="Delete what the output holds of these slides and start over.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Do every N-th slide from the I-th (0-based): N jobs share one output. 'auto' takes SLURM_ARRAY_TASK_ID."
        ),
    ] = None,
    log_format: Annotated[str, typer.Option(help="auto (live on a terminal, lines in a file), text or json.")] = "auto",
) -> None:
    """Embed the slides of a config. Run again, it does only what is missing."""
    from tilestream.progress import LiveReporter, make_reporter, print_summary
    from tilestream.run import run

    if log_format not in ("auto", "text", "json"):
        raise ConfigError(f"--log-format: {log_format!r} is none of auto, text, json.")
    reporter = make_reporter(log_format)
    try:
        summary = run(config, settings or (), restart=restart, shard=_shard(shard), reporter=reporter)
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError("interrupted; what is finished is kept, and the same command resumes.") from interrupt
    finally:
        if isinstance(reporter, LiveReporter):
            reporter.close()
    if log_format == "json":
        print(summary.to_json())
    else:
        print_summary(summary, _console())
    raise typer.Exit(summary.exit_code)


def _console() -> Console:
    """Standard output; wide where no terminal sets the width, so that a file or a pipe gets whole lines."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _shard(text: str | None) -> tuple[int, int] | None:
    """`i/n`, or `auto` from the variables of a SLURM job array."""
    if text is None:
        return None
    if text == "auto":
        try:
            first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
            return int(os.environ["SLURM_ARRAY_TASK_ID"]) - first, int(os.environ["SLURM_ARRAY_TASK_COUNT"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                "--shard auto needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT; outside a job array write --shard 0/8."
            ) from error
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise ConfigError(f"--shard: {text!r} is not I/N with 0 <= I < N, e.g. 0/8.")
    return int(index), int(count)


@app.command("plan")
def plan_command(config: ConfigPath, settings: SetOption = None) -> None:
    """Say what a run would do: levels, tiles, shards, bytes, memory. Reads thumbnails only and writes nothing."""
    from tilestream.configfile import load_config
    from tilestream.planning import plan_slides, print_plan

    planned = plan_slides(load_config(config, settings or ()))
    print_plan(planned, _console())
    raise typer.Exit(planned.exit_code)


@app.command("inspect")
def inspect_command(
    image: Annotated[str, typer.Argument(help="Path or address of an image.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an image is, which backend opens it and why, and what to write in a config."""
    from tilestream.inspecting import describe_image, print_description

    description = describe_image(image)
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print_description(description, _console())


@app.command("verify")
def verify_command(
    output: Annotated[str, typer.Argument(help="An output folder, or one <slide id>.zarr in it.", show_default=False)],
    repair: Annotated[bool, typer.Option("--repair", help="Forget what is damaged, so that the next run redoes it.")] = False,
) -> None:
    """Compare every stored object with its checksum."""
    from tilestream.verifying import verify_output

    raise typer.Exit(verify_output(output, print, repair=repair))


@app.command("export")
def export_command(
    output: Annotated[str, typer.Argument(help="An output folder, or one <slide id>.zarr in it.", show_default=False)],
    to: Annotated[
        str,
        typer.Option("--to", help="trident-h5, clam-h5, pt, parquet, csv, geojson (QuPath), ome-zarr or spatialdata.", show_default=False),
    ],
    slide: Annotated[str | None, typer.Option(help="Id of one slide; else all of the output.")] = None,
    out: Annotated[str | None, typer.Option(help="The file for one slide, or a folder; else exports/FORMAT in the output.")] = None,
    in_bounds: Annotated[
        bool, typer.Option("--in-bounds", help="geojson: count places from the corner of OpenSlide's bounds, as QuPath does.")
    ] = False,
    allow_unfinished: Annotated[bool, typer.Option("--allow-unfinished", help="Take slides that lack tiles.")] = False,
) -> None:
    """Write finished slides in the formats of other programs."""
    from tilestream.exports import export_slides

    for line in export_slides(output, to, slide=slide, out=out, in_bounds=in_bounds, allow_unfinished=allow_unfinished):
        print(line)


@app.command("import")
def import_command(
    features: Annotated[str, typer.Argument(help="HDF5 file with features and coords, of TRIDENT or CLAM.", show_default=False)],
    slide: Annotated[str, typer.Option(help="The image they are of, or a name where there is none.", show_default=False)],
    out: Annotated[str, typer.Option(help="Output folder.", show_default=False)],
    patch_size_level0: Annotated[float | None, typer.Option(help="Side of a tile in level-0 px, where the file does not say.")] = None,
) -> None:
    """Make a finished store of features that another program computed."""
    from tilestream.importing import import_features

    print(import_features(features, slide, out, patch_size_level0=patch_size_level0))


@app.command("report")
def report_command(
    output: Annotated[str, typer.Argument(help="An output folder.", show_default=False)],
    to: Annotated[str | None, typer.Option("--to", help="The HTML file; else report.html in the output.")] = None,
) -> None:
    """Write one HTML file on all slides of an output: pictures, counts, failures, seconds, throughput, recipe."""
    from tilestream.report import write_report

    print(write_report(output, to))


@app.command("encoders")
def encoders_command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the encoders that a config can name."""
    from dataclasses import asdict

    from rich.table import Table

    from tilestream.models.encoders import known_encoders

    rows = [asdict(entry) for entry in known_encoders()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    columns = {
        "name": "name", "dim": "dim", "tile_size": "tile px", "mpp": "µm/px", "output": "output", "precision": "precision", "normalisation": "normalisation",
        "licence": "licence", "gated": "gated", "source": "source",
    }  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for key, words in columns.items():
        table.add_column(words, no_wrap=key == "name", overflow="fold")
    for row in rows:
        table.add_row(*("-" if row[key] in (None, False) else "yes" if row[key] is True else str(row[key]) for key in columns))
    console = _console()
    console.width = console.width if console.is_terminal else WIDE
    console.print(table)
    print(
        'Also timm:<model>, hf:<repository>, and "module:factory": a Python function that returns a torch.nn.Module with `dim`. --json has more columns.'
    )


@app.command("doctor")
def doctor_command() -> None:
    """Check this machine: libraries, device, memory, disk."""
    from tilestream.doctor import run_checks

    console = _console()
    checks = run_checks()
    for check in checks:
        mark = "[green]ok  [/green]" if check.good else "[red]BAD [/red]"
        console.print(f"{mark} {check.name:<14}", end="")
        console.print(check.words if check.good else f"{check.words}: {check.advice}", highlight=False, markup=False)
    raise typer.Exit(0 if all(check.good for check in checks) else 2)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of the config, for editors."""
    from tilestream.config import config_schema

    print(json.dumps(config_schema(), indent=1))


def _on_terminate(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        app(arguments)
    except TilestreamError as error:
        print(f"tilestream: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)
