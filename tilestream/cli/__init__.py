"""The command line. Only here are errors turned into words and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tilestream import __version__
from tilestream.cli.help import PlainCommand, PlainGroup, fitted, name_refused, write_all_letters
from tilestream.cli.interrupts import Interrupts, say_when_interrupted
from tilestream.cli.options import AnnotationsOption, FitSetOption, SetOption, SlidesOption
from tilestream.errors import ConfigError, InterruptedRunError, TilestreamError, place_error, storage_error

app = typer.Typer(
    name="tilestream", cls=PlainGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First time: tilestream init slides/, then tilestream run config.yaml, then tilestream view embeddings.",
)  # fmt: skip

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. pipelines/demo.yaml.", show_default=False)]
FORCE = "Replace a file that was not written by this command, or was changed since."

WIDE = 170  # columns of tables that go into a file or a pipe


def _print_version(asked: bool) -> None:  # noqa: FBT001  # as typer calls it
    if asked:
        print(f"tilestream {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Stream tiles from images too large to hold, embed them, mix them with a windowed transformer, write Zarr."""


@app.command(
    "run",
    cls=PlainCommand,
    epilog="Examples: tilestream run config.yaml; with another encoder, tilestream run config.yaml --set encoder=uni2-h --set output=embeddings-uni2",
)
def run_command(
    context: typer.Context,
    config: ConfigPath,
    settings: SetOption = None,
    restart: Annotated[
        str,
        typer.Option(
            "--restart",
            metavar="[STAGE]",
            show_default=False,
            help="Delete what the output holds of these slides and start over; with context, windows, pool, heads or heads:NAME behind it, only that stage and what is made of it.",
        ),
    ] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Do shards with failed tiles again.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do every N-th slide from the I-th (0-based): N jobs share one output. In a SLURM job array this is the default.",
        ),
    ] = None,
    log_format: Annotated[str, typer.Option(help="auto (live on a terminal, lines in a file), text or json.")] = "auto",
) -> None:
    """Embed the slides of a config. Run again, it does only what is missing."""
    from tilestream.config.job_array import job_of
    from tilestream.config.load import load_config

    if log_format not in ("auto", "text", "json"):
        raise ConfigError(f"--log-format: {log_format!r} is none of auto, text, json.")
    checked = load_config(config, settings or ())  # before anything heavy is imported: a typo is told at once
    from tilestream.runner.engines.early import begin_early

    begin_early(checked)
    from tilestream.runner.driver import run
    from tilestream.runner.progress import LiveReporter, make_reporter, print_summary

    say_when_interrupted((reporter := make_reporter(log_format)).kept_words)
    try:
        part = job_of(shard)
        if part is not None and shard is None:
            reporter.message(f"task {part[0]} of {part[1]} of a job array: every {part[1]}th slide; --shard 0/1 does all of them.")
        summary = run(checked, restart=restart, retry_failed=retry_failed, shard=part, reporter=reporter, began=context.obj)
    except KeyboardInterrupt as interrupt:
        raise InterruptedRunError(f"interrupted; {reporter.kept_words()}, and the same command resumes.") from interrupt
    finally:
        if isinstance(reporter, LiveReporter):
            reporter.close()
    if log_format == "json":
        print(summary.to_json())
    else:
        print_summary(summary, _console())
    raise typer.Exit(summary.exit_code)


def _with_stages(arguments: list[str]) -> list[str]:
    """`--restart` alone is `--restart all`: what follows is a stage, an option or the config; a word that is none of them is refused."""
    from tilestream.config.restart import ALL, STAGES, is_stage

    found: list[str] = []
    for k, word in enumerate(arguments):
        found.append(word)
        if word == "--restart" and not any(map(is_stage, behind := arguments[k + 1 : k + 2])):
            if behind and not behind[0].startswith("-") and not Path(behind[0]).suffix and not Path(behind[0]).exists():
                raise ConfigError(f"--restart: {behind[0]!r} is none of {', '.join(STAGES)}, heads:NAME.")
            found.append(ALL)
    return found


def _console() -> Console:
    """Standard output; wide where no terminal sets the width, so that a file or a pipe gets whole lines."""
    return Console() if sys.stdout.isatty() else Console(width=160)


