"""Texts to token ids and back, by the tokenizer and the chat template that lie beside the weights."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mxfp4moe._arguments import printable, value_error
from mxfp4moe._json import MissingFileError, missing_model_error, read_object, shorten

Message = Mapping[str, str]

_MAX_TEMPLATE = 10_000_000  # bytes
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def missing(package: str) -> str:
    """Why a package of the extra cannot be used; empty if it can."""
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed (pip install 'mxfp4moe[generate]')"
    return ""


class Texts:
    """The tokenizer of a model folder.

    Parameters
    ----------
    folder : pathlib.Path
        With a tokenizer.json; the chat template may be in a file of its own or in tokenizer_config.json.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise missing_model_error(folder, "a model folder")
        path = folder / "tokenizer.json"
        if not path.is_file():
            hint = "generate --ids takes token ids instead of a text"
            raise MissingFileError(f"{folder}: expected a tokenizer.json, got none ({hint})")
        if why := missing("tokenizers"):
            raise ValueError(f"{why}; generate --ids takes token ids instead of a text")
        tokenizers = importlib.import_module("tokenizers")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library has one class for all that may be wrong
            raise ValueError(f"{path}: expected a tokenizer, got {error}") from None
        self._folder = folder
        config = folder / "tokenizer_config.json"
        self._config = read_object(config) if config.is_file() else {}

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text; `special`: with those that the tokenizer adds, as at the beginning."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def is_special(self, token: int) -> bool:
        """Whether an id is that of a special token, which has a meaning and no text."""
        found = self._tokenizer.get_added_tokens_decoder().get(token)
        return found is not None and bool(found.special)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._template())

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the next answer begins."""
        template = self._template()
        if not template:
            places = "chat_template.jinja or tokenizer_config.json"
            raise value_error(str(self._folder), f"a chat template in {places}", "none (--raw needs none)")
        if why := missing("jinja2"):
            raise ValueError(f"{why}; --raw needs no chat template")
        text = _render(template, list(messages), self._special_tokens(), self._folder)
        return self.encode(text, special=False)

    def _template(self) -> str:
        path = self._folder / "chat_template.jinja"
        if path.is_file():
            if path.stat().st_size > _MAX_TEMPLATE:
                raise value_error(str(path), f"at most {_MAX_TEMPLATE} bytes", str(path.stat().st_size))
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise value_error(str(path), "a text in UTF-8", str(error)) from None
        other = self._folder / "chat_template.json"
        config = read_object(other) if other.is_file() else self._config
        found = config.get("chat_template")
        if isinstance(found, list):  # of several by name, the one for chats without tools is the default
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("default")
        if not isinstance(found, str | None):
            raise value_error(f"{self._folder}: chat_template", "a text", shorten(found))
        return found or ""

    def _special_tokens(self) -> dict[str, str]:
        """The texts of special tokens, which templates name."""
        result = {}
        for name in _SPECIAL_TOKENS:
            value = self._config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                result[name] = value
        return result


def _render(template: str, messages: list[Message], names: Mapping[str, str], folder: Path) -> str:
    """The text that a template makes of messages; it comes with the model, and so runs in a sandbox."""
    jinja2 = importlib.import_module("jinja2")
    sandbox = importlib.import_module("jinja2.sandbox").ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    try:
        environment = sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        values = {"messages": messages, "add_generation_prompt": True, **names}
        return str(environment.from_string(template).render(**values))
    except Exception as error:  # whatever the template does
        raise ValueError(f"{folder}: chat template: {printable(str(error), 300)}") from None
