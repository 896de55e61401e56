from prometheus_client import CollectorRegistry

from proxy.server.loop_lag import BOUNDS_S, TICK_S, LoopLag


class Clock:
    """A clock and a loop of one timer, which fires when it is told to."""

    def __init__(self):
        self.now, self.armed = 100.0, None

    def __call__(self):
        return self.now

    def call_later(self, delay_s, callback, *arguments):
        assert delay_s == TICK_S
        self.armed = lambda: callback(*arguments)

    def fire(self, late_s):
        self.now += TICK_S + late_s
        self.armed()


def counted(clock, lag):
    registry = CollectorRegistry()
    registry.register(lag)
    return lambda most: registry.get_sample_value("breakeven_loop_lag_seconds_bucket", {"le": most})


def test_each_tick_counts_by_how_late_it_came_and_arms_the_next():
    clock = Clock()
    lag = LoopLag(clock)
    lag._arm(clock)
    for late_s in (0.0, -0.001, 0.0015, 0.012, 60.0):  # a timer kept to the millisecond may come early
        clock.fire(late_s)
    count = counted(clock, lag)
    assert [count(one) for one in ("0.001", "0.002", "0.01", "0.015", "5.0", "+Inf")] == [2, 3, 3, 4, 4, 5]


def test_the_goal_of_10_ms_is_a_bound():
    assert 0.01 in BOUNDS_S
