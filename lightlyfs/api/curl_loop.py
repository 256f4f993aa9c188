"""Sends GETs from one thread: libcurl's multi interface on epoll, some tenth of a millisecond of CPU a GET.

For small answers that are used only once they are complete: read URLs, small files. A GET that takes much
longer than others to its host is sent a second time, on a connection of its own, and the first answer counts.
Failures are reported to the caller, which can send the request again over a `Transport`.

Threads: any may call `get`. `done` is called in the loop's thread, so it must not wait for anything.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import certifi
import msgspec
import pycurl

from lightlyfs import errors
from lightlyfs.api.contract import Request, Response, TransportConfig
from lightlyfs.api.curl_exchange import Done, Exchange
from lightlyfs.forks import FORK_GATE

# how often the time limits of all requests are checked while any is under way
_LOOK_EVERY_S = 0.2
# after a longer pause between two checks the loop itself was held up, and no server is to blame
_STOOD_STILL_S = 1.0
# a GET is sent a second time once it takes longer than nearly all of the last ones to its host, and at least
# this long; second ones are a small share of all, and there are none while a host is in trouble
_SLOW_S, _SLOW_FACTOR, _REMEMBERED = 0.4, 2.0, 256
_SECOND_SHARE, _SECOND_BURST = 0.02, 8
_TROUBLE_S = 5.0
# with more answers than this for each silent GET, over connections like its own, the server is at fault
_ANSWERS_A_SILENT_ONE = 10
# GETs under way that need only few connections
_FEW = 8
# sets of headers for which handles are kept: those to the API, and to storage for all and for the head
_MAX_KINDS = 8
# answers that are read in one round, before requests that wait are sent
_EVENTS = 64

log = logging.getLogger(__name__)


class CurlLoop:
    """GETs of whole bodies, at most `config.connections` at once; `close` once.

    An eighth of them is reserved for urgent ones. Connections stay open for further GETs; with `keep_s`, they
    are closed once no GET was under way for that many seconds.
    """

    def __init__(
        self,
        config: TransportConfig,
        *,
        keep_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._keep_s = keep_s
        self._clock = clock
        self._ca_bundle = config.ca_bundle or certifi.where()
        self._wake = -1  # a descriptor, while the thread runs
        self._lock = threading.Lock()
        # guarded by _lock
        self._thread: threading.Thread | None = None
        self._closed = False
        # appended to by any thread, taken by the loop
        self._urgent: deque[tuple[Request, Done]] = deque()
        self._patient: deque[tuple[Request, Done]] = deque()
        self._sleeps = False
        # used by the loop alone
        self._under_way: dict[pycurl.Curl, Exchange] = {}
        # by the headers that are set in them
        self._idle: dict[tuple[tuple[str, str], ...], list[Exchange]] = {}
        # has the connections; those of earlier ones are not used for further requests
        self._multi: pycurl.CurlMulti
        self._retired: list[pycurl.CurlMulti] = []
        self._multi_of: dict[int, pycurl.CurlMulti] = {}  # by descriptor
        self._answers: dict[pycurl.CurlMulti, int] = {}  # over connections that were used before
        self._epoll: select.epoll
        self._due_at: float | None = None
        self._close_at: float | None = None  # when to close idle connections; None while a GET is under way
        self._looked_at = 0.0
        self._generation = 0
        self._took_s: dict[str, deque[float]] = {}
        self._trouble_until = 0.0
        self._sent = self._sent_twice = 0

    @property
    def under_way(self) -> int:
        """How many GETs are sent, and not answered yet."""
        return len(self._under_way)

    def get(self, request: Request, done: Done, *, urgent: bool) -> None:
        """Send a GET and call `done` with the answer, whatever its status, or with why there is none.

        An urgent one goes before all that wait. A body over `max_body_bytes` is `errors.TooLarge`. Once the
        loop is closed every request is `errors.Cancelled`, in the thread of the caller perhaps.
        """
        (self._urgent if urgent else self._patient).append((request, done))
        if self._thread is None:
            self._start()
        if self._sleeps:
            self._sleeps = False
            self._wake_up()
        if self._closed:
            self._cancel_waiting()

    def _wake_up(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End what is under way with `errors.Cancelled`; idempotent."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake_up()
            thread.join()
        self._cancel_waiting()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._run, name="lightlyfs-network", daemon=True)
                self._thread.start()

    def _cancel_waiting(self) -> None:
        for waiting in (self._urgent, self._patient):
            while waiting:
                try:
                    _, done = waiting.popleft()
                except IndexError:
                    break
                _tell(done, errors.Cancelled("the network loop was closed", request_sent=False))

    # in the loop's thread

    def _run(self) -> None:
        self._begin()
        try:
            while not self._closed:
                try:
                    self._send_waiting()
                    events = self._wait()
                    self._read(events)
                    self._look()
                    self._close_kept()
                except Exception:
                    # every waiting request gets an error, and the loop starts again
                    log.exception("the network loop failed")
                    self._end(lambda: errors.Unreachable("the network loop failed", request_sent=True))
                    self._new_multi()
        finally:
            self._closed = True  # where it fails for good, too: each request is then cancelled at once
            self._end(lambda: errors.Cancelled("the network loop was closed", request_sent=True))
            self._epoll.close()
            with self._lock:
                os.close(self._wake)
                self._wake = -1
            self._cancel_waiting()

    def _begin(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._generation = self._config.network.look()
        self._new_multi()

    def _new_multi(self) -> None:
        self._due_at = None
        multi = self._multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        multi.setopt(pycurl.M_TIMERFUNCTION, partial(self._on_timer, multi))
        # libcurl counts those in use, too: with a lower limit it would close each one after its answer
        multi.setopt(pycurl.M_MAXCONNECTS, self._config.connections)
        multi.setopt(pycurl.M_PIPELINING, 0)

    def _send_waiting(self) -> None:
        if not (self._urgent or self._patient):
            return
        if self._config.network.look() != self._generation:
            self._retire()
        refused: list[tuple[Done, errors.RequestError]] = []
        with FORK_GATE:
            while self._may_send():
                try:
                    request, done = self._urgent.popleft() if self._urgent else self._patient.popleft()
                except IndexError:
                    break
                exchange = self._exchange_for(request)
                try:
                    exchange.prepare(request, done, self._clock())
                except errors.RequestError as error:
                    refused.append((done, error))
                    continue
                self._add(exchange)
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        for done, why in refused:
            _tell(done, why)
        self._take_finished()

    def _exchange_for(self, request: Request) -> Exchange:
        """An idle handle, one with the headers of a request where there is one; or a new one."""
        alike = self._idle.get(tuple(request.headers.items()))
        if alike:
            return alike.pop()
        if len(self._idle) > _MAX_KINDS:
            self._close_idle()  # the headers of a token that was renewed
        return Exchange(self._config, self._ca_bundle)

    def _close_idle(self) -> None:
        with FORK_GATE:
            for idle in self._idle.values():
                for exchange in idle:
                    exchange.curl.close()
        self._idle.clear()

    def _may_send(self) -> bool:
        """Whether something waits that there is a connection for; an eighth is kept for urgent ones."""
        most = self._config.connections
        under_way = len(self._under_way)
        return bool((self._urgent and under_way < most) or (self._patient and under_way < most - most // 8))

    def _add(self, exchange: Exchange) -> None:
        self._sent += 1
        self._close_at = None
        self._under_way[exchange.curl] = exchange
        exchange.multi, exchange.generation = self._multi, self._generation
        exchange.answers_before = self._answers.get(self._multi, 0)
        self._multi.add_handle(exchange.curl)

    def _wait(self) -> list[tuple[int, int]]:
        timeout_s = -1.0 if not self._under_way else _LOOK_EVERY_S
        for at in (self._due_at, self._close_at):
            if at is not None:
                left_s = max(0.0, at - self._clock())
                timeout_s = left_s if timeout_s < 0 else min(timeout_s, left_s)
        self._sleeps = True
        if self._closed or self._may_send():
            timeout_s = 0.0
        try:
            return self._epoll.poll(timeout_s, _EVENTS)
        finally:
            self._sleeps = False

    def _read(self, events: list[tuple[int, int]]) -> None:
        with FORK_GATE:
            for descriptor, event in events:
                if descriptor == self._wake:
                    try:
                        os.eventfd_read(self._wake)
                    except BlockingIOError:
                        pass
                    continue
                readiness = 0
                if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    readiness |= pycurl.CSELECT_IN
                if event & select.EPOLLOUT:
                    readiness |= pycurl.CSELECT_OUT
                self._multi_of.get(descriptor, self._multi).socket_action(descriptor, readiness)
            if self._due_at is not None and self._clock() >= self._due_at:
                self._due_at = None
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._take_finished()

    def _take_finished(self) -> None:
        for multi in (self._multi, *self._retired):
            left = len(self._under_way)
            while left:
                left, finished, failed = multi.info_read()
                for curl in finished:
                    self._finish(curl, None)
                for curl, code, text in failed:
                    self._finish(curl, (code, text))

    def _finish(self, curl: pycurl.Curl, failure: tuple[int, str] | None) -> None:
        exchange = self._under_way.pop(curl, None)
        if exchange is None:
            return  # its twin was answered in the same round
        with FORK_GATE:
            exchange.multi.remove_handle(curl)
        outcome = exchange.outcome(failure)
        if isinstance(outcome, Response):
            self._note_answer(exchange, outcome.status)
        twin, done = exchange.twin, exchange.done
        exchange.clear()
        self._idle.setdefault(tuple(exchange.request.headers.items()), []).append(exchange)
        if twin is not None:
            twin.twin = None
            if not isinstance(outcome, Response):
                return  # the other one may still be answered
            if twin.is_doubtful:
                twin.done = None  # whether it is answered at all says whether connections are dead
                if len(self._under_way) <= _FEW:
                    self._retire()  # the next one is not to wait for that; connections for few are soon made
            else:
                self._drop(twin)
        _tell(done, outcome)

    def _note_answer(self, exchange: Exchange, status: int) -> None:
        now = self._clock()
        if exchange.is_on_kept:
            self._answers[exchange.multi] = self._answers.get(exchange.multi, 0) + 1
        self._config.network.note_answer(exchange.host, now - exchange.since)
        took_s = self._took_s.get(exchange.host)
        if took_s is None:
            took_s = self._took_s[exchange.host] = deque(maxlen=_REMEMBERED)
        took_s.append(now - exchange.since)
        if status == 429 or status >= 500:
            self._trouble_until = now + _TROUBLE_S

    def _drop(self, exchange: Exchange) -> None:
        """End a GET; its connection is closed."""
        del self._under_way[exchange.curl]
        with FORK_GATE:
            exchange.multi.remove_handle(exchange.curl)
            exchange.curl.close()

    def _look(self) -> None:
        """Send again what takes long, and give up what has been silent for too long.

        Kept connections that were silent from the start are a sign that their way is gone, and that of
        others, unless many others brought answers meanwhile.
        """
        now = self._clock()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        stood_still = now - self._looked_at > _STOOD_STILL_S
        self._looked_at = now
        if stood_still:
            # a callback took long, so that answers may be here and not read yet
            for exchange in self._under_way.values():
                exchange.moved_at = now
            return
        ways = self._config.network
        sent = False
        doubtful: list[Exchange] = []
        for exchange in list(self._under_way.values()):
            if exchange.curl not in self._under_way:
                continue  # it went with its twin
            error = exchange.late(now, ways)
            if error is not None:
                if exchange.is_doubtful:
                    doubtful.append(exchange)
                self._drop(exchange)
                if exchange.twin is not None:
                    exchange.twin.twin = None
                    continue
                _tell(exchange.done, error)
            elif not exchange.is_repeated and self._is_slow(exchange, now):
                self._send_again(exchange, now)
                sent = True
        self._weigh(doubtful)
        if sent:
            with FORK_GATE:
                self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        if ways.look() != self._generation:
            self._retire()
        self._look_at_retired()

    def _weigh(self, doubtful: list[Exchange]) -> None:
        """Trust no kept connection any more if too many were silent for the server to be at fault."""
        for multi in {exchange.multi for exchange in doubtful}:
            silent = [exchange for exchange in doubtful if exchange.multi is multi]
            first = min(silent, key=lambda exchange: exchange.since)
            brought = self._answers.get(multi, 0) - first.answers_before
            if len(silent) * _ANSWERS_A_SILENT_ONE > brought:
                why = f"{first.host} was silent on a kept connection"
                self._config.network.drop(first.generation, why)

    def _is_slow(self, exchange: Exchange, now: float) -> bool:
        """Whether a GET is to be sent a second time."""
        waited_s = now - exchange.since
        if waited_s < _SLOW_S or exchange.is_coming or now < self._trouble_until:
            return False
        if self._sent_twice > self._sent * _SECOND_SHARE + _SECOND_BURST:
            return False
        took_s = sorted(self._took_s.get(exchange.host, ()))
        # of few answers nothing is known of how long they take
        return len(took_s) >= 16 and waited_s > _SLOW_FACTOR * took_s[(len(took_s) - 1) * 98 // 100]

    def _send_again(self, exchange: Exchange, now: float) -> None:
        twin = self._exchange_for(exchange.request)
        assert exchange.done is not None
        twin.prepare(msgspec.structs.replace(exchange.request, fresh=True), exchange.done, now)
        twin.twin, exchange.twin = exchange, twin
        twin.is_repeated = exchange.is_repeated = True
        self._sent_twice += 1
        with FORK_GATE:
            self._add(twin)

    def _close_kept(self) -> None:
        """Close all connections once no GET was under way for `keep_s`."""
        if self._under_way or self._keep_s is None or not self._idle:
            return
        now = self._clock()
        if self._close_at is None:
            self._close_at = now + self._keep_s
        elif now >= self._close_at:
            self._close_at = None
            self._retire()
            self._look_at_retired()
            self._close_idle()

    def _retire(self) -> None:
        """Use no connection of now for further requests; what is under way goes on while it is not silent."""
        self._generation = self._config.network.generation
        self._retired.append(self._multi)
        self._new_multi()

    def _look_at_retired(self) -> None:
        if not self._retired:
            return
        used = {exchange.multi for exchange in self._under_way.values()}
        with FORK_GATE:
            for multi in list(self._retired):
                if multi in used:
                    # the loop keeps a timer for the current one only
                    multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
                else:
                    self._retired.remove(multi)
                    self._answers.pop(multi, None)
                    multi.close()
        self._take_finished()

    def _end(self, error: Callable[[], errors.RequestError]) -> None:
        """Close every connection, and tell those who wait for an answer."""
        ended, self._under_way = self._under_way, {}
        retired, self._retired = self._retired, []
        with FORK_GATE:
            for curl, exchange in ended.items():
                exchange.multi.remove_handle(curl)
                curl.close()
            self._close_idle()
            for multi in (self._multi, *retired):
                multi.close()
        self._answers.clear()
        for exchange in ended.values():
            if exchange.twin is not None:
                exchange.twin.twin = None  # which tells
                continue
            _tell(exchange.done, error())

    def _on_socket(self, what: int, descriptor: int, multi: pycurl.CurlMulti, _data: Any) -> None:
        try:
            if what == pycurl.POLL_REMOVE:
                self._multi_of.pop(descriptor, None)
                self._epoll.unregister(descriptor)
                return
            self._multi_of[descriptor] = multi
            wanted = 0
            if what in (pycurl.POLL_IN, pycurl.POLL_INOUT):
                wanted |= select.EPOLLIN
            if what in (pycurl.POLL_OUT, pycurl.POLL_INOUT):
                wanted |= select.EPOLLOUT
            try:
                self._epoll.register(descriptor, wanted)
            except FileExistsError:
                self._epoll.modify(descriptor, wanted)
        except OSError:
            pass  # libcurl closed it: epoll has dropped it by itself

    def _on_timer(self, multi: pycurl.CurlMulti, milliseconds_left: int) -> None:
        if multi is not self._multi:
            return
        self._due_at = None if milliseconds_left < 0 else self._clock() + milliseconds_left / 1000


def _tell(done: Done | None, outcome: Response | errors.RequestError) -> None:
    """Call back if someone still waits; an exception there must not end the loop for all the others."""
    if done is None:
        return
    try:
        done(outcome)
    except Exception:
        log.exception("what a request brought could not be taken")
