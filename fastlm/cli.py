# SPDX-License-Identifier: Apache-2.0
"""The ``fastlm`` command: each subcommand is one call of the Python API."""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastlm
from fastlm.evaluation import TOGETHER, evaluate, needed
from fastlm.format import atomic, gguf_package
from fastlm.options import FORMS
from fastlm.pairs import read_pairs
from fastlm.scoring import rescore, score_lines
from fastlm.tokenizer import DOCUMENTS, read_text
from fastlm.weights import POOLINGS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error or a text without what it shall have, 2 for a wrong
    call, 130 after Ctrl-C."""
    try:
        options = vars(_parser().parse_args(arguments))
        command = options.pop("run")
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


def _generate(
    model: str, prompt: str, stats: bool, threads: int | None, goals: str | None, choose: str | None, **options: Any
) -> int:
    lm = fastlm.load(model, threads=threads)
    if prompt == "-":
        prompt = sys.stdin.read()
    options = {name: value for name, value in options.items() if value is not None}
    if "logit_bias" in options:
        options["logit_bias"] = dict(options["logit_bias"])
    if goals is not None:
        from fastlm.goals import Search, read_goals

        options["goals"] = read_goals(goals)
        if choose is not None:
            options["search"] = Search(choose=choose)
    elif choose is not None:
        raise ValueError("--choose: it is for --goals, of which there are none")
    if options.get("n", 1) == 1 and not stats and not options.keys() & {"best_of", "num_beams", "goals", *FORMS}:
        for piece in lm.stream(prompt, **options):
            print(piece, end="", flush=True)
        print()
        return 0
    met = True
    for completion in lm.generate([prompt], **options):
        for one in completion if isinstance(completion, list) else [completion]:
            print(one.text, flush=True)
            met &= one.satisfied is not False
            for outcome in one.goals:
                if not outcome.satisfied:
                    print(f"[{outcome}]", file=sys.stderr)
            if one.missing:
                print(f"[not included: {', '.join(map(repr, one.missing))}]", file=sys.stderr)
            elif one.satisfied is False and not one.goals:
                print(f"[without the form that was asked for: {one.finish_reason}]", file=sys.stderr)
            if stats:
                speed = (
                    f"{one.timings['seconds'] * 1e3:.1f} ms, {one.timings['tokens_per_second']:,.0f} tokens a second"
                )
                print(f"[{len(one.token_ids)} tokens, {speed}; {one.finish_reason}; seed {one.seed}]", file=sys.stderr)
    return 0 if met else 1


def _evaluate(
    model: str, files: list[str], task: str, columns: list[int] | None, output: str | None, threads: int | None,
    **options: Any,
) -> int:  # fmt: skip
    first, second = (0, 1) if columns is None else (column - 1 for column in columns)
    pairs = read_pairs(files, (first, second))
    given = {name: value for name, value in options.items() if value is not None}
    if output is not None and not Path(output).parent.is_dir():
        raise FileNotFoundError(f"-o: there is no directory {Path(output).parent}")

    def show(count: int) -> None:
        print(f"\r\x1b[K{count:,} of {len(pairs):,}", end="", file=sys.stderr, flush=True)

    terminal = sys.stderr.isatty()
    report = evaluate(fastlm.load(model, threads=threads), pairs, task, progress=show if terminal else None, **given)
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    if output is not None:
        with atomic(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{_one_line(text)}\n" for text in report.texts)
    print(f"{model}: {report}")
    return 0


def _score(model: str, files: list[str], per_line: bool, as_json: bool, threads: int | None) -> int:
    lm = fastlm.load(model, threads=threads)
    for name in files:
        if per_line:
            _score_per_line(lm, name, as_json)
            continue
        text = sys.stdin.read() if name == "-" else read_text(name)
        score = lm.score(text, documents=True)
        if not score.token_ids:
            raise ValueError(f"{name}: no text to score")
        row = {
            "file": name,
            "tokens": len(score.token_ids),
            "characters": score.characters,
            "unknown": score.unknown,
            "perplexity": score.perplexity,
            "bits_per_char": score.bits_per_char,
        }
        if as_json:
            print(_json(row))
        else:
            print(
                f"{name}: perplexity {score.perplexity:.2f} per token, {score.bits_per_char:.4f} bits per character "
                f"({row['tokens']:,} tokens, {row['unknown']:,} unknown, {row['characters']:,} characters)"
            )
    return 0


def _score_per_line(lm: fastlm.Model, name: str, as_json: bool) -> None:
    """A line for each; what they are together to standard error."""
    total, known, tokens, unknown = 0.0, 0.0, 0, 0
    with _lines(name) as lines:
        texts, copy = itertools.tee(lines)
        for line, score in zip(copy, _counted(score_lines(lm, texts), name), strict=True):
            if as_json:
                row = {"logprob": score.total, "tokens": len(score.token_ids), "unknown": score.unknown}
                print(_json({**row, "perplexity": score.perplexity, "text": line.rstrip("\r\n")}))
            else:
                print(f"{score.total:.4f}\t{len(score.token_ids)}\t{score.unknown}\t{score.perplexity:.2f}")
            total, tokens, unknown = total + score.total, tokens + len(score.token_ids), unknown + score.unknown
            known += sum(p for t, p in zip(score.token_ids, score.logprobs, strict=True) if t != _unknown(lm))
    if not tokens:
        raise ValueError(f"{name}: no text to score")
    perplexities = [
        math.exp(min(700.0, -p / n)) if n else math.nan for p, n in ((total, tokens), (known, tokens - unknown))
    ]
    print(
        f"{name}: perplexity {perplexities[0]:.2f} per token, {perplexities[1]:.2f} without unknown ones "
        f"({tokens:,} tokens, {unknown:,} unknown)",
        file=sys.stderr,
    )


def _unknown(lm: fastlm.Model) -> int | None:
    return None if lm.tokenizer is None else lm.tokenizer.unknown


@contextmanager
def _lines(name: str) -> Iterator[Iterator[str]]:
    """Of a text file, plain or gzip, or standard input; never all of them at once."""
    if name == "-":
        yield iter(sys.stdin)
        return
    with open(name, "rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"
    with gzip.open(name, "rt", encoding="utf-8-sig") if packed else open(name, encoding="utf-8-sig") as text:
        try:
            yield iter(text)
        except (UnicodeDecodeError, EOFError, zlib.error) as e:
            raise ValueError(f"{name}: not UTF-8 text, or a damaged gzip file ({e})") from None


def _counted(items: Iterator[Any], name: str) -> Iterator[Any]:
    """The same, and on a terminal how many there were so far, once a second."""
    if not sys.stderr.isatty():
        yield from items
        return
    begin = last = time.monotonic()
    for count, item in enumerate(items, 1):
        if (now := time.monotonic()) - last > 1:
            last = now
            print(f"\r\x1b[K{name}: {count:,} lines, {count / (now - begin):,.0f} a second", end="", file=sys.stderr)
        yield item
    print("\r\x1b[K", end="", file=sys.stderr)


def _json(row: dict[str, Any]) -> str:
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})


def _rescore(model: str, file: str, weight: float, length_weight: float, best: bool, threads: int | None) -> int:
    lm = fastlm.load(model, threads=threads)
    with _lines(file) as lines:
        for candidates in _counted(rescore(lm, lines, weight, length_weight=length_weight), file):
            for one in candidates[:1] if best else candidates:
                facts = (f"{one.score.total:.6f}", len(one.score.token_ids), one.score.unknown, f"{one.total:.6f}")
                print("\t".join(map(str, (*one.fields, *facts))))
    return 0


def _compress(file: str, output: str, model: str, threads: int | None) -> int:
    lm = fastlm.load(model, threads=threads)
    data = _read_bytes(file)
    packed = lm.compress(data)
    with atomic(output) as path, open(path, "wb") as out:
        out.write(packed)
    share = f", {100 * len(packed) / len(data):.1f} %" if data else ""
    print(f"{output}: {len(data):,} bytes in {len(packed):,}{share}", file=sys.stderr)
    return 0


def _decompress(file: str, output: str, model: str, threads: int | None) -> int:
    lm = fastlm.load(model, threads=threads)
    data = lm.decompress(_read_bytes(file))
    if output == "-":
        sys.stdout.buffer.write(data)
        return 0
    with atomic(output) as path, open(path, "wb") as out:
        out.write(data)
    return 0


def _read_bytes(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    with open(name, "rb") as file:
        return file.read()


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
    return _rounded(fastlm.export, model, output, None if text is None else read_text(text), **options)


def _quantize(model: str, output: str, text: str | None, **options: Any) -> int:
    if text is None:
        return _rounded(fastlm.quantize, model, output, None, **options)
    pairs = fastlm.load(model).info["task"] == "seq2seq"
    return _rounded(fastlm.quantize, model, output, read_pairs(text) if pairs else read_text(text), **options)


def _rounded(write: Callable[..., Any], model: str, output: str, text: Any, **options: Any) -> int:
    """Prints the report; what is being done is shown on a terminal while it lasts."""
    terminal = sys.stderr.isatty()
    progress = (lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)) if terminal else None
    try:
        report = write(model, output, text=text, progress=progress, **options)
    finally:
        if progress:
            progress("")
    print(report)
    return 0


def _index(corpus: list[str], model: str, output: str, documents: str | None) -> int:
    print(fastlm.build_index(corpus, fastlm.load(model), output, documents=documents))
    return 0


def _report(
    model: str,
    valid: list[str],
    output: str,
    threads: int | None,
    index: str | None,
    canaries: str | None,
    fix: str | None,
    **options: Any,
) -> int:
    from fastlm.report import report

    if fix is not None and not options["fitted"]:
        raise ValueError("--fix: sampling settings are stored that were tried: leave --no-fit out")
    lm = fastlm.load(model, threads=threads)
    secrets = [] if canaries is None else [line for line in read_text(canaries).splitlines() if line.strip()]
    if canaries is not None and not secrets:
        raise ValueError(f"--canaries: {canaries} has no line")
    if fix is not None:
        gguf_package()
        if not os.path.isdir(os.path.dirname(fix) or "."):
            raise FileNotFoundError(f"--fix: {os.path.dirname(fix)}: no such folder")
    needed("matplotlib", what="the page of a report", extra="report")
    given = {name: value for name, value in options.items() if value is not None}
    known = None if index is None else fastlm.load_index(index)
    os.makedirs(output, exist_ok=True)  # now, before the work, it is known whether it can be
    with _stages() as say:
        found = report(lm, valid, index=known, canaries=secrets, progress=say, **given)
        say("drawing")
        page = found.save(output)
    print(f"{found}\nthe page: {page}")
    if fix is not None and found.fit is not None and not found.fit.helps:
        print(f"no copy was written to {fix}: the model's own settings are as good")
    elif fix is not None:
        found.fix(model, fix)
        print(f"with the fitted sampling settings: {fix}")
    return 0


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being done: a line that changes on a terminal, else a line for each stage."""
    terminal, last = sys.stderr.isatty(), ""

    def say(stage: str) -> None:
        nonlocal last
        name = stage.partition(":")[0]
        if terminal:
            sys.stderr.write(f"\r\x1b[K{stage}")
        elif name != last:
            sys.stderr.write(f"{name}\n")
        last = name
        sys.stderr.flush()

    try:
        yield say
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")


