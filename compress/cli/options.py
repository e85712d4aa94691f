"""Options that mean the same wherever they appear, and how a command's help is laid out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from compress.errors import RequestError, near_names

F = TypeVar("F", bound=Callable[..., Any])
_PUSH = "compress.push-to-hub"


class Option(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, heading: str = "Run", **kwargs: Any) -> None:
        self.heading = heading
        super().__init__(*args, **kwargs)


class Command(click.Command):
    """A command whose help shows its options under headings, as declared, with "Run" last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section per heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "heading", "Run"), []).append(record)
        for heading, records in sorted(sections.items(), key=lambda item: item[0] == "Run"):
            with formatter.section(heading):
                formatter.write_dl(records)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; --debug is read by the entry point, not by the command."""
        ctx.params.pop("debug", None)
        name = ctx.meta.get(_PUSH)
        if name is None:
            return super().invoke(ctx)
        from compress.cli.pushing import pushed

        with pushed(name, ctx.params):
            return super().invoke(ctx)


def option(*names: str, heading: str = "Run", **kwargs: Any) -> Callable[[F], F]:
    """`click.option` with a heading."""
    return click.option(*names, cls=Option, heading=heading, **kwargs)


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several option decorators as one, in reading order."""

    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def comma_list(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[str, ...]:
    """Split `a,b` and repeated options into one tuple."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(part for v in values if v for part in str(v).split(",") if part)


def number_list(kind: type) -> Callable[[click.Context, click.Parameter, Any], tuple[Any, ...]]:
    """Split `1,2` and repeated options into one tuple of numbers of a kind, int or float."""
    words = "whole numbers" if kind is int else "numbers"

    def read(ctx: click.Context, param: click.Parameter, value: Any) -> tuple[Any, ...]:
        numbers = []
        for part in comma_list(ctx, param, value):
            try:
                numbers.append(kind(part))
            except ValueError:
                name = param.opts[0]
                raise RequestError(f"`{name} {part}`: {words} with commas are needed") from None
        return tuple(numbers)

    return read


def shard_of(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Turn "2/4" into (2, 4)."""
    if value is None:
        return None
    parts = re.fullmatch(r"(\d+)/(\d+)", value)
    if parts is None:
        raise RequestError(f"`--shard {value}` isn't i/n", "1/4 to 4/4 are the parts of four")
    return int(parts[1]), int(parts[2])


def _read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Make the options of a YAML file the defaults of this call; the command line wins."""
    if value is None:
        return
    # Read as recipes are: YAML 1.1, PyYAML's own, would make 124 of the pattern 2:4.
    from compress.recipes.marks import read_file

    try:
        tree = read_file(Path(value))
    except RequestError as error:
        if "can't be read" in error.message:
            raise RequestError(f"`--config`: {error.message}") from error
        raise RequestError(f"{error.message}: `--config` isn't YAML that can be read") from error
    given = tree.plain()
    if not isinstance(given, dict):
        raise RequestError(f"`{value}`: options as `name: value` lines are needed")
    known = {p.name: p for p in ctx.command.params if p.name}
    defaults = {}
    for key, setting in given.items():
        name = str(key).lstrip("-").replace("-", "_")
        if name not in known or name == "config":
            raise RequestError(
                f"{tree.value[key].place}: `{key}` isn't an option of {ctx.command.name}",
                near_names(str(key), (n.replace("_", "-") for n in known if n != "config")),
            )
        target = known[name]
        if target.multiple and not isinstance(setting, list):
            setting = [setting]
        elif not target.multiple and isinstance(setting, list):
            setting = ",".join(map(str, setting))
        defaults[name] = setting
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


OUTPUT = options(
    option(
        "-o",
        "--output",
        type=click.Path(),
        metavar="OUT",
        help="new directory; appears only when complete",
    ),
    option("--overwrite", is_flag=True, help="replace OUT at the end, never before"),
)
PUSH = option(
    "--push-to-hub",
    metavar="NAME",
    expose_value=False,
    callback=lambda ctx, param, value: ctx.meta.__setitem__(_PUSH, value),
    help="upload OUT to this Hub repository when it is complete",
)
RESUME = option("--resume", is_flag=True, help="go on from an interrupted run's journal")
CONFIG = option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="YAML with any of these options; the command line wins",
)
SAY = options(
    option(
        "--json", "as_json", is_flag=True, help="print the result as JSON on stdout, nothing else"
    ),
    option("--quiet", is_flag=True, help="no bars, no tables; errors only"),
    option("--debug", is_flag=True, help="show a traceback on errors"),
)
SEED = option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="every random choice comes from it",
)
DEVICE = option(
    "--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1, mps"
)
DTYPE = option(
    "--dtype",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="of the weights in OUT: float32, bfloat16, float16; auto keeps the one on disk",
)
SOURCE = options(
    option("--revision", metavar="REV", heading="Model", help="branch, tag or commit on the Hub"),
    option("--token", metavar="TOKEN", heading="Model", envvar="HF_TOKEN", help="Hub access token"),
    option(
        "--trust-remote-code",
        is_flag=True,
        heading="Model",
        help="run Python files that come with MODEL (they can do anything)",
    ),
)
REGISTRY = option(
    "--registry",
    type=click.Path(),
    metavar="FILE",
    heading="Data",
    help="YAML of your own corpora beside the shipped ones",
)
EVALUATION = options(
    option(
        "--ppl",
        multiple=True,
        metavar="DATA,…",
        heading="Evaluation",
        help="perplexity on these texts",
    ),
    option(
        "--tasks",
        multiple=True,
        callback=comma_list,
        metavar="TASK,…",
        heading="Evaluation",
        help="lm-eval tasks; needle, multidoc, longreason",
    ),
    option(
        "--task-dir",
        "task_dirs",
        multiple=True,
        type=click.Path(),
        metavar="DIR",
        heading="Evaluation",
        help="directory of your own task YAMLs; repeatable",
    ),
    option(
        "--limit",
        type=click.IntRange(min=1),
        metavar="N",
        heading="Evaluation",
        help="at most N examples a task and N windows a text",
    ),
    option(
        "--speed", is_flag=True, heading="Evaluation", help="prefill and decode speed, peak memory"
    ),
    option(
        "--stride",
        type=click.IntRange(min=1),
        metavar="N",
        heading="Evaluation",
        help="windows overlap and advance by N tokens  [default: no overlap]",
    ),
    option(
        "--eval-seqlen",
        type=click.IntRange(min=2),
        metavar="L",
        heading="Evaluation",
        help="window of the perplexity  [default: 2048 or the model's limit]",
    ),
)
SPEECH = options(
    option(
        "--wer",
        multiple=True,
        metavar="DATA,…",
        heading="Evaluation",
        help="word and character error rates on recordings: a folder with manifest.csv",
    ),
    option(
        "--resample",
        is_flag=True,
        heading="Evaluation",
        help="convert recordings of another rate than the model's",
    ),
)
CALIBRATION = options(
    option(
        "--calib",
        default="c4",
        show_default=True,
        metavar="DATA",
        heading="Calibration",
        help="corpus names or files; `demo` is the shipped one; a=0.7,b=0.3 mixes by tokens",
    ),
    option(
        "--doc-sampling",
        default="packed",
        show_default=True,
        metavar="NAME",
        heading="Calibration",
        help="packed: whole documents; isolated: each sees itself; long: windows of long ones",
    ),
    option(
        "--select",
        default="random",
        show_default=True,
        metavar="NAME",
        heading="Calibration",
        help="which windows: random; diverse: by words; cola: by activations",
    ),
    option(
        "--chat-template/--no-chat-template",
        default=True,
        show_default=True,
        heading="Calibration",
        help="write prompt formats as conversations if the tokenizer can",
    ),
    option(
        "--allow-leakage",
        is_flag=True,
        heading="Calibration",
        help="let text be calibrated on and evaluated on",
    ),
    option(
        "--samples",
        type=int,
        default=128,
        show_default=True,
        metavar="N",
        heading="Calibration",
        help="sequences",
    ),
    option(
        "--seqlen",
        type=int,
        metavar="L",
        heading="Calibration",
        help="tokens a sequence  [default: 2048 or the model's limit]",
    ),
    option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        heading="Calibration",
        help="sequences run at once",
    ),
)
PLAN = options(
    option("--plan", type=click.Path(), metavar="FILE", help="use this plan instead of making one"),
    option("--plan-out", type=click.Path(), metavar="FILE", help="also save the plan here"),
    option("--dry-run", is_flag=True, help="stop after the plan and print it"),
)
