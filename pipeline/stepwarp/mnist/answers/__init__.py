"""From the probes' numbers to sentences: for every question what was found, how sure that is, what would change it.

Nothing here is written by hand about a result: every sentence follows from the numbers, whichever way they turn out."""

from __future__ import annotations

from collections.abc import Callable

from stepwarp.mnist.answers.common import Answer, Stacked
from stepwarp.mnist.answers.descent import after_each_step, beside_optimisers, where_steps_go, which_objective
from stepwarp.mnist.answers.dynamics import due_to, follows, one_end, stays, without_feedback
from stepwarp.mnist.answers.pulled import pulled

#: Letter -> from a probe's results, stacked over the seeds, and the trained number of steps, to its answer.
ANSWERS: dict[str, Callable[[Stacked, int], Answer]] = {
    "a": after_each_step,
    "b": where_steps_go,
    "c": which_objective,
    "d": pulled,
    "e": one_end,
    "f": stays,
    "g": without_feedback,
    "h": follows,
    "i": beside_optimisers,
    "j": due_to,
}

__all__ = ["ANSWERS", "Answer", "Stacked"]
