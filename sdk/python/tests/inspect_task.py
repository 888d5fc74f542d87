"""A task without a model: what a sample's commands say is its score."""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, accuracy, scorer
from inspect_ai.solver import solver
from inspect_ai.util import sandbox


@solver
def write():
    async def solve(state, generate):
        await sandbox().write_file("new/marks", f"sample-{state.sample_id}\n")
        return state

    return solve


@scorer(metrics=[accuracy()])
def marks():
    async def score(state, target):
        said = await sandbox().exec(["sh", "-c", "cat new/*; cat /proc/sys/kernel/random/boot_id"])
        return Score(value=said.success, explanation=said.stdout)

    return score


@task
def samples():
    return Task(dataset=[Sample(input=".", id=number) for number in (1, 2, 3)], solver=write(), scorer=marks())
