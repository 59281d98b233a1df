"""Time the accelerated sampler and its rivals on full-size architectures: `python -m studies.bench --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff_lab.cli.options import Device, Threads

from .command import bench_into, chosen_cases
from .report import told


def bench(
    system: Annotated[
        list[str] | None,
        typer.Option(help="embedded, sd-1.5, sd-1.5-controlnet, sdxl, text-to-video, dit-xl-2; repeat for several."),
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="Scheduler and steps, such as ddim-50; repeat for several.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option(help="Images at once; repeat for several.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager, channels-last or compiled; repeat for several.")] = None,
    pixels: Annotated[int | None, typer.Option(help="Side of an image; by default, the system's usual one.")] = None,
    device: Device = "cpu",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; by default, float16 on a GPU.")] = None,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Timed runs per method.")] = 5,
    minutes: Annotated[float, typer.Option(help="No run begins after so many minutes; the same call resumes.")] = 10.0,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what could not run before.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; by default, data/bench/<machine>.")] = None,
) -> None:
    """Time the accelerated sampler and its rivals on full-size architectures with random weights, beside their ceilings."""
    cases = chosen_cases(
        device, systems=system or (), runs=run or (), batches=batch_size or (), modes=mode or (), dtype=dtype, pixels=pixels
    )  # fmt: skip
    typer.echo(f"cases: {len(cases)}; timed runs of each method: {repeats}; this part ends after {minutes:g} minutes")
    table, book, is_whole = bench_into(
        output, cases, device=device, threads=threads, repeats=repeats, minutes=minutes, retries_failed=retry
    )  # fmt: skip
    typer.echo(told(table, book))
    typer.echo(
        f"{book.path.parent}: {'all that was asked is timed' if is_whole else 'not all is timed yet; the same call goes on'}"
    )


def main() -> None:
    """Run the command. What a user can mend ends in one sentence and exit code 2, a stop in 130."""
    try:
        typer.run(bench)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
