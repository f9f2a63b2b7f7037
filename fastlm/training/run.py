# SPDX-License-Identifier: Apache-2.0
"""`train`: from text files to a model file."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import keras
import numpy as np
import tensorflow as tf

from fastlm.classifier import named
from fastlm.exporter import ExportReport
from fastlm.format import gguf_package, unpack
from fastlm.model import load, model_path
from fastlm.pairs import read_pairs
from fastlm.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    from_fields,
    train_bpe,
    train_words,
)
from fastlm.training import checkpoint as checkpoints
from fastlm.training.classifier import LABELS, ClassifyingTask
from fastlm.training.corpus import Corpus, Paths, encode, hold_out, read_documents
from fastlm.training.evaluation import Evaluation, Evaluator
from fastlm.training.language import LanguageTask
from fastlm.training.network import Network, build_model
from fastlm.training.options import LabelOptions, Options, PairOptions, fill_up, resolve, resolve_pairs
from fastlm.training.pairs import Pairs
from fastlm.training.progress import Report, reporter
from fastlm.training.trainer import Task, Trainer
from fastlm.training.writing import SOURCE, WritingTask
from fastlm.weights import Weights


@dataclass(frozen=True)
class TrainReport:
    """What a training run came to.

    Attributes
    ----------
    steps, tokens : int
        Windows, and tokens in them, that were trained on.
    epochs : float
    seconds : float
        All sessions of the run together.
    tokens_per_second : float
        Tokens trained on by seconds, validation included.
    train_perplexity : float
        Over the last hundred steps or so, with dropout; with ``bpe_dropout``, of shorter tokens than ``valid`` has.
    valid : Evaluation
        Of the weights in the file, which are the best on the validation text. To be quick, a language model reads it
        as 16 streams; see `evaluate` for the exact figure, which differs by a thousandth or so.
    output : Path
        The model file.
    export : fastlm.ExportReport
        What the exporter says about it.
    """

    steps: int
    epochs: float
    tokens: int
    seconds: float
    tokens_per_second: float
    train_perplexity: float
    valid: Evaluation
    output: Path
    export: ExportReport

    def __str__(self) -> str:
        return (
            f"{self.export}\n"
            f"valid: {self.valid}\n"
            f"training: {self.steps:,} steps, {self.epochs:.1f} epochs, {self.seconds:,.0f} s, "
            f"{self.tokens_per_second:,.0f} {'tokens' if self.valid.right is None else 'texts'} a second"
        )

    @property
    def valid_perplexity(self) -> float:
        """See `valid`."""
        return self.valid.perplexity

    @property
    def valid_bits_per_char(self) -> float:
        """See `valid`."""
        return self.valid.bits_per_char


def train(
    corpus: Paths,
    output: str | os.PathLike[str],
    *,
    valid: Paths | None = None,
    preset: str | None = None,
    documents: str | None = None,
    vocab_size: int | None = None,
    layers: int | None = None,
    units: int | Sequence[int] | None = None,
    embedding: int | None = None,
    tied: bool | None = None,
    dropout: float | None = None,
    learning_rate: float | None = None,
    sequence_length: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    time_limit: float | None = None,
    seed: int | None = None,
    pretrained: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    name: str | None = None,
    license: str | None = None,
    progress: bool | TextIO | Report = True,
) -> TrainReport:
    """Train an LSTM language model on text files and write it as a model file.

    Training is truncated back-propagation through time (Mikolov et al. 2010; Zaremba et al. 2014): streams
    of text are read side by side, their state carried from window to window and started afresh now and
    then. Adam with clipped gradients; the rate is halved when the validation perplexity stops falling and
    annealed towards the end of the budget; the weights kept are the best on the validation text.

    Parameters
    ----------
    corpus : path or list of paths
        UTF-8 text, plain or gzip.
    output : path
        The model file to write.
    valid : path or list of paths, optional
        Validation text. Default: the last 5 % of the corpus, in whole documents if it has several.
    preset : {"char", "bpe", "word"}, optional
        Tokenizer, and the default of every option that is None. Default: char.
    documents : {"file", "blank-line", "line"}, optional
        How a file is cut into documents: the model learns how they begin and end.
    vocab_size : int, optional
        Tokens of ``bpe`` or ``word``.
    layers : int, optional
        LSTM layers.
    units : int or list of int, optional
        Hidden units, of every layer or of each.
    embedding : int, optional
        Size of a token's vector.
    tied : bool, optional
        Share the output matrix with the embedding, which must then be as wide as the last layer.
    dropout : float, optional
        Share of values zeroed between layers while training, in [0, 1).
    learning_rate : float, optional
        Highest rate.
    sequence_length, batch_size : int, optional
        Tokens of a window, and streams read side by side.
    epochs : int, optional
        Passes through the corpus at most. Default: 20, or no limit if there is a time limit.
    time_limit : float, optional
        Seconds at most, all sessions of the run together.
    seed : int, optional
        Of initial weights, dropout and fresh starts. Default: 0.
    pretrained : path or name of a bundled model, optional
        A language model whose tokenizer, sizes and weights the run begins with (fine-tuning); documents, by default,
        are cut as for it.
    tokenizer : path or name of a bundled model, optional
        A model whose tokenizer is taken, as that of models that shall judge one text together must be one
        (`fastlm.goals.Like`, ``Experts``, ``Specific``, the option ``contrastive_model``). The rest is the run's own;
        of the preset only the other defaults count, by default those of the preset with the like of it.
    resume : bool
        Continue the run in the checkpoint, on the same text. Options left out are the run's; epochs, time limit
        and learning rate may be others, the rest must agree.
    checkpoint : path, optional
        Where the run is kept, so that it survives a kill at any moment. Default: ``output`` with ".ckpt"
        appended, removed when the model file has been written; a path given here is left in place.
    name, license : str, optional
        Written to the model file.
    progress : bool, function or text stream
        True: a line on standard error. A function is called with a `Progress` after every step.

    Returns
    -------
    TrainReport

    Raises
    ------
    TypeError, ValueError
        For an option, text or checkpoint that cannot be used; the message names it and what would do.
    OSError
        If a file cannot be read or written. FileExistsError: ``checkpoint`` holds a run already.
    FloatingPointError
        If training diverges.
    MemoryError
        If model and batch do not fit into memory.
    KeyboardInterrupt
        After Ctrl-C, with the run saved; the message says where. (In the main thread.)

    Examples
    --------
    >>> import fastlm
    >>> report = fastlm.train("corpus.txt", "m.gguf", units=128, time_limit=600)  # doctest: +SKIP
    >>> report.valid_bits_per_char  # doctest: +SKIP
    1.93
    """
    given: dict[str, Any] = {
        "preset": preset,
        "documents": documents,
        "vocab_size": vocab_size,
        "layers": layers,
        "units": units,
        "embedding": embedding,
        "tied": tied,
        "dropout": dropout,
        "learning_rate": learning_rate,
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "epochs": epochs,
        "time_limit": time_limit,
        "seed": seed,
    }
    target, saved = _paths(output, checkpoint, resume)
    report = reporter(progress)
    before = checkpoints.load(saved) if resume else None
    begun = None
    if before:
        _check_resumed(before[0]["options"], None, pretrained=pretrained, tokenizer=tokenizer)
        given = fill_up(given, before[0]["options"])
    elif pretrained is not None or tokenizer is not None:
        begun = _begun(pretrained, tokenizer)
        given = _as_begun(given, begun)
    options = resolve(**given)
    gguf_package()  # now, so that a missing package is known before the work is done
    with _memory_errors():
        task = _prepare(corpus, valid, options, before, begun)
        trainer = _run(options, task, saved, before, report)
    return _finish(task, trainer, target, saved if checkpoint is None else None, name, license)


def train_pairs(
    data: Paths,
    output: str | os.PathLike[str],
    *,
    task: str,
    valid: Paths | None = None,
    columns: tuple[int, int] = (0, 1),
    pretrained: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    name: str | None = None,
    license: str | None = None,
    progress: bool | TextIO | Report = True,
    **options: Any,
) -> TrainReport:
    """Train a model that makes something of a text, from files of pairs, and write it as a model file.

    To write a text for a source: an LSTM encoder and a decoder with attention (Luong et al. 2015), trained on the true
    text (teacher forcing). To give labels ("classify"): LSTM layers, pooling, and a softmax, whose probabilities are
    calibrated on the validation texts (Guo et al. 2017). Both in batches of like lengths, with Adam, clipped gradients,
    dropout and label smoothing (Szegedy et al. 2016). The weights kept are the best on the validation pairs.

    Parameters
    ----------
    data : path or list of paths
        Tab-separated UTF-8 text without a header, plain or gzip.
    output : path
        The model file to write.
    task : {"translate", "summarize", "answer", "classify"}
        The preset: the default of every option that is None.
    valid : path or list of paths, optional
        Validation pairs. Default: 5 % of the data, drawn; of texts with labels, of each label's.
    columns : (int, int)
        Of the source and of its text or label, from 0.
    pretrained : path, optional
        For "classify": a language model whose tokenizer, embedding and LSTM layers a run begins with (Dai & Le
        2015); in a second direction, the layers begin at random.
    resume, checkpoint, name, license, progress
        As in `train`.
    **options
        See `fastlm.training.options.PairOptions` and `LabelOptions`.

    Returns
    -------
    TrainReport

    Raises
    ------
    TypeError, ValueError, OSError, FloatingPointError, MemoryError, KeyboardInterrupt
        As `train`.
    """
    target, saved = _paths(output, checkpoint, resume)
    report = reporter(progress)
    before = checkpoints.load(saved) if resume else None
    begun = known = None
    if before:
        known = before[0]["options"]
        _check_resumed(known, task, pretrained=pretrained)
        task = known["task"]
    elif pretrained is not None:
        begun = _pretrained(pretrained, task, options)
        options = {**options, **begun.sizes, "vocab_size": begun.tokens}
    resolved = resolve_pairs(task, options, known)
    gguf_package()
    with _memory_errors():
        prepared = _prepare_pairs(data, valid, columns, resolved, before, begun)
        trainer = _run(resolved, prepared, saved, before, report)
    return _finish(prepared, trainer, target, saved if checkpoint is None else None, name, license)


def _check_resumed(known: Mapping[str, Any], task: str | None, **begun: Any) -> None:
    if (before := known.get("task")) != task:
        found = "a language model's: leave the task out" if before is None else f"of task {before!r}: give this task"
        raise ValueError(f"the run in the checkpoint is {found}")
    for name, value in begun.items():
        if value is not None:
            raise ValueError(f"{name}: the run in the checkpoint has begun already; leave it out")


@dataclass(frozen=True)
class _Begun:
    """What a run begins with: a tokenizer, or a language model with its own."""

    tokenizer: Tokenizer
    weights: Weights | None
    tokens: int
    """Those of the model, which may have more than its tokenizer knows."""

    @property
    def sizes(self) -> dict[str, Any]:
        """Options that the model decides."""
        if self.weights is None:
            return {}
        return {"embedding": self.weights.embedding.shape[1], "units": tuple(one.units for one in self.weights.layers)}


def _begun(pretrained: str | os.PathLike[str] | None, tokenizer: str | os.PathLike[str] | None) -> _Begun:
    """What a language model begins with: one of the two."""
    if pretrained is None:
        assert tokenizer is not None
        model = load(tokenizer)
        if model.tokenizer is None:
            raise ValueError(f"tokenizer: expected a model with a tokenizer, found {tokenizer}")
        begun = _Begun(model.tokenizer, None, model.vocab_size)
    elif tokenizer is not None:
        raise ValueError("tokenizer: that of the pretrained model is taken; leave it out")
    else:
        begun = _language_model(pretrained)
    known = begun.tokenizer
    if known.bos is None or known.bos != known.eos:
        raise ValueError(
            f"{pretrained or tokenizer}: its texts begin with token {known.bos} and end with {known.eos}: expected one "
            "token for both, as the border between documents that are laid end to end"
        )
    if begun.tokens != known.vocab_size:
        raise ValueError(
            f"{pretrained or tokenizer}: its tokenizer has {known.vocab_size} tokens, the model {begun.tokens}"
        )
    return begun


def _language_model(path: str | os.PathLike[str]) -> _Begun:
    tokenizer, weights = load(path).tokenizer, unpack(model_path(path))
    if weights.task != "lm" or tokenizer is None or tokenizer.bos is None:
        raise ValueError(f"pretrained: expected a language model with a tokenizer and a start of text, found {path}")
    assert isinstance(weights, Weights)
    return _Begun(tokenizer, weights, len(weights.embedding))


def _as_begun(given: Mapping[str, Any], begun: _Begun) -> dict[str, Any]:
    """Arguments of `resolve` with what the beginning decides."""
    known, weights = begun.tokenizer, begun.weights
    sizes = () if weights is None else ("layers", "units", "embedding", "tied")
    _refuse(given, "vocab_size", *sizes, whose="tokenizer" if weights is None else "pretrained model")
    like = "char" if isinstance(known, (CharTokenizer, ByteTokenizer)) else "bpe" if known.exact_pieces else "word"
    found = {**given, **begun.sizes}
    found["preset"] = given["preset"] or like
    if found["preset"] != "char":
        found["vocab_size"] = known.vocab_size
    if weights is not None:
        found |= {"tied": weights.output is None, "documents": given["documents"] or known.documents}
    return found


def _pretrained(path: str | os.PathLike[str], task: str, options: Mapping[str, Any]) -> _Begun:
    """What a classifier begins with."""
    if task != "classify":
        raise ValueError(f"pretrained: for task='classify', not for {task!r}")
    _refuse(options, "vocab_size", "embedding", "units", whose="pretrained model")
    return _language_model(path)


def _refuse(given: Mapping[str, Any], *names: str, whose: str) -> None:
    for name in names:
        if given.get(name) is not None:
            raise ValueError(f"{name}: that of the {whose} is taken; leave it out")


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[keras.Model, Tokenizer]:
    """The Keras model with the best weights of a run so far, and its tokenizer.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a checkpoint.
    """
    meta, groups = checkpoints.load(Path(path))
    tokenizer = from_fields(meta["tokenizer"])
    assert tokenizer is not None
    options = meta["options"]
    model = build_model(
        tokenizer.vocab_size,
        options["units"],
        options["embedding"],
        tied=options["tied"],
        dropout=options["dropout"],
    )
    for variable, value in zip(model.trainable_variables, groups["best"], strict=True):
        variable.assign(value)
    return model, tokenizer


def evaluate(model: keras.Model, tokenizer: Tokenizer, text: Paths) -> Evaluation:
    """Perplexity and bits per character of a `build_model` model on text files.

    The text is one stream: from a zero state and the border, the state carried over every document to
    the end.

    Raises
    ------
    OSError, ValueError
        If the text cannot be read.
    """
    corpus = encode(read_documents(text, tokenizer.documents), tokenizer)
    return Evaluator(Network(model), corpus)()


def _paths(
    output: str | os.PathLike[str], checkpoint: str | os.PathLike[str] | None, resume: bool
) -> tuple[Path, Path]:
    target = Path(output)
    saved = Path(checkpoint) if checkpoint is not None else target.with_name(target.name + ".ckpt")
    for role, path in (("output", target), ("checkpoint", saved)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{role}: there is no directory {path.parent}")
        if path.is_dir():
            raise IsADirectoryError(f"{role}: {path} is a directory; expected a file to write")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{role}: the directory {path.parent} cannot be written to")
    if resume and not saved.exists():
        raise FileNotFoundError(
            f"there is no checkpoint {saved} to resume; leave --resume (resume=True) out to begin a run"
        )
    if not resume and saved.exists():
        raise FileExistsError(
            f"{saved} holds a run: --resume (resume=True) continues it; or delete it, or name another checkpoint"
        )
    return target, saved


def _prepare(
    corpus: Paths,
    valid: Paths | None,
    options: Options,
    before: tuple[dict[str, Any], checkpoints.Arrays] | None,
    begun: _Begun | None,
) -> LanguageTask:
    """With the tokenizer of the checkpoint ``before``, or of what is ``begun`` with, if there is one."""
    texts = read_documents(corpus, options.documents)
    texts, held = hold_out(texts) if valid is None else (texts, read_documents(valid, options.documents))
    if before:
        tokenizer = from_fields(before[0]["tokenizer"])
        assert tokenizer is not None
    elif begun:
        tokenizer = begun.tokenizer
        tokenizer.documents = options.documents
    else:
        tokenizer = _train_tokenizer(options, texts)
    train = encode(texts, tokenizer)
    if begun:
        _check_known(tokenizer, train)
    weights = begun.weights if begun else None
    return LanguageTask(options, tokenizer, train, encode(held, tokenizer), weights)


def _prepare_pairs(
    data: Paths,
    valid: Paths | None,
    columns: tuple[int, int],
    options: PairOptions | LabelOptions,
    before: tuple[dict[str, Any], checkpoints.Arrays] | None,
    begun: _Begun | None,
) -> WritingTask | ClassifyingTask:
    """With the tokenizers of the checkpoint ``before``, if there is one."""
    pairs = read_pairs(data, columns)
    if isinstance(options, LabelOptions) and before is None:
        _check_labels(pairs)
    if valid is None:
        pairs, held = _hold_out_pairs(pairs, options)
    else:
        held = read_pairs(valid, columns)
    kept = before[0]["tokenizer"] if before else None
    if isinstance(options, LabelOptions):
        return _prepare_labels(pairs, held, options, kept, begun)
    sources, texts = ([pair[side] for pair in pairs] for side in (0, 1))
    if kept:
        text, source = (from_fields(fields) for fields in _both(kept))
    else:
        lead = options.prefix_space
        text = train_bpe(sources + texts if options.shared_vocabulary else texts, options.vocab_size, "line", lead)
        source = None if options.shared_vocabulary else train_bpe(sources, options.vocab_size, "line", lead)
    source = text if source is None else source
    assert isinstance(source, HuggingFaceTokenizer)
    assert isinstance(text, HuggingFaceTokenizer)
    return WritingTask(options, source, text, Pairs.of(pairs, source, text), Pairs.of(held, source, text))


def _hold_out_pairs(
    pairs: list[tuple[str, str]], options: PairOptions | LabelOptions
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """A twentieth, drawn, for validation: of each label's texts, since files are often sorted by label."""
    groups: dict[str, list[int]] = {}
    for n, (_, text) in enumerate(pairs):
        groups.setdefault(text if isinstance(options, LabelOptions) else "", []).append(n)
    random, held = np.random.default_rng(options.seed), set()
    for members in groups.values():
        if len(members) > 1:
            held |= set(random.choice(members, max(1, len(members) // 20), replace=False).tolist())
    if not held:
        raise ValueError("no pair can be kept for validation: expected two texts of a label, or give validation pairs")
    return [pair for n, pair in enumerate(pairs) if n not in held], [pairs[n] for n in sorted(held)]


_FEW_LABELS = 20  # may each be that of a text or two: an example that somebody tries


def _check_labels(pairs: list[tuple[str, str]]) -> None:
    labels = sorted({label for _, label in pairs})
    if len(labels) < 2:
        raise ValueError(f"every text has the label {labels[0]!r}: expected at least two labels")
    if len(labels) > max(_FEW_LABELS, 0.9 * len(pairs)):
        raise ValueError(
            f"{len(pairs):,} texts have {len(labels):,} labels, {labels[0]!r:.60} among them: expected a label to be "
            "that of several texts; if labels come before texts, say columns=(1, 0) (--columns 2 1)"
        )


def _prepare_labels(
    pairs: list[tuple[str, str]],
    held: list[tuple[str, str]],
    options: LabelOptions,
    kept: dict[str, Any] | None,
    begun: _Begun | None,
) -> ClassifyingTask:
    labels = sorted({label for _, label in pairs})
    if kept:
        tokenizer = from_fields(kept)
        if kept[LABELS] != labels:
            raise ValueError(
                f"the checkpoint is of another run: the labels were {named(kept[LABELS])}, now {named(labels)}"
            )
    elif begun:
        tokenizer = begun.tokenizer
    else:
        tokenizer = train_bpe([text for text, _ in pairs], options.vocab_size, "line")
    assert tokenizer is not None
    return ClassifyingTask(options, tokenizer, labels, pairs, held, begun.weights if begun else None)


def _both(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's fields of the text's tokenizer, and of the source's, which may be none."""
    source = {key.removeprefix(SOURCE): value for key, value in fields.items() if key.startswith(SOURCE)}
    return {key: value for key, value in fields.items() if not key.startswith(SOURCE)}, source


def _run(
    options: Any,
    task: Task,
    saved: Path,
    before: tuple[dict[str, Any], checkpoints.Arrays] | None,
    report: Report,
) -> Trainer:
    """A run, from its beginning or from where the checkpoint ``before`` left it, to the end of its budget."""
    trainer = Trainer(options, task)
    if before:
        trainer.restore(*before)
    with _interrupts() as interrupted:
        if not trainer.run(saved, report, interrupted):
            raise KeyboardInterrupt(
                f"stopped at step {trainer.step}; {saved} holds the run; --resume (resume=True) continues it"
            )
    return trainer


def _check_known(tokenizer: Tokenizer, train: Corpus) -> None:
    """Of the words or characters of another text a tokenizer may know hardly any."""
    unknown = float(np.mean(train.ids == tokenizer.unknown))  # None is no id
    if unknown > _MOST_UNKNOWN:
        raise ValueError(
            f"{100 * unknown:.0f} % of the corpus is unknown to the tokenizer: expected at most "
            f"{100 * _MOST_UNKNOWN:.0f} %; train on other text, or with a tokenizer of its own"
        )


_MOST_UNKNOWN = 0.5


def _train_tokenizer(options: Options, texts: Sequence[str]) -> Tokenizer:
    if options.vocab_size is None:
        return CharTokenizer.train(texts, options.documents)
    make = train_bpe if options.preset == "bpe" else train_words
    return make(texts, options.vocab_size, options.documents)


def _finish(
    task: Task, trainer: Trainer, target: Path, saved: Path | None, name: str | None, license: str | None
) -> TrainReport:
    """Writes the model file; ``saved``: the checkpoint, to be removed then."""
    metadata = {key: value for key, value in (("name", name), ("license", license)) if value is not None}
    exported = task.export(target, metadata)
    if saved is not None:
        saved.unlink()
    assert trainer.best is not None
    return TrainReport(
        steps=trainer.step,
        epochs=trainer.epochs,
        tokens=trainer.tokens,
        seconds=trainer.seconds,
        tokens_per_second=trainer.tokens / trainer.seconds,
        train_perplexity=math.exp(trainer.loss),
        valid=trainer.best,
        output=target,
        export=exported,
    )


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except tf.errors.ResourceExhaustedError as e:
        raise MemoryError(
            "the run does not fit into memory: lower units, vocab_size, or batch_size (of pairs: batch_tokens)"
        ) from e


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after the present step, so that nothing is half done; a second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set a handler
        return
    asked: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
