from rlhf_bench.harness.policy import Guard, Halves, Ledger, Part, Policy, Sentinel, Target
from rlhf_bench.harness.words import explain


def test_every_rule_of_a_policy_is_said() -> None:
    policy = Policy(
        name="all",
        alpha=0.04,
        ledger=Ledger(planned=4),
        targets=(Target(benchmark="chat", metric="win_rate", min_effect=0.01),),
        guards=(
            Guard(benchmark="mmlu", metric="acc", margin=0.02, strata=("law", "art")),
            Guard(benchmark="replies", metric="toxicity", margin=0.005, direction="lower"),
            Guard(
                name="code",
                margin=0.045,
                pool=(Part(benchmark="humaneval", metric="pass@1"), Part(benchmark="mbpp", metric="pass_at_1")),
            ),
        ),
        sentinels=(
            Sentinel(signal="length", benchmark="chat", limit=0.25),
            Sentinel(signal="truncated", benchmark="chat", limit=0.05, action="veto"),
        ),
        halves=Halves(salt="s"),
    )
    said = "\n".join(explain(policy))
    for part in (
        "win_rate of chat: higher by more than 1 points",
        "acc of mmlu in law, art: not lower by 2 points or more",
        "toxicity of replies: not higher by 0.5 points or more",
        "code (pass@1 of humaneval and pass_at_1 of mbpp, pooled): not lower by 4.5 points or more",
        "on chat, the answers grow by more than 25% in characters",
        "on chat, the share of answers cut at their limit rises by more than 5 points",
        "All 4 planned decisions on the same samples together promote wrongly with a chance of at most 4%, 1% each",
        "against the champion and the fixed anchor",
        "sets 50% of the samples apart",
        "more than 2% are ungraded",
    ):
        assert part in said


def test_the_three_ledgers_promise_different_things() -> None:
    rules = {"targets": (Target(benchmark="a", metric="m"),), "guards": (Guard(benchmark="b", metric="m", margin=0.1),)}
    none, open_ = ("\n".join(explain(Policy(name="p", ledger=each, **rules))) for each in ("none", Ledger()))
    assert "Each decision" in none and "twenty add up" in none
    assert "3.04% for the first, 0.76% for the second" in open_
