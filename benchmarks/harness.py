# SPDX-License-Identifier: Apache-2.0
"""What all measurements share: the engines and their forms, the interface they are driven by, and the check."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sampling import Sampler
from workloads import Reference, Workload

PEERS = ("fastlm", "onnxruntime", "litert", "openvino", "torch", "tensorflow", "keras")
"""Each is a module `peer_<name>.py`."""

OURS = "fastlm"

CHECKED = 50
"""Greedy tokens of the first sequence that a float32 form must share with the float64 reference, exactly."""

CHECKED_REGRET = 8
"""Tokens of every sequence whose regret is bounded; a few, because rounded states drift away from exact ones."""

REGRET = {"f32": 0.001, "bf16": 0.25, "int8": 0.5, "int4": 1.0}
"""What a form may fall short of the reference's best logit, in standard deviations (`Reference.regret`)."""

SCORE_OFF = {"f32": 0.001, "bf16": 0.5, "int8": 2.0, "int4": 3.0}
"""What log-probabilities of a text, which are -15 in the mean, may be off by in the mean: rounded states drift away."""

TEMPERATURE, TOP_P = 0.8, 0.95
"""How text is drawn where it is not greedy."""


@dataclass(frozen=True)
class Form:
    """One way to run a model in one engine."""

    peer: str  # the engine's name, as people write it
    precision: str  # of the weights
    how: str = ""  # where one engine has several ways
    # "careless": what a user gets without care; "bare": the engine without handing tokens over; "screened": fastlm with
    # a screen of a trained model
    role: str = "contender"
    streams: bool = True  # hands over one token at a time
    draws: bool = False  # also runs the task: logits to sample from
    scores: bool = False  # also reads whole texts

    def __str__(self) -> str:
        return " ".join(filter(None, (self.peer, self.precision, self.how)))


@dataclass(frozen=True)
class Job:
    """What one process is to run."""

    form: Form
    workload: Workload
    folder: Path  # for model files; shared by all jobs
    batch: int = 1
    threads: int = 1
    output: str = "token"  # what the engine's graph ends in: the greedy "token", the "logits", or "logprobs" of texts

    def path(self, suffix: str, *distinct: object) -> Path:
        """A model file's name; `distinct` lists what its content depends on, beside the workload."""
        return self.folder / ("-".join(map(str, (self.workload.name, *distinct))) + suffix)

    @property
    def steps(self) -> int:
        """Steps in one timed sample, and the length of loops inside a graph: long enough to hide the clock and the
        entry into the loop, and about 0.1 s at most at the speed of one core (10^11 products a second)."""
        seconds = self.workload.products * self.batch / 1e11
        return 3 if self.form.role == "careless" else int(min(100, max(4, 0.1 / seconds)))

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        given = json.loads(text)
        form, workload = Form(**given.pop("form")), Workload(**given.pop("workload"))
        return cls(form, workload, Path(given.pop("folder")), **given)


class Runner(Protocol):
    """A model in an engine, ready to run a batch on as many threads as the job says."""

    def greedy(self, count: int) -> list[list[int]]:
        """The first `count` tokens of each sequence, from `Workload.start` and a state of zeros."""

    def run(self, count: int) -> None:
        """Decode `count` tokens, a multiple of `Job.steps`, from wherever the engine stands, and keep nothing."""

    # Forms that stream:
    def gaps(self, count: int) -> list[float]:
        """Seconds between one token and the next, `count` times."""

    # Forms that draw, with a job whose output is "logits":
    def write(self, count: int, seed: int) -> list[int]:
        """A text of `count` drawn tokens (TEMPERATURE, TOP_P) from the start."""

    # Forms that score, with a job whose output is "logprobs":
    def score(self, texts: list[list[int]]) -> list[NDArray[np.float32]]:
        """The natural log-probability of every token but the first, of each text."""