_OF_PAIRS = (
    *("columns", "encoder_units", "shared_vocabulary", "bidirectional", "attention", "attention_units"),
    *("input_feeding", "label_smoothing", "batch_tokens", "copying", "scheduled_sampling"),
    *("prefix_space", "bpe_dropout", "embedding_range", "pooling"),
)
_OF_TEXT = ("preset", "documents", "layers", "sequence_length", "batch_size", "tokenizer")


def _train(corpus: list[str], output: str, quiet: bool, curve: str | None, task: str | None, **options: Any) -> int:
    given = {name: value for name, value in options.items() if value is not None}
    for name in _OF_PAIRS if task is None else _OF_TEXT:
        if name in given:
            others = "is for training on pairs: add --task" if task is None else f"is for text, not for --task {task}"
            raise ValueError(f"--{name.replace('_', '-')} {others}")
    for name in ("units", "encoder_units"):
        if len(given.get(name, ())) == 1:
            given[name] = given[name][0]
    with _silenced_stderr():  # TensorFlow greets with a page of its own, part of it whatever its log level
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from fastlm.training import GapCurve, train, train_pairs
    progress: Any = not quiet
    if curve is not None:
        progress = GapCurve(curve, stream=False if quiet else None)
    if task is None:
        print(train(corpus, output, progress=progress, **given))
        return 0
    if "columns" in given:
        given["columns"] = tuple(column - 1 for column in given["columns"])
    print(train_pairs(corpus, output, task=task, progress=progress, **given))
    return 0


