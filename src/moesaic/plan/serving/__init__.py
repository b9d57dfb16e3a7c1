"""Serving: where a model fits, how fast it decodes and prefills, what a thousand tokens cost.

`Replica` names a model on devices; `memory` says what fits; `work` counts bytes and FLOPs of one stage; `roofline`
turns them into seconds with the fitted constants of `profile`; `batching` closes the loop with the requests; `cost`
prices it; `report` writes the sheet.
"""
