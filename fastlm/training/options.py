# SPDX-License-Identifier: Apache-2.0
"""The options of a training run: presets, what the caller may change, and what contradicts what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastlm.tokenizer import DOCUMENTS
from fastlm.weights import POOLINGS


@dataclass(frozen=True)
class Options:
    """Everything that decides how a run goes, with no value left open.

    Attributes
    ----------
    preset : str
        The tokenizer: ``char``, ``bpe`` (byte-level) or ``word``.
    documents : str
        How a file is cut into documents, one of `fastlm.tokenizer.DOCUMENTS`.
    vocab_size : int or None
        Tokens; None for ``char``, whose vocabulary is the corpus' characters.
    units : tuple of int
        Hidden units of each LSTM layer.
    embedding : int
    tied : bool
    dropout, learning_rate : float
    sequence_length, batch_size : int
        Tokens a window of truncated back-propagation, and streams read side by side.
    epochs : int or None
        None: until the time limit.
    time_limit : float or None
        Seconds.
    seed : int
    """

    preset: str
    documents: str
    vocab_size: int | None
    units: tuple[int, ...]
    embedding: int
    tied: bool
    dropout: float
    learning_rate: float
    sequence_length: int
    batch_size: int
    epochs: int | None
    time_limit: float | None
    seed: int


_BUDGET = ("epochs", "time_limit", "learning_rate")
_DEFAULT_EPOCHS = 20


def differences(before: Mapping[str, Any], now: Any) -> list[str]:
    """How the options of a continued run, a dataclass, differ from those of its checkpoint, in words. Its budget and
    rate may; what the checkpoint does not know came later and only matters at the beginning."""
    old, new = json.loads(json.dumps([before, asdict(now)]))
    return [f"{k} was {old[k]!r}, now {new[k]!r}" for k in new if k in old and old[k] != new[k] and k not in _BUDGET]


PRESETS: dict[str, dict[str, Any]] = {
    "char": {
        "documents": "file",
        "units": (256, 256),
        "embedding": 64,
        "tied": False,
        "dropout": 0.1,
        "learning_rate": 2e-3,
        "sequence_length": 128,
        "batch_size": 32,
    },
    "bpe": {
        "documents": "file",
        "vocab_size": 2048,
        "units": (320, 256),
        "embedding": 256,
        "tied": True,
        "dropout": 0.1,
        "learning_rate": 2e-3,
        "sequence_length": 64,
        "batch_size": 32,
    },
    # Zaremba et al. 2014, "medium", with Adam in place of plain gradient descent.
    "word": {
        "documents": "line",
        "vocab_size": 10_000,
        "units": (650, 650),
        "embedding": 650,
        "tied": False,
        "dropout": 0.5,
        "learning_rate": 1e-3,
        "sequence_length": 35,
        "batch_size": 20,
    },
}
"""What a caller who says nothing gets."""


def fill_up(given: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `resolve` for a run that is continued: what is left out is what it was."""
    return {k: before.get(k) if v is None else v for k, v in given.items()}


def resolve(
    preset: str | None,
    *,
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
) -> Options:
    """Fill what the caller left open from the preset, and refuse what makes no sense.

    Weights are tied, unless the caller says otherwise, if the preset ties them and the sizes allow it.

    Raises
    ------
    TypeError, ValueError
        Naming the option, what was found and what was expected.
    """
    preset = "char" if preset is None else preset
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: expected one of {', '.join(PRESETS)}")
    default = {"vocab_size": None, **PRESETS[preset]}
    if documents is not None and documents not in DOCUMENTS:
        raise ValueError(f"documents={documents!r}: expected one of {', '.join(DOCUMENTS)}")
    if preset == "char" and vocab_size is not None:
        raise ValueError("vocab_size: the char preset's vocabulary is the characters of the corpus; leave it out")
    if epochs is None and time_limit is None:
        epochs = _DEFAULT_EPOCHS
    sizes = _sizes(default["units"], layers, units)
    if tied is None:
        tied = default["tied"] and embedding in (None, sizes[-1])
    if embedding is None:
        embedding = sizes[-1] if tied else default["embedding"]
    options = Options(
        preset=preset,
        documents=_either(documents, default["documents"]),
        vocab_size=_whole("vocab_size", _either(vocab_size, default["vocab_size"]), 2, optional=True),
        units=sizes,
        embedding=_whole("embedding", embedding, 1),
        tied=_flag("tied", tied),
        dropout=_share("dropout", _either(dropout, default["dropout"])),
        learning_rate=_positive("learning_rate", _either(learning_rate, default["learning_rate"])),
        sequence_length=_whole("sequence_length", _either(sequence_length, default["sequence_length"]), 1),
        batch_size=_whole("batch_size", _either(batch_size, default["batch_size"]), 1),
        epochs=_whole("epochs", epochs, 1, optional=True),
        time_limit=None if time_limit is None else _positive("time_limit", time_limit),
        seed=_whole("seed", _either(seed, 0), 0),
    )
    if tied and options.embedding != sizes[-1]:
        raise ValueError(
            f"tied weights need embedding equal to the last layer's units, found embedding={options.embedding} "
            f"and units={sizes[-1]}; make them equal or leave tied out"
        )
    return options


