"""``mxfp4moe generate``: text from a model, token by token."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from mxfp4moe.cli._arguments import add_json
from mxfp4moe.cli._generate.options import (
    add_model,
    add_sampling,
    num_new_tokens,
    sampling,
    with_model,
)
from mxfp4moe.cli._generate.stream import IdStream, TextStream

if TYPE_CHECKING:
    from mxfp4moe.cli._generate.texts import Texts
    from mxfp4moe.model.causal_lm import CausalLM

_DESCRIPTION = """\
Continues a text, or answers it if the model has a chat template, and prints what comes while it comes. The
tokenizer is that of the model folder and needs the extra mxfp4moe[generate]; --ids needs nothing.
"""


def add_parser(subparsers: Any) -> None:
    """Add this subcommand."""
    parser = subparsers.add_parser(
        "generate", help="generate text from a whole model", description=_DESCRIPTION
    )
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="The text to answer; - reads the standard input."
    )
    parser.add_argument(
        "--ids",
        nargs="+",
        metavar="ID",
        help="Token ids to continue, with spaces or commas between them, instead of a text; ids are printed. "
        "Default: PROMPT is a text.",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="Continue the text as it is. Default: put it into the chat template, if the model has one.",
    )
    add_model(parser)
    add_sampling(parser)
    add_json(parser, "ids, text and speed")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Generate; 130 if Ctrl-C has ended the text."""
    if (args.prompt is None) == (args.ids is None):
        args.parser.error("expected either PROMPT or --ids")
    if args.raw and args.system is not None:
        args.parser.error("argument --system: expected no --raw, which takes the text as it is")
    if args.ids is not None:
        for option in ("raw", "system"):
            if getattr(args, option):
                args.parser.error(f"argument --{option}: expected a text, not --ids")
        prompt, stop = _parse_ids(args, "ids"), set(_parse_ids(args, "stop"))
        return with_model(args, lambda lm: _generate(args, lm, prompt, IdStream(), stop | set(lm.end_ids)))
    from mxfp4moe.cli._generate.texts import Texts

    texts = Texts(args.checkpoint)
    prompt = _prompt_ids(args, texts)
    stream = TextStream(texts.decode, args.stop)
    return with_model(args, lambda lm: _generate(args, lm, prompt, stream, set(lm.end_ids)))


def _generate(
    args: argparse.Namespace,
    lm: CausalLM,
    prompt: list[int],
    stream: TextStream | IdStream,
    stop: set[int],
) -> int:
    """Print the continuation of the prompt, or everything about it as JSON."""
    from mxfp4moe.cli._generate.measure import Timing, describe

    count = num_new_tokens(args, lm, len(prompt))
    tokens = lm.generate(prompt, max_new_tokens=count, stop=stop, **sampling(args))
    timing, ids, status = Timing(len(prompt)), [], 0
    show = (lambda piece: None) if args.json else _show
    try:
        for token in tokens:
            timing.tick()
            ids.append(token)
            if token not in stop or args.ids is not None:
                show(stream.add(token))
            if stream.stopped:
                break
    except KeyboardInterrupt:
        status = 130
    show(stream.finish())
    summary = timing.summary(lm)
    if args.json:
        print(json.dumps({"prompt_ids": prompt, "ids": ids, "text": stream.text, **summary}))
    else:
        print(flush=True)
        print(describe(summary), file=sys.stderr)
    return status


def _show(piece: str) -> None:
    print(piece, end="", flush=bool(piece))


def _prompt_ids(args: argparse.Namespace, texts: Texts) -> list[int]:
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    if args.raw or not (texts.has_template or args.system is not None):
        return texts.encode(text, special=True)
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return texts.render([*system, {"role": "user", "content": text}])


def _parse_ids(args: argparse.Namespace, option: str) -> list[int]:
    """The ids that an option has, with commas or spaces between them."""
    words = " ".join(getattr(args, option)).replace(",", " ").split()
    if wrong := [word for word in words if not (word.isascii() and word.isdigit() and len(word) < 12)]:
        args.parser.error(f"argument --{option}: expected token ids, got {wrong[0][:40]!r}")
    return [int(word) for word in words]