def _answer(model: str, source: list[str], threads: int | None, **options: Any) -> int:
    """Each source's text on a line; sources from the command line or, without any, lines of standard input."""
    lm = fastlm.load(model, threads=threads)
    _expect_task(model, lm, "seq2seq")
    given = {name: value for name, value in options.items() if value is not None}
    for _, text in _answered(lm, source, lambda lines: lm.generate(lines, **given)):
        print("" if text is None else _one_line(str(text)), flush=True)
    return 0


_COMMANDS = {"lm": "generate", "seq2seq": "translate", "classifier": "classify"}


def _expect_task(model: str, lm: fastlm.Model, task: str) -> None:
    found = lm.info["task"]
    if found != task:
        kind = {"lm": "writes on from a text", "seq2seq": "writes a text for a source", "classifier": "gives labels"}
        raise ValueError(f"{model}: this model {kind[found]}: fastlm {_COMMANDS[found]} --model {model} ...")


def _answered(
    model: fastlm.Model, texts: list[str], answer: Callable[[list[str]], list[Any]]
) -> Iterator[tuple[str, Any]]:
    """Each of the texts given, or of the lines of standard input, and its answer; None for an empty one. Some are
    answered together; if one cannot be read, those before it are, and the error says which it is. Empty lines keep
    their place; an empty text on the command line is a mistake."""
    lines = iter(texts) if texts else (line.rstrip("\r\n") for line in sys.stdin)
    done = 0
    while part := list(itertools.islice(lines, TOGETHER)):
        bad, why = _unreadable(model, part, blanks=not texts)
        full = [line for line in part[:bad] if line.strip()]
        answers = iter(answer(full) if full else ())
        yield from ((line, next(answers) if line.strip() else None) for line in part[:bad])
        if why:
            raise ValueError(f"{'text' if texts else 'line'} {done + bad + 1}: {why}")
        done += len(part)


