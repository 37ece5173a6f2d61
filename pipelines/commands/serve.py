"""`serve`: a trained model behind HTTP, and a page."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import typer

from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.arguments import Model

TOKEN = "OMNILOOM_SERVE_TOKEN"
PORT = 8000
_SHORTEST = 8  # characters of a token


def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it listens; on others than this machine it needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")] = PORT,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer those alone who send the token in this file (Authorization: Bearer TOKEN); the environment "
            f"variable {TOKEN} does the same.",
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="Answers computed at once.")] = 16,
    max_queue: Annotated[int, typer.Option(metavar="N", min=0, help="Answers that wait; more are refused (429).")] = 64,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest that a request may take.")] = 120.0,
    max_n: Annotated[int, typer.Option(metavar="N", min=1, help="Answers to one request.")] = 10,
    max_steps: Annotated[int, typer.Option(metavar="N", min=1, help="Steps of a picture.")] = 100,
    max_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a text.")] = 1024,
    max_prompt: Annotated[int, typer.Option(metavar="N", min=1, help="Characters of a prompt.")] = 8000,
    max_drawn_pixels: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Width x height of a drawn picture. Default: four times the model's own."
        ),
    ] = None,
    max_pictures: Annotated[int, typer.Option(metavar="N", min=1, help="Pictures sent with one request.")] = 4,
    max_picture_bytes: Annotated[int, typer.Option(metavar="N", min=1, help="Bytes of a picture sent.")] = 20 << 20,
    max_picture_pixels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Width x height of a picture sent.")
    ] = 16_000_000,
) -> None:
    """Serve a trained model on 127.0.0.1 until Ctrl-C: an API like OpenAI's, and a page.

    Requests that come together are computed together; each gets what `omniloom sample` makes of its seed. Endpoints:
    /v1/images/generations, /v1/images/edits, /v1/chat/completions, /v1/models, /health; the page is at /. Needs the
    extra: pip install 'omniloom[serve]'.
    """
    from omniloom.pipelines.trained import find_model, model_name
    from omniloom.stages.serving.deployment import Settings, serve_model
    from omniloom.stages.serving.limits import Limits

    given = locals()
    try:
        limits = Limits(**{field.name: given[field.name] for field in dataclasses.fields(Limits)})
    except ValueError as error:
        name, _, message = str(error).partition(": ")
        raise InputError(message, field=f"--{name.replace('_', '-')}") from None
    settings = Settings(host, port, limits, _token(token_file))
    if not settings.hosts and settings.token is None:
        raise InputError(
            f"others than this machine reach {host}: give a token with --token-file or {TOKEN}", field="--host"
        )
    serve_model(find_model(model), model_name(model), settings)


def _token(file: Path | None) -> str | None:
    """What clients have to send; never printed."""
    if file is None and TOKEN not in os.environ:
        return None
    field, path = (TOKEN, None) if file is None else ("--token-file", str(file))
    try:
        token = (os.environ[TOKEN] if file is None else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", field=field, file=path) from None
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        message = f"expected a token of at least {_SHORTEST} ASCII characters without spaces"
        raise InputError(message, field=field, file=path)
    return token
