"""The best sampler for a network and a number of calls, found, proven and exported.

`tune` is the whole; `tables` has the families that are fitted, `trials` what is measured, `fit` the
method, `teacher` the truth, `candidates` what is to be beaten, and `report` the answer.
"""