# ---- a source and its text -----------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskOptions:
    """What decides how the training of any model on pairs goes.

    Attributes
    ----------
    task : str
    vocab_size : int
        Tokens of byte-level BPE (Sennrich et al. 2016).
    embedding : int
    units : tuple of int
        Of each LSTM layer: of the decoder, or of a classifier in each direction.
    bidirectional : bool
        Whether what reads the source, or the text that gets a label, also reads backwards.
    attention_units : int
    dropout, label_smoothing, learning_rate : float
    batch_tokens : int
        Of sources and texts together, padding included.
    epochs : int or None
    time_limit : float or None
        Seconds.
    seed : int
    """

    task: str
    vocab_size: int
    embedding: int
    units: tuple[int, ...]
    bidirectional: bool
    attention_units: int
    dropout: float
    label_smoothing: float
    learning_rate: float
    batch_tokens: int
    epochs: int | None
    time_limit: float | None
    seed: int


@dataclass(frozen=True)
class PairOptions(TaskOptions):
    """Everything that decides how the training of a sequence-to-sequence model goes: besides `TaskOptions`

    Attributes
    ----------
    shared_vocabulary : bool
        One vocabulary and embedding for sources and texts.
    encoder_units : tuple of int
        Of each layer of the encoder, in each direction.
    attention : str or None
        "dot", "general" or "additive".
    input_feeding, tied : bool
    copying : bool
        Tokens of the source may be copied (See et al. 2017); needs attention and a shared vocabulary.
    scheduled_sampling : float
        Share of the tokens behind which a text is written that are the model's own guesses; it rises in a line over
        the first five epochs (Bengio et al. 2015, with guesses of a first pass: Mihaylova & Martins 2019).
    prefix_space : bool
        A space before each source and text in their tokens (`fastlm.tokenizer.Tokenizer.lead`), so that a first word is
        the same tokens as inside a text, and can be copied from and to there. Summaries gain much, since their sources
        begin with names (docs/applications.md), bAbI's answers nothing.
    bpe_dropout : float
        Share of the vocabulary's merged tokens that fall apart, drawn anew for each pair and epoch; see
        `fastlm.training.pairs.Splits`. 0.1 makes texts, batches and the count of tokens a tenth longer (the p of
        Provilkov et al. 2020 does so by a seventh), and the training perplexity is that of these shorter tokens: do not
        compare it with that of the validation text, whose tokens are whole.
    embedding_range : float
        Embeddings begin evenly between this and its negative. From 0.1, as is common, attention does not learn to look
        up who did what (bAbI, task 1: after 8 epochs perplexity 2.46, as if places were guessed); from 1 it begins to
        in the first. With large shared vocabularies 0.1 learns sooner.
    """

    shared_vocabulary: bool
    encoder_units: tuple[int, ...]
    attention: str | None
    input_feeding: bool
    tied: bool
    copying: bool
    scheduled_sampling: float
    prefix_space: bool
    bpe_dropout: float
    embedding_range: float


