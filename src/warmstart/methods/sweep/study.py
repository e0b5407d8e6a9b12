"""The study in Optuna's storage, which processes and machines share: what is tried next, and what came out.

All trials of a study wait in a queue from the beginning: those of a grid and those drawn at random with their values,
those of TPE without. A process takes one by setting its state, in one statement that says whether it was the first; so
no trial is lost, tried twice, or one too many, however many processes there are, and whenever one is killed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from zlib import crc32

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from warmstart.errors import UserError
from warmstart.methods.sweep.halving import score_at
from warmstart.methods.sweep.request import Request
from warmstart.methods.sweep.space import distributions_of, number_of, queue, suggested

optuna.logging.set_verbosity(optuna.logging.ERROR)

_TAKE = text(
    "UPDATE trials SET state = 'RUNNING', datetime_start = :now WHERE trial_id = :id AND state = 'WAITING'"
).bindparams(bindparam("now", type_=DateTime()))
_WAIT = 30.0  # seconds for another program to let go of the storage
_MEDIAN_FROM = 4  # finished trials before the median means something

End = Literal["finished", "stopped", "failed"]
_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
_WORDS = {state: word for word, state in _STATES.items()} | {
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Known:
    """What the storage says of a trial. `scores` are values in which more is better, by thousandths of the run's steps;
    `notes` are what its process wrote about it."""

    number: int
    state: str
    values: dict[str, str]
    score: float | None
    scores: dict[int, float]
    notes: dict[str, Any]


class Study:
    """One study, seen from one process: `worker` names it in the storage, `is_private` says that it has no others."""

    def __init__(
        self, storage: optuna.storages.RDBStorage, url: str, request: Request, worker: str, is_private: bool
    ) -> None:
        self._storage, self._url, self._worker, self._is_private = storage, url, worker, is_private
        self._settings = request.settings
        self._distributions = distributions_of(request.settings.set)
        with answering(url):
            self._id = storage.get_study_id_from_name(request.name)
            self._study = optuna.load_study(study_name=request.name, storage=storage)

    def take(self) -> tuple[int, dict[str, str]] | None:
        """The next trial that waits, now ours, with its values; None where none does."""
        with answering(self._url):
            for trial in self._storage.get_all_trials(self._id, deepcopy=False, states=(TrialState.WAITING,)):
                if self._is_granted(trial):
                    self._storage.set_trial_user_attr(trial._trial_id, "worker", self._worker)
                    return trial.number, self._draw(trial.number)
        return None

    def _is_granted(self, trial: FrozenTrial) -> bool:
        """Whether a trial that waited a moment ago is ours: one statement, so that one process alone is told so.

        Optuna's own reads the state and then sets it, between which SQLite lets another process do the same.
        """
        with self._storage.engine.begin() as connection:
            found = connection.execute(
                _TAKE, {"id": trial._trial_id, "now": datetime.now(UTC).replace(tzinfo=None)}
            )
            return bool(found.rowcount == 1)

    def mine(self) -> list[tuple[Known, dict[str, str]]]:
        """Trials that this process, or one before it in the same folder, has taken and not ended."""
        running = [known for known in self.known() if known.state == "running"]
        own = [known for known in running if self._is_private or known.notes.get("worker") == self._worker]
        return [(known, self._draw(known.number)) for known in own]

    def num_waiting(self) -> int:
        return sum(known.state == "waiting" for known in self.known())

    def report(self, number: int, place: int, score: float) -> None:
        with answering(self._url):
            self._storage.set_trial_intermediate_value(self._trial_id(number), place, score)

    def is_below_median(self, number: int) -> bool:
        """Whether the best score so far is below the median of the finished trials' at the same place (Golovin et
        al. 2017, Google Vizier, section 3.2.2), or at their first validation behind it."""
        own = self.of(number).scores
        done = [known for known in self.known() if known.state == "finished" and known.number != number]
        found = [score_at(known.scores, max(own, default=0)) for known in done]
        others = [score for score in found if score is not None]
        return len(others) >= _MEDIAN_FROM and max(own.values()) < statistics.median(others)

    def of(self, number: int) -> Known:
        return next(known for known in self.known() if known.number == number)

    def note(self, number: int, **notes: Any) -> None:
        with answering(self._url):
            for name, value in notes.items():
                self._storage.set_trial_user_attr(self._trial_id(number), name, value)

    def agreed(self, name: str, value: Any = None) -> Any:
        """What all processes go by: as the first of them said, which is this one where nobody has; None: not yet."""
        with answering(self._url):
            known = self._study.user_attrs
            if name not in known and value is not None:
                self._study.set_user_attr(name, value)
        return known.get(name, value)

    def end(self, number: int, end: End, score: float | None = None, **notes: Any) -> None:
        """Say how a trial ended; a trial that was stopped keeps its last score."""
        self.note(number, **notes)
        with answering(self._url):
            self._study.tell(number, score if end == "finished" else None, _STATES[end])

    def known(self) -> list[Known]:
        with answering(self._url):
            return [_known(trial) for trial in self._study.get_trials(deepcopy=False)]

    def importance(self) -> dict[str, float]:
        """Share of each setting in what tells the better finished trials from the others (PED-ANOVA; Watanabe et al.
        2023, IJCAI); empty where there are too few, or one setting."""
        done = [each for each in self.known() if each.state == "finished"]
        if len(done) < _MEDIAN_FROM or len(self._distributions) < 2 or len({each.score for each in done}) < 2:
            return {}
        with answering(self._url):
            return dict(optuna.importance.get_param_importances(self._study))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _draw(self, number: int) -> dict[str, str]:
        """The values of a trial that is ours; drawn once, then found again."""
        # By the trial's number: a sweep that goes on draws what it would have drawn; machines draw different ones.
        salt = 0 if self._is_private else crc32(self._worker.encode())
        seed = (self._settings.seed + 1_000_003 * number + salt) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
        self._study.get_trials(
            deepcopy=False
        )  # of what another process has queued, the study must have heard
        trial = optuna.trial.Trial(self._study, self._trial_id(number))
        return {name: suggested(trial, name, each) for name, each in self._distributions.items()}


def open_study(request: Request, url: str, worker: str, is_new: bool) -> Study:
    """The study of these settings in the storage at `url`; made and filled by the first process that asks for it.

    Raises:
        UserError: a storage that does not answer, is damaged, or has lost the study.
    """
    told = request.settings.shown_storage or url
    with answering(told):
        storage = _connect(url)
        names = [study.study_name for study in storage.get_all_studies()]
    is_private = request.settings.storage is None
    if request.name not in names and is_private and (names or not is_new):
        raise UserError(
            f"{told} holds no sweep with these settings",
            "the storage that this sweep was begun with",
            "a new --output-dir",
        )
    with answering(told):
        _make(storage, request, is_private)
        _fill(optuna.load_study(study_name=request.name, storage=storage), request)
    return Study(storage, told, request, worker, is_private)


def _make(storage: optuna.storages.RDBStorage, request: Request, is_private: bool) -> None:
    try:
        study = optuna.create_study(storage=storage, study_name=request.name, direction="maximize")
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=request.name, storage=storage)
        if "num_trials" in study.user_attrs:
            return
        if not is_private:
            _wait_until_filled(storage, request.name)
            return
    # Of a private storage nobody else fills it: this process, or one before it that was killed while it did.
    study.set_user_attr("asked", request.identity)
    for values in queue(request, len(study.get_trials(deepcopy=False)), request.num_trials):
        study.enqueue_trial(values)
    study.set_user_attr("num_trials", request.num_trials)  # last: with it the queue is complete


def _wait_until_filled(storage: optuna.storages.RDBStorage, name: str) -> None:
    """Until the process that made the study has put its trials into it."""
    end = time.monotonic() + _WAIT
    while "num_trials" not in optuna.load_study(study_name=name, storage=storage).user_attrs:
        if time.monotonic() > end:
            raise UserError(
                f"the study {name} was begun and never filled: its first process was killed in that moment",
                "a study with trials",
                f"`optuna delete-study --study-name {name} --storage URL`, then the same command",
            )
        time.sleep(0.1)


def _fill(study: optuna.Study, request: Request) -> None:
    """More trials, where the same sweep is asked for more than before."""
    known = int(study.user_attrs["num_trials"])
    if request.num_trials > known:
        for values in queue(request, known, request.num_trials):
            study.enqueue_trial(values)
        study.set_user_attr("num_trials", request.num_trials)


def _known(trial: FrozenTrial) -> Known:
    values = {
        name: value if isinstance(value, str) else number_of(value) for name, value in trial.params.items()
    }
    score = None if trial.value is None or not math.isfinite(trial.value) else float(trial.value)
    state = _WORDS[trial.state]
    return Known(trial.number, state, values, score, dict(trial.intermediate_values), dict(trial.user_attrs))


def _connect(url: str) -> optuna.storages.RDBStorage:
    is_sqlite = url.startswith("sqlite")
    options: Mapping[str, Any] = {"connect_args": {"timeout": _WAIT}} if is_sqlite else {}
    for _ in range(20):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=dict(options))
        except (OperationalError, IntegrityError) as error:
            if not any(sign in str(error) for sign in ("already exists", "UNIQUE constraint", "uplicate")):
                raise
            time.sleep(0.2)  # two processes make the same tables
    raise UserError("the tables of the storage cannot be made", "a storage that answers")


@contextmanager
def answering(url: str) -> Iterator[None]:
    """What a database says, as an error that names the storage."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        if "locked" in reason:
            raise UserError(
                f"the storage {url} is locked: another program has held it for {_WAIT:g} s",
                "a storage that answers",
                "end that program; the same command goes on",
            ) from None
        if "not a database" in reason or "malformed" in reason:
            raise UserError(
                f"the storage {url} is damaged: {reason}", "a database that Optuna has made"
            ) from None
        raise UserError(
            f"the storage {url} does not answer: {reason}", "a URL as sqlite:///FILE.db"
        ) from None
    except (ImportError, RuntimeError) as error:  # no driver for the URL; tables of another version of Optuna
        reason = str(error).splitlines()[0]
        raise UserError(f"the storage {url} cannot be used: {reason}") from None
