"""Training in processes of their own, as torchrun would start them, without importing torch again.

A server process imports everything once and is forked for each of them.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["everything"])


def _serve():
    """Start the server where it finds tests/, which Python 3.11 does not tell it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [before])]
    )
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def start(world, folder, function, *arguments):
    """`world` processes that call function(*arguments); what they say goes to folder/rank-*.txt."""
    _serve()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(folder).mkdir(parents=True, exist_ok=True)
    processes = [
        FORKS.Process(target=_run, args=(rank, world, port, str(folder), function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes, folder, limit=180):
    """Wait for success; the limit is for hangs."""
    end = time.monotonic() + limit
    try:
        for rank, process in enumerate(processes):
            process.join(max(0, end - time.monotonic()))
            said = (Path(folder) / f"rank-{rank}.txt").read_text()
            assert process.exitcode == 0, f"rank {rank}: {process.exitcode}\n{said[-3000:]}"
    finally:
        kill(processes)


def run(world, folder, function, *arguments, limit=180):
    """Start and finish."""
    finish(start(world, folder, function, *arguments), folder, limit)


def kill(processes):
    """SIGKILL to all that are left."""
    for process in processes:
        if process.is_alive():
            process.kill()
    for process in processes:
        process.join()


def _run(rank, world, port, folder, function, arguments):
    with open(f"{folder}/rank-{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        if world > 1:
            os.environ.update(
                TORCHELASTIC_RUN_ID="test",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(world),
                LOCAL_WORLD_SIZE=str(world),
                GROUP_RANK="0",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)  # without the seconds that interpreters with torch take to leave


def die_at(number, before=True):
    """Kill this process at its n-th write, flush or rename of a checkpoint."""
    from twosides.storage import files

    files.os = Deadly(number, before)


class Deadly:
    """`os`, with an end."""

    def __init__(self, number, before):
        self.left, self.before = number, before

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in ("write", "fsync", "rename", "replace", "mkdir"):
            return real

        def call(*arguments, **options):
            self.left -= 1
            if self.left == 0 and self.before:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done = real(*arguments, **options)
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call
