"""What of each backend a request needs to know, gathered once from the configuration, the board and the price book."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config.model import Backend, Settings
from proxy.core.charges import Internal, Varying
from proxy.core.pricing import UNPRICED, Dated, Pair, Price, PriceBook
from proxy.server.standing import Standings
from proxy.signals.board import Api, Board
from proxy.signals.replica import Replica

ANY_MODEL = "*"
# Tiers that are billed as another: nothing asked, and names that providers report for one price.
TIERS = {None: "default", "": "default", "auto": "default", "standard": "default", "default": "default"}


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """One backend. `keys` are those of its replicas' rooms; `varying` and `internal` what its work is charged, if
    anything is (`charges`)."""

    name: str
    backend: Backend
    on_gpu: bool
    capabilities: frozenset[str]
    region: str | None
    model: str | None  # None: the client's
    provider: str
    prices: PriceBook
    dated: Dated | None  # of its own model, where it has one and that has a price
    replicas: list[Replica]
    keys: frozenset[str]
    api: Api | None
    varying: Varying
    internal: Internal
    charges: bool
    standings: Standings

    def model_for(self, client_model: str) -> str:
        """What this backend is asked for."""
        return client_model if self.model is None else self.model

    def price(self, client_model: str, at_ns: int, tier: str | None = None) -> Price | None:
        """The API price that is paid in that service tier; None where it is not known."""
        return self.both(client_model, at_ns, tier)[0]

    def both(self, client_model: str, at_ns: int, tier: str | None = None, ended_ns: int | None = None,
             alone: bool = False) -> Pair:
        """What is paid, and the list price; the same object where there is no contract. Where what is paid depends on
        how much was used: of a request that ended then (None: now), by what was served or, `alone`, by what pure-API
        billing would have served."""
        dated = self.dated or (None if self.model is not None else self.prices.dated(self.provider, client_model))
        if dated is None:
            return UNPRICED
        pair = dated.both(at_ns, TIERS.get(tier) or tier or "default")
        if dated.terms is None or pair[0] is None:
            return pair
        standing = self.standings.alone if alone else self.standings.actual
        return dated.terms.paid(pair[0], at_ns if ended_ns is None else ended_ns, standing), pair[1]

    def free(self, client_model: str, at_ns: int) -> bool:
        """Whether a contract makes one more request cost nothing at the margin, whatever its price."""
        dated = self.dated or (None if self.model is not None else self.prices.dated(self.provider, client_model))
        return dated is not None and dated.terms is not None and dated.terms.free(at_ns, self.standings.actual)

    def dearest_nano(self, client_model: str, at_ns: int, input_tokens: int, output_tokens: int) -> int | None:
        """The most that so many tokens may cost at an API, in any tier; None where no price is known."""
        dated = self.dated or (None if self.model is not None else self.prices.dated(self.provider, client_model))
        ceiling = None if dated is None else dated.ceiling(at_ns)
        return None if ceiling is None else ceiling.nano(input_tokens, output_tokens)


def offers(settings: Settings, board: Board, prices: PriceBook, standings: Standings) -> dict[str, Offer]:
    """By name, in the order of the configuration."""
    return {name: _offer(backend, board, prices, standings) for name, backend in settings.backends.items()}


def _offer(backend: Backend, board: Board, prices: PriceBook, standings: Standings) -> Offer:
    replicas, rate, varying = board.replicas.get(backend.name, []), backend.internal_rate, board.varying[backend.name]
    internal = Internal() if rate is None else Internal(rate.input_usd_per_mtok, rate.output_usd_per_mtok)
    return Offer(
        backend.name, backend, backend.gpu is not None, frozenset(backend.capabilities), backend.region,
        None if backend.model == ANY_MODEL else backend.model, backend.provider or "", prices,
        prices.dated(backend.provider or "", backend.model), replicas,
        frozenset(replica.room.key for replica in replicas), board.apis.get(backend.name), varying, internal,
        backend.gpu is None or varying.ever or bool(internal), standings)
