"""Codes in plain words, for people who have not read the manual. A test holds them to docs/operating.md."""

from __future__ import annotations

REASONS = {
    "cheaper_at_the_margin": "Cheaper on our own GPUs",
    "self_hosted": "Own GPUs, by policy or because no API could take it",
    "below_threshold": "Own GPUs, load below the threshold",
    "api_only": "API, by policy or by the operator's switch",
    "control_group": "API, drawn at random to compare answers",
    "observe": "API, while decisions are only being watched",
    "no_self_hosted_candidate": "API, no GPU serves this model",
    "failover": "The first choice failed, this one answered",
    "fallback": "Second choice, should the first fail",
    "last_resort": "An API that had asked for a pause, nothing else was left",
    "waiting_for_room": "Waiting for room on a GPU",
    "no_backend_available": "Refused, nobody could serve it",
    "client_left": "The client left before anything was sent",
    "interrupted": "The gateway stopped with it in flight",
    "hopeless": "Too much that is worth more was ahead of it",
    "outbid": "Dearer requests wanted the GPU",
    "dearer": "Its electricity here costs more than the API",
    "ttft": "The first word would have come too late",
    "tpot": "It would have been written too slowly",
    "no_slot": "The GPU was full",
    "slow_start": "The GPU failed a while ago and is coming back",
    "kv_cache": "The GPU's memory was full",
    "congested": "The engine was holding requests back",
    "api_spend_max": "What APIs may cost together was used up",
    "budget": "The budget allows a GPU, but no API",
    "price_unknown": "The API's price is not known",
    "in_flight_max": "As many requests there as are allowed",
    "utilization_max": "Busier than the threshold",
    "gpu_util_max": "GPU busier than the threshold",
    "queue_max": "More waiting there than the threshold",
    "capability": "Cannot do what the request needs",
    "context_length": "The prompt is too long for it",
    "residency": "Its region is not allowed",
    "previous_response": "Does not have the response it goes on from",
    "tried": "Had just failed for this request",
    "waiting_max": "More waiting here than the threshold",
    "dwell": "Closed by a threshold a moment ago",
    "dearer_api": "Another API is cheaper",
    "suspect": "Had gone silent",
    "wedged": "The engine hangs",
    "asleep": "The engine sleeps",
    "paused": "The engine is paused",
    "unreachable": "Nothing answers there",
    "probation": "It failed too often",
    "ejected": "It failed too often",
    "draining": "Being taken out of service",
}

REFUSALS = {"insufficient_quota": "Refused, a budget did not hold it"}  # error codes in a reason's place

# State of a replica: (word, tone). Tones are good, warn, bad and calm; each has a sign of its own beside its colour.
HEALTH = {
    "ok": ("Healthy", "good"), "suspect": ("Silent", "warn"), "probation": ("Failing", "warn"),
    "draining": ("Draining", "calm"), "asleep": ("Asleep", "calm"), "paused": ("Paused", "calm"),
    "ejected": ("Failed", "bad"), "wedged": ("Hangs", "bad"), "unreachable": ("Down", "bad"),
}
WORST_FIRST = ("unreachable", "wedged", "ejected", "probation", "suspect", "paused", "asleep", "draining", "ok")

ENDINGS = {
    "complete": "Answered", "client_abort": "Client left", "upstream_error": "Failed", "upstream_refused": "Refused",
    "timeout": "Timed out", "interrupted": "Interrupted", "unavailable": "Not served", "limit": "Cut at a limit",
}

USAGE = {
    "upstream_final": "counted by whoever answered", "upstream_running": "counted while it was written",
    "estimated": "estimated", "none": "nothing was used",
}

GROUPS = {"route": "Model asked for", "key": "Key", "backend": "Backend", "model": "Model that answered",
          "day": "Day", "tag": "All tags"}

PER = {"hour": "this hour", "day": "today", "month": "this month", "total": "in total"}
SWITCH = {"all-api": "The operator's switch sends everything to the API.",
          "all-local": "The operator's switch keeps everything on the GPUs."}


def reason(code: str) -> str:
    return REASONS.get(code) or REFUSALS.get(code, code.replace("_", " "))


def ending(code: str) -> str:
    return ENDINGS.get(code, code.replace("_", " "))


def group(name: str) -> str:
    column, _, tag = name.partition(":")
    return f"Tag: {tag}" if tag else GROUPS[column]
