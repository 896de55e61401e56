"""For every test: records are what they promise to be, and how long a machine takes to draw an example is no test."""

from hypothesis import HealthCheck, settings

from proxy.core.records import guard

guard()
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
