"""What must not be shown or kept: passwords, keys and tokens, in settings, URIs and any text.

Everything that leaves the process for a person or a file goes through here: what is printed,
``run.json``, all that MLflow gets. Where the choice is between a secret that shows and a word too
many that is hidden, the word is hidden.

A setting is known by its key, taken as words (``aws_secret_access_key``, ``secretAccessKey``). A
key of :data:`_ALWAYS` hides all below it. ``token`` hides text alone, and not where it is a model's
(``class_token``), since a network has tokens too.
"""

import itertools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from raykb.config import flatten
from raykb.engine.foreign import printable

HIDDEN = "***"

_ALWAYS = {"password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets"}
_ALWAYS |= {"credential", "credentials", "authorization", "bearer", "sas"}
_ALWAYS |= {"apikey", "accesskey", "secretkey", "privatekey", "connectionstring"}
_KEYS = {"api", "access", "secret", "private", "account", "storage", "shared", "encryption"}
_KEYS |= {"signing", "master", "ssh", "auth", "subscription"}  # of what a ``…_key`` is secret
_STRINGS = {("connection", "string"), ("conn", "string"), ("conn", "str")}
_OF_A_MODEL = {"class", "cls", "mask", "patch", "pad", "unk", "bos", "eos", "sep", "special"}
_OF_A_MODEL |= {"register", "image", "distill", "distillation"}  # a ``…_token`` of a network
_AZURE = ("abfs://", "abfss://", "wasb://", "wasbs://")  # container@account, or user:password@…
_OF_A_QUERY = {"sig", "signature", "token"}

_NOTHING = {"", "null", "none", "~", "true", "false"}
_NUMBER = re.compile(r"[-+.\d][\d_.eE+-]*")

# in any text: user and password; a private key
_USER = re.compile(r'(?<![\w+.-])([\w+.-]+://)((?:(?!://|\?[\w.-]+=)[^\s"<>])*)@')
_PEM = re.compile(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)")
_FORMS = (  # of a name, of its value, and what stands for that
    (  # name=value
        re.compile(r"(?P<mark>[?&;]?)(?<![\w.%-])(?P<name>[\w.%-]+)="),
        re.compile(r""""[^"]*"|'[^']*'|[^\s&"<>]+?(?='[])},;:]*(?:\s|$)|[\s&"<>]|$)"""),
        HIDDEN,
    ),
    (  # 'name': 'value'
        re.compile(r"""(["'])(?P<name>[\w.-]+)\1\s*:\s*"""),
        re.compile(r"""(["'])(?:\\.|(?!\1).)*\1|[-+.\d]+"""),
        f'"{HIDDEN}"',
    ),
    (  # name: "value", which may be cut short, or a list or a mapping
        re.compile(r"(?<![\w.%-])(?P<name>[\w.%-]+): "),
        re.compile(
            r"""(?m)(["'])(?:(?:\\.|(?!\1).)*\1|.*?(?:…|$))"""
            r"""|[\[{].*?(?=, must |[,:] unknown\b|$)"""
        ),
        f'"{HIDDEN}"',
    ),
    (  # name: value, of one word
        re.compile(r"(?<![\w.%-])(?P<name>[\w.%-]+): (?!(?:unknown|missing)\b)"),
        re.compile(r"""(?m)[^\s"'\[{]\S*?(?=["']?(?:[,;:]\s|[ \t]*$))"""),
        HIDDEN,
    ),
)
# in a document: an entry of a line, or of a mapping in braces
_ENTRY = re.compile(r"""^([ \t]*(?:- )*["']?)([\w.-]+)(["']?[ \t]*:(?:[ \t]+|$))(.*?)(,?)$""")
_INNER = re.compile(r"([{,]\s*)([\w.-]+)(\s*:\s+)([^,{}\[\]\n]+)")
_OPENS = re.compile(r"[|>][-+]?|[\[{]|")  # a value that goes on in the next lines


def is_secret(key: str, value: str = HIDDEN) -> bool:
    """Return whether the setting ``key``, dotted if it is in a section, hides ``value``."""
    if value.lower() in _NOTHING:
        return False
    parts = [_words(part) for part in key.split(".")]
    if any(map(_hides_all, parts)):
        return True
    *before, last = ["", *parts[-1]]
    return last == "token" and before[-1] not in _OF_A_MODEL and not _NUMBER.fullmatch(value)


def _words(key: str) -> list[str]:
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", key)]


def _hides_all(words: list[str]) -> bool:
    pairs = set(itertools.pairwise(words))
    keys = any(first in _KEYS and second in ("key", "keys") for first, second in pairs)
    return keys or not _ALWAYS.isdisjoint(words) or not _STRINGS.isdisjoint(pairs)


