# SPDX-License-Identifier: Apache-2.0
"""The ``fastlm`` command: each subcommand is one call of the Python API."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fastlm
from fastlm.tokenizer import DOCUMENTS, read_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for a wrong call, 130 after Ctrl-C."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("run")
    try:
        return int(command(**options))
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as e:
        print(f"\nfastlm: {str(e) or 'interrupted'}", file=sys.stderr)
        return 130
    except OSError as e:
        about = f"{e.filename}: {e.strerror}" if e.filename and e.strerror else e
        print(f"fastlm: {about}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, ImportError, FloatingPointError, MemoryError) as e:
        print(f"fastlm: {e}", file=sys.stderr)
        return 1


# ---- commands ------------------------------------------------------------------------------------------


def _generate(model: str, prompt: str, stats: bool, threads: int | None, **options: Any) -> int:
    lm = fastlm.load(model, threads=threads)
    if prompt == "-":
        prompt = sys.stdin.read()
    options = {name: value for name, value in options.items() if value is not None}
    if options.get("n", 1) == 1 and not stats:
        for piece in lm.stream(prompt, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    for completion in lm.generate([prompt], **options):
        for one in completion if isinstance(completion, list) else [completion]:
            print(one.text, flush=True)
            if stats:
                speed = (
                    f"{one.timings['seconds'] * 1e3:.1f} ms, {one.timings['tokens_per_second']:,.0f} tokens a second"
                )
                print(f"[{len(one.token_ids)} tokens, {speed}; {one.finish_reason}; seed {one.seed}]", file=sys.stderr)
    return 0


def _score(model: str, files: list[str], as_json: bool, threads: int | None) -> int:
    lm = fastlm.load(model, threads=threads)
    for name in files:
        text = sys.stdin.read() if name == "-" else read_text(name)
        score = lm.score(text, documents=True)
        if not score.token_ids:
            raise ValueError(f"{name}: no text to score")
        row = {
            "file": name,
            "tokens": len(score.token_ids),
            "characters": score.characters,
            "unknown": sum(t == getattr(lm.tokenizer, "unknown", None) for t in score.token_ids),
            "perplexity": score.perplexity,
            "bits_per_char": score.bits_per_char,
        }
        if as_json:
            print(json.dumps({k: v if v == v and v != float("inf") else None for k, v in row.items()}))
        else:
            print(
                f"{name}: perplexity {score.perplexity:.2f} per token, {score.bits_per_char:.4f} bits per character "
                f"({row['tokens']:,} tokens, {row['unknown']:,} unknown, {row['characters']:,} characters)"
            )
    return 0


def _info(model: str, as_json: bool) -> int:
    lm = fastlm.load(model)
    if as_json:
        print(json.dumps({"info": lm.info, "metadata": dict(lm.metadata)}, default=list))
        return 0
    info = lm.info
    tensors, dtypes = info.pop("tensors"), info.pop("dtypes")
    for name, value in info.items():
        print(f"{name:16} {_shown(value)}")
    print("\nkeys")
    for key, value in lm.metadata.items():
        print(f"  {key:32} {_shown(value)}")
    print("\ntensors (panels hold 16 rows side by side)")
    for name, shape in tensors.items():
        dtype = dtypes.get(name.removesuffix(".weight"), "") if name.endswith(".weight") else ""
        print(f"  {name:32} {dtype:5} {' x '.join(map(str, shape))}")
    return 0


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=list)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)  # a file must not speak to the terminal
    return text if len(text) <= 100 else f"{text[:90]} ... ({len(value):,} in all)"


def _check(model: str) -> int:
    lm = fastlm.load(model)
    largest, tolerance = lm.check()
    good = largest <= tolerance
    print(
        f"{model}: {'good' if good else 'BAD'}: log-probabilities of the test vector differ by at most "
        f"{largest:.1e} (allowed: {tolerance:.1e}) on {lm.info['isa']}"
    )
    return 0 if good else 1


def _export(model: str, output: str, text: str | None, **options: Any) -> int:
    print(fastlm.export(model, output, text=None if text is None else read_text(text), **options))
    return 0


def _quantize(model: str, output: str, text: str | None, **options: Any) -> int:
    print(fastlm.quantize(model, output, text=None if text is None else read_text(text), **options))
    return 0


def _train(corpus: list[str], output: str, quiet: bool, **options: Any) -> int:
    units = options.pop("units")
    if units is not None:
        options["units"] = units[0] if len(units) == 1 else units
    with _silenced_stderr():  # TensorFlow greets with a page of its own, part of it whatever its log level
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import fastlm.training
    print(fastlm.train(corpus, output, progress=not quiet, **options))
    return 0


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Nothing that C code writes to standard error is shown."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# ---- command line --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastlm", description="The fastest way to run an LSTM language model on a CPU."
    )
    parser.add_argument("--version", action="version", version=f"fastlm {fastlm.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_generate(commands)
    _add_train(commands)
    _add_score(commands)
    _add_export(commands)
    _add_quantize(commands)
    info = _add(commands, "info", _info, "show what is in a model file")
    _add_model_argument(info)
    info.add_argument("--json", dest="as_json", action="store_true", help="print JSON, with every key in full")
    check = _add(commands, "check", _check, "run the test vector that travels with a model file")
    _add_model_argument(check)
    return parser


def _add(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about[0].upper() + about[1:])
    command.set_defaults(run=run)
    return command


def _add_model_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", default="stories", help="model file, or bundled name (default: stories)")


def _add_threads_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threads", type=int, help="threads that share a token (default: what the model's size makes useful)"
    )


def _add_generate(commands: Any) -> None:
    command = _add(commands, "generate", _generate, "write on from a prompt")
    command.add_argument("prompt", help="text to start from; '-' reads standard input; '' starts from nothing")
    command.add_argument("--model", default="stories", help="model file, or bundled name (default: stories)")
    command.add_argument("--max-tokens", type=int, help="most tokens to write (default: 128)")
    command.add_argument("--temperature", type=float, help="0 is greedy (default: the model's recommendation)")
    command.add_argument("--top-k", type=int, help="keep the k likeliest tokens")
    command.add_argument("--top-p", type=float, help="keep the likeliest tokens that together reach p")
    command.add_argument("--seed", type=int, help="same seed, same text (default: a new one)")
    command.add_argument("--n", type=int, help="number of texts")
    command.add_argument(
        "--echo", action=argparse.BooleanOptionalAction, default=True, help="print the prompt in front of the text"
    )
    _add_threads_argument(command)
    command.add_argument("--stats", action="store_true", help="print tokens, speed and seed to standard error")


def _add_score(commands: Any) -> None:
    command = _add(commands, "score", _score, "perplexity and bits per character of text files")
    command.add_argument("--model", default="stories", help="model file, or bundled name (default: stories)")
    command.add_argument("files", nargs="+", help="UTF-8 text, plain or .gz; '-' reads standard input")
    _add_threads_argument(command)
    command.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object a file")


def _add_export(commands: Any) -> None:
    command = _add(commands, "export", _export, "turn a .keras file into a model file")
    command.add_argument("model", help=".keras file: Embedding, LSTM layers, Dense")
    command.add_argument("output", help="model file to write")
    command.add_argument("--tokenizer", help="Hugging Face tokenizer.json, or 'bytes'")
    _add_dtype(command, "f32")
    command.add_argument("--bos", type=int, help="token that starts a text")
    command.add_argument("--eos", type=int, help="token that ends a text")


def _add_quantize(commands: Any) -> None:
    command = _add(commands, "quantize", _quantize, "write a model file with its weights in fewer bits")
    command.add_argument("model", help="model file")
    command.add_argument("output", help="model file to write; may be the same")
    _add_dtype(command, "int8")


def _add_dtype(command: argparse.ArgumentParser, default: str) -> None:
    types = "f32, bf16, int8, int4; or by part, as in cells=int4,output=int8,embedding=int8; or auto: the fastest"
    command.add_argument("--dtype", default=default, help=f"type of the weights: {types} (default: {default})")
    command.add_argument("--text", help="held-out text file, plain or .gz: measures what fewer bits cost")
    command.add_argument("--max-loss", type=float, help="auto: highest rise of perplexity in percent (default: 1)")


def _add_train(commands: Any) -> None:
    command = _add(commands, "train", _train, "train a model on text files with TensorFlow, and export it")
    add = command.add_argument
    add("corpus", nargs="+", help="UTF-8 text files, plain or .gz")
    add("-o", "--output", required=True, help="model file to write")
    add("--valid", nargs="+", help="validation text (default: the last 5 %% of the corpus)")
    add("--preset", help="char (default), bpe or word: tokenizer, and the defaults of what follows")
    add("--documents", choices=DOCUMENTS, help="how a file is cut into documents")
    add("--vocab-size", type=int, help="tokens of bpe or word")
    add("--layers", type=int, help="LSTM layers")
    add("--units", type=int, nargs="+", help="hidden units, of every layer or of each")
    add("--embedding", type=int, help="size of a token's vector")
    add("--tied", action=argparse.BooleanOptionalAction, help="share the output matrix with the embedding")
    add("--dropout", type=float, help="share of values zeroed between layers while training")
    add("--learning-rate", type=float, help="highest rate")
    add("--sequence-length", type=int, help="tokens of a window")
    add("--batch-size", type=int, help="streams read side by side")
    add("--epochs", type=int, help="passes through the corpus at most")
    add("--time-limit", type=float, help="seconds at most")
    add("--seed", type=int, help="of initial weights, dropout and fresh starts (default: 0)")
    add("--resume", action="store_true", help="continue the run in the checkpoint; options left out are the run's")
    add("--checkpoint", help="where the run is kept (default: OUTPUT.ckpt)")
    add("--name", help="written to the model file")
    add("--license", help="written to the model file")
    add("--quiet", action="store_true", help="no progress line")


if __name__ == "__main__":
    sys.exit(main())
