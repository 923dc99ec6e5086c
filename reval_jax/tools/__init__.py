"""Commands beside training: plan, bench, report, doctor and the demo."""