@app.command("plan", cls=PlainCommand, epilog="Example: tilestream plan config.yaml --set tiles.mpp=0.25")
def plan_command(config: ConfigPath, settings: SetOption = None) -> None:
    """Say what a run would do: levels, tiles, shards, bytes, memory. Reads thumbnails only and writes nothing."""
    from tilestream.config.load import load_config

    checked = load_config(config, settings or ())
    from tilestream.runner.plan_command import plan_slides, print_plan

    planned = plan_slides(checked)
    print_plan(planned, _console())
    raise typer.Exit(planned.exit_code)


@app.command("inspect", cls=PlainCommand)
def inspect_command(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Path or address of an image.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an image is, which backend opens it and why, and what to write in a config."""
    from tilestream.sources.facts.describe import describe_image, print_description

    description = describe_image(image)
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        print_description(description, _console())


@app.command("verify", cls=PlainCommand)
def verify_command(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="An output folder, or one <slide id>.zarr in it.", show_default=False)],
    repair: Annotated[bool, typer.Option("--repair", help="Forget what is damaged, so that the next run redoes it.")] = False,
) -> None:
    """Compare every stored object with its checksum."""
    from tilestream.store.cohort import verify_output

    raise typer.Exit(verify_output(output, print, repair=repair))


@app.command("fit", cls=PlainCommand)
def fit_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. pipelines/fit.yaml.", show_default=False)],
    settings: FitSetOption = None,
) -> None:
    """Train a head, or a context without labels, on stored embeddings, judge it on patients that it never saw, and write it with a report."""
    from tilestream.config.fit_schema import FitConfig
    from tilestream.config.load import load_section

    checked = load_section(FitConfig, config, settings or ())
    from tilestream.fitting.fit import fit

    for line in fit(checked, tell=lambda words: print(words, file=sys.stderr)).lines:
        print(line)


@app.command(
    "export",
    cls=PlainCommand,
    epilog="Examples: tilestream export embeddings --to trident-h5; objects of a head, tilestream export embeddings --to geojson --what nuclei",
)
def export_command(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="An output folder, or one <slide id>.zarr in it.", show_default=False)],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="trident-h5, clam-h5, pt, parquet, csv, geojson (QuPath), ome-zarr, spatialdata or annotation-store (TIAToolbox); on a map geoparquet, cog, geo-zarr or stac.",
            show_default=False,
        ),
    ],
    what: Annotated[
        str,
        typer.Option(
            help="tiles: their embeddings; context: their context in its place; slide: the slide's vector; context-NAME or slide-NAME: one kept under a name; or the name of a head: its objects, regions, classes or answers."
        ),
    ] = "tiles",
    slide: Annotated[str | None, typer.Option(help="Id of one slide; else all of the output.")] = None,
    out: Annotated[str | None, typer.Option(help="The file for one slide, or a folder; else exports/FORMAT in the output.")] = None,
    in_bounds: Annotated[
        bool, typer.Option("--in-bounds", help="geojson: count places from the corner of OpenSlide's bounds, as QuPath does.")
    ] = False,
    allow_unfinished: Annotated[bool, typer.Option("--allow-unfinished", help="Take slides that lack tiles.")] = False,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Write finished slides in the formats of other programs."""
    from tilestream.interop.exports import export_slides

    for line in export_slides(
        output, to, what=what, slide=slide, out=out, in_bounds=in_bounds, allow_unfinished=allow_unfinished, force=force
    ):
        print(line)


@app.command("import", cls=PlainCommand)
def import_command(
    features: Annotated[
        str, typer.Argument(metavar="FEATURES", help="HDF5 file with features and coords, of TRIDENT or CLAM.", show_default=False)
    ],
    slide: Annotated[str, typer.Option(help="The image they are of, or a name where there is none.", show_default=False)],
    out: Annotated[str, typer.Option(help="Output folder.", show_default=False)],
    patch_size_level0: Annotated[float | None, typer.Option(help="Side of a tile in level-0 px, where the file does not say.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Name of the encoder as a config has it, where the file names none or calls it otherwise.")
    ] = None,
) -> None:
    """Make a finished store of features that another program computed."""
    from tilestream.interop.importing import import_features

    print(import_features(features, slide, out, patch_size_level0=patch_size_level0, encoder=encoder))


@app.command("report", cls=PlainCommand)
def report_command(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="An output folder.", show_default=False)],
    to: Annotated[str | None, typer.Option("--to", help="The HTML file; else report.html in the output.")] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE)] = False,
) -> None:
    """Write one HTML file on all slides of an output: pictures, counts, failures, seconds, throughput, recipe."""
    from tilestream.viewer.report import write_report

    print(write_report(output, to, force=force))


