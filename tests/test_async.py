# SPDX-License-Identifier: Apache-2.0
"""The same for asyncio."""

import asyncio

import pytest


def test_the_same_texts(lm):
    async def run():
        texts = await asyncio.gather(*(lm.agenerate("ab", seed=seed, max_tokens=20) for seed in range(8)))
        pieces = [piece async for piece in lm.astream("ab", seed=3, max_tokens=20)]
        batch = await lm.agenerate(["ab", "c"], n=2, seed=1, max_tokens=5)
        return texts, pieces, batch

    texts, pieces, batch = asyncio.run(run())
    assert [one.text for one in texts] == [lm.generate("ab", seed=seed, max_tokens=20).text for seed in range(8)]
    assert "".join(pieces) == texts[3].text
    expected = lm.generate(["ab", "c"], n=2, seed=1, max_tokens=5)
    assert [[one.text for one in group] for group in batch] == [[one.text for one in group] for group in expected]


def test_a_cancelled_task_stops_the_work(lm):
    ended = []

    def spy():
        ended.append(None)
        return False

    async def run():
        task = asyncio.create_task(lm.agenerate("ab", max_tokens=10**9, min_tokens=10**9, cancelled=spy))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        looked = len(ended)
        await asyncio.sleep(0.2)
        assert len(ended) == looked  # nobody asks any more
        stream = lm.astream("ab", max_tokens=10**9, min_tokens=10**9)
        assert [await anext(stream) for _ in range(3)]
        await stream.aclose()

    asyncio.run(run())


def test_errors_come_through(lm):
    async def run():
        with pytest.raises(ValueError, match="top_k=-1"):
            await lm.agenerate("ab", top_k=-1)
        with pytest.raises(TypeError, match="stream takes one prompt"):
            await anext(lm.astream(["ab"]))

    asyncio.run(run())
