"""`drllm push`."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DrLLMError
from .options import Json, console, quoted, say, write_json


def push(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder of an adapter or of a supervision set; for a Space, an adapter's on the Hub too."),
    ],
    repo: Annotated[str | None, typer.Argument(help="Repository: owner/name, or owner/name@branch.")] = None,
    space: Annotated[
        str | None, typer.Option(help="Push a Space in its place, owner/name, with the page of drllm app.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a new repository; the account's default otherwise.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; made where there is none.")] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model on the Hub, owner/name[@revision], where the files name a folder or another."),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose the commit as a pull request; nothing else changes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be uploaded, files and card, without asking the Hub.")
    ] = False,
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    json_file: Json = None,
) -> None:
    """Upload an adapter as a model, or a supervision set as a dataset, with its card, in one commit.

    The account is that of `hf auth login`, or of the token in HF_TOKEN. Only what drllm wrote is uploaded, whatever
    else lies in the folder. The card is renewed from the folder's files; what somebody wrote into it stays. No path of
    this disk is uploaded: of a base model in a folder only the folder's name, or what --base says it is on the Hub.
    When anything fails, the repository holds what it held before.

    A Space carries the adapter of a folder with it, and names one that is on the Hub already.

    Example: drllm push adapter me/routers --private

    Example: drllm push adapter --space me/routing-demo
    """
    if (repo is None) == (space is None):
        raise DrLLMError(
            f"a push must go to one place, owner/name or --space owner/name, but {'none' if repo is None else 'both'} "
            f"were given; give one of them."
        )
    from ..hub.push import prepare_push
    from ..hub.push import push as upload
    from ..hub.space import prepare_space

    ask_hub = not dry_run
    if space is not None:
        prepared = prepare_space(folder, space, revision=revision, base=base, ask_hub=ask_hub)
    else:
        prepared = prepare_push(folder, str(repo), revision=revision, base=base, ask_hub=ask_hub)
    with prepared as plan:
        facts = plan.to_json()
        console.print(plan.table())
        if plan.advice is not None:
            say(plan.advice)
        if dry_run:
            print(plan.card)
            say("Nothing was uploaded, and the Hub was not asked (--dry-run); a push keeps what its card says there.")
        else:
            facts["commit"], facts["url"] = upload(plan, private=private, create_pr=create_pr, message=commit_message)
            facts["changed"] = facts["commit"] != plan.head
            said = "Pushed" if facts["changed"] else "Nothing was pushed, because nothing has changed since"
            say(f"{said}: {facts['url']}")
            if space is not None and folder.is_dir():
                say(f"Next: drllm card {quoted(folder)} --space {space}, and the adapter's card links it.")
    write_json(json_file, facts)
