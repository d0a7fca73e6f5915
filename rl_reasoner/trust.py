"""What may be loaded of what a file names that nobody typed: the one place that decides.

A run folder, a saved evaluation and a recipe may be anybody's. They name code (rewards, tools,
environments, functions of judges) and addresses. Inside `untyped` no such code is imported and no
such address is asked: who loads something asks `check_typed` or `check_address` first. What stands
on the command line is the user's own. Code runs where he says `--run-its-code`, an address is asked
where he has it in `$RL_REASONER_HOSTS`: "judge.example=JUDGE_TOKEN,localhost:8000", a host with the
variable of the token that may go there. What is decided lies in the environment of the process, so
that it holds for every thread and for the processes that are started.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from rl_reasoner.errors import UserError

FLAG = "--run-its-code"
"""The flag by which a user has the code run that a file names."""
HOSTS = "RL_REASONER_HOSTS"
"""The environment variable with the hosts that files may name, each with its token's variable."""
_DOOR = "RL_REASONER_UNTYPED"
_BETWEEN = re.compile(r"[\s=,{}\[\]\"']+")  # of words within a flag's value
_OPTIONS = re.compile(r"[=,\"]")  # the same, for values with spaces
_PORTS = {"http": 80, "https": 443}


@contextmanager
def untyped(typed: Sequence[str] = (), *, code: bool = False, asks: bool = True) -> Iterator[None]:
    """Inside, what is loaded is named by a file, but for what stands in the words of `typed`.

    `code`: that runs all the same. Without `asks` no address at all is asked. Within another
    `untyped`, what either forbids is forbidden.
    """
    words = [part for word in typed for part in (word, *_BETWEEN.split(word)) if part]
    servers = [
        url
        for before, url in pairwise(word for word in words if word != ":")
        if before.endswith("server") and _is_url(url)
    ]
    words += [part.strip() for word in typed for part in _OPTIONS.split(word) if part.strip()]
    outer = os.environ.get(_DOOR)
    if (door := _door()) is not None:
        code, asks = code and door["code"], asks and door["asks"]
        words = [word for word in words if word in door["typed"]]
        servers = [url for url in servers if url in door["servers"]]
    told = {"typed": words, "servers": servers, "code": code, "asks": asks}
    os.environ[_DOOR] = json.dumps(told)
    try:
        yield
    finally:
        _set(outer)


@contextmanager
def decided() -> Iterator[None]:
    """Inside, everything is loaded: it was decided on where it was first loaded."""
    outer = os.environ.pop(_DOOR, None)
    try:
        yield
    finally:
        _set(outer)


def _set(door: str | None) -> None:
    if door is None:
        os.environ.pop(_DOOR, None)
    else:
        os.environ[_DOOR] = door


def _door() -> dict[str, Any] | None:
    """What `untyped` has decided; None outside of it."""
    text = os.environ.get(_DOOR)
    return None if text is None else json.loads(text)


def runs_code() -> bool:
    """Whether code runs that nobody typed."""
    return (door := _door()) is None or bool(door["code"])


def asks() -> bool:
    """Whether anything at all is asked over a network."""
    return (door := _door()) is None or bool(door["asks"])


def check_typed(name: str, kind: str = "reward") -> None:
    """Raise `UserError` where the code that is called `name` was named by a file, not typed."""
    door = _door()
    if door is None or door["code"] or name in door["typed"]:
        return
    raise UserError(
        f"{kind} {name!r} is code that a file names, and nobody typed: it is not run ({FLAG} "
        "runs it)"
    )


def check_address(url: str, token: str | None = None, kind: str = "reward") -> None:
    """Raise `UserError` where a file, not the user, names `url`, or the token to be sent there."""
    if (door := _door()) is None:
        return
    allowed = _allowed(door, url)
    if door["asks"] and allowed is not None and (token is None or token in allowed):
        return
    where = _parsed(url)
    host = _host(where)
    told = f" with the token in ${token}" if token else ""
    said = f"{kind} {url}: a file names {host}, and nobody typed it: it is not asked{told}"
    if door["asks"]:
        host = host if token is None or _is_safe(where) else f"http://{host}"
        said += f". To allow it: {HOSTS}={host}{f'={token}' if token else ''}"
    raise UserError(said)


def token_for(url: str, variable: str) -> str | None:
    """The token in an environment variable, where it may be sent to `url`.

    That of OpenAI's clients goes to each server that was typed as one, too.
    """
    may = (door := _door()) is None or variable in (_allowed(door, url) or ())
    if door is not None and variable == "OPENAI_API_KEY":
        may = may or any(_goes(_parsed(url), server) for server in door["servers"])
    return os.environ.get(variable) if may else None


def _is_url(word: str) -> bool:
    return word.startswith(("http://", "https://"))


def _allowed(door: dict[str, Any], url: str) -> list[str] | None:
    """The variables whose tokens may go to `url`; None where nothing is asked there."""
    given = [(word, door["typed"]) for word in door["typed"] if _is_url(word)]
    for entry in os.environ.get(HOSTS, "").replace(",", " ").split():
        place, _, variable = entry.partition("=")
        given.append((place, [variable]))
    where = _parsed(url)
    here = [(place, names) for place, names in given if _names(where) & _names_of(place)]
    if not here:
        return None
    return [name for place, names in here if _goes(where, place) for name in names]


def _goes(where: Any, place: str) -> bool:
    """Whether a token for `place`, a URL or a host, may go to a URL: not to be read on its way."""
    written = place.startswith(f"{where.scheme}://")
    return bool(_names(where) & _names_of(place)) and (written or _is_safe(where))


def _is_safe(where: Any) -> bool:
    """Whether nobody reads what is sent there on its way."""
    try:
        here = where.host == "localhost" or ip_address(where.host).is_loopback
    except ValueError:
        here = False
    return here or where.scheme == "https"


def _names_of(place: str) -> set[str]:
    return _names(_parsed(place)) if _is_url(place) else {place.lower()}


def _names(where: Any) -> set[str]:
    """The host with its port where one is given; of the scheme's own port with it, too."""
    host = _host(where)
    return {host, f"{host}:{_PORTS.get(where.scheme)}"} if where.port is None else {host}


def _host(where: Any) -> str:
    return str(where.netloc.decode("ascii", "replace").lower())


def _parsed(url: str) -> Any:
    """A URL as what will ask it reads it."""
    import httpx  # it takes a while, and most files name no address

    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{url!r:.80}: no URL: {error}") from error