def _unreadable(model: fastlm.Model, texts: list[str], blanks: bool) -> tuple[int, str]:
    """The place of the first text that the model cannot read, and why; or how many there are."""
    for place, text in enumerate(texts):
        try:
            if text.strip() or not blanks:
                model._ids(text.strip())
        except ValueError as e:
            return place, str(e)
    return len(texts), ""


def _classify(model: str, text: list[str], explain: bool, as_json: bool, threads: int | None) -> int:
    """Each text's label and its probability on a line; an empty line for an empty text."""
    judge = fastlm.load(model, threads=threads)
    _expect_task(model, judge, "classifier")
    for line, one in _answered(judge, text, lambda lines: judge.classify(lines, explain=explain)):
        print(_json(_judged(line, one)) if as_json else "" if one is None else _label_line(one), flush=True)
    return 0


def _judged(text: str, one: Any) -> dict[str, Any]:
    if one is None:
        return {"text": text, "label": None}
    row = {"text": text, "label": one.label, "probabilities": dict(one)}
    return row | {"words": [{"word": word.word, "effect": word.effect} for word in one.words]} if one.words else row


def _label_line(one: Any) -> str:
    words = " ".join(f"{word.word}({word.effect:+.2f})" for word in one.words)
    return f"{one.label}\t{one.probability:.4f}" + (f"\t{words}" if words else "")


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


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
    _add_answers(commands)
    _add_score(commands)
    _add_rescore(commands)
    for name, run, about in (
        ("compress", _compress, "write a file in as few bytes as a model finds it likely"),
        ("decompress", _decompress, "bring a compressed file back, byte for byte, on any machine"),
    ):
        command = _add(commands, name, run, about)
        command.add_argument("file", help="to read; '-' reads standard input")
        command.add_argument("output", help="to write" + ("; '-' is standard output" if run is _decompress else ""))
        command.add_argument("--model", default="stories", help="model file, or bundled name (default: stories)")
        _add_threads_argument(command)
    _add_export(commands)
    _add_quantize(commands)
    _add_index(commands)
    _add_report(commands)
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
    command.add_argument("--goals", help="JSON or TOML file of what the text shall have (docs/goals.md)")
    command.add_argument(
        "--choose", choices=("weights", "priority", "fairest"), help="by what one of several good texts is chosen"
    )
    command.add_argument(
        "--echo", action=argparse.BooleanOptionalAction, default=True, help="print the prompt in front of the text"
    )
    more = command.add_argument_group("more control (docs/options.md defines all of them)")
    for name, kind, about in _CONTROLS:
        more.add_argument(f"--{name}", type=kind, help=about)
    more.add_argument("--token-healing", action="store_const", const=True, help="write the prompt's last tokens anew")
    copies = "of a model with a source: copy words that it does not know"
    more.add_argument("--replace-unknown", action="store_const", const=True, help=copies)
    more.add_argument(
        "--mbr", action="store_const", const=True, help="the text that is most like all (with --num-beams, 16 or more)"
    )
    more.add_argument("--without-replacement", action="store_const", const=True, help="the n texts are all different")
    for name, kind, metavar, about in _REPEATED:
        more.add_argument(f"--{name}", type=kind, metavar=metavar, action="append", help=f"{about}; may be repeated")
    _add_threads_argument(command)
    command.add_argument("--stats", action="store_true", help="print tokens, speed and seed to standard error")


