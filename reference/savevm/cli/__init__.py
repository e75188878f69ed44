"""The ``savevm`` command."""

import os
import signal
import sys
from importlib import import_module

import click

import savevm

# Subcommand → module:object.  Loaded when used, so that each needs only its own packages.
_COMMANDS = {
    "inspect": "savevm.cli.inspect:inspect",
    "verify": "savevm.cli.verify:verify",
    "extract": "savevm.cli.extract:extract",
    "convert": "savevm.cli.convert:convert",
    "diff": "savevm.cli.diff:diff",
    "snapshots": "savevm.cli.snapshots:snapshots",
    "machine": "savevm.cli.machine:machine",
    "demo": "savevm.cli.demo:demo",
    "capture": "savevm_conformance.capture:capture",
    "conformance": "savevm_conformance.cli:conformance",
    "fuzz": "savevm_fuzz.cli:fuzz",
}
_SUMMARIES = {
    "inspect": "Show what is in a stream.",
    "verify": "Tell whether streams are whole and follow the rules.",
    "extract": "Write RAM blocks and device states to files.",
    "convert": "Write a stream in another dialect or envelope.",
    "diff": "Compare two saved machines.",
    "snapshots": "List or delete the snapshots in a disk image.",
    "machine": "Run an emulated machine that migrates with real QEMUs.",
    "demo": "Live-migrate a running machine here, and through every real QEMU found.",
    "capture": "Make QEMU binaries write the stream of every machine type.",
    "conformance": "Hold implementations against the conformance vectors.",
    "fuzz": "Give mutated streams to implementations, and keep what goes wrong.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        try:
            command = getattr(import_module(module), name)
        except ModuleNotFoundError as e:
            extra = cmd_name if cmd_name == "fuzz" else "conformance"
            raise click.ClickException(
                f"{cmd_name} needs the package {e.name!r}: pip install 'savevm[{extra}]'"
            ) from None
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read the output has seen enough: end as if by the signal that is ignored here.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"savevm {savevm.__version__} ({savevm.build()})")
        ctx.exit()


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and how it was built.",
)
def main() -> None:
    """Read, check and take apart QEMU savevm / migration streams.

    Exit codes: 0 all good, 1 a stream breaks a rule, 2 the command could not do its work.
    """


def run() -> None:
    """The command as the shell sees it: what ends it early has an exit code of its own."""
    try:
        sys.exit(main(standalone_mode=False))
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code if isinstance(e, click.UsageError) else 2)
    except click.Abort:
        sys.exit(128 + signal.SIGINT)
    except OSError as e:
        click.echo(f"savevm: {e}", err=True)
        sys.exit(2)
