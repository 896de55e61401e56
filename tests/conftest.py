"""For every test: records are what they promise to be."""

from proxy.core.records import guard

guard()
