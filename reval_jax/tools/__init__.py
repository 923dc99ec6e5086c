"""Tools around training: plan, bench, report, doctor and the demo."""
