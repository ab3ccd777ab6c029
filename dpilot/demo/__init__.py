"""The demo: one job on real data at three sites. Start reading at :mod:`dpilot.demo.flights`."""