def _from_file(text: str) -> str:
    return read_text(text[1:]) if text.startswith("@") else text


def _loaded_by(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """With the reason, where a file cannot be read."""

    def read(path: str) -> Any:
        try:
            return load(path)
        except OSError as e:
            raise argparse.ArgumentTypeError(f"{path}: {e.strerror or e}") from None
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from None

    return read


_CONTROLS: tuple[tuple[str, Any, str], ...] = (
    ("best-of", int, "draw so many texts and print the likeliest n"),
    ("min-tokens", int, "no end of text before so many tokens"),
    ("min-p", float, "keep tokens with at least this share of the likeliest one's probability"),
    ("typical-p", float, "keep the tokens nearest to the expected surprise that together reach p"),
    ("epsilon-cutoff", float, "keep tokens of at least this probability"),
    ("eta-cutoff", float, "the same, less where anything may come"),
    ("top-n-sigma", float, "keep tokens within n standard deviations of the largest logit"),
    ("xtc-probability", float, "how often the top choices are taken out"),
    ("xtc-threshold", float, "which are top choices (default: 0.1)"),
    ("mirostat-tau", float, "surprise to aim at, in bits"),
    ("mirostat-eta", float, "how fast it is approached (default: 0.1)"),
    ("repetition-penalty", float, "divides the logits of what was said; 1 is neutral"),
    ("presence-penalty", float, "taken from the logits of what was written"),
    ("frequency-penalty", float, "the same, for each time"),
    ("penalty-window", int, "the last so many tokens count (default: all)"),
    ("no-repeat-ngram-size", int, "no so many tokens in a row twice"),
    ("dry-multiplier", float, "penalty for prolonging a repetition"),
    ("dry-base", float, "how it grows with the repetition's length (default: 1.75)"),
    ("dry-allowed-length", int, "from what length on (default: 2)"),
    ("dry-window", int, "tokens looked back at (default: all)"),
    ("max-copied", int, "write no more than so many tokens in a row that stand in the corpus"),
    ("corpus", _loaded_by(fastlm.load_index), "index of the corpus, as fastlm index writes it"),
    ("contrastive-model", _loaded_by(fastlm.load), "a weaker model file, whose preferences are avoided"),
    ("contrastive-alpha", float, "the stronger model's say (default: 0.1)"),
    ("contrastive-beta", float, "how much they are avoided (default: 0.5)"),
    ("samplers", lambda names: names.split(","), "the order of the steps, as in top_k,temperature,min_p"),
    ("num-beams", int, "search for the likeliest text with so many side by side, instead of drawing"),
    ("length-penalty", float, "its score is divided by length to this power (default: 1)"),
    ("early-stopping", lambda text: {"true": True, "false": False}.get(text, text), "true, false or never"),
    ("num-beam-groups", int, "groups of beams that choose in turn"),
    ("diversity-penalty", float, "for what groups before have chosen"),
    ("regex", str, "the text matches this regular expression"),
    ("json-schema", _from_file, "the text is JSON of this schema: JSON, or @FILE"),
    ("grammar", _from_file, "the text is derived from this Lark grammar, or @FILE"),
    ("stop-repeats", int, "end the text when a pattern came so often in a row"),
    ("deadline-ms", float, "end the text after so many milliseconds"),
)
"""Options of `generate` that take one value, with what reads it."""


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)


