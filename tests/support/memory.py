"""What an object holds in memory."""

import asyncio
import gc
import types


def is_reached(start: object, text: str) -> bool:
    """Whether a string in the memory of an object holds a text. Not looked into are code, running frames and the event
    loop, on which the simulated Spotify runs, too.
    """
    code = (type, types.ModuleType, types.FunctionType, types.FrameType, types.CoroutineType, types.CodeType)
    skipped = (*code, asyncio.AbstractEventLoop)
    waiting, seen = [start], {id(start)}
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and text in one:
            return True
        for inner in gc.get_referents(one):
            if id(inner) not in seen and not isinstance(inner, skipped):
                seen.add(id(inner))
                waiting.append(inner)
    return False
