"""The ``savevm`` command."""

from importlib import import_module

import click

import savevm

# Subcommand → module:object.  Loaded when used, so that each needs only its own packages.
_COMMANDS = {
    "inspect": "savevm.cli.inspect:inspect",
    "verify": "savevm.cli.verify:verify",
    "extract": "savevm.cli.extract:extract",
    "capture": "savevm_conformance.capture:capture",
    "conformance": "savevm_conformance.cli:conformance",
}
_SUMMARIES = {
    "inspect": "Show what is in a stream.",
    "verify": "Tell whether streams are whole and follow the rules.",
    "extract": "Write RAM blocks and device states to files.",
    "capture": "Make QEMU binaries write the stream of every machine type.",
    "conformance": "Hold implementations against the conformance vectors.",
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
            raise click.ClickException(
                f"{cmd_name} needs the package {e.name!r}: pip install 'savevm[conformance]'"
            ) from None
        assert isinstance(command, click.Command)
        return command

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


if __name__ == "__main__":
    main()
