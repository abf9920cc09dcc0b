"""`train` and `resume`: a job on this thread, in a new run or going on with one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..api import TrainingJob, accepted_by, changed_job, find_run, join, new_run, resume_run, run_state, serve
from ..config import load_job
from . import OK
from .following import deaf, follow
from .runs import check_free
from .terminal import quiet_libraries, say


def train(args: argparse.Namespace) -> int:
    """Trains a job from YAML in a new run folder."""
    job = load_job(args.job)
    quiet_libraries()  # takes seconds, in which Ctrl-C should find no run yet
    return _train(lambda: new_run(args.runs, job, args.queue_up), args.runs)


def resume(args: argparse.Namespace) -> int:
    """Continues a run from its last intact checkpoint; a finished run has nothing left to do, unless it is changed."""
    run = find_run(args.run, args.runs)
    state = run_state(run)
    check_free(run, state, args.runs)
    if state.state == "finished" and not args.job and not args.set:
        say(f"{run.path} is finished already. For more steps: --set train.steps=N")
        return OK
    job = changed_job(load_job(args.job) if args.job else run.job(), args.set)
    accept = {*args.accept, *accepted_by(run, args.set)}
    return _train(lambda: resume_run(run, job, accept, args.queue_up), args.runs)


def _train(made: Callable[[], TrainingJob], runs: Path) -> int:
    """A job on this thread; where a launcher has started several processes, the first has it and the others help."""
    ranks = join()
    if not ranks.leads:
        with deaf():
            serve(ranks)
        return OK
    job = made()
    job.ranks = ranks
    code = follow(job, runs).exit_code
    ranks.leave()
    return code
