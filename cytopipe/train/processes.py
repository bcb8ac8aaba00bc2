"""Several processes that train one model: joined by torchrun, or started here for `train --gpus N`.

Each process (rank) runs the same function with the same arguments, and finds its place in the environment that torchrun
sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); `run_ranks` sets the same. They talk by nccl on GPUs and
by gloo on the CPU.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from cytopipe.core.errors import CytopipeError, RunError, UserError
from cytopipe.core.progress import OnProgress, Say
from cytopipe.core.resources import cores

TIMEOUT = timedelta(hours=2)  # [D] what the first rank may take for a validation while the others wait
GRACE_S = 10.0  # for a process to end by itself


def is_rank() -> bool:
    """Whether somebody started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes and speaks; also true of a single one."""
    return not is_rank() or os.environ["RANK"] == "0"


def rank_device(name: str) -> torch.device:
    """The device of this rank: its own GPU by LOCAL_RANK, or the CPU. Raises UserError where it has none."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if ":" in name:
        raise UserError("names one GPU, and each process needs its own", where=f"--device {name}", fix="--device cuda")
    if name not in ("auto", "cuda") or local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no such device: torch sees {torch.cuda.device_count()} GPUs",
            where=f"--device {name}",
            fix="start fewer processes, or give --device cpu",
        )
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the ranks of the environment talk to each other; nothing happens in a process that is alone."""
    if not is_rank():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_gpus(count: int, device: str) -> None:
    """Raises UserError where `--gpus count` cannot be had on a device."""
    if is_rank():
        raise UserError("this process is one of several already", where="--gpus", fix="torchrun or --gpus, not both")
    if device == "cpu":
        return
    if device not in ("auto", "cuda"):
        raise UserError(f"names one device, and --gpus {count} wants {count}", where=f"--device {device}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        raise UserError(
            f"torch sees {found} GPUs on this machine",
            where=f"--gpus {count}",
            fix=f"--gpus {count} --device cpu starts {count} processes on the CPU",
        )


def run_ranks(
    count: int, work: Callable[..., Any], arguments: Mapping[str, Any], on_progress: OnProgress, say: Say
) -> Any:
    """Call `work(**arguments, on_progress=..., say=...)` in `count` new processes; returns what the first one returned.

    work  a function of a module, with arguments and a result that can be pickled
    What the first rank reports and says is passed on; the first error of any rank ends them all and is raised here.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    port = str(_free_port())
    processes = [
        context.Process(target=_rank_main, args=(rank, count, port, work, dict(arguments), messages), daemon=True)
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        return _until_done(processes, messages, on_progress, say)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join(GRACE_S)
            if process.is_alive():
                process.kill()


def _until_done(processes: list[BaseProcess], messages: Any, on_progress: OnProgress, say: Say) -> Any:
    while True:
        try:
            kind, content = messages.get(timeout=1.0)
        except queue.Empty:
            for rank, process in enumerate(processes):
                if process.exitcode not in (None, 0):
                    raise RunError(
                        f"process {rank} of {len(processes)} died (exit code {process.exitcode})",
                        fix="the same command goes on from the last checkpoint",
                    ) from None
            continue
        if kind == "progress":
            on_progress(*content)
        elif kind == "say":
            say(content)
        elif kind == "error":
            raise content
        else:
            return content


def _rank_main(
    rank: int, count: int, port: str, work: Callable[..., Any], arguments: dict[str, Any], messages: Any
) -> None:
    """A rank's whole life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    torch.set_num_threads(max(1, cores() // count))
    try:
        result = work(
            **arguments,
            on_progress=lambda *content: messages.put(("progress", content)),
            say=lambda line: messages.put(("say", line)),
        )
    except CytopipeError as error:
        messages.put(("error", _portable(error)))
    except Exception as error:  # noqa: BLE001  (a process border: the cause is named, and the parent raises it)
        messages.put(("error", RunError(f"process {rank} failed: {type(error).__name__}: {error}")))
    else:
        if rank == 0:
            messages.put(("result", result))


def _portable(error: CytopipeError) -> CytopipeError:
    """An error that survives pickling with all its parts: exceptions with keyword arguments do not."""
    return _Carried(type(error), error.what, error.where, error.fix)


class _Carried(CytopipeError):
    """An error of another process; reads and exits as the original."""

    def __init__(self, kind: type[CytopipeError], what: str, where: str, fix: str) -> None:
        super().__init__(what, where=where, fix=fix)
        self.kind, self.exit_code = kind, kind.exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return _Carried, (self.kind, self.what, self.where, self.fix)


def _end_with_parent() -> None:
    """A rank whose parent was killed must not hold its GPU and the run's folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
