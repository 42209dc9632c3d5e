"""How to say where MLflow is, without its passwords."""

from __future__ import annotations

import shlex
from urllib.parse import unquote, urlsplit

from lada_ray.config import BLANK, hide_password


def how_to_open(uri: str) -> str:
    """Say how to look at the results.

    Args:
        uri: a tracking URI.

    Returns:
        the server's address, or the command that serves a database.
    """
    if uri.startswith(("http://", "https://", "databricks")):
        return hide_password(uri)
    return shlex.join(["mlflow", "ui", "--backend-store-uri", hide_password(uri)])


def hide_passwords_in(text: str, uri: str) -> str:
    """Blank a URI's password in a text that may hold it, such as an error of MLflow.

    Args:
        text: any text.
        uri: the URI that it may hold, in whole or in part.
    """
    text = text.replace(uri, hide_password(uri))
    password = urlsplit(uri).password or ""
    for secret in {password, unquote(password)} - {""}:
        text = text.replace(f":{secret}@", f":{BLANK}@")
    return text
