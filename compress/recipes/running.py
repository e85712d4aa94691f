"""A checked recipe carried out: each step when what it waits for is done, several at a time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.backends import Pool, open_pool
from compress.errors import CompressError, RequestError, RunError
from compress.recipes.graph import RECEIPT, Call, Graph, Instance, found_instances
from compress.recipes.keys import Contents, key_of
from compress.recipes.launching import PROGRESS, Launcher, Order, Plain, words
from compress.recipes.marks import Mark
from compress.recipes.mistakes import Mistakes
from compress.recipes.overview import Watch
from compress.recipes.program import WRITES
from compress.recipes.references import LATER, Reference, dig
from compress.recipes.store import FAILED, OK, RUNNING, SKIPPED, Record, Store
from compress.reports.receipt import write_atomic

_REFRESH_S = 0.25
_END_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Choices:
    """How a run is carried out; none of it changes results.

    Attributes:
        jobs: steps at a time.
        keep_going: go on with what doesn't depend on a failed step.
        backend: local or ray.
        anew: run every step, also those that are known.
    """

    jobs: int = 1
    keep_going: bool = False
    backend: str = "local"
    anew: bool = False


@dataclass
class Run:
    """A run under way.

    Attributes:
        graph: what is to be done.
        store: where it is kept.
        launcher: of steps on this machine.
        env: variables that the recipe sets.
        choices, watch, known: how it is done, who is told, digests of files.
        records: how each instance went, by place.
    """

    graph: Graph
    store: Store
    launcher: Launcher
    env: Mapping[str, str]
    choices: Choices
    watch: Watch
    known: Contents
    records: dict[str, Record] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)

    def work(self) -> None:
        """Run every step that isn't known.

        Raises:
            RequestError, RunError: a step failed, with its own words and exit code; with
                keep_going after everything else is done.
            KeyboardInterrupt: the steps were interrupted first.
        """
        threads = 0 if self.choices.backend == "ray" else self.choices.jobs
        with open_pool(self.choices.backend, threads) as pool:
            try:
                while self._start(pool):
                    if not self._running:
                        continue
                    done = pool.next(_REFRESH_S)
                    if done is not None:
                        self._end(self.graph.instances[done.token], done.get)
            except BaseException:
                self._interrupt(pool)
                raise
        self._lighten()
        failed = [r for r in self.records.values() if r.status == FAILED]
        if failed:
            raise _failure(failed, self.records, self.store)

    def _start(self, pool: Pool) -> bool:
        """Start what can be; whether there is more to do."""
        again = False
        for place, instance in self.graph.instances.items():
            if place in self.records or place in self._running or self._stopped:
                continue
            states = [self.records[n].status if n in self.records else "" for n in instance.needs]
            if FAILED in states or SKIPPED in states:
                self._put(Record(place, instance.step.name, instance.step.program.name,
                                 status=SKIPPED, error="a step that it needs failed"))  # fmt: skip
            elif all(state == OK for state in states):
                if len(self._running) >= self.choices.jobs:
                    continue
                try:
                    again |= self._begin(instance, pool)
                except CompressError as error:
                    self._fail(instance, error.message, error.hint or "", error.code)
        return bool(self._running) or (again and not self._stopped)

    @property
    def _stopped(self) -> bool:
        failed = any(record.status == FAILED for record in self.records.values())
        return failed and not self.choices.keep_going

    def _begin(self, instance: Instance, pool: Pool) -> bool:
        """Take a step over if it is known, else start it.

        Returns:
            Whether steps that it needs, dropped since, must be done again first.
        """
        key = key_of(instance.step.program.name, self.call(instance, "key"), self.env, self.known)
        found = None if self.choices.anew else self.store.find(key)
        light = instance.step.retain == "receipt"
        if found is not None and (not found.light or (light and instance.place not in self._again)):
            self._put(self.store.take(instance, key))
            return False
        missing = self._dropped(instance)
        if missing:  # their weights weren't kept and are needed after all
            for place in missing:
                self._again.add(place)
                del self.records[place]
            return True
        before = self.store.record(instance)
        resume = (
            before is not None
            and before.key == key
            and before.status != OK
            and self.store.journal(instance).is_file()
            and "resume" in instance.step.program.options
        )
        self.store.clear(instance, partial=not resume)
        argv = self.argv(instance, self.call(instance, "run"), resume)
        record = Record(instance.place, instance.step.name, instance.step.program.name, key,
                        RUNNING, argv=argv)  # fmt: skip
        self._running[instance.place] = time.time()
        self.store.put(record)
        self.watch.began(instance.place)
        order = self._order(instance, argv)
        if self.choices.backend == "ray":
            pool.submit(instance.place, _far, order, dict(self.env))
        else:
            pool.submit(instance.place, self._near, order)
        return False

    def _dropped(self, instance: Instance) -> list[str]:
        """Steps whose output this one takes and whose weights were dropped."""
        return [n for n in instance.needs if self.records[n].light]

    def _near(self, order: Order) -> int:
        """Run a step on this machine; once more from its start if its journal can't be used."""
        return _resumable(order, self.launcher.run)

    def _order(self, instance: Instance, argv: tuple[str, ...]) -> Order:
        log = self.store.log(instance, "log")
        log.parent.mkdir(parents=True, exist_ok=True)
        (self.store.steps / instance.place).parent.mkdir(parents=True, exist_ok=True)
        (self.store.steps / instance.files).mkdir(parents=True, exist_ok=True)
        progress = self.store.log(instance, "progress")
        progress.unlink(missing_ok=True)
        env = {**self.env, PROGRESS: str(progress)}
        return Order(argv, str(self.store.log(instance, "out")), str(log), env)

    def argv(self, instance: Instance, call: Call, resume: bool = False) -> tuple[str, ...]:
        """A step's command line without the program's name."""
        program = instance.step.program
        line = [program.name, *map(str, call.arguments)]
        for name, value in call.options.items():
            if name in WRITES and value is not None:
                value = str(self.store.steps / instance.files / str(value))
            line += program.words(name, value)
        if instance.writes:
            line += ["-o", str(self.store.steps / instance.place)]
        return (*line, *(["--resume"] if resume else []), "--json")

    def call(self, instance: Instance, purpose: str) -> Call:
        """What a step asks of its command: for its digest ("key"), or to "run" it.

        Raises:
            RequestError: a receipt lacks what is referred to.
        """
        mistakes = Mistakes()
        call = self.graph.call(instance, _Finished(self, instance, purpose, mistakes), mistakes)
        mistakes.refuse()
        for name, value in call.options.items():
            fault = instance.step.program.fault(name, value)
            if fault:
                raise RequestError(f"step `{instance.place}`: {fault}")
        return call

    def _end(self, instance: Instance, code: Callable[[], int]) -> None:
        """Take note of how a step ended."""
        seconds = time.time() - self._running.pop(instance.place)
        try:
            ended = code()
        except CompressError as error:
            self._fail(instance, error.message, error.hint or "", error.code, seconds)
            return
        if ended:
            self._fail(instance, *self._told(instance, ended), ended, seconds)
            return
        begun = self.store.record(instance)
        assert begun is not None
        problem = self._settle(instance)
        if problem:
            self._fail(instance, problem, "", 3, seconds)
            return
        self._put(
            replace(begun, status=OK, seconds=round(seconds, 3), finished=round(time.time(), 3),
                    files=self.store.files(instance))
        )  # fmt: skip
        self._lighten()

    def _settle(self, instance: Instance) -> str:
        """Put what a step printed beside its output; what is missing, or nothing."""
        place = self.store.steps / instance.place
        printed = self.store.log(instance, "out").read_text(encoding="utf-8")
        if not instance.writes:
            try:
                json.loads(printed)
            except ValueError:
                return f"{instance.step.program.name} printed no JSON"
            write_atomic(place / RECEIPT, printed)
        elif not place.is_dir():
            return f"{instance.step.program.name} left no output"
        elif not (place / RECEIPT).is_file():
            write_atomic(place / RECEIPT, printed)
        files = self.store.steps / instance.files
        if instance.writes and files.is_dir() and not any(files.iterdir()):
            files.rmdir()
        self.store.log(instance, "progress").unlink(missing_ok=True)
        return ""

    def _told(self, instance: Instance, code: int) -> tuple[str, str]:
        """A failed step's own error and hint."""
        log = words(self.store.log(instance, "log"))
        head, _, hint = log.rpartition("error: ")[2].partition("\n\nhint: ")
        if "error: " in log:
            return " ".join(head.split()), " ".join(hint.split())
        if code > 128:
            try:
                name = signal.Signals(code - 128).name
            except ValueError:
                name = f"signal {code - 128}"
            more = ", as the system does when memory is short" if name == "SIGKILL" else ""
            return f"it was ended by {name}{more}", ""
        last = [line for line in log.splitlines() if line.strip()]
        return (last[-1][:200] if last else f"it ended with exit code {code}"), ""

    def _fail(
        self, instance: Instance, error: str, hint: str, code: int, seconds: float = 0.0
    ) -> None:
        begun = self.store.record(instance)
        key = begun.key if begun is not None else ""
        self._put(
            Record(instance.place, instance.step.name, instance.step.program.name, key, FAILED,
                   round(seconds, 3), error=error, hint=hint, code=code)
        )  # fmt: skip

    def _put(self, record: Record) -> None:
        self.records[record.place] = record
        self.store.put(record)
        self.watch.ended(record)

    def _lighten(self) -> None:
        """Drop the weights of steps that want it, once nothing that isn't done needs them."""
        for place, record in list(self.records.items()):
            if record.status != OK or record.light:
                continue
            if self.graph.instances[place].step.retain != "receipt":
                continue
            users = [p for p, i in self.graph.instances.items() if place in i.needs]
            if all(u in self.records and self.records[u].status == OK for u in users):
                self.records[place] = self.store.lighten(record)

    def _interrupt(self, pool: Pool) -> None:
        """Let what runs keep its journal and end."""
        self.launcher.signal(signal.SIGINT)
        until = time.monotonic() + _END_PATIENCE_S
        while self._running and time.monotonic() < until and self.choices.backend != "ray":
            done = pool.next(_REFRESH_S)
            if done is not None:
                self._running.pop(done.token, None)