@dataclass(frozen=True)
class LabelOptions(TaskOptions):
    """Everything that decides how the training of a classifier goes: besides `TaskOptions`

    Attributes
    ----------
    pooling : str
        One of `fastlm.weights.POOLINGS`.
    """

    pooling: str


_PAIRS: dict[str, Any] = {
    "vocab_size": 8000,
    "shared_vocabulary": False,
    "embedding": 256,
    "encoder_units": (256,),
    "units": (512,),
    "bidirectional": True,
    "attention": "general",
    "attention_units": 256,
    "input_feeding": False,
    "tied": True,
    "copying": False,
    "scheduled_sampling": 0.0,
    "prefix_space": False,
    "bpe_dropout": 0.0,
    "embedding_range": 0.1,
    "dropout": 0.3,
    "label_smoothing": 0.1,
    "learning_rate": 1e-3,
    # Of 3,000 the same text is learnt in 1.7 times as long: steps count for more than what each has read.
    "batch_tokens": 1000,
    "epochs": None,
    "time_limit": None,
    "seed": 0,
}

PAIR_PRESETS: dict[str, dict[str, Any]] = {
    "translate": _PAIRS,
    "summarize": {**_PAIRS, "shared_vocabulary": True, "copying": True, "prefix_space": True},
    # bAbI with 10,000 questions a task, 50 minutes on a core: 89.6 % of the validation answers are right; it was 69 %
    # in longer with an embedding_range of 0.1. Stories are long, so that batches of 1,000 tokens would be of few.
    "answer": {
        **_PAIRS,
        "embedding_range": 1.0,
        "shared_vocabulary": True,
        "copying": True,
        "vocab_size": 1200,
        "embedding": 64,
        "encoder_units": (96,),
        "units": (128,),
        "attention_units": 64,
        "dropout": 0.1,
        "label_smoothing": 0.0,
        "learning_rate": 2e-3,
        "batch_tokens": 3000,
    },
    "classify": {
        "vocab_size": 8000,
        "embedding": 256,
        "units": (256,),
        "bidirectional": True,
        "pooling": "attention",
        "attention_units": 128,
        "dropout": 0.5,
        "label_smoothing": 0.1,
        "learning_rate": 1e-3,
        "batch_tokens": 2000,
        "epochs": None,
        "time_limit": None,
        "seed": 0,
    },
}  # fmt: skip
"""What a caller who says nothing gets, task by task."""


_LABEL_EPOCHS = 6


def resolve_pairs(
    task: str, given: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> PairOptions | LabelOptions:
    """Fill what the caller left open (None) from the run that is continued, if there is one, or from the task's preset,
    and refuse what makes no sense.

    Raises
    ------
    TypeError, ValueError
        Naming the option, what was found and what was expected.
    """
    if task not in PAIR_PRESETS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(PAIR_PRESETS)}")
    preset = PAIR_PRESETS[task]
    for name in given:
        if name not in preset:
            raise TypeError(f"{name}: no option of task={task!r}; there are {', '.join(preset)}")
    o = {name: _either(given.get(name), default) for name, default in {**preset, **(before or {})}.items()}
    if o["epochs"] is None and o["time_limit"] is None:
        o["epochs"] = _LABEL_EPOCHS if task == "classify" else _DEFAULT_EPOCHS
    common: dict[str, Any] = {
        "task": task,
        "embedding": _whole("embedding", o["embedding"], 1),
        "units": _list_of_units("units", o["units"]),
        "bidirectional": _flag("bidirectional", o["bidirectional"]),
        "attention_units": _whole("attention_units", o["attention_units"], 1),
        "dropout": _share("dropout", o["dropout"]),
        "label_smoothing": _share("label_smoothing", o["label_smoothing"]),
        "learning_rate": _positive("learning_rate", o["learning_rate"]),
        "batch_tokens": _whole("batch_tokens", o["batch_tokens"], 1),
        "epochs": _whole("epochs", o["epochs"], 1, optional=True),
        "time_limit": None if o["time_limit"] is None else _positive("time_limit", o["time_limit"]),
        # Those of a pretrained model may be characters.
        "vocab_size": _whole("vocab_size", o["vocab_size"], 1 if task == "classify" else 257),
        "seed": _whole("seed", o["seed"], 0),
    }
    if task == "classify":
        return _label_options(common, o, given)
    o["attention"] = o["attention"] or "none"  # as a run that is continued says it
    if o["attention"] not in ("dot", "general", "additive", "none"):
        raise ValueError(f"attention={o['attention']!r}: expected dot, general, additive or none")
    if given.get("copying") is None and (o["attention"] == "none" or not o["shared_vocabulary"]):
        o["copying"] = False  # the preset's, where it can be
    options = PairOptions(
        shared_vocabulary=_flag("shared_vocabulary", o["shared_vocabulary"]),
        encoder_units=_list_of_units("encoder_units", o["encoder_units"]),
        attention=None if o["attention"] == "none" else o["attention"],
        input_feeding=_flag("input_feeding", o["input_feeding"]),
        tied=_flag("tied", o["tied"]),
        copying=_flag("copying", o["copying"]),
        scheduled_sampling=_share("scheduled_sampling", o["scheduled_sampling"]),
        prefix_space=_flag("prefix_space", o["prefix_space"]),
        bpe_dropout=_share("bpe_dropout", o["bpe_dropout"]),
        embedding_range=_positive("embedding_range", o["embedding_range"]),
        **common,
    )
    _check_pairs(options)
    if options.attention is None and given.get("attention_units") is not None:
        raise ValueError("attention_units: without attention there are none")
    return options


