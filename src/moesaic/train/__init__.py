"""How it learns: loop, optimizer, schedules in tokens, checkpoints, metrics, report."""
