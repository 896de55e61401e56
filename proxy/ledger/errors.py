"""The one error of the ledger."""

from __future__ import annotations

from proxy.core.errors import Unavailable


class LedgerUnavailable(Unavailable):
    """The ledger cannot be opened or written now.

    `message` is for the operator: the path, what happened, what to do. `client_message` names no path.
    `kept`: the entry waits in memory and will be written when the ledger is back; False: it was refused.
    """

    code = "ledger_unavailable"
    client_message = "The gateway cannot record requests at the moment. Please try again."

    def __init__(self, message: str, *, kept: bool = False) -> None:
        super().__init__(message, retry_after_s=1.0)
        self.kept = kept