_bias.__name__ = "ID=BIAS"  # as argparse calls it in a message


_REPEATED: tuple[tuple[str, Any, str, str], ...] = (
    ("stop", str, "TEXT", "end the text before this"),
    ("stop-token-ids", int, "ID", "end the text before this token"),
    ("bad-words", str, "TEXT", "never write this"),
    ("must-include", str, "TEXT", "write this somewhere (with --num-beams)"),
    ("choices", str, "TEXT", "the text is this or another choice"),
    ("allowed-token-ids", int, "ID", "write these tokens only"),
    ("logit-bias", _bias, "ID=BIAS", "added to a token's logit"),
    ("dry-sequence-breakers", str, "TEXT", "tokens with this end a repetition"),
)
"""Those that take several."""


def _add_score(commands: Any) -> None:
    command = _add(commands, "score", _score, "perplexity and bits per character of text files")
    command.add_argument("--model", default="stories", help="model file, or bundled name (default: stories)")
    command.add_argument("files", nargs="+", help="UTF-8 text, plain or .gz; '-' reads standard input")
    command.add_argument(
        "--per-line",
        action="store_true",
        help="score every line by itself: log-probability, tokens, unknown ones, perplexity",
    )
    _add_threads_argument(command)
    command.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object a file")


def _add_rescore(commands: Any) -> None:
    about = (
        "rank candidates anew: lines of key, text and score, between tabs; adds log-probability, tokens, unknown, total"
    )
    command = _add(commands, "rescore", _rescore, about)
    command.add_argument("file", help="UTF-8 text, plain or .gz; '-' reads standard input")
    command.add_argument("--model", default="stories", help="model file, or bundled name (default: stories)")
    command.add_argument("--weight", type=float, default=1.0, help="of the model's log-probability (default: 1)")
    command.add_argument("--length-weight", type=float, default=0.0, help="added for each token (default: 0)")
    command.add_argument("--best", action="store_true", help="print the best of each key only")
    _add_threads_argument(command)


def _add_export(commands: Any) -> None:
    command = _add(commands, "export", _export, "turn a .keras file into a model file")
    command.add_argument("model", help=".keras file: Embedding, LSTM layers, Dense")
    command.add_argument("output", help="model file to write")
    command.add_argument("--tokenizer", help="Hugging Face tokenizer.json, or 'bytes'")
    command.add_argument("--labels", nargs="+", help="of a classifier, in the order of its outputs")
    _add_dtype(command, "f32", "held-out text, plain or .gz: what fewer bits cost (of a model with a source: quantize)")
    command.add_argument("--bos", type=int, help="token that starts a text")
    command.add_argument("--eos", type=int, help="token that ends a text")


