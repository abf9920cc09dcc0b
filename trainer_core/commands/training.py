"""`train` and `resume`: a job on this thread, in a new run or going on with one."""

from __future__ import annotations

import argparse

from ..api import accepted_by, changed_job, find_run, new_run, resume_run, run_state
from ..config import load_job
from . import OK
from .following import follow
from .runs import check_free
from .terminal import quiet_libraries, say


def train(args: argparse.Namespace) -> int:
    """Trains a job from YAML in a new run folder."""
    job = load_job(args.job)
    quiet_libraries()  # takes seconds, in which Ctrl-C should find no run yet
    return follow(new_run(args.runs, job, args.queue_up), args.runs).exit_code


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
    return follow(resume_run(run, job, accept, args.queue_up), args.runs).exit_code
