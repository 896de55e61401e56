"""Configuration, version 1: one YAML file in, frozen `Settings` out, or every problem with its line.

    load(path) -> Settings            raises ConfigError, which holds every Problem
    warnings(settings) -> [Problem]   what works but is probably not meant
    load_price_book(settings)         in `proxy.config.prices`, which reads the price package lazily
"""

from proxy.config.backend import Backend, Capacity, DatedRate, Gpu
from proxy.config.cautions import warnings
from proxy.config.load import load
from proxy.config.model import Electricity, Keys, Overhead, Report, Route, Server, Settings, Slo, Thresholds
from proxy.config.problem import ConfigError, Problem
from proxy.config.routes import RouteTable
from proxy.config.secrets import Secret

__all__ = [
    "Backend", "Capacity", "ConfigError", "DatedRate", "Electricity", "Gpu", "Keys", "Overhead", "Problem", "Report",
    "Route", "RouteTable", "Secret", "Server", "Settings", "Slo", "Thresholds", "load", "warnings",
]