def _add_quantize(commands: Any) -> None:
    command = _add(commands, "quantize", _quantize, "write a model file with its weights in fewer bits")
    command.add_argument("model", help="model file")
    command.add_argument("output", help="model file to write; may be the same")
    _add_dtype(command, "int8", "held-out text (for a model with a source, pairs), plain or .gz: what fewer bits cost")


def _add_index(commands: Any) -> None:
    command = _add(commands, "index", _index, "index a training text, so that hardly anything of it is copied")
    command.add_argument("corpus", nargs="+", help="UTF-8 text files, plain or .gz")
    command.add_argument("--model", default="stories", help="whose tokens are counted (default: stories)")
    command.add_argument("-o", "--output", required=True, help="index file to write")
    command.add_argument("--documents", choices=DOCUMENTS, help="how a file is cut (default: as the model's tokenizer)")


def _add_report(commands: Any) -> None:
    command = _add(
        commands, "report", _report, "tell whether a model overfits, copies, or writes nothing in particular"
    )
    add = command.add_argument
    add("model", help="model file, or bundled name")
    add("--valid", nargs="+", required=True, help="text that it was not trained on, plain or .gz")
    add("--train", nargs="+", help="text that it was trained on: says whether it overfits and copies")
    add("--also", nargs="+", help="other kinds of text: says whether it knows them")
    add("-o", "--output", required=True, help="folder to write: index.html, and report.json")
    add("--index", help="of the training text, as 'fastlm index' writes it (default: it is made, and thrown away)")
    add("--canaries", help="file with lines that were put into the training text, whose digits are secrets")
    add("--curve", help="what 'fastlm train --curve' wrote")
    add("--documents", choices=DOCUMENTS, help="how files are cut (default: as the model's tokenizer)")
    add("--temperature", type=float, help="to write with (default: what the model recommends)")
    add("--no-fit", dest="fitted", action="store_false", help="try no sampling settings")
    add("--fix", metavar="FILE", help="write a copy of the model with the sampling settings that were found")
    add("--seed", type=int, default=0, help="of passages and texts (default: 0)")
    _add_threads_argument(command)


def _add_dtype(command: argparse.ArgumentParser, default: str, text: str) -> None:
    types = "f32, bf16, int8, int4; or by part, as in cells=int4,output=int8,embedding=int8; or auto: the fastest"
    command.add_argument("--dtype", default=default, help=f"type of the weights: {types} (default: {default})")
    command.add_argument("--text", help=text)
    command.add_argument("--max-loss", type=float, help="auto: highest rise of perplexity in percent (default: 1)")
    command.add_argument(
        "--screen", action="store_true", help="rule most of a large vocabulary out early: the same text, faster"
    )


def _add_answers(commands: Any) -> None:
    for name, about in (
        ("translate", "write translations"),
        ("summarize", "write summaries"),
        ("answer", "write answers"),
    ):
        command = _add(commands, name, _answer, f"{about} with a sequence-to-sequence model")
        command.add_argument("source", nargs="*", help="texts; without any, each line of standard input is one")
        _add_writing_arguments(command)
    command = _add(commands, "classify", _classify, "give labels to texts")
    command.add_argument("text", nargs="*", help="texts; without any, each line of standard input is one")
    command.add_argument("--model", required=True, help="model file")
    command.add_argument("--explain", action="store_true", help="also say what each word did to the label's logarithm")
    command.add_argument("--json", dest="as_json", action="store_true", help="all probabilities, an object a line")
    _add_threads_argument(command)
    command = _add(commands, "evaluate", _evaluate, "measure a model on pairs that it has not seen")
    command.add_argument("files", nargs="+", help="tab-separated UTF-8 files, plain or .gz")
    command.add_argument("--task", required=True, choices=("translate", "summarize", "answer", "classify"),
                         help="BLEU, ROUGE, the share of texts that are the same, or of right labels")  # fmt: skip
    command.add_argument("--columns", type=int, nargs=2, metavar=("SOURCE", "TEXT"), help="default: 1 2")
    command.add_argument("-o", "--output", help="file to write the texts to, a line each")
    _add_writing_arguments(command)


