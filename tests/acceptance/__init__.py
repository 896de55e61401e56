"""`make accept`: the whole gateway under mixed, faulty and excessive load, judged by the simulators' own books."""