def hidden(value: Any, key: str = "") -> Any:
    """Return plain data without the secrets in it, at any depth.

    Args:
        value: mappings, lists, text, numbers; text that is a JSON list or mapping is looked into.
        key: of ``value``, dotted.
    """
    if isinstance(value, Mapping):
        above = f"{key}." if key else ""
        return {name: hidden(each, f"{above}{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(each, key) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return HIDDEN if is_secret(key, str(value)) else value
    if not isinstance(value, str):
        return value
    if is_secret(key, value):
        return HIDDEN
    try:
        inner = json.loads(value) if value[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        inner = None
    if inner is None:
        return _without_secrets(value)
    return value if (clean := hidden(inner, key)) == inner else json.dumps(clean)


def redacted(text: str) -> str:
    """Return ``text`` as a terminal may show it: without secrets, and steering nothing.

    Secrets are user and password of a URI, and values as of ``password='…'``. What steers a
    terminal, as an escape in a file's name can, is written out.
    """
    return printable(_without_secrets(text))


def _without_secrets(text: str) -> str:
    """Return the rest; user and password reach up to the last ``@``: either may hold /, ? and @."""
    text = _USER.sub(_without_user, _PEM.sub(HIDDEN, text))
    for name, value, instead in _FORMS:
        text = _without_values(text, name, value, instead)
    return text


def _without_user(found: re.Match[str]) -> str:
    host, *rest = re.split(r"[/?#]", found[2], maxsplit=1)
    of_user = not rest or "@" in host or ":" in host  # else the @ is one of the path
    of_user &= ":" in found[2] or found[1].lower() not in _AZURE
    return f"{found[1]}{HIDDEN}@" if of_user else found[0]


def _without_values(
    text: str, names: re.Pattern[str], values: re.Pattern[str], instead: str
) -> str:
    """Hide the values of secret names; the value of another may hold such a name."""
    pieces, place = [], 0
    while found := names.search(text, place):
        pieces.append(text[place : found.end()])
        place = found.end()
        of_query, name = _is_of_query(found), found["name"]
        value = values.match(text, place) if of_query or is_secret(name) else None
        if value and (of_query or is_secret(name, _bare(value[0]))):
            pieces.append(instead)
            place = value.end()
    return "".join([*pieces, text[place:]])


def _is_of_query(found: re.Match[str]) -> bool:
    """Return whether a name is one that is secret only in the query of a URI."""
    if not found.groupdict().get("mark"):
        return False
    return found["name"].lower() == "key" or not _OF_A_QUERY.isdisjoint(_words(found["name"]))


def _bare(value: str) -> str:
    return value.strip("\"'(),;:")


def document(text: str) -> str:
    """Return a text of lines such as ``api_token: …`` without the secrets in it."""
    lines: list[str] = []
    inside: int | None = None  # the indent of a secret whose value goes on
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        if inside is not None and line.strip():
            if indent > inside or (indent == inside and line.lstrip().startswith("- ")):
                continue
            inside = None
        entry = _ENTRY.match(line)
        if entry and (is_secret(entry[2], _bare(entry[4])) or _opens(entry[2], entry[4])):
            inside = indent if _OPENS.fullmatch(entry[4]) else None
            line = f'{entry[1]}{entry[2]}{entry[3].rstrip()} "{HIDDEN}"{entry[5]}'
        lines.append(_INNER.sub(_without_inner, line))
    return redacted("\n".join(lines))


def _opens(key: str, value: str) -> bool:
    return bool(_OPENS.fullmatch(value)) and any(map(_hides_all, map(_words, key.split("."))))


def _without_inner(found: re.Match[str]) -> str:
    secret = is_secret(found[2], _bare(found[4].strip()))
    return f'{found[1]}{found[2]}{found[3]}"{HIDDEN}"' if secret else found[0]


def given_again(config: Mapping[str, Any], *, leaving_out: str = "") -> dict[str, Any]:
    """Return a configuration with the secrets that a record or a print has left out.

    What the environment holds is taken from there; MLflow reads user and password by itself.

    Args:
        config: with ``***`` where something was left out.
        leaving_out: a key that is not needed.

    Raises:
        ValueError: it cannot be known; the message says what to set.
    """
    whole, tracking = dict(config), config.get("tracking")
    if isinstance(tracking, Mapping) and isinstance(uri := tracking.get("uri"), str):
        whole["tracking"] = {**tracking, "uri": whole_uri(uri)}
    for key, value in flatten(whole).items():
        if HIDDEN in value and key != leaving_out:
            raise ValueError(
                f"{key}: {value!r}, where {HIDDEN} stands for what is not shown or kept; give it "
                f"whole, by --set {key}=…, or, for an object store, leave user and password out "
                "and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
    return whole


def whole_uri(uri: str | None) -> str | None:
    """Return the whole of a tracking URI that may be redacted, as far as the environment has it.

    Raises:
        ValueError: it has not; the message says what to set.
    """
    if uri is None or HIDDEN not in uri:
        return uri
    known = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redacted(known) == uri:
        return known
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{it}") for it in ("USERNAME", "PASSWORD"))
    bare = uri.replace(f"{HIDDEN}@", "")
    server = uri.startswith(("http://", "https://")) and HIDDEN not in bare
    if server and ((user and password) or os.environ.get("MLFLOW_TRACKING_TOKEN")):
        return bare
    raise ValueError(
        f"tracking.uri: {uri!r}, where {HIDDEN} stands for what is not shown or kept; set "
        "MLFLOW_TRACKING_URI to the whole of it, or, for a server, MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or give it by --set tracking.uri=…"
    )
