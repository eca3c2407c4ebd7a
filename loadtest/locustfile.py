"""Locust's users, shapes, web UI and workers over this package's generator.

    locust -f loadtest/locustfile.py --host grpc://localhost:8001

DGEMMA_LOADTEST_SCENARIO names what users ask; with DGEMMA_LOADTEST_SHAPE=scenario its stages say
how many there are, too. Results lie in DGEMMA_LOADTEST_OUT.
"""

from __future__ import annotations

from locust import events

from dgemma_loadtest.swarm.session import initialiser
from dgemma_loadtest.swarm.settings import SwarmSettings
from dgemma_loadtest.swarm.users import shape, user_classes

_settings = SwarmSettings.load()
_scenario = _settings.loaded()
_as_written = _settings.shape == "scenario"
_classes = user_classes(_scenario, all_stages=_as_written)

events.init.add_listener(initialiser(_settings, _scenario))
globals().update(_classes)  # Locust finds users by what a locustfile holds
if _as_written:
    ScenarioShape = shape(_scenario, _classes)
