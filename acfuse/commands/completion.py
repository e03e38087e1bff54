"""completion: the script with which a shell completes commands, options and files."""

import click
from click.shell_completion import ShellComplete, get_completion_class

SHELLS = ("bash", "zsh", "fish")
PLACES = """\b
bash  acfuse completion bash > ~/.local/share/bash-completion/completions/acfuse
zsh   acfuse completion zsh > ~/.zfunc/_acfuse      (a folder of $fpath)
fish  acfuse completion fish > ~/.config/fish/completions/acfuse.fish
"""


@click.command(epilog=PLACES)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in a shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(context.find_root().command, {}, "acfuse", "_ACFUSE_COMPLETE")
    click.echo(ShellComplete.source(made))  # bash's own would start bash, to see how old it is
