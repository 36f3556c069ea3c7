import os
import random
import subprocess
import sys

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_bench.harness.engines.decode import choose
from rlhf_bench.harness.engines.draws import Stream, choose_each, started
from rlhf_bench.harness.types import Sampling

ANSWER = st.tuples(st.floats(0.05, 3), st.floats(0.01, 1) | st.just(1.0), st.text(max_size=5))


@settings(deadline=None)
@given(
    st.lists(ANSWER, min_size=1, max_size=6), st.integers(0, 1000), st.sampled_from((2, 40, 3000)), st.integers(0, 3)
)
def test_a_batch_is_chosen_as_each_answer_alone(
    answers: list[tuple[float, float, str]], seed: int, vocabulary: int, step: int
) -> None:
    logits_RV = 4 * torch.randn(len(answers), vocabulary, generator=torch.Generator().manual_seed(seed))
    temperatures, top_ps, names = zip(*answers, strict=True)
    found = choose_each(logits_RV, temperatures, top_ps, [Stream(name)[step] for name in names])
    for row, (temperature, top_p, name) in enumerate(answers):
        draw = random.Random(name)
        for _ in range(step):
            draw.random()
        sampling = Sampling(temperature=temperature, top_p=top_p)
        assert int(found[row]) == choose(logits_RV[row], sampling, draw)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1), st.text(max_size=5))
def test_a_draw_hangs_on_its_number_alone(asked: list[int], name: str) -> None:
    stream, other = Stream(name), random.Random(name)
    drawn = [other.random() for _ in range(21)]
    assert [stream[number] for number in asked] == [drawn[number] for number in asked]


def test_a_process_is_known_by_when_it_was_started_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        since = started(other.pid)
        assert since
        assert int(since) > int(started(os.getpid()))
        assert started(other.pid) == since
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert started(other.pid) == ""  # a zombie
    assert started(other.pid) == ""