def _label_options(common: dict[str, Any], o: Mapping[str, Any], given: Mapping[str, Any]) -> LabelOptions:
    if o["pooling"] not in POOLINGS:
        raise ValueError(f"pooling={o['pooling']!r}: expected {', '.join(POOLINGS)}")
    if o["pooling"] != "attention" and given.get("attention_units") is not None:
        raise ValueError(f"attention_units: pooling={o['pooling']!r} has none")
    return LabelOptions(pooling=o["pooling"], **common)


def _check_pairs(o: PairOptions) -> None:
    top = o.units[-1] if o.attention is None else o.attention_units
    width = o.encoder_units[-1] * (1 + o.bidirectional)
    if o.tied and o.embedding != top:
        raise ValueError(
            f"tied weights need embedding={o.embedding} as wide as what the output layer reads, {top}: make them equal "
            "or give tied=False"
        )
    if o.input_feeding and o.attention is None:
        raise ValueError("input_feeding: without attention there is nothing to feed")
    if o.copying and (o.attention is None or not o.shared_vocabulary):
        raise ValueError("copying: needs attention, which says what is copied, and a shared vocabulary")
    if o.attention == "dot" and width != o.units[-1]:
        raise ValueError(
            f"attention='dot' needs the encoder's outputs, {width}, as wide as the decoder's last layer, "
            f"{o.units[-1]}: make them equal or take 'general'"
        )


def _list_of_units(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        value = (value,)
    if not value:
        raise ValueError(f"{name}: expected at least one layer")
    return tuple(_whole(name, n, 1) for n in value)


def _either(value: Any, default: Any) -> Any:
    return default if value is None else value


def _sizes(default: tuple[int, ...], layers: int | None, units: int | Sequence[int] | None) -> tuple[int, ...]:
    """Units of each layer."""
    _whole("layers", layers, 1, optional=True)
    if units is None:
        # Other depths than the preset's: all layers as wide as its last, so that tied weights stay possible.
        return default if layers in (None, len(default)) else (default[-1],) * layers
    if not isinstance(units, Sequence) or isinstance(units, str):
        return (_whole("units", units, 1),) * (layers or len(default))
    sizes = tuple(_whole("units", n, 1) for n in units)
    if not sizes or layers not in (None, len(sizes)):
        raise ValueError(f"units={list(units)!r} with layers={layers}: expected one size a layer; leave layers out")
    return sizes


def _whole(name: str, value: Any, least: int, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected a whole number, found {value!r}")
    number = value.__index__()
    if not least <= number < 2**31:
        raise ValueError(f"{name}={number}: expected a whole number from {least} to {2**31 - 1}")
    return number


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, found {value!r}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name}={number}: expected a finite number above 0")
    return number


def _share(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}={number}: expected at least 0 and below 1")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {value!r}")
    return value
