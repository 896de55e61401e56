"""Who loses a ticket where memory is full is who has most, however many keys there are."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.server.tickets import Ticket, Tickets

KEYS = ["a", "b", "c"]
MOST = 4


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 5), st.booleans(), st.booleans()), min_size=15,
                max_size=80))
def test_the_fullest_goes_first_whatever_came_and_went(steps):
    tickets, have = Tickets(), {}  # what each key has, oldest first: {given: in flight}
    for key_id, number, in_flight, leaves in steps:
        given_key = b"%d" % number
        if leaves:
            assert (tickets.pop((key_id, given_key)) is not None) == (
                have.get(key_id, {}).pop(given_key, None) is not None)
            continue
        if given_key in have.get(key_id, {}):
            continue
        before = {one: len(own) for one, own in have.items()}
        tickets.room_for(key_id, MOST)
        left = {one: {name for name in own if tickets.get((one, name)) is not None} for one, own in have.items()}
        for one, own in have.items():
            gone = own.keys() - left[one]
            assert not any(own[name] for name in gone), "one in flight is gone"
            if gone:  # nobody who could have lost one has more than who did, counting what this key brings
                most = max((before[other] + (other == key_id) for other, theirs in have.items()
                            if not all(theirs.values())), default=0)
                assert before[one] + (one == key_id) == most
            have[one] = {name: flies for name, flies in own.items() if name in left[one]}
        idle = any(not flies for own in have.values() for flies in own.values())
        assert len(tickets) < MOST or not idle
        tickets[key_id, given_key] = Ticket(b"", 0.0, "req", in_flight=in_flight)
        have.setdefault(key_id, {})[given_key] = in_flight
        assert len(tickets) == sum(map(len, have.values())) == len(list(tickets))
