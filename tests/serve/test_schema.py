"""Requests made of the API's own schema: none ends in a fault of the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from servers import serving

import flowturbo as ft

EXAMPLES = 40


@pytest.mark.slow
def test_no_request_ends_in_a_fault_of_the_server(text_model):
    with serving(ft.load(text_model)) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) >= 7
        statuses = set()
        for operation in operations:
            modes = schemathesis.GenerationMode
            for mode in modes if operation.body else [modes.POSITIVE]:

                @given(operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                    phases=[Phase.generate], suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                def check(case):
                    answer = case.call()
                    statuses.add(answer.status_code)
                    if answer.status_code >= 400:
                        assert [*answer.json()] == ["error"]
                    if answer.status_code >= 500:  # a request may ask for no time at all
                        assert answer.json()["error"]["code"] == "timeout"

                check()
        assert {200, 400, 404} <= statuses
