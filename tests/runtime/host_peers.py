"""Members of a host link for the tests: threads of this process, or processes under control."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from flowml.runtime.host_hello import HostListener
from flowml.runtime.host_link import HostLink

RUN = bytes(range(16))
PATIENCE = 60.0
FORKING = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the process that forks the members: it has no threads and no sockets of ours."""
    FORKING.set_forkserver_preload(["numpy", "flowml.runtime.host_link"])
    forkserver.ensure_running()


def join_all(listeners: Sequence[HostListener], nbytes: int = 4096) -> list[Any]:
    """Let as many members as there are listeners meet; return a link or an error for each."""
    members = {i: listener.address for i, listener in enumerate(listeners)}

    def join(me: int) -> HostLink | Exception:
        try:
            return HostLink.join(listeners[me], me, members, RUN, 3, nbytes, PATIENCE)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(listeners)) as pool:
        return list(pool.map(join, members))


@contextmanager
def linked(count: int, **listening: Any) -> Iterator[list[HostLink]]:
    """Give the links of ``count`` members in this process."""
    listeners = [HostListener(**listening) for _ in range(count)]
    links: list[HostLink] = []
    try:
        links = join_all(listeners)
        yield links
    finally:
        for closing in (*links, *listeners):
            closing.close()


class Crew:
    """Members in processes of their own, each obeying one command at a time over a pipe."""

    def __init__(self, count: int) -> None:
        start_server()
        self.pipes: list[Connection] = []
        self.processes = []
        for me in range(count):
            mine, theirs = FORKING.Pipe()
            member = FORKING.Process(target=obey, args=(me, theirs), daemon=True)
            member.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(member)
        members = {me: self.hear(me) for me in range(count)}
        for me in range(count):
            self.tell(me, members)
        for me in range(count):
            assert self.hear(me) == "joined"

    def tell(self, me: int, command: Any) -> None:
        """Send a command."""
        self.pipes[me].send(command)

    def hear(self, me: int) -> Any:
        """Return the next reply of a member."""
        assert self.pipes[me].poll(PATIENCE), f"member {me} says nothing"
        return self.pipes[me].recv()

    def close(self) -> None:
        """Kill what is left."""
        for pipe, member in zip(self.pipes, self.processes, strict=True):
            member.kill()
            member.join(PATIENCE)
            member.close()
            pipe.close()


@contextmanager
def crew(count: int) -> Iterator[Crew]:
    """Give a crew, and kill it in the end."""
    hands = Crew(count)
    try:
        yield hands
    finally:
        hands.close()


def obey(me: int, pipe: Connection) -> None:
    """Be one member of a crew until told to leave."""
    listener = HostListener()
    pipe.send(listener.address)
    link = HostLink.join(listener, me, pipe.recv(), RUN, 3, 4096, PATIENCE)
    listener.close()
    link.on_silence = lambda missing, waited: pipe.send(("silence", missing, waited))
    pipe.send("joined")
    while True:
        command, *rest = pipe.recv()
        if command == "leave":
            link.close()
            return
        try:
            pipe.send(_COMMANDS[command](link, *rest))
        except Exception as error:
            pipe.send(error)


def _barrier(link: HostLink, stop: bool, flip: int) -> Any:
    return link.barrier(stop, flip)


def _owner_computes(link: HostLink, steps: int) -> list[float]:
    """Sum vectors in shared memory, each member its slice, as training does."""
    count = len(link.members)
    gradients = link.segment.view(0, (count, count), np.float64)
    buffers = [link.segment.view(1024 + 512 * i, (count,), np.float64) for i in range(2)]
    for step in range(steps):
        now, after = buffers[step % 2], buffers[(step + 1) % 2]
        gradients[link.me] = now + link.me
        link.barrier(False, step)
        after[link.me] = gradients[:, link.me].sum() / count
        link.barrier(False, step + 1)
    return [float(x) for x in buffers[steps % 2]]


_COMMANDS = {"barrier": _barrier, "owner computes": _owner_computes}
