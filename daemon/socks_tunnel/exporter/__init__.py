"""The exporter process: /metrics, /healthz and /readyz over HTTP."""