def _add_writing_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", required=True, help="model file")
    add("--beams", "--num-beams", dest="num_beams", type=int, help="texts followed side by side (default: 1, greedy)")
    add("--length-penalty", type=float, help="of beams: above 0 favours long texts (default: 1)")
    add(
        "--coverage-penalty", type=float, help="of beams: against texts that leave out parts of the source (default: 0)"
    )
    add("--keep-names", action="store_true", default=None, help="of beams: the text with most of the source's names")
    add("--mbr", action="store_true", default=None, help="of beams, 16 or more: the text that is most like all of them")
    add("--no-repeat-ngram-size", type=int, help="no so many tokens in a row come twice (default: 0, they may)")
    add("--max-tokens", type=int, help="longest text (default: 128)")
    add("--replace-unknown", action="store_true", default=None, help="copy words that the model does not know")
    _add_threads_argument(command)


def _add_train(commands: Any) -> None:
    command = _add(commands, "train", _train, "train a model on text files with TensorFlow, and export it")
    add = command.add_argument
    add("corpus", nargs="+", help="UTF-8 text files, plain or .gz; with --task tab-separated ones")
    add(
        "--task",
        choices=("translate", "summarize", "answer", "classify"),
        help="train on pairs of a text and what is made of it, with the task's preset",
    )
    add("-o", "--output", required=True, help="model file to write")
    add("--valid", nargs="+", help="validation text (default: the last 5 %% of the corpus)")
    add("--preset", help="char (default), bpe or word: tokenizer, and the defaults of what follows")
    add("--documents", choices=DOCUMENTS, help="how a file is cut into documents")
    add("--vocab-size", type=int, help="tokens of bpe or word")
    add("--layers", type=int, help="LSTM layers")
    add("--units", type=int, nargs="+", help="hidden units, of every layer or of each")
    add("--embedding", type=int, help="size of a token's vector")
    add("--tied", action=argparse.BooleanOptionalAction, help="share the output matrix with the embedding")
    flag = argparse.BooleanOptionalAction
    add(
        "--columns",
        type=int,
        nargs=2,
        metavar=("SOURCE", "TEXT"),
        help="pairs: their columns (default: 1 2); a label is the second",
    )
    add("--shared-vocabulary", action=flag, help="pairs: one vocabulary for both sides")
    add("--encoder-units", type=int, nargs="+", help="pairs: units of the encoder, in each direction")
    add("--bidirectional", action=flag, help="pairs: whether the encoder reads in both directions")
    add("--attention", choices=("dot", "general", "additive", "none"), help="pairs: how the source is looked at")
    add("--attention-units", type=int, help="pairs: values that attention makes")
    add("--pooling", choices=POOLINGS, help="classify: how all places of a text become one")
    add("--pretrained", metavar="MODEL", help="text, and classify: a language model to begin with")
    add("--tokenizer", metavar="MODEL", help="text: a model whose tokenizer is taken")
    add("--input-feeding", action=flag, help="pairs: the next step reads what attention gave")
    add("--copying", action=flag, help="pairs: words of the source may be copied; needs --shared-vocabulary")
    add("--scheduled-sampling", type=float, help="pairs: share of a text's words that are the model's own guesses")
    add("--prefix-space", action=flag, help="pairs: first words are the same tokens as inside a text")
    add(
        "--bpe-dropout",
        type=float,
        help="pairs: share of the vocabulary's merged tokens that fall apart, drawn anew for each pair",
    )
    add("--embedding-range", type=float, help="pairs: embeddings begin between this and its negative")
    add("--label-smoothing", type=float, help="pairs: share of each target that is spread over all tokens or labels")
    add("--batch-tokens", type=int, help="pairs: tokens of a batch, sources and texts together")
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
    add(
        "--curve",
        metavar="FILE",
        help="add a line with what the model knows of training and validation text as it goes",
    )
    add("--quiet", action="store_true", help="no progress line")


if __name__ == "__main__":
    sys.exit(main())
