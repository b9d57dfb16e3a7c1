"""How it survives: ranks supervised and restarted, hangs and slow ranks found, faults rehearsed."""