class Stepper:
    """A Runner for engines that are called once per token."""

    output = "token"  # what a step ends in, as `Job.output` says

    def step(self) -> None:
        """One token further; what it reads and writes stays in the engine's own buffers."""
        raise NotImplementedError

    def rewind(self) -> None:
        """Back to the start."""
        raise NotImplementedError

    def tokens(self) -> Iterable[int]:
        """Those of the last step, [B], if steps end in tokens."""
        raise NotImplementedError

    def logits(self) -> NDArray[np.float32]:
        """Those of the last step, [V], if steps end in logits."""
        raise NotImplementedError

    def put(self, token: int) -> None:
        """Make this the token that the next step reads, if steps end in logits."""
        raise NotImplementedError

    def greedy(self, count: int) -> list[list[int]]:
        if self.output == "logits":
            return [self._text(count, lambda logits: int(logits.argmax()))]
        self.rewind()
        rows = []
        for _ in range(count):
            self.step()
            rows.append([int(token) for token in self.tokens()])
        return [list(text) for text in zip(*rows, strict=True)]

    def run(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def gaps(self, count: int) -> list[float]:
        gaps, last = [], time.perf_counter()
        for _ in range(count):
            self.step()
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
        return gaps

    def write(self, count: int, seed: int) -> list[int]:
        return self._text(count, Sampler(TEMPERATURE, TOP_P, seed))

    def _text(self, count: int, draw: Callable[[NDArray[np.float32]], int]) -> list[int]:
        """The loop that a user of the engine writes."""
        self.rewind()
        text = []
        for _ in range(count):
            self.step()
            token = draw(self.logits())
            self.put(token)
            text.append(token)
        return text


def make(path: Path, write: Callable[[Path], object]) -> None:
    """Have the file written, unless it is there; whole or not at all. Whoever wants it too at that time waits."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            temporary = path.with_name(f"part-{path.name}")
            write(temporary)
            os.replace(temporary, path)


class Peer(Protocol):
    """What each `peer_*.py` defines."""

    @property
    def MODULES(self) -> tuple[str, ...]: ...  # what must be importable to run; the engine itself comes last
    @property
    def FORMS(self) -> tuple[Form, ...]: ...
    @property
    def convert(self) -> Callable[[Job], None] | None: ...  # write the model file, if the engine reads one
    def Runner(self, job: Job) -> Runner: ...


def peer_of(form: Form) -> Peer:
    return next(peer for peer in map(_peer, PEERS) if form in peer.FORMS)


def all_forms() -> list[Form]:
    """But for those that need a trained model."""
    return [form for peer in map(_peer, PEERS) for form in peer.FORMS if form.role != "screened"]


def _peer(name: str) -> Peer:
    return cast(Peer, import_module(f"peer_{name}"))  # none of them imports its engine at the top


def missing(form: Form) -> str | None:
    """Which module the form needs and this Python has not, or None. Imports no engine."""
    return next((module for module in peer_of(form).MODULES if not find_spec(module.partition(".")[0])), None)


def checked_tokens(form: Form) -> int:
    """How many greedy tokens `check` wants to see."""
    return CHECKED if form.precision == "f32" else CHECKED_REGRET


def check(form: Form, texts: list[list[int]], reference: Reference) -> None:
    """Compare greedy texts [B][count] with the reference; RuntimeError if the form computes something else."""
    if form.precision == "f32" and texts[0] != (expected := reference.greedy(CHECKED)):
        raise RuntimeError(f"{form} writes {texts[0]}, but the reference {expected}")
    regret = reference.regret([text[:CHECKED_REGRET] for text in texts])
    if not regret <= REGRET[form.precision]:
        raise RuntimeError(f"{form} chooses a token {regret:.3g} standard deviations below the best")


def check_scores(form: Form, found: list[list[float]], reference: Reference, texts: list[list[int]]) -> None:
    """Compare log-probabilities of texts with the reference's; RuntimeError if the form computes something else."""
    off = max(float(np.abs(reference.logprobs(text) - one).mean()) for text, one in zip(texts, found, strict=True))
    if not off <= SCORE_OFF[form.precision]:
        raise RuntimeError(f"{form} finds log-probabilities that are {off:.3g} off")


PADDED = 32
"""Texts that are scored at once by engines that take arrays."""


def padded(texts: list[list[int]]) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
    """The texts by length, so that little is wasted, in arrays [PADDED, T] with zeros behind their ends, and which they
    are. T is a multiple of 8, or engines that compile for every new shape would do nothing else."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for first in range(0, len(order), PADDED):
        places = order[first : first + PADDED]
        longest = max(len(texts[place]) for place in places)
        rows = np.zeros((PADDED, -(-longest // 8) * 8), np.int64)
        for row, place in zip(rows, places, strict=False):
            row[: len(texts[place])] = texts[place]
        yield places, rows


def score_padded(
    texts: list[list[int]], run: Callable[[NDArray[np.int64]], NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """run: of an array [B, T] the log-probabilities [B, T-1] of what follows the first tokens."""
    found: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
    for places, rows in padded(texts):
        for place, row in zip(places, run(rows), strict=False):
            found[place] = row[: len(texts[place]) - 1]
    return found


def time_scores(runner: Runner, texts: list[list[int]], seconds: float) -> list[float]:
    """µs per token of scoring all texts."""
    tokens = sum(map(len, texts))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        runner.score(texts)
        times.append(1e6 * (time.perf_counter() - start) / tokens)
    return times[1:]  # the first one warms up


def time_samples(runner: Runner, steps: int, seconds: float) -> list[float]:
    """µs per step of one sample of `steps` steps after the other, for about so many seconds, at least two."""
    runner.run(steps)  # the caches still hold the weights of the engine before
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        runner.run(steps)
        times.append(1e6 * (time.perf_counter() - start) / steps)
    return times


def time_gaps(runner: Runner, seconds: float, most: int) -> list[float]:
    """µs from one token to the next, of every single token, for about so many seconds."""
    runner.gaps(100)
    gaps: list[float] = []
    end = time.perf_counter() + seconds
    while len(gaps) < most and time.perf_counter() < end:
        gaps += runner.gaps(100)
    return [1e6 * gap for gap in gaps]


def time_texts(runner: Runner, tokens: int, seconds: float) -> list[float]:
    """µs per token of whole texts of drawn tokens."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        runner.write(tokens, seed=len(times))
        times.append(1e6 * (time.perf_counter() - start) / tokens)
    return times[1:]  # the first one warms up


def cores(threads: int, place: int = 0) -> set[int]:
    """The cores that so many threads are pinned to: of those that this process may use the first ones, or, for other
    places, the next that are free as long as there are any."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < threads:
        raise ValueError(f"{threads} threads want as many cores, and this process may use {len(allowed)}")
    first = place % (len(allowed) // threads) * threads
    return set(allowed[first : first + threads])
