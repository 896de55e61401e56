import pytest

from tests.bench.gateway.figures import Results


def session(name, cpu_s=1.0, p50=300.0, **more):
    return {"name": name, "load": 0.5, "start_s": 0.4, "start_cpu_s": 0.3, "idle_mib": 80.0, "fsync_us": 900.0,
            "sat": {"ok": 90, "started": 110, "rps": 50.0, "cpu_s": cpu_s, "failed": 0, "lag": {}},
            "lowlat": {"lat": {"p50": p50, "p99": 900.0}, "started": 200, "cpu_s": 0.1, "failed": 0, "lag": {}}, **more}


def test_ratios_are_of_medians_and_of_what_is_added_over_the_backend_alone():
    results = Results([session("direct", p50=100.0)] + [session("nginx", 0.5, 200.0)] * 2
                      + [session("ours", cpu_s, p50) for cpu_s, p50 in ((1.0, 400.0), (2.0, 300.0), (99.0, 9000.0))])
    assert results.value("nginx", "requests") == 200
    assert results.ratio("ours", "requests") == pytest.approx(0.25)
    assert results.ratio("ours", "p50_us") == pytest.approx(3.0)
    assert results.value("direct", "requests") is None  # of the backend alone no CPU time is counted
    assert results.value("direct", "p50_us") == 100.0


def test_what_was_not_measured_is_null():
    summary = Results([session("direct"), session("ours")]).summary(None)
    assert summary["requests_x_nginx"] is summary["chunks_x_nginx"] is summary["steps_us"] is None
    assert summary["idle_mib"] == 80.0
    assert Results([session("nginx"), session("ours")]).summary(None)["latency_x_nginx"] is None  # nothing to subtract


def test_a_session_that_failed_counts_for_nothing_and_is_told():
    results = Results([session("ours"), {"name": "ours", "load": 1.0, "error": "it did not start"}])
    assert len(results.of("ours")) == 1
    assert results.errors[0]["error"] == "it did not start"


def test_wrong_answers_and_the_loop_s_lag_are_added_up_over_rounds():
    one = session("ours")
    one["sat"] |= {"failed": 3, "lag": {"0.001": 989.0, "0.01": 999.0, "inf": 1000.0}}
    results = Results([one, one])
    assert results.failed("ours") == {"sat": 6}
    assert results.lag_ms() == pytest.approx(10.0)
    assert Results([session("ours")]).lag_ms() is None