@app.command("view", cls=PlainCommand, epilog="Example: tilestream view embeddings --slides slides/")
def view_command(
    outputs: Annotated[
        list[str],
        typer.Argument(metavar="OUTPUT", help="Output folders, or <slide id>.zarr in them; several side by side.", show_default=False),
    ],
    slide: Annotated[str | None, typer.Option(help="Id of the slide that is shown first.")] = None,
    slides: SlidesOption = None,
    annotations: AnnotationsOption = None,
    host: Annotated[
        str, typer.Option(help="Address or name to listen on; others than loopback are reachable from the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 is any free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open nothing.")] = False,
) -> None:
    """Look at slides and their embeddings in the browser. Writes nothing but what is drawn with --annotations; Ctrl-C ends it."""
    from tilestream.viewer.server import serve

    serve(
        outputs, lambda words: print(words, flush=True), slide=slide, roots=slides or (), host=host, port=port, browser=not no_browser, annotations=annotations
    )  # fmt: skip


@app.command("encoders", cls=PlainCommand)
def encoders_command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the encoders of tiles and of slides that a config can name."""
    from tilestream.encoders.slides.catalogue import all_tables, encoder_rows

    if as_json:
        print(json.dumps(encoder_rows(), indent=1))
        return
    console = _console()
    console.width = console.width if console.is_terminal else WIDE
    console.print(*all_tables(console.width), sep="\n")
    console.print(
        'Also timm:MODEL, hf:REPOSITORY and "module:factory": a Python function that returns a torch.nn.Module with `dim`. '
        "--json tells all that is known of each.",
        highlight=False,
        markup=False,
    )


@app.command("init", cls=PlainCommand, epilog="Example: tilestream init slides/ --out config.yaml, then tilestream run config.yaml.")
def init_command(
    slides: Annotated[list[str], typer.Argument(metavar="SLIDES", help="Slides, a folder of them, a glob or a CSV.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The config to write.")] = Path("config.yaml"),
    output: Annotated[str, typer.Option("--output", metavar="FOLDER", help="Where its runs write to.")] = "embeddings",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Look at slides and write a config for them, with comments, that runs as it stands."""
    from tilestream.sources.facts.first_config import write_first_config

    for line in write_first_config(slides, out, output, force=force):
        print(line)


@app.command("doctor", cls=PlainCommand)
def doctor_command() -> None:
    """Check this machine: libraries, device, memory, disk."""
    from tilestream.runner.doctor import run_checks

    checks = run_checks()
    table = Table.grid(padding=(0, 1))
    for check in checks:
        mark = "[green]ok[/green]" if check.good else "[red]BAD[/red]"
        table.add_row(mark, check.name, Text(check.words if check.good else f"{check.words}: {check.advice}", overflow="fold"))
    _console().print(table)
    raise typer.Exit(0 if all(check.good for check in checks) else 2)


@app.command("schema", cls=PlainCommand)
def schema_command() -> None:
    """Print the JSON schema of the config, for editors."""
    from tilestream.config.json_schema import config_schema

    print(json.dumps(config_schema(), indent=1))


def main(arguments: list[str] | None = None, *, began: float | None = None) -> NoReturn:
    """Run the command line and leave with its exit code; its wall clock counts from `began`, of `time.perf_counter`."""
    write_all_letters()
    with Interrupts() as interrupts:
        try:
            given = sys.argv[1:] if arguments is None else arguments
            app(_with_stages(given) if "--restart" in given else given, obj=began)
        except TilestreamError as error:
            print("\n".join([fitted(f"tilestream: {error}"), *getattr(error, "__notes__", ())]), file=sys.stderr)
            sys.exit(error.exit_code)
        except (OSError, UnicodeEncodeError) as error:
            meant = name_refused(error) if isinstance(error, UnicodeEncodeError) else storage_error(error) or place_error(error)
            if meant is None:
                raise
            print(fitted(f"tilestream: {meant}"), file=sys.stderr)
            sys.exit(meant.exit_code)
        except SystemExit:
            if interrupts.count:  # outside a run, where the command line makes an exit code of its own
                interrupts.leave_unbegun()
            raise
    sys.exit(0)
