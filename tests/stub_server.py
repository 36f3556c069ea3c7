"""An OpenAI-compatible server that fails on command: `python stub_server.py [LATENCY_S]` prints its URL and serves.

A prompt is answered by what it says: "fault:NAME" anywhere in it brings that fault, each time or, as "fault:NAME:N",
the first N times that this prompt comes; every other prompt is answered with its last word. GET /calls gives how often
each prompt came, GET /most how many calls were in flight at once. Asked for logprobs, it prefers m to M by 3 to 1;
asked for a function call, it ranks m first.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

from aiohttp import web

LATENCY_S = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
CALLS: Counter[str] = Counter()
STARTS: list[float] = []
IN_FLIGHT = {"now": 0, "most": 0}
RANKED = '{"ordered_models": [{"model": "M", "rank": 2}, {"model": "m", "rank": 1}]}'
FAULT = re.compile(r"fault:([a-z_0-9]+)(?::(\d+))?")


def answer(asked: dict[str, Any], prompt: str) -> dict[str, Any]:
    """What a healthy server says."""
    words = prompt.split()
    text = words[-1] if words else ""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    top = {"m": math.log(0.75), "M": math.log(0.25)}
    if "messages" in asked:
        choice["message"] = {"role": "assistant", "content": text}
        if "tools" in asked:
            called = {"name": asked["tool_choice"]["function"]["name"], "arguments": RANKED}
            call = {"id": "1", "type": "function", "function": called}
            choice["message"] |= {"content": None, "tool_calls": [call]}
        if asked.get("logprobs"):
            alternatives = [{"token": token, "logprob": value} for token, value in top.items()]
            choice["logprobs"] = {"content": [{"token": "m", "logprob": top["m"], "top_logprobs": alternatives}]}
    else:
        choice["text"] = text
        if asked.get("logprobs"):
            choice["logprobs"] = {"tokens": ["m"], "top_logprobs": [top]}
    read = len(prompt) // 4
    usage = {"prompt_tokens": read, "completion_tokens": 1, "total_tokens": read + 1}
    usage["prompt_tokens_details"] = {"cached_tokens": 2}
    return {
        "id": "1",
        "object": "x",
        "created": 1,
        "model": asked["model"],
        "system_fingerprint": "fp_stub",
        "choices": [choice],
        "usage": usage,
    }


def broken(fault: str, asked: dict[str, Any], prompt: str, authorization: str) -> web.Response:
    """Faults that are a whole HTTP response."""
    said = answer(asked, prompt)
    choice = said["choices"][0]
    errors = {
        "e500": (500, {"error": {"message": "boom"}}, {}),
        "e503": (503, {"error": {"message": "overloaded"}}, {}),
        "e400": (400, {"error": {"message": "bad parameter"}}, {}),
        "e401": (401, {"error": {"message": f"Incorrect API key provided: {authorization}"}}, {}),
        "e404": (404, {"error": {"message": "no such model"}}, {}),
        "throttle": (429, {"error": {"message": "slow down"}}, {"Retry-After": "1"}),
        "throttle_date": (429, {"error": {"message": "slow down"}}, {"Retry-After": formatdate(time.time() + 2)}),
        "throttle_bare": (429, {"error": {"message": "slow down"}}, {}),
        "throttle_day": (429, {"error": {"message": "slow down"}}, {"Retry-After": "86400"}),
        "quota": (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, {}),
        "filter_400": (400, {"error": {"code": "content_filter", "message": "no"}}, {}),
        "redirect": (307, {}, {"Location": "http://127.0.0.1:9/elsewhere"}),
    }
    if fault in errors:
        status, body, headers = errors[fault]
        return web.json_response(body, status=status, headers=headers)
    if fault == "not_json":
        return web.Response(text="<html>it works</html>")
    if fault == "nan":
        return web.Response(text=json.dumps(said | {"usage": {"prompt_tokens": math.nan}}))
    if fault == "deep":
        return web.Response(text="[" * 100_000)
    if fault == "huge":
        return web.Response(body=b" " * (3 << 20) + json.dumps(said).encode())
    if fault == "no_choices":
        said["choices"] = []
    elif fault == "null_content":
        choice["message"]["content"] = None
    elif fault == "number_content":
        choice["message"]["content"] = 7
    elif fault == "other_model":
        said["model"] = "some-other-model"
    elif fault == "dated_model":
        said["model"] += "-2024-08-06"
    elif fault == "no_logprobs":
        choice.pop("logprobs", None)
    elif fault == "no_call":
        choice["message"] = {"role": "assistant", "content": "m is best"}
    elif fault == "truncated":
        choice["finish_reason"] = "length"
    elif fault == "filtered":
        choice["finish_reason"] = "content_filter"
    elif fault == "refused":
        choice["message"] = {"role": "assistant", "content": None, "refusal": "I will not"}
    elif fault == "surrogate":
        choice["message"]["content"] = "half \ud83d"
    elif fault == "bad_usage":
        said["usage"] = {"prompt_tokens": -5, "completion_tokens": "many", "prompt_tokens_details": 3}
    else:
        return web.Response(status=418, text=f"no fault {fault}")
    return web.json_response(said)


async def endless(fault: str, request: web.Request) -> web.StreamResponse:
    """Faults of the connection."""
    if fault == "hang":
        await asyncio.sleep(60)
    assert request.transport is not None
    if fault == "garbage":
        request.transport.write(b"\x00\xff not http at all\r\n\r\n")
    response = web.StreamResponse(headers={"Content-Length": "100000"})
    if fault in ("close_mid_body", "slow_loris"):
        await response.prepare(request)
        await response.write(b'{"model": ')
        for _ in range(600 if fault == "slow_loris" else 0):
            await asyncio.sleep(0.1)
            await response.write(b" ")
    request.transport.close()
    return response


async def complete(request: web.Request) -> web.StreamResponse:
    """Either endpoint."""
    asked = await request.json()
    prompt = asked["messages"][-1]["content"] if "messages" in asked else asked["prompt"]
    CALLS[prompt] += 1
    STARTS.append(time.time())
    IN_FLIGHT["now"] += 1
    IN_FLIGHT["most"] = max(IN_FLIGHT.values())
    try:
        if LATENCY_S:
            await asyncio.sleep(LATENCY_S)
        found = FAULT.search(prompt)
        if found and (found[2] is None or CALLS[prompt] <= int(found[2])):
            if found[1] in ("hang", "garbage", "close_mid_body", "slow_loris", "close"):
                return await endless(found[1], request)
            return broken(found[1], asked, prompt, request.headers.get("Authorization", ""))
        return web.json_response(answer(asked, prompt))
    finally:
        IN_FLIGHT["now"] -= 1


async def calls(request: web.Request) -> web.Response:
    """How often each prompt came."""
    return web.json_response(CALLS)


async def most(request: web.Request) -> web.Response:
    """How many calls were in flight at once, and when each came."""
    return web.json_response({"most": IN_FLIGHT["most"], "starts": STARTS})


async def main() -> None:
    """Serve until killed."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/calls", calls)
    app.router.add_get("/most", most)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
