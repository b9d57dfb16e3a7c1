"""Parts of the serving benchmarks: reference model, requests, roofline, and drivers of other engines."""
