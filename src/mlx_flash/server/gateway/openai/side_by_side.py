"""Several answers side by side: to the prompts of one request, or of one prompt in variants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from ...messages import Event, Generate
from ..backend import Answer, Backend
from ..collected import Collected, collect


async def submit_all(backend: Backend, wanted: Sequence[Generate]) -> list[Answer]:
    """Begin an answer to each request, or to none.

    Raises:
        RequestError: one of them finds no place.
    """
    answers: list[Answer] = []
    complete = False
    try:
        for one in wanted:
            answers.append(backend.submit(one))
        complete = True
    finally:
        if not complete:
            async with entered(answers):
                pass
    return answers


@contextlib.asynccontextmanager
async def entered(answers: Sequence[Answer]) -> AsyncIterator[None]:
    """Cancel the answers that have not ended when the block is left."""
    async with contextlib.AsyncExitStack() as stack:
        for answer in answers:
            await stack.enter_async_context(answer)
        yield


async def all_accepted(answers: Sequence[Answer], within_s: float) -> None:
    """Wait until all are accepted, but no longer than `within_s`.

    Raises:
        RequestError: one is refused.
    """
    clock = asyncio.get_running_loop().time
    until = clock() + within_s
    for answer in answers:
        await answer.accepted(max(0.0, until - clock()))


async def collect_all(answers: Sequence[Answer]) -> list[Collected]:
    """Return all answers as wholes; when one fails, the others are cancelled.

    Raises:
        RequestError: one failed.
    """
    tasks = [asyncio.ensure_future(collect(answer)) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def merged(
    answers: Sequence[Answer], idle_s: float
) -> AsyncIterator[tuple[int, Event | None]]:
    """Yield the events of all answers as they come, each with the index of its answer.

    Raises:
        RequestError: one failed.
    """
    came: asyncio.Queue[tuple[int, Event | None] | asyncio.Task[None]] = asyncio.Queue()

    async def forward(index: int, answer: Answer) -> None:
        async for event in answer.events(idle_s):
            came.put_nowait((index, event))

    tasks = [asyncio.create_task(forward(*numbered)) for numbered in enumerate(answers)]
    for task in tasks:
        task.add_done_callback(came.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await came.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
            else:
                yield item
    finally:
        await _end(tasks)


async def _end(tasks: Sequence["asyncio.Task[object]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
