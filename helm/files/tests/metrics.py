"""The metrics of dashboards and alerts are there; histograms come with the first request."""

from __future__ import annotations

from asking import failed, text

EXPECTED = (
    "num_requests_running",
    "num_requests_waiting",
    "num_request_max",
    "gpu_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "dgemma_requests_total",
    "dgemma_passes_total",
    "dgemma_engine_info",
    "dgemma_profile_info",
    "dgemma_http_triton_metrics_up",
    "dgemma_ready",
)
found = {line.split("{")[0].split(" ")[0] for line in text("/v1/metrics").splitlines()}
missing = [name for name in EXPECTED if name not in found]
if missing:
    failed(f"/v1/metrics lacks {', '.join(missing)}")
print(f"{len(found)} names, all of the {len(EXPECTED)} expected ones")
