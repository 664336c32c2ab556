"""TODO."""

FUNCTION_NAMES = ("credit_assignment", "QLLMNetwork")  # the second is the name that published functions carry


MAX_REASON = 2_000  # characters


class Refused(Exception):
    """A generated function is not accepted.

    Attributes:
        stage: the gate that refused it: 'answer' (no code in it), 'static', 'run', 'trace', 'convert', 'program',
            'limits' (time or memory) or 'probe' (verify.py).
        reason: what is wrong and what to write instead, in words that a language model can act on; fewer than
            MAX_REASON characters, which any encoding of Unicode can write.
    """

    def __init__(self, stage: str, reason: str) -> None:
        reason = reason.encode(errors="replace").decode()
        if len(reason) >= MAX_REASON:
            reason = f"{reason[: MAX_REASON // 2 - 10]} ... {reason[-MAX_REASON // 2 + 10 :]}"
        super().__init__(stage, reason)
        self.stage, self.reason = stage, reason

    def __str__(self) -> str:
        return self.reason