@dataclass(frozen=True)
class _Finished:
    """What references learn of finished steps, for a digest or for a command line."""

    run: Run
    instance: Instance
    purpose: str
    mistakes: Mistakes

    def value(self, reference: Reference, mark: Mark) -> Any:
        """A place (for a digest: the step's digest), or a value of a receipt."""
        found = found_instances(self.run.graph, self.instance, reference)
        values = [self._one(i, reference, mark) for i in found]
        return values if reference.head == "all" else values[0]

    def _one(self, instance: Instance, reference: Reference, mark: Mark) -> Any:
        part, rest = reference.parts[2], reference.parts[3:]
        record = self.run.records[instance.place]
        if part in ("output", "files"):
            if self.purpose == "key":
                return f"{part} of {record.key}"
            place = instance.place if part == "output" else instance.files
            return str(self.run.store.steps / place)
        receipt = self.run.store.receipt(record)
        try:
            return dig(receipt, rest)
        except KeyError as error:
            self.mistakes.add(
                mark,
                f"the receipt of step `{instance.place}` has no `{'.'.join(rest)}`",
                str(error.args[0]),
            )
            return LATER


def _far(order: Order, env: Mapping[str, str]) -> int:
    """Run a step in a process of Ray's, on whatever machine it is."""
    os.environ.update(env)
    return _resumable(order, Plain(env).run)


def _resumable(order: Order, run: Callable[[Order], int]) -> int:
    code = run(order)
    if code == 2 and "--resume" in order.argv:
        argv = tuple(word for word in order.argv if word != "--resume")
        code = run(replace(order, argv=argv))
    return code


def _failure(failed: list[Record], records: Mapping[str, Record], store: Store) -> CompressError:
    """The error of a run in which steps failed."""
    first = failed[0]
    more = f" ({len(failed)} steps failed)" if len(failed) > 1 else ""
    log = Path(store.root) / "logs" / f"{first.place}.log"
    done = sum(r.status == OK for r in records.values())
    hint = f"{first.hint}; " if first.hint else ""
    hint += f"what was finished ({done} steps) is kept: run the same command again; log: {log}"
    kind = RequestError if first.code == 2 else RunError
    return kind(f"step `{first.place}`: {first.error}{more}", hint)
