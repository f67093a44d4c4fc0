"""``mxfp4moe chat``: a conversation with a model, whose cache is kept from one turn to the next."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from mxfp4moe.cli._generate.options import (
    add_model,
    add_sampling,
    load_model,
    num_new_tokens,
    sampling,
)
from mxfp4moe.cli._signals import interrupted_each_time

if TYPE_CHECKING:
    from mxfp4moe.cli._generate.texts import Texts
    from mxfp4moe.model.causal_lm import CausalLM

_DESCRIPTION = """\
Answers one line of the standard input after another. What both have said stays in the cache, so that each
turn computes its own tokens alone. Ctrl-C ends an answer, Ctrl-D the conversation. Needs the extra
mxfp4moe[generate] and a model with a chat template.
"""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser("chat", help="talk with a model, line by line", description=_DESCRIPTION)
    add_model(parser)
    add_sampling(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the standard input ends."""
    from mxfp4moe.cli._generate.texts import Texts

    texts = Texts(args.checkpoint)
    texts.render([{"role": "user", "content": "?"}])  # what is missing is said before a long time of loading
    chat = Chat(args, load_model(args), texts)
    shown = sys.stdin.isatty()
    with interrupted_each_time():
        while True:
            try:
                line = input("> ") if shown else _next_line()
            except (EOFError, KeyboardInterrupt):
                break
            if line.strip():
                chat.answer(line)
    print(flush=True)
    return 0


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


class Chat:
    """A conversation and the cache of its tokens."""

    def __init__(self, args: argparse.Namespace, lm: CausalLM, texts: Texts) -> None:
        self._args, self._lm, self._texts = args, lm, texts
        self._cache, self._cached = lm.new_cache(), list[int]()
        self._messages: list[dict[str, str]] = []
        if args.system is not None:
            self._messages.append({"role": "system", "content": args.system})

    def answer(self, text: str) -> None:
        """Print the answer to a line; Ctrl-C ends it, and what was said until then counts."""
        from mxfp4moe.cli._generate.stream import TextStream

        self._messages.append({"role": "user", "content": text})
        ids = self._texts.render(self._messages)
        same = _common(self._cached, ids[:-1])  # the last token is computed anew, for its logits
        self._cache.truncate(same)
        del self._cached[same:]
        stream, stop = TextStream(self._texts.decode, self._args.stop), set(self._lm.end_ids)
        count = num_new_tokens(self._args, self._lm, len(ids))
        options = sampling(self._args)
        tokens = self._lm.generate(ids[same:], max_new_tokens=count, cache=self._cache, stop=stop, **options)
        came = []
        try:
            for token in tokens:
                came.append(token)
                if token in stop:
                    break
                if self._texts.is_special(token):
                    # Where a model thinks before it answers, the answer is what follows the last of these.
                    print(stream.finish(), end="\n" if stream.text else "", flush=True)
                    stream = TextStream(self._texts.decode, self._args.stop)
                else:
                    print(stream.add(token), end="", flush=True)
                if stream.stopped:
                    break
        except KeyboardInterrupt:
            pass
        print(stream.finish(), flush=True)
        self._cached = [*ids, *came][: len(self._cache)]
        self._messages.append({"role": "assistant", "content": stream.text})


def _common(first: list[int], second: list[int]) -> int:
    """How many ids both begin with."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
