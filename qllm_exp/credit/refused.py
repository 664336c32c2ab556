"""The exception for a generated function that is not accepted, and the names that such a function may have."""

FUNCTION_NAMES = ("credit_assignment", "QLLMNetwork")  # the second is the name that published functions carry


MAX_REASON = 2_000  # characters


class Refused(Exception):
    """A generated function is not accepted.

    Args:
        stage: the gate that refused the function: 'answer' (no code in the answer), 'static', 'run', 'trace',
            'convert', 'program', 'limits' (time or memory) or 'probe'; see generation/verify.py. In a search also 'novelty': it
            computes the same as an earlier function.
        reason: what is wrong and what to write instead, phrased so that a language model can act on it.

    Attributes:
        stage: as above.
        reason: as above, shortened in the middle to fewer than MAX_REASON characters. Characters that UTF-8 cannot
            encode are replaced.
    """

    def __init__(self, stage: str, reason: str) -> None:
        reason = reason.encode(errors="replace").decode()
        if len(reason) >= MAX_REASON:
            reason = f"{reason[: MAX_REASON // 2 - 10]} ... {reason[-MAX_REASON // 2 + 10 :]}"
        super().__init__(stage, reason)
        self.stage, self.reason = stage, reason

    def __str__(self) -> str:
        return self.reason
